//! [`SlotFile`]: the slot of the last run, for a start without the controller.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The slot of the last run, on disk.
pub(crate) struct SlotFile {
    path: PathBuf,
    pub(crate) slot: Option<u16>,
}

impl SlotFile {
    pub(crate) fn load(path: PathBuf) -> Self {
        let slot = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        Self { path, slot }
    }

    pub(crate) fn remember(&mut self, slot: u16) -> Result<()> {
        if self.slot == Some(slot) {
            return Ok(());
        }
        self.slot = Some(slot);
        let replaced = store::state_file::replace(&self.path, slot.to_string().as_bytes());
        replaced.with_context(|| format!("writing {}: is the disk full, or the folder not ours?", self.path.display()))
    }
}
