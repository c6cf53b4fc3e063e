//! [`Owner`]: the one thread that owns a folder's objects. Everybody else sends it messages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use super::declarations::{Declarations, Wanted};
use super::lock::Lock;
use super::objects::{Change, Objects, Planned};
use super::parser::{Parser, Work};
use super::record::Birth;
use super::report::Report;
use super::state_log::StateLog;
use super::watcher::{Signal, Watcher};
use super::{files, writes};
use crate::backend::{Interruption, KindName, Preconditions};
use crate::manifest::{Key, Manifest};
use crate::{Error, Event};

/// How long a file that is being written is left alone after its last change: long enough for a writer that flushes
/// in pieces, short enough to be no delay. A file that its writer closed is read at once.
const SETTLING: Duration = Duration::from_millis(20);
/// How long an object whose definition went away stays, for the definition may come back under another file name or
/// by an editor that renames. Longer than [`SETTLING`], so that the new file is read first.
const GRACE: Duration = Duration::from_millis(30);
/// How soon a failed write of the state is tried again.
const RETRY: Duration = Duration::from_secs(1);

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What others ask of the owner.
pub(crate) enum Message {
    Get(Key, Reply<Option<Value>>),
    List(KindName, Reply<Vec<Value>>),
    Watch(KindName, mpsc::UnboundedSender<Event<Value>>),
    Create(KindName, Value, Reply<Value>),
    Update(KindName, Value, Reply<Value>),
    UpdateStatus(KindName, Value, Reply<Value>),
    Delete(Key, Preconditions, Reply<()>),
    Signal(Signal),
    /// What a file says that was parsed beside.
    Parsed {
        file: String,
        manifest: Manifest,
    },
    Stop,
}

/// What the owner tells without being asked.
pub(crate) struct Notices {
    pub(crate) reports: watch::Sender<Arc<Vec<Report>>>,
    pub(crate) interruption: watch::Sender<Option<Interruption>>,
}

pub(crate) struct Owner {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) watcher: Watcher,
    pub(crate) log: StateLog,
    pub(crate) objects: Objects,
    pub(crate) notices: Notices,
    /// What was lost of the state at start.
    pub(crate) broken_state: Vec<String>,
    pub(crate) _lock: Lock,
    pub(crate) declarations: Declarations,
    /// A mark of each file's content: what did not change is not parsed.
    pub(crate) contents: BTreeMap<String, u64>,
    pub(crate) parser: Parser,
    /// Files that are being parsed beside. What they said before stays in force meanwhile, and what happens to them
    /// waits for it.
    pub(crate) parsing: BTreeSet<String>,
    pub(crate) watchers: BTreeMap<KindName, Vec<mpsc::UnboundedSender<Event<Value>>>>,
    /// Files to read, and when.
    pub(crate) unread: BTreeMap<PathBuf, Instant>,
    /// Objects nobody defines any more, and when they go.
    pub(crate) leaving: BTreeMap<Key, Instant>,
    /// Changes by files that could not be written to the state yet.
    pub(crate) unsaved: BTreeSet<Key>,
    pub(crate) retry: Option<Instant>,
    pub(crate) root_missing: bool,
    /// Folders that cannot be watched, and why.
    pub(crate) unwatched: BTreeMap<PathBuf, String>,
}

impl Owner {
    /// Reads the whole folder. What was defined in files that are gone goes at once: nobody saw it go.
    pub(crate) fn load(&mut self) -> std::io::Result<()> {
        if let Some(parent) = self.root.parent().map(Path::to_owned) {
            // So that a folder that is replaced by another is noticed. Not being allowed to look there is no failure.
            let _ = self.watcher.follow(&parent);
        }
        self.rescan(&self.root.clone())?;
        let now = Instant::now();
        let gone: Vec<String> =
            self.objects.files().filter(|file| !self.unread.contains_key(&self.root.join(file))).cloned().collect();
        for file in gone {
            self.unread.insert(self.root.join(file), now);
        }
        self.read_files(now, false);
        self.leaving.values_mut().for_each(|at| *at = now);
        self.remove_leaving(now);
        self.report();
        Ok(())
    }

    pub(crate) fn run(mut self, inbox: &Receiver<Message>) {
        loop {
            let message = match self.next_deadline() {
                Some(deadline) => match inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(message) => Some(message),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
                None => match inbox.recv() {
                    Ok(message) => Some(message),
                    Err(_) => return,
                },
            };
            // Events of one rename come together: take what is there before acting on any of it.
            for message in message.into_iter().chain(inbox.try_iter().take(1024).collect::<Vec<_>>()) {
                if matches!(message, Message::Stop) {
                    return;
                }
                self.take(message);
            }
            self.act(Instant::now());
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let unread = self.unread.iter().filter(|(path, _)| !self.is_parsing(path)).map(|(_, at)| at);
        // What seems to leave waits for the files, see `act`.
        let leaving = self.leaving.values().filter(|_| self.all_is_read());
        unread.chain(leaving).chain(&self.retry).min().copied()
    }

    fn is_parsing(&self, path: &Path) -> bool {
        let file = path.strip_prefix(&self.root).map(Path::to_string_lossy);
        file.is_ok_and(|file| self.parsing.contains(&*file))
    }

    fn all_is_read(&self) -> bool {
        self.unread.is_empty() && self.parsing.is_empty()
    }

    fn act(&mut self, now: Instant) {
        let read = self.read_files(now, true);
        // While files wait to be read, one of them may define what seems to leave.
        let removed = self.all_is_read() && self.remove_leaving(now);
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            if self.root_missing {
                let _ = self.rescan(&self.root.clone());
            }
            self.save_unsaved(now);
            self.report();
        } else if read || removed {
            self.report();
        }
        if let Err(error) = self.log.compact_when_due(&self.objects) {
            tracing::warn!(state = %self.state.display(), %error, "the state cannot be compacted: check space and permissions");
        }
    }

    fn take(&mut self, message: Message) {
        // A reply nobody waits for any more is no failure.
        match message {
            Message::Get(key, reply) => {
                let _ = reply.send(Ok(self.objects.get(&key).map(|record| record.object.clone())));
            }
            Message::List(kind, reply) => {
                let _ = reply.send(Ok(self.objects.list(kind)));
            }
            Message::Watch(kind, watcher) => {
                if watcher.send(Event::Reset(self.objects.list(kind))).is_ok() {
                    self.watchers.entry(kind).or_default().push(watcher);
                }
            }
            Message::Create(kind, object, reply) => {
                let _ = reply.send(self.write(|planned| writes::create(planned, kind, object)));
            }
            Message::Update(kind, object, reply) => {
                let _ = reply.send(self.write(|planned| writes::update(planned, kind, object)));
            }
            Message::UpdateStatus(kind, object, reply) => {
                let _ = reply.send(self.write(|planned| writes::update_status(planned, kind, object)));
            }
            Message::Delete(key, only_if, reply) => {
                let _ = reply.send(self.write(|planned| writes::delete(planned, &key, &only_if)));
            }
            Message::Signal(signal) => self.signalled(signal),
            Message::Parsed { file, manifest } => {
                self.parsing.remove(&file);
                let touched = self.declarations.set(&file, Some(manifest), &self.objects);
                self.apply(&touched, Instant::now());
                self.report();
            }
            Message::Stop => {}
        }
    }

    /// Plans a write, makes it safe, makes it true, tells the watchers.
    fn write<T>(&mut self, write: impl FnOnce(&mut Planned<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let mut planned = Planned::new(&self.objects, &birth);
        let answer = write(&mut planned)?;
        let plan = planned.finish();
        self.log.append(&plan).map_err(|error| self.disk_error(&error))?;
        self.objects.commit(&plan);
        self.tell(&plan);
        Ok(answer)
    }

    fn disk_error(&self, error: &std::io::Error) -> Error {
        Error::Disk { path: self.state.display().to_string(), detail: format!("the state cannot be written: {error}") }
    }

    fn tell(&mut self, plan: &[Change]) {
        for change in plan.iter().filter(|change| change.is_visible()) {
            let Some(watchers) = self.watchers.get_mut(&change.key.kind) else { continue };
            let event = match (&change.after, &change.before) {
                (Some(after), _) => Event::Applied(after.object.clone()),
                (None, Some(before)) => Event::Deleted(before.object.clone()),
                (None, None) => continue,
            };
            watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
        }
    }

    fn signalled(&mut self, signal: Signal) {
        let now = Instant::now();
        let (path, due) = match signal {
            Signal::Lost => {
                tracing::warn!(folder = %self.root.display(), "file events were lost: reading the folder again");
                return self.rescan_or_report(&self.root.clone());
            }
            Signal::Settled(path) => (path, now),
            Signal::Unsettled(path) => (path, now + SETTLING),
        };
        if path == self.root {
            return self.rescan_or_report(&path);
        }
        let Ok(inside) = path.strip_prefix(&self.root) else { return };
        if path.starts_with(&self.state) {
            return;
        }
        // A mounted ConfigMap changes all its files by moving one hidden link.
        if path.file_name().is_some_and(|name| name == "..data") {
            if let Some(folder) = path.parent() {
                self.rescan_or_report(folder);
            }
            return;
        }
        if inside.components().any(|part| part.as_os_str().to_string_lossy().starts_with('.')) {
            return;
        }
        if self.watcher.is_followed(&path) || std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            return self.rescan_or_report(&path);
        }
        if files::is_manifest(&path) {
            self.unread.insert(path, due);
        }
    }

    fn rescan_or_report(&mut self, folder: &Path) {
        if let Err(error) = self.rescan(folder) {
            tracing::warn!(folder = %folder.display(), %error, "the folder cannot be read");
        }
        self.report();
    }

    /// Watches and reads a folder and all below it, and lets go of what is not there any more.
    fn rescan(&mut self, folder: &Path) -> std::io::Result<()> {
        let now = Instant::now();
        if folder == self.root {
            self.root_missing = !self.root.is_dir();
            if self.root_missing {
                // The folder may be about to be replaced: everything stays in force until it is back.
                self.watcher.forget(&self.root);
                self.retry.get_or_insert(now + RETRY);
                return Err(std::io::Error::other("the manifests folder is gone"));
            }
        }
        // Whatever was known below is looked at again: it may be gone.
        let known: Vec<PathBuf> = self
            .declarations
            .files()
            .map(|file| self.root.join(file))
            .filter(|path| path.starts_with(folder))
            .collect();
        self.unread.extend(known.into_iter().map(|path| (path, now)));
        self.unwatched.retain(|path, _| !path.starts_with(folder));
        if !folder.is_dir() {
            self.watcher.forget(folder);
            return Ok(());
        }
        let (watcher, unwatched) = (&mut self.watcher, &mut self.unwatched);
        // An old watch of that path may be of a folder that was moved away.
        watcher.forget(folder);
        let found = files::walk(folder, &self.state, &mut |folder| {
            if let Err(reason) = watcher.follow(folder) {
                unwatched.insert(folder.to_owned(), reason);
            }
        })?;
        self.unread.extend(found.into_iter().map(|path| (path, now)));
        Ok(())
    }

    /// Reads the files that are due. One file that is due brings the settled others along, so that what moved from
    /// one to the other is seen at once. Large ones are parsed `beside`, where that is allowed. Returns whether
    /// anything was read.
    fn read_files(&mut self, now: Instant, beside: bool) -> bool {
        let is_due = |path: &Path, at: Instant| at <= now && !self.is_parsing(path);
        let due: Vec<PathBuf> =
            self.unread.iter().filter(|(path, at)| is_due(path, **at)).map(|(path, _)| path.clone()).collect();
        let mut touched = BTreeSet::new();
        for path in &due {
            self.unread.remove(path);
            let Ok(inside) = path.strip_prefix(&self.root) else { continue };
            let file = inside.to_string_lossy().into_owned();
            let manifest = match files::read(path) {
                None => {
                    self.contents.remove(&file);
                    None
                }
                Some((mark, content)) => {
                    if self.contents.insert(file.clone(), mark) == Some(mark) {
                        continue;
                    }
                    let before = self.declarations.file(&file).cloned();
                    match self.hand_over(beside, Work { file: file.clone(), content, before }) {
                        Some(work) => Some(work.parse()),
                        None => continue,
                    }
                }
            };
            touched.extend(self.declarations.set(&file, manifest, &self.objects));
        }
        self.apply(&touched, now);
        !due.is_empty()
    }

    /// Leaves a large file to the parser; gives back what is to be parsed here.
    fn hand_over(&mut self, beside: bool, work: Work) -> Option<Work> {
        if !beside || !work.content.is_large() {
            return Some(work);
        }
        let file = work.file.clone();
        match self.parser.leave(work) {
            Ok(()) => {
                self.parsing.insert(file);
                None
            }
            Err(work) => Some(work),
        }
    }

    /// Makes the objects what the files want of them.
    fn apply(&mut self, touched: &BTreeSet<Key>, now: Instant) {
        let mut planned = Planned::new(&self.objects, &birth);
        for key in touched {
            let file = self.objects.get(key).and_then(|record| record.file());
            match self.declarations.wanted(key, file) {
                Wanted::Declared(file, document) => {
                    self.leaving.remove(key);
                    writes::declare(&mut planned, key, file, &document.object);
                }
                Wanted::Kept => {
                    self.leaving.remove(key);
                }
                Wanted::Undeclared if file.is_some() => {
                    self.leaving.entry(key.clone()).or_insert(now + GRACE);
                }
                Wanted::Undeclared => {}
            }
        }
        let plan = planned.finish();
        self.follow_files(&plan, now);
    }

    fn remove_leaving(&mut self, now: Instant) -> bool {
        let due: Vec<Key> = self.leaving.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        let mut planned = Planned::new(&self.objects, &birth);
        for key in &due {
            self.leaving.remove(key);
            writes::undeclare(&mut planned, key);
        }
        let plan = planned.finish();
        self.follow_files(&plan, now);
        !due.is_empty()
    }

    /// What the files say is true whether or not the disk takes it; it is written to the state as soon as that works.
    fn follow_files(&mut self, plan: &[Change], now: Instant) {
        self.objects.commit(plan);
        self.unsaved.extend(plan.iter().map(|change| change.key.clone()));
        self.save_unsaved(now);
        self.tell(plan);
    }

    fn save_unsaved(&mut self, now: Instant) {
        if self.unsaved.is_empty() {
            return;
        }
        let version = self.objects.version();
        let changes: Vec<Change> = self
            .unsaved
            .iter()
            .map(|key| Change { version, key: key.clone(), before: None, after: self.objects.get(key).cloned() })
            .collect();
        match self.log.append(&changes) {
            Ok(()) => {
                self.unsaved.clear();
                if self.notices.interruption.borrow().is_some() {
                    self.notices.interruption.send_replace(None);
                }
            }
            Err(error) => {
                let reason = self.disk_error(&error).to_string();
                self.notices.interruption.send_if_modified(|current| {
                    let changed = current.is_none();
                    current.get_or_insert(Interruption { since: SystemTime::now(), reason });
                    changed
                });
                self.retry = Some(now + RETRY);
            }
        }
    }

    /// Publishes what is wrong now, and logs what is newly so.
    fn report(&self) {
        let mut reports = self.declarations.reports(&self.objects);
        let about = |path: &Path, reason: &str| Report {
            file: path.display().to_string(),
            line: None,
            object: None,
            reason: reason.to_owned(),
            last_good_in_force: false,
        };
        if self.root_missing {
            let reason = "the manifests folder is gone: everything it defined stays in force until it is back";
            reports.push(Report { last_good_in_force: true, ..about(&self.root, reason) });
        }
        reports.extend(self.unwatched.iter().map(|(path, reason)| about(path, reason)));
        reports.extend(self.broken_state.iter().map(|reason| about(&self.state, reason)));
        reports.extend(self.notices.interruption.borrow().iter().map(|why| about(&self.state, &why.reason)));
        let known = self.notices.reports.borrow().clone();
        if *known == reports {
            return;
        }
        for report in reports.iter().filter(|report| !known.contains(report)) {
            tracing::warn!("{report}");
        }
        self.notices.reports.send_replace(Arc::new(reports));
    }
}

/// A new object's uid (RFC 9562, version 4) and time.
fn birth() -> Birth {
    let mut bytes = [0u8; 16];
    // The kernel has had random numbers since long before this process.
    getrandom::fill(&mut bytes).unwrap_or_else(|error| panic!("the kernel gives no random numbers: {error}"));
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let uid = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    Birth { uid, time }
}
