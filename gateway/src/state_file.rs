//! Small files that survive a kill and a power cut: written beside, synced, renamed, and the folder synced.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Replaces the file in one step. Readable by its owner only.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().context("a state file lies in a folder")?;
    let beside = path.with_extension("new");
    let replace = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        File::open(folder)?.sync_all()
    };
    replace().with_context(|| format!("writing {}: is the disk full, or the folder not ours?", path.display()))
}
