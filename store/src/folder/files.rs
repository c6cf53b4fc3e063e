//! Reading the manifests folder: which files there are, and what one says.

use std::fs::{self, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::manifest::{self, MAX_FILE_BYTES, Manifest};

/// Files above this many bytes are parsed beside the owner. A smaller one holds it up for some milliseconds at most.
const LARGE_BYTES: usize = 32 * 1024;
/// How deep folders are followed.
const MAX_DEPTH: usize = 16;

/// Whether a file of this name is a manifest. Hidden files and what editors leave beside are none.
pub(crate) fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    let known = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
    known && !hidden
}

/// The manifests and the folders at and below `folder`, which is inside `root`; `excluded` is left out.
///
/// `visit` is called for each folder before it is read.
pub(crate) fn walk(folder: &Path, excluded: &Path, visit: &mut dyn FnMut(&Path)) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        visit(&folder);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // Gone again, which has its own event; only the first folder has to be there.
            Err(_) if depth > 0 => continue,
            Err(error) => return Err(error),
        };
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            // A link to a folder is not followed: it could lead back here.
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && !hidden && path != excluded && depth < MAX_DEPTH {
                folders.push((path, depth + 1));
            } else if !is_folder && is_manifest(&path) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// A file's bytes; `None` when there is no such file, the reason when it cannot be read.
///
/// At most the limit is read, whatever the file becomes meanwhile.
fn bytes(path: &Path) -> Option<Result<Vec<u8>, String>> {
    let gone = |error: &std::io::Error| {
        matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
    };
    // Opened without waiting: a pipe of that name must not stop everything else.
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if gone(&error) => return None,
        Err(error) => return Some(Err(format!("cannot be read: {error}"))),
    };
    let metadata = match file.metadata() {
        Ok(metadata) => metadata,
        Err(error) => return Some(Err(format!("cannot be read: {error}"))),
    };
    if !metadata.is_file() {
        return Some(Err("is not a file: remove it, or name it otherwise".into()));
    }
    if metadata.len() > MAX_FILE_BYTES as u64 {
        return Some(Err(manifest::too_large(metadata.len())));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    match Read::by_ref(&mut file).take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes) {
        Ok(_) => Some(Ok(bytes)),
        Err(error) => Some(Err(format!("cannot be read: {error}"))),
    }
}

/// The content of the file at `path` now, and a mark that tells it from another; `None` when there is no such file.
pub(crate) fn read(path: &Path) -> Option<(u64, Content)> {
    let content = Content { bytes: bytes(path)?, json: path.extension().is_some_and(|end| end == "json") };
    let mut hasher = DefaultHasher::new();
    content.bytes.hash(&mut hasher);
    Some((hasher.finish(), content))
}

/// A file's bytes, or why they cannot be read.
pub(crate) struct Content {
    bytes: Result<Vec<u8>, String>,
    json: bool,
}

impl Content {
    /// Whether parsing it takes long enough for others to wait.
    pub(crate) fn is_large(&self) -> bool {
        self.bytes.as_ref().is_ok_and(|bytes| bytes.len() > LARGE_BYTES)
    }

    /// What they say; `before` is what the file said before.
    pub(crate) fn parse(self, before: Option<&Manifest>) -> Manifest {
        match self.bytes {
            Ok(bytes) => manifest::read(&bytes, self.json, before),
            Err(reason) => Manifest::unreadable(reason),
        }
    }
}
