//! The last state on an agent's own disk: one file a kind, written whole, read at start.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::enrolment::write_atomically;
use crate::Error;
use crate::backend::{KindName, ObjectKey};
use crate::kinds;
use crate::manifest::Key;

/// The largest cache file that is read, in bytes: 100 000 endpoints have a tenth of this.
const MAX_FILE_BYTES: u64 = 512 * 1024 * 1024;

/// The objects of one kind.
pub(crate) type Objects = BTreeMap<ObjectKey, Arc<Value>>;

#[derive(Serialize)]
struct Written<'a> {
    group: &'a str,
    kind: &'a str,
    objects: Vec<&'a Value>,
}

#[derive(Deserialize)]
struct Kept {
    group: String,
    kind: String,
    objects: Vec<Value>,
}

/// Makes the folder where there is none, and reads what is in it. A file that cannot be read is logged and left out:
/// the controller has its content.
pub(crate) fn load(folder: &Path) -> Result<BTreeMap<KindName, Objects>, Error> {
    let disk = |error: std::io::Error| Error::Disk { path: folder.display().to_string(), detail: error.to_string() };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(disk)?;
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(disk)? {
        let path = entry.map_err(disk)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden || path.extension().is_none_or(|end| end != "json") {
            continue;
        }
        match read(&path) {
            Ok((kind, objects)) => {
                kinds.insert(kind, objects);
            }
            Err(reason) => tracing::warn!(path = %path.display(), reason, "a cached state is left out"),
        }
    }
    Ok(kinds)
}

fn read(path: &Path) -> Result<(KindName, Objects), String> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    parse(&bytes)
}

/// Reads what [`save`] wrote.
pub(crate) fn parse(bytes: &[u8]) -> Result<(KindName, Objects), String> {
    let kept: Kept = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let known = kinds::find(&kept.group, &kept.kind)
        .ok_or_else(|| format!("this version of Tombolo knows no kind '{}'", kept.kind))?;
    let key = |object: &Value| Key::of(known.name, object).object;
    Ok((known.name, kept.objects.into_iter().map(|object| (key(&object), Arc::new(object))).collect()))
}

/// Writes one kind's objects, for their owner alone: Secrets are among them.
pub(crate) fn save(folder: &Path, kind: KindName, objects: &Objects) -> std::io::Result<()> {
    let written =
        Written { group: kind.group, kind: kind.kind, objects: objects.values().map(|value| &**value).collect() };
    write_atomically(&file_of(folder, kind), &serde_json::to_vec(&written)?)
}

fn file_of(folder: &Path, kind: KindName) -> PathBuf {
    // Kinds have distinct names, whatever their group.
    folder.join(format!("{}.json", kind.kind))
}
