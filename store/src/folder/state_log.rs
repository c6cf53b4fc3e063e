//! [`StateLog`]: the objects on disk, a line a change, as [`LineLog`] keeps them: `objects-<number>.log`. A line
//! `{"reset":…}` says that what follows is everything.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::objects::{Change, Objects};
use super::record::Record;
use crate::backend::ObjectKey;
use crate::kinds;
use crate::line_log::{LineLog, MAX_LINE_BYTES};
use crate::manifest::Key;

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
    lines: LineLog,
}

impl StateLog {
    /// Reads the objects kept in `folder` and begins a new file. What could not be read is returned as messages; the
    /// files they stand in are set aside as `.broken`, never removed.
    pub(crate) fn open(folder: &Path) -> std::io::Result<(Self, Objects, Vec<String>)> {
        let mut objects = Objects::default();
        let (lines, found) = LineLog::open(folder, "objects", &mut |line| take_line(line, &mut objects))?;
        let mut log = Self { lines };
        if found.compaction_is_due {
            log.compact(&objects)?;
        }
        Ok((log, objects, found.broken))
    }

    /// Adds changes. They are safe from a SIGKILL when this returns; when it fails, nothing was added.
    pub(crate) fn append(&mut self, changes: &[Change]) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for change in changes {
            write_line(&mut bytes, change.version, &change.key, change.after.as_deref())?;
        }
        self.lines.append(&bytes)
    }

    /// Begins a new file when much was written, and has the older ones written anew.
    pub(crate) fn compact_when_due(&mut self, objects: &Objects) -> std::io::Result<()> {
        if self.lines.compaction_is_due() { self.compact(objects) } else { Ok(()) }
    }

    fn compact(&mut self, objects: &Objects) -> std::io::Result<()> {
        let version = objects.version();
        let records: Vec<_> = objects.iter().map(|(key, record)| (key.clone(), record.clone())).collect();
        self.lines.compact(Box::new(move |out| {
            serde_json::to_writer(&mut *out, &Line::Reset { version })?;
            out.write_all(b"\n")?;
            let mut line = Vec::new();
            for (key, record) in &records {
                line.clear();
                write_line(&mut line, version, key, Some(record))?;
                out.write_all(&line)?;
            }
            Ok(())
        }))
    }
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

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::path::PathBuf;

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
        let length = log.lines.length;
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
