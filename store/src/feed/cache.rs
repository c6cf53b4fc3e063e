//! [`Cache`]: an agent's last state on its own disk. What was heard is one line, written before anybody else hears of
//! it, so that after a SIGKILL an agent serves what it served before.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::memory::Memory;
use super::message::KindSaid;
use crate::Error;
use crate::backend::{KindName, ObjectKey};
use crate::line_log::LineLog;

/// Bytes of objects in one line of a whole state: well below the longest line, whatever has to be escaped.
const LINE_BYTES: usize = 256 * 1024;

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line<O> {
    /// Part of everything that there is of a kind. It counts when its last part is there.
    Everything {
        #[serde(flatten)]
        kind: KindSaid,
        part: u32,
        last: bool,
        objects: Vec<O>,
    },
    Applied {
        #[serde(flatten)]
        kind: KindSaid,
        object: O,
    },
    Deleted {
        #[serde(flatten)]
        kind: KindSaid,
        key: ObjectKey,
    },
}

/// What is read back: the kinds of which everything was known.
pub(crate) type Memories = BTreeMap<KindName, Memory>;

pub(crate) struct Cache {
    folder: PathBuf,
    lines: LineLog,
    /// Whether the disk misses something: everything has to be written anew.
    behind: bool,
}

impl Cache {
    /// Makes the folder where there is none, and reads what is in it. What cannot be read is logged and left out: the
    /// controller has it.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Memories), Error> {
        let disk =
            |error: std::io::Error| Error::Disk { path: folder.display().to_string(), detail: error.to_string() };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(disk)?;
        let mut reader = Reader::default();
        let (lines, found) = LineLog::open(folder, "feed", &mut |line| reader.take(line)).map_err(disk)?;
        for reason in &found.broken {
            tracing::warn!(reason, "a part of the cached state is left out");
        }
        let mut cache = Self { folder: folder.to_owned(), lines, behind: found.compaction_is_due };
        cache.compact_when_due(&reader.memories);
        Ok((cache, reader.memories))
    }

    /// Keeps that an object is new or changed.
    pub(crate) fn applied(&mut self, kind: KindName, object: &Value) {
        self.keep(|out| write_line(out, &Line::Applied { kind: KindSaid::of(kind), object }));
    }

    /// Keeps that an object is gone.
    pub(crate) fn deleted(&mut self, kind: KindName, key: &ObjectKey) {
        let line = Line::<&Value>::Deleted { kind: KindSaid::of(kind), key: key.clone() };
        self.keep(|out| write_line(out, &line));
    }

    /// Keeps everything there is of a kind.
    pub(crate) fn everything(&mut self, kind: KindName, memory: &Memory) {
        self.keep(|out| write_everything(out, kind, &memory.objects().cloned().collect::<Vec<_>>()));
    }

    fn keep(&mut self, write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) {
        if self.behind {
            return;
        }
        let mut lines = Vec::new();
        if let Err(error) = write(&mut lines).and_then(|()| self.lines.append(&lines)) {
            self.behind = true;
            tracing::warn!(folder = %self.folder.display(), %error, "the last state cannot be kept: check space and permissions");
        }
    }

    /// Writes everything anew when much was written, or something could not be. `false` when the disk takes nothing.
    pub(crate) fn compact_when_due(&mut self, memories: &Memories) -> bool {
        if !self.behind && !self.lines.compaction_is_due() {
            return true;
        }
        let kinds: Vec<(KindName, Vec<Arc<Value>>)> =
            memories.iter().map(|(kind, memory)| (*kind, memory.objects().cloned().collect())).collect();
        let compacted = self.lines.compact(Box::new(move |out| {
            kinds.iter().try_for_each(|(kind, objects)| write_everything(out, *kind, objects))
        }));
        match compacted {
            Ok(()) => self.behind = false,
            Err(error) => {
                tracing::debug!(folder = %self.folder.display(), %error, "the last state cannot be written anew");
            }
        }
        !self.behind
    }
}

fn write_line(out: &mut (impl Write + ?Sized), line: &Line<&Value>) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

fn write_everything(out: &mut (impl Write + ?Sized), kind: KindName, objects: &[Arc<Value>]) -> std::io::Result<()> {
    let (mut part, mut size, mut current) = (0, 0, Vec::new());
    for object in objects {
        if size > LINE_BYTES {
            let objects = std::mem::take(&mut current);
            write_line(out, &Line::Everything { kind: KindSaid::of(kind), part, last: false, objects })?;
            (part, size) = (part + 1, 0);
        }
        size += object.to_string().len();
        current.push(&**object);
    }
    write_line(out, &Line::Everything { kind: KindSaid::of(kind), part, last: true, objects: current })
}

/// What is wrong with the lines of a cache, without a file; nothing for those that count.
pub(crate) fn refused_lines(bytes: &[u8]) -> Vec<String> {
    let mut reader = Reader::default();
    bytes.split_inclusive(|byte| *byte == b'\n').filter_map(|line| reader.take(line).err()).collect()
}

/// Puts lines together again.
#[derive(Default)]
pub(crate) struct Reader {
    pub(crate) memories: Memories,
    /// Parts of an everything whose last part has not come yet.
    arriving: BTreeMap<KindName, (u32, Vec<Arc<Value>>)>,
}

impl Reader {
    pub(crate) fn take(&mut self, line: &[u8]) -> Result<(), String> {
        let kind = |said: &KindSaid| {
            said.known().ok_or_else(|| format!("this version of Tombolo knows no kind '{}'", said.kind))
        };
        match serde_json::from_slice::<Line<Value>>(line).map_err(|error| error.to_string())? {
            Line::Everything { kind: said, part, last, objects } => {
                let kind = kind(&said)?;
                let (next, arriving) = self.arriving.entry(kind).or_default();
                if part == 0 {
                    // An earlier one was torn.
                    arriving.clear();
                    *next = 0;
                }
                if part != *next {
                    return Err(format!("part {part} of everything follows on part {next}"));
                }
                *next += 1;
                arriving.extend(objects.into_iter().map(Arc::new));
                if last {
                    let objects = std::mem::take(arriving);
                    self.arriving.remove(&kind);
                    self.memories.insert(kind, Memory::of(kind, objects));
                }
            }
            Line::Applied { kind: said, object } => {
                if let Some(memory) = self.memories.get_mut(&kind(&said)?) {
                    memory.apply(Arc::new(object));
                }
            }
            Line::Deleted { kind: said, key } => {
                if let Some(memory) = self.memories.get_mut(&kind(&said)?) {
                    memory.remove(&key);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn kind() -> KindName {
        KindName::of::<api::kubernetes::Lease>()
    }

    fn lease(index: u8, holder: &str) -> Value {
        json!({"metadata": {"namespace": "test", "name": format!("lease-{index}")}, "spec": {"holderIdentity": holder}})
    }

    fn key(index: u8) -> ObjectKey {
        ObjectKey::new(Some("test"), &format!("lease-{index}"))
    }

    fn content(memories: &Memories) -> Vec<Value> {
        memories.values().flat_map(Memory::objects).map(|object| (**object).clone()).collect()
    }

    #[test]
    fn an_everything_that_was_torn_leaves_the_one_before_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let (mut cache, _) = Cache::open(folder.path()).unwrap();
        let large = |count: u8, holder: &str| {
            let holder = holder.repeat(100_000);
            Memory::of(kind(), (0..count).map(|index| Arc::new(lease(index, &holder))))
        };
        let (first, second) = (large(3, "a"), large(9, "b"));
        cache.everything(kind(), &first);
        let whole = cache.lines.length;
        cache.everything(kind(), &second);
        let all = cache.lines.length;
        drop(cache);
        let path = folder.path().join("feed-00000001.log");
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.iter().filter(|byte| **byte == b'\n').count() > 3, "an everything of several lines");
        for cut in [all, all - 2, whole + (all - whole) / 2, whole + 10] {
            fs::write(&path, &bytes).unwrap();
            OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
            let (_, memories) = Cache::open(folder.path()).unwrap();
            let expected = if cut == all { &second } else { &first };
            assert_eq!(memories[&kind()].digest(), expected.digest(), "cut at {cut} of {all}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn whatever_was_kept_is_read_back(steps in proptest::collection::vec((0..6u8, 0..5u8), 0..40)) {
            let folder = tempfile::tempdir().unwrap();
            let (mut cache, _) = Cache::open(folder.path()).unwrap();
            let mut memories = Memories::from([(kind(), Memory::new(kind()))]);
            cache.everything(kind(), &memories[&kind()]);
            for (index, step) in steps {
                let memory = memories.get_mut(&kind()).unwrap();
                match step {
                    0 => {
                        memory.remove(&key(index));
                        cache.deleted(kind(), &key(index));
                    }
                    1 => cache.everything(kind(), memory),
                    2 => {
                        cache.behind = true;
                        cache.compact_when_due(&memories);
                    }
                    step => {
                        let object = lease(index, &step.to_string());
                        memory.apply(Arc::new(object.clone()));
                        cache.applied(kind(), &object);
                    }
                }
            }
            drop(cache);
            let (_, again) = Cache::open(folder.path()).unwrap();
            prop_assert_eq!(content(&again), content(&memories));
            prop_assert_eq!(again[&kind()].digest(), memories[&kind()].digest());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "(\\{|\\}|\\[|\\]|\"everything\"|\"applied\"|\"deleted\"|\"objects\"|:|,|\"part\"|\"last\"|true|0|\"kind\"|\"Lease\"|\"group\"|\"\"){0,16}") {
            let mut reader = Reader::default();
            let _ = reader.take(&bytes);
            let _ = reader.take(text.as_bytes());
        }
    }
}
