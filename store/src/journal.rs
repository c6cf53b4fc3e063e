//! [`Journal`]: what changed state, when and why, on disk and bounded (decision 8).
//!
//! One line of JSON an entry, in files that take turns: when the newest is full, the oldest goes. An entry that was
//! recorded survives a SIGKILL of this process; a line torn by a power failure is left out.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use api::report::EventReport;
use api::time::WallTime;
use serde::{Deserialize, Serialize};

use crate::Error;

/// The longest text of an entry, in bytes: a hostile name must not fill the journal.
const MAX_TEXT_BYTES: usize = 512;
/// The longest line that is read back: five texts with every character escaped, and the numbers.
const MAX_LINE_BYTES: u64 = 32 * 1024;

/// Something was in one state and is in another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transition {
    /// What changed: `ClusterPeer birch`, `path birch/0`.
    pub subject: String,
    /// Its state before and after: `Up`, `Down`.
    pub before: String,
    pub after: String,
    /// Why: a condition's reason, then words for people.
    pub reason: String,
    /// The sequence number of the entry that caused this one, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<u64>,
}

/// A transition as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// From 1, without gaps, never again: also after a restart.
    pub sequence: u64,
    pub at: WallTime,
    #[serde(flatten)]
    pub transition: Transition,
}

/// Where a journal is and how large it may become.
#[derive(Clone, Debug)]
pub struct Config {
    /// Made when it is not there.
    pub folder: PathBuf,
    /// Bytes of one file.
    pub file_bytes: u64,
    /// How many files there are at most; at least two.
    pub files: usize,
}

impl Config {
    /// Room for some 20 000 transitions: weeks of a cluster's life, minutes of its death.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, file_bytes: 1024 * 1024, files: 4 }
    }
}

/// The journal of one process. It has one writer; anybody may [read](read_since) its folder.
#[derive(Debug)]
pub struct Journal {
    config: Config,
    file: File,
    /// Bytes of the newest file that are whole lines.
    length: u64,
    next: u64,
}

impl Journal {
    /// Opens the journal and begins a new file in it.
    pub fn open(config: Config) -> Result<Self, Error> {
        let result = (|| {
            DirBuilder::new().recursive(true).mode(0o700).create(&config.folder)?;
            let files = files(&config.folder)?;
            let last = files.last().copied().unwrap_or(0);
            // A file is named by the sequence it begins with; an empty one says no more than its name.
            let mut next = last.max(1);
            if last != 0 {
                for entry in read_file(&path_of(&config.folder, last))? {
                    next = next.max(entry.sequence + 1);
                }
            }
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path_of(&config.folder, next))?;
            // The same file again is the last one, and nothing whole was in it.
            file.set_len(0)?;
            Ok::<_, std::io::Error>((file, next))
        })();
        let (file, next) = result.map_err(|error| disk(&config, &error))?;
        let journal = Self { config, file, length: 0, next };
        journal.forget_oldest().map_err(|error| disk(&journal.config, &error))?;
        Ok(journal)
    }

    /// Adds a transition and returns its sequence number. It is safe from a SIGKILL when this returns.
    pub fn record(&mut self, at: WallTime, mut transition: Transition) -> Result<u64, Error> {
        for text in [&mut transition.subject, &mut transition.before, &mut transition.after, &mut transition.reason] {
            shorten(text);
        }
        let sequence = self.next;
        let entry = Entry { sequence, at, transition };
        self.append(&entry).map_err(|error| disk(&self.config, &error))?;
        self.next += 1;
        Ok(sequence)
    }

    fn append(&mut self, entry: &Entry) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        if self.length > 0 && self.length + line.len() as u64 > self.config.file_bytes {
            self.file.sync_data()?;
            self.file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path_of(&self.config.folder, entry.sequence))?;
            self.length = self.file.metadata()?.len();
            self.forget_oldest()?;
        }
        if let Err(error) = self.file.write_all(&line) {
            // Half a line would swallow the next one.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += line.len() as u64;
        Ok(())
    }

    fn forget_oldest(&self) -> std::io::Result<()> {
        let files = files(&self.config.folder)?;
        let surplus = files.len().saturating_sub(self.config.files.max(2));
        for file in files.iter().take(surplus) {
            fs::remove_file(path_of(&self.config.folder, *file))?;
        }
        Ok(())
    }
}

/// The entries of the journal in `folder` that were recorded at `since` or later, oldest first, at most the newest
/// `limit` of them. Lines that are no entries are left out.
pub fn read_since(folder: &Path, since: WallTime, limit: usize) -> Result<Vec<Entry>, Error> {
    let mut entries = std::collections::VecDeque::new();
    let result = files(folder).and_then(|files| {
        for file in files {
            let read = match read_file(&path_of(folder, file)) {
                // The writer has just let the oldest go.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                read => read?,
            };
            for entry in read.into_iter().filter(|entry| entry.at >= since) {
                entries.push_back(entry);
                if entries.len() > limit {
                    entries.pop_front();
                }
            }
        }
        Ok(())
    });
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Disk { path: folder.display().to_string(), detail: error.to_string() })
        }
        // No folder: nothing was ever recorded.
        _ => Ok(entries.into()),
    }
}

/// What `tombolo events` shows of [`read_since`].
pub fn events_since(folder: &Path, since: WallTime, limit: usize) -> Result<Vec<EventReport>, Error> {
    Ok(read_since(folder, since, limit)?.into_iter().map(EventReport::from).collect())
}

impl From<Entry> for EventReport {
    fn from(entry: Entry) -> Self {
        Self {
            sequence: entry.sequence,
            at: entry.at.as_millis(),
            subject: entry.transition.subject,
            before: entry.transition.before,
            after: entry.transition.after,
            reason: entry.transition.reason,
            cause: entry.transition.cause,
        }
    }
}

fn disk(config: &Config, error: &std::io::Error) -> Error {
    Error::Disk { path: config.folder.display().to_string(), detail: format!("the journal cannot be kept: {error}") }
}

fn shorten(text: &mut String) {
    if text.len() > MAX_TEXT_BYTES {
        let cut = (0..=MAX_TEXT_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
    }
}

/// The first sequence numbers of the files, in order.
fn files(folder: &Path) -> std::io::Result<Vec<u64>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        files.extend(name.strip_prefix("events-").and_then(|rest| rest.strip_suffix(".log")?.parse::<u64>().ok()));
    }
    files.sort_unstable();
    Ok(files)
}

fn path_of(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("events-{first:020}.log"))
}

fn read_file(path: &Path) -> std::io::Result<Vec<Entry>> {
    read_entries(BufReader::new(File::open(path)?))
}

/// Every line of `input` that is an entry.
pub(crate) fn read_entries(mut input: impl BufRead) -> std::io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        if Read::by_ref(&mut input).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(entries);
        }
        if line.last() == Some(&b'\n')
            && let Ok(entry) = serde_json::from_slice(&line)
        {
            entries.push(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn transition(subject: &str) -> Transition {
        Transition {
            subject: subject.into(),
            before: "Up".into(),
            after: "Down".into(),
            reason: "SilentPeer".into(),
            cause: None,
        }
    }

    fn sequences(folder: &Path, since: u64) -> Vec<u64> {
        let entries = read_since(folder, WallTime::from_millis(since), usize::MAX).unwrap();
        entries.iter().map(|entry| entry.sequence).collect()
    }

    #[test]
    fn entries_are_read_back_since_a_time_and_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::new(folder.path().join("journal"));
        let mut journal = Journal::open(config.clone()).unwrap();
        for at in [10, 20, 30] {
            journal.record(WallTime::from_millis(at), transition("path birch/0")).unwrap();
        }
        drop(journal);
        let mut journal = Journal::open(config.clone()).unwrap();
        let caused = Transition { cause: Some(3), ..transition("ClusterPeer birch") };
        assert_eq!(journal.record(WallTime::from_millis(40), caused.clone()).unwrap(), 4);
        assert_eq!(sequences(&config.folder, 20), [2, 3, 4]);
        let newest = read_since(&config.folder, WallTime::from_millis(0), 1).unwrap();
        assert_eq!(newest[0].transition, caused);
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_its_number_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::new(folder.path().to_owned());
        let mut journal = Journal::open(config.clone()).unwrap();
        journal.record(WallTime::from_millis(1), transition("one")).unwrap();
        drop(journal);
        let file = path_of(folder.path(), 1);
        OpenOptions::new().append(true).open(&file).unwrap().write_all(b"{\"sequence\":2,\"at\":").unwrap();
        let mut journal = Journal::open(config).unwrap();
        assert_eq!(journal.record(WallTime::from_millis(2), transition("two")).unwrap(), 2);
        assert_eq!(sequences(folder.path(), 0), [1, 2]);
    }

    #[test]
    fn a_journal_that_is_opened_often_without_entries_forgets_none() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::new(folder.path().to_owned());
        Journal::open(config.clone()).unwrap().record(WallTime::from_millis(1), transition("one")).unwrap();
        for _ in 0..20 {
            Journal::open(config.clone()).unwrap();
        }
        assert_eq!(Journal::open(config).unwrap().record(WallTime::from_millis(2), transition("two")).unwrap(), 2);
        assert_eq!(sequences(folder.path(), 0), [1, 2]);
    }

    #[test]
    fn the_journal_keeps_the_newest_entries_and_never_outgrows_its_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { folder: folder.path().to_owned(), file_bytes: 2_000, files: 3 };
        let mut journal = Journal::open(config).unwrap();
        for at in 0..500 {
            journal.record(WallTime::from_millis(at), transition(&"long ".repeat(1000))).unwrap();
        }
        let kept = sequences(folder.path(), 0);
        assert_eq!(kept.last(), Some(&500));
        assert!(kept.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        let bytes: u64 =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= 3 * 2_000, "{bytes}");
    }

    #[test]
    fn a_journal_that_was_never_written_has_no_entries() {
        assert_eq!(sequences(Path::new("/nonexistent/journal"), 0), [0; 0]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_entries(bytes.as_slice()).unwrap();
        }
    }
}
