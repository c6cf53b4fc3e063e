//! [`StateLog`]: the objects on disk, as numbered files of JSON lines: `objects-<number>.log`.
//!
//! Each change is one line at the end of the newest file, written before anybody hears of it. Read in order the files
//! give the objects; a line `{"reset":…}` says that what follows is everything. When much was written, a thread beside
//! writes a file with nothing but what is there now (beside, fsync, rename, fsync of the folder) and removes the older.
//!
//! **What is promised.** A write that was acknowledged is in the kernel's hands: it survives a SIGKILL of this process
//! at any moment. fsync follows at once on the thread beside, many writes sharing one, so a power failure costs at most
//! what was written during the last flush, and never leaves half a change: a torn last line is left out.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use super::objects::{Change, Objects};
use super::record::Record;
use crate::backend::ObjectKey;
use crate::kinds;
use crate::manifest::Key;

/// Bytes written since the last compaction that make the next one due. Below this a restart reads them in no time.
const COMPACT_AFTER_BYTES: u64 = 4 * 1024 * 1024;
/// The longest line, in bytes: the largest manifest, had each of its characters to be escaped.
const MAX_LINE_BYTES: u64 = 32 * 1024 * 1024;

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line {
    Reset {
        version: u64,
    },
    Kept {
        version: u64,
        #[serde(flatten)]
        place: Place,
        #[serde(flatten)]
        record: Box<Record>,
    },
    Gone {
        version: u64,
        #[serde(flatten)]
        place: Place,
    },
}

#[derive(Serialize, Deserialize)]
struct Place {
    group: String,
    kind: String,
    #[serde(flatten)]
    object: ObjectKey,
}

pub(crate) struct StateLog {
    folder: PathBuf,
    number: u64,
    file: Arc<File>,
    /// Bytes of the newest file that are whole lines.
    length: u64,
    /// Bytes after which compaction is due.
    due: u64,
    to_disk: Option<Sender<ToDisk>>,
    thread: Option<JoinHandle<()>>,
}

/// Work for the thread that waits for the disk.
enum ToDisk {
    Flush(Arc<File>),
    Compact { number: u64, version: u64, records: Vec<(Key, Arc<Record>)> },
}

impl StateLog {
    /// Reads the objects kept in `folder` and begins a new file. What could not be read is returned as messages; the
    /// files they stand in are set aside as `.broken`, never removed.
    pub(crate) fn open(folder: &Path) -> std::io::Result<(Self, Objects, Vec<String>)> {
        let mut objects = Objects::default();
        let mut broken = Vec::new();
        let mut numbers = Vec::new();
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name();
            if let Some(number) = number_of(&name.to_string_lossy()) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        let mut read = 0;
        for number in &numbers {
            let path = path_of(folder, *number);
            read += fs::metadata(&path)?.len();
            let found = read_file(&path, &mut objects)?;
            // A power failure tears a file's last line, which nobody was told of yet. Anything else is damage.
            if !found.iter().all(|problem| problem.torn) {
                let aside = path.with_extension("broken");
                fs::copy(&path, &aside)?;
                broken.extend(found.iter().map(|problem| {
                    format!(
                        "line {} of {} is lost: {}; the file is kept as {}",
                        problem.line,
                        path.display(),
                        problem.reason,
                        aside.display()
                    )
                }));
            }
        }
        let number = numbers.last().map_or(1, |last| last + 1);
        let file = Arc::new(new_file(&path_of(folder, number))?);
        File::open(folder)?.sync_all()?;
        let (to_disk, work) = channel();
        let thread = std::thread::Builder::new().name("state-to-disk".into()).spawn({
            let folder = folder.to_owned();
            move || write_behind(&folder, &work)
        })?;
        let mut log = Self {
            folder: folder.to_owned(),
            number,
            file,
            length: 0,
            due: COMPACT_AFTER_BYTES,
            to_disk: Some(to_disk),
            thread: Some(thread),
        };
        if read > COMPACT_AFTER_BYTES || numbers.len() > 8 || !broken.is_empty() {
            log.compact(&objects)?;
        }
        Ok((log, objects, broken))
    }

    /// Adds changes. They are safe from a SIGKILL when this returns; when it fails, nothing was added.
    pub(crate) fn append(&mut self, changes: &[Change]) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for change in changes {
            write_line(&mut bytes, change.version, &change.key, change.after.as_deref())?;
        }
        if bytes.is_empty() {
            return Ok(());
        }
        if let Err(error) = (&*self.file).write_all(&bytes) {
            // Half a line would swallow the next one.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += bytes.len() as u64;
        self.send(ToDisk::Flush(Arc::clone(&self.file)));
        Ok(())
    }

    /// Begins a new file when much was written, and has the older ones written anew.
    pub(crate) fn compact_when_due(&mut self, objects: &Objects) -> std::io::Result<()> {
        if self.length < self.due { Ok(()) } else { self.compact(objects) }
    }

    fn compact(&mut self, objects: &Objects) -> std::io::Result<()> {
        let compacted = self.number + 1;
        let file = new_file(&path_of(&self.folder, compacted + 1))?;
        self.file = Arc::new(file);
        self.number = compacted + 1;
        self.length = 0;
        let records = objects.iter().map(|(key, record)| (key.clone(), Arc::clone(record))).collect();
        self.send(ToDisk::Compact { number: compacted, version: objects.version(), records });
        Ok(())
    }

    fn send(&self, work: ToDisk) {
        if let Some(to_disk) = &self.to_disk {
            // The thread ends only after this sender is dropped.
            let _ = to_disk.send(work);
        }
    }
}

impl Drop for StateLog {
    /// Waits for the disk.
    fn drop(&mut self) {
        self.to_disk = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread that waits for the disk, so that nobody else does.
fn write_behind(folder: &Path, work: &Receiver<ToDisk>) {
    while let Ok(first) = work.recv() {
        let mut files: Vec<Arc<File>> = Vec::new();
        for work in std::iter::once(first).chain(work.try_iter().collect::<Vec<_>>()) {
            match work {
                // All writes that came meanwhile share one flush.
                ToDisk::Flush(file) => {
                    if !files.iter().any(|known| Arc::ptr_eq(known, &file)) {
                        files.push(file);
                    }
                }
                ToDisk::Compact { number, version, records } => {
                    if let Err(error) = compacted(folder, number, version, &records) {
                        // Nothing is lost: the older files are still there, and the next compaction tries again.
                        tracing::warn!(folder = %folder.display(), %error, "the state cannot be compacted: check space and permissions");
                    }
                }
            }
        }
        for file in files {
            if let Err(error) = file.sync_data() {
                tracing::error!(folder = %folder.display(), %error, "the state cannot be flushed: check the disk");
            }
        }
    }
}

fn compacted(folder: &Path, number: u64, version: u64, records: &[(Key, Arc<Record>)]) -> std::io::Result<()> {
    let beside = folder.join("objects.new");
    let _ = fs::remove_file(&beside);
    let mut out = std::io::BufWriter::new(new_file(&beside)?);
    serde_json::to_writer(&mut out, &Line::Reset { version })?;
    out.write_all(b"\n")?;
    let mut line = Vec::new();
    for (key, record) in records {
        line.clear();
        write_line(&mut line, version, key, Some(record))?;
        out.write_all(&line)?;
    }
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&beside, path_of(folder, number))?;
    File::open(folder)?.sync_all()?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if number_of(&entry.file_name().to_string_lossy()).is_some_and(|old| old < number) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn write_line(out: &mut Vec<u8>, version: u64, key: &Key, record: Option<&Record>) -> std::io::Result<()> {
    let place = Place { group: key.kind.group.into(), kind: key.kind.kind.into(), object: key.object.clone() };
    let line = match record {
        Some(record) => Line::Kept { version, place, record: Box::new(record.clone()) },
        None => Line::Gone { version, place },
    };
    let start = out.len();
    serde_json::to_writer(&mut *out, &line)?;
    out.push(b'\n');
    if (out.len() - start) as u64 > MAX_LINE_BYTES {
        return Err(std::io::Error::other(format!("{key} is larger than {MAX_LINE_BYTES} bytes: split it")));
    }
    Ok(())
}

struct Damage {
    line: usize,
    reason: String,
    /// The file ends in the middle of it.
    torn: bool,
}

/// Reads one file's lines into `objects`; what cannot be read is returned, and the rest counts.
fn read_file(path: &Path, objects: &mut Objects) -> std::io::Result<Vec<Damage>> {
    let mut input = BufReader::new(File::open(path)?);
    let mut damages = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let read = Read::by_ref(&mut input).take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes)?;
        if read == 0 {
            break;
        }
        let whole = bytes.last() == Some(&b'\n');
        match take_line(&bytes, objects) {
            Ok(()) if whole => {}
            Ok(()) => damages.push(Damage { line, reason: "it has no end".into(), torn: true }),
            Err(reason) => damages.push(Damage { line, reason, torn: !whole }),
        }
    }
    Ok(damages)
}

/// What is wrong with the lines of a log, without a file; nothing for those that count.
pub(crate) fn refused_lines(bytes: &[u8]) -> Vec<String> {
    let mut objects = Objects::default();
    bytes.split_inclusive(|byte| *byte == b'\n').filter_map(|line| take_line(line, &mut objects).err()).collect()
}

/// Takes one line of the log over.
pub(crate) fn take_line(bytes: &[u8], objects: &mut Objects) -> Result<(), String> {
    let place = |place: Place| {
        let known = kinds::find(&place.group, &place.kind)
            .ok_or_else(|| format!("the kind '{}' is not known to this version of Tombolo", place.kind))?;
        Ok::<_, String>(Key { kind: known.name, object: place.object })
    };
    match serde_json::from_slice(bytes).map_err(|error| error.to_string())? {
        Line::Reset { version } => {
            objects.clear();
            objects.advance(version);
        }
        Line::Kept { version, place: at, record } => objects.restore(version, place(at)?, Some(*record)),
        Line::Gone { version, place: at } => objects.restore(version, place(at)?, None),
    }
    Ok(())
}

fn new_file(path: &Path) -> std::io::Result<File> {
    // Secrets are in here.
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("objects-{number:08}.log"))
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("objects-")?.strip_suffix(".log")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::objects::Planned;
    use super::super::record::Birth;
    use super::super::writes;
    use super::*;
    use crate::backend::{KindName, Preconditions};

    fn lease() -> KindName {
        KindName::of::<api::kubernetes::Lease>()
    }

    fn key(index: usize) -> Key {
        Key { kind: lease(), object: ObjectKey::new(Some("test"), &format!("lease-{index}")) }
    }

    /// Plans a write, keeps it and makes it true.
    fn write(log: &mut StateLog, objects: &mut Objects, write: impl FnOnce(&mut Planned<'_>)) {
        let births = || Birth { uid: format!("uid-{}", objects.version()), time: "2026-01-01T00:00:00Z".into() };
        let mut planned = Planned::new(objects, &births);
        write(&mut planned);
        let plan = planned.finish();
        log.append(&plan).unwrap();
        objects.commit(&plan);
    }

    fn put(log: &mut StateLog, objects: &mut Objects, index: usize, holder: &str) {
        let spec = json!({ "holderIdentity": holder });
        let known = objects.get(&key(index)).map(|record| record.object.clone());
        write(log, objects, |planned| {
            let result = match known {
                Some(mut object) => {
                    object["spec"] = spec;
                    writes::update(planned, lease(), object)
                }
                None => {
                    let metadata = json!({ "namespace": "test", "name": key(index).object.name });
                    writes::create(planned, lease(), json!({ "metadata": metadata, "spec": spec }))
                }
            };
            result.unwrap();
        });
    }

    fn content(objects: &Objects) -> Vec<(Key, Record)> {
        objects.iter().map(|(key, record)| (key.clone(), (**record).clone())).collect()
    }

    fn logs(folder: &Path) -> Vec<PathBuf> {
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut logs: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
        logs.sort();
        logs
    }

    #[test]
    fn compaction_keeps_everything_and_lets_the_old_files_go() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, mut objects, _) = StateLog::open(folder.path()).unwrap();
        for round in 0..20 {
            for index in 0..10 {
                put(&mut log, &mut objects, index, &round.to_string());
            }
            log.compact(&objects).unwrap();
        }
        put(&mut log, &mut objects, 0, "last");
        drop(log);
        assert_eq!(logs(folder.path()).len(), 2, "one with everything, one with what came after");
        let (_, again, broken) = StateLog::open(folder.path()).unwrap();
        assert_eq!(broken, Vec::<String>::new());
        assert_eq!(content(&again), content(&objects));
        assert_eq!(again.version(), objects.version());
    }

    #[test]
    fn a_line_torn_by_a_power_failure_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, mut objects, _) = StateLog::open(folder.path()).unwrap();
        put(&mut log, &mut objects, 0, "a");
        let whole = content(&objects);
        let length = log.length;
        put(&mut log, &mut objects, 1, "b");
        drop(log);
        let path = logs(folder.path()).pop().unwrap();
        let full = fs::metadata(&path).unwrap().len();
        for cut in [full - 1, length + 30, length + 1] {
            OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
            let (log, again, broken) = StateLog::open(folder.path()).unwrap();
            assert_eq!(broken, Vec::<String>::new());
            assert_eq!(content(&again)[..whole.len()], whole);
            drop(log);
        }
    }

    #[test]
    fn a_damaged_line_is_reported_the_rest_counts_and_the_file_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, mut objects, _) = StateLog::open(folder.path()).unwrap();
        for index in 0..3 {
            put(&mut log, &mut objects, index, "a");
        }
        drop(log);
        let path = logs(folder.path()).pop().unwrap();
        let text = fs::read_to_string(&path).unwrap().replacen("lease-1", "\u{0}", 1);
        fs::write(&path, &text).unwrap();
        let (log, again, broken) = StateLog::open(folder.path()).unwrap();
        assert_eq!(broken.len(), 1, "{broken:?}");
        assert!(again.get(&key(0)).is_some() && again.get(&key(1)).is_none() && again.get(&key(2)).is_some());
        drop(log);
        assert_eq!(fs::read_to_string(path.with_extension("broken")).unwrap(), text);
        let (_, _, broken) = StateLog::open(folder.path()).unwrap();
        assert_eq!(broken, Vec::<String>::new(), "said once");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn whatever_was_written_is_read_back(steps in proptest::collection::vec((0..6usize, 0..4u8), 0..40)) {
            let folder = tempfile::tempdir().unwrap();
            let (mut log, mut objects, _) = StateLog::open(folder.path()).unwrap();
            for (index, step) in steps {
                match step {
                    0 => write(&mut log, &mut objects, |planned| {
                        writes::delete(planned, &key(index), &Preconditions::default()).unwrap();
                    }),
                    1 => log.compact(&objects).unwrap(),
                    step => put(&mut log, &mut objects, index, &step.to_string()),
                }
            }
            drop(log);
            let (_, again, broken) = StateLog::open(folder.path()).unwrap();
            prop_assert_eq!(broken, Vec::<String>::new());
            prop_assert_eq!(content(&again), content(&objects));
            prop_assert!(again.version() >= objects.iter().map(|(_, r)| r.resource_version().parse().unwrap()).max().unwrap_or(0));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "(\\{|\\}|\"reset\"|\"kept\"|\"gone\"|:|,|\"version\"|1|\"kind\"|\"Lease\"){0,12}") {
            let mut objects = Objects::default();
            let _ = take_line(&bytes, &mut objects);
            let _ = take_line(text.as_bytes(), &mut objects);
        }
    }
}
