//! [`LineLog`]: what a process must find again after a SIGKILL, as numbered files of JSON lines: `<stem>-<number>.log`.
//!
//! Each change is one line at the end of the newest file, written before anybody hears of it. Read in order the files
//! give the state. When much was written, a thread beside writes a file with nothing but what is there now (beside,
//! fsync, rename, fsync of the folder) and removes the older.
//!
//! **What is promised.** What was appended is in the kernel's hands: it survives a SIGKILL of this process at any
//! moment. fsync follows at once on the thread beside, many writes sharing one, so a power failure costs at most what
//! was written during the last flush, and never leaves half a change: a torn last line is left out.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Bytes written since the last compaction that make the next one due. Below this a restart reads them in no time.
const COMPACT_AFTER_BYTES: u64 = 4 * 1024 * 1024;
/// The longest line, in bytes: the largest manifest, had each of its characters to be escaped.
pub(crate) const MAX_LINE_BYTES: u64 = 32 * 1024 * 1024;

/// Writes everything there is, a line each.
pub(crate) type Everything = Box<dyn FnOnce(&mut dyn Write) -> std::io::Result<()> + Send>;

pub(crate) struct LineLog {
    folder: PathBuf,
    stem: &'static str,
    number: u64,
    file: Arc<File>,
    /// Bytes of the newest file that are whole lines.
    pub(crate) length: u64,
    to_disk: Option<Sender<ToDisk>>,
    thread: Option<JoinHandle<()>>,
}

/// Work for the thread that waits for the disk.
enum ToDisk {
    Flush(Arc<File>),
    Compact { number: u64, everything: Everything },
}

/// What was found at the opening of a log.
pub(crate) struct Found {
    /// What could not be read. The files it stands in are set aside as `.broken`, never removed.
    pub(crate) broken: Vec<String>,
    /// Whether there is enough of it, or enough wrong with it, to write everything anew.
    pub(crate) compaction_is_due: bool,
}

impl LineLog {
    /// Gives each line kept in `folder` to `take`, in order, and begins a new file. A line that `take` refuses is
    /// reported, and the rest counts.
    pub(crate) fn open(
        folder: &Path,
        stem: &'static str,
        take: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> std::io::Result<(Self, Found)> {
        let mut broken = Vec::new();
        let mut numbers = Vec::new();
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name();
            if let Some(number) = number_of(stem, &name.to_string_lossy()) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        let mut read = 0;
        for number in &numbers {
            let path = path_of(folder, stem, *number);
            read += fs::metadata(&path)?.len();
            let found = read_file(&path, take)?;
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
        let file = Arc::new(new_file(&path_of(folder, stem, number))?);
        File::open(folder)?.sync_all()?;
        let (to_disk, work) = channel();
        let thread = std::thread::Builder::new().name("state-to-disk".into()).spawn({
            let folder = folder.to_owned();
            move || write_behind(&folder, stem, &work)
        })?;
        let found =
            Found { compaction_is_due: read > COMPACT_AFTER_BYTES || numbers.len() > 8 || !broken.is_empty(), broken };
        let folder = folder.to_owned();
        Ok((Self { folder, stem, number, file, length: 0, to_disk: Some(to_disk), thread: Some(thread) }, found))
    }

    /// Adds whole lines. They are safe from a SIGKILL when this returns; when it fails, nothing was added.
    pub(crate) fn append(&mut self, lines: &[u8]) -> std::io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        if let Err(error) = (&*self.file).write_all(lines) {
            // Half a line would swallow the next one.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += lines.len() as u64;
        self.send(ToDisk::Flush(Arc::clone(&self.file)));
        Ok(())
    }

    /// Whether much was written since everything was.
    pub(crate) fn compaction_is_due(&self) -> bool {
        self.length >= COMPACT_AFTER_BYTES
    }

    /// Begins a new file, and has the older ones replaced by one that `everything` writes.
    pub(crate) fn compact(&mut self, everything: Everything) -> std::io::Result<()> {
        let compacted = self.number + 1;
        let file = new_file(&path_of(&self.folder, self.stem, compacted + 1))?;
        self.file = Arc::new(file);
        self.number = compacted + 1;
        self.length = 0;
        self.send(ToDisk::Compact { number: compacted, everything });
        Ok(())
    }

    fn send(&self, work: ToDisk) {
        if let Some(to_disk) = &self.to_disk {
            // The thread ends only after this sender is dropped.
            let _ = to_disk.send(work);
        }
    }
}

impl Drop for LineLog {
    /// Waits for the disk.
    fn drop(&mut self) {
        self.to_disk = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread that waits for the disk, so that nobody else does.
fn write_behind(folder: &Path, stem: &str, work: &Receiver<ToDisk>) {
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
                ToDisk::Compact { number, everything } => {
                    if let Err(error) = compacted(folder, stem, number, everything) {
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

fn compacted(folder: &Path, stem: &str, number: u64, everything: Everything) -> std::io::Result<()> {
    let beside = folder.join(format!("{stem}.new"));
    let _ = fs::remove_file(&beside);
    let mut out = std::io::BufWriter::new(new_file(&beside)?);
    everything(&mut out)?;
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&beside, path_of(folder, stem, number))?;
    File::open(folder)?.sync_all()?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if number_of(stem, &entry.file_name().to_string_lossy()).is_some_and(|old| old < number) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

struct Damage {
    line: usize,
    reason: String,
    /// The file ends in the middle of it.
    torn: bool,
}

/// Gives one file's lines to `take`; what cannot be read is returned, and the rest counts.
fn read_file(path: &Path, take: &mut dyn FnMut(&[u8]) -> Result<(), String>) -> std::io::Result<Vec<Damage>> {
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
        match take(&bytes) {
            Ok(()) if whole => {}
            Ok(()) => damages.push(Damage { line, reason: "it has no end".into(), torn: true }),
            Err(reason) => damages.push(Damage { line, reason, torn: !whole }),
        }
    }
    Ok(damages)
}

fn new_file(path: &Path) -> std::io::Result<File> {
    // Secrets are in here.
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

fn path_of(folder: &Path, stem: &str, number: u64) -> PathBuf {
    folder.join(format!("{stem}-{number:08}.log"))
}

fn number_of(stem: &str, name: &str) -> Option<u64> {
    name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(".log")?.parse().ok()
}
