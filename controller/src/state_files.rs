//! What the controller keeps on its own disk, so that it starts from what it knew (decision 4).
//!
//! | file in the state folder | holds |
//! |---|---|
//! | `identity.key` | the cluster's identity (crate `identity`) |
//! | `identity.next.key` | the one that comes after it, while it is replaced (`own_keys`) |
//! | `agents.key` | what enrols agents (`store::feed`) |
//! | `membership.json` | this installation's epoch, the member record signed last, and the identities there were |
//! | `recall.json` | how old peers remember this cluster's exports to be |
//! | `journal/` | transitions (`store::journal`) |
//! | `peers/<cluster>.json` | what a peer advertised last, with the token to resume by |
//!
//! Replicas of a controller on Kubernetes share the first four (`shared_state`).
//!
//! Every file is written beside, synced and renamed, so a kill at any moment leaves the old or the new one.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use api::member_record::SignedRecord;
use api::succession::Succession;
use api::time::WallTime;
use api::{ClusterId, Prefix};
use controller_core::recall::KeptRecall;
use controller_core::remote::Memory;
use serde::{Deserialize, Serialize};

/// The largest file that is read: the bytes one peer may say, as JSON with keys and room to spare.
const MAX_FILE_BYTES: u64 = 256 << 20;

pub(crate) const IDENTITY_FILE: &str = "identity.key";
pub(crate) const NEXT_IDENTITY_FILE: &str = "identity.next.key";
pub(crate) const AGENTS_FILE: &str = "agents.key";
pub(crate) const MEMBERSHIP_FILE: &str = "membership.json";

/// Bytes of randomness in an epoch: two installations never have the same.
const EPOCH_BYTES: usize = 16;

/// Which installation this is, and what it signed last.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Membership {
    /// The file's form; 1.
    pub(crate) version: u16,
    /// Random, once (decision 15).
    pub(crate) epoch: String,
    /// When the epoch was made. Files of a version that did not keep it have none.
    #[serde(default)]
    pub(crate) made: Option<WallTime>,
    #[serde(default)]
    pub(crate) record: Option<SignedRecord>,
    /// The identities that came one after the other, oldest first; while one is replaced, its last leads to the one that
    /// comes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) successions: Vec<Succession>,
    /// Since when the identity is being replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identity_rotating_since: Option<WallTime>,
    /// From the first identity, once there was another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) control_prefix: Option<Prefix>,
}

#[derive(Clone, Debug)]
pub(crate) struct StateFiles {
    folder: PathBuf,
}

impl StateFiles {
    /// Makes the folder, readable by its owner alone, when it is not there.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        for folder in [folder.to_path_buf(), folder.join("peers")] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .with_context(|| format!("cannot make the state folder {}", folder.display()))?;
        }
        Ok(Self { folder: folder.to_path_buf() })
    }

    pub(crate) fn identity_file(&self) -> PathBuf {
        self.folder.join(IDENTITY_FILE)
    }
    pub(crate) fn next_identity_file(&self) -> PathBuf {
        self.folder.join(NEXT_IDENTITY_FILE)
    }
    /// Puts the next identity in the place of the current one. The old key is gone then.
    pub(crate) fn promote_identity(&self) -> Result<()> {
        let renamed = fs::rename(self.next_identity_file(), self.identity_file());
        let synced = renamed.and_then(|()| File::open(&self.folder)?.sync_all());
        synced.with_context(|| format!("cannot rename {}", self.next_identity_file().display()))
    }
    pub(crate) fn journal_folder(&self) -> PathBuf {
        self.folder.join("journal")
    }
    pub(crate) fn enrolment_file(&self) -> PathBuf {
        self.folder.join(AGENTS_FILE)
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        self.folder.join(name).exists()
    }
    /// A small file; none where it is not there.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        read(&self.folder.join(name))
    }
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write(&self.folder.join(name), bytes)
    }
    pub(crate) fn remove(&self, name: &str) {
        // Absent is as good as deleted.
        let _ = fs::remove_file(self.folder.join(name));
    }

    /// The membership; a new epoch where there is none. A file that cannot be read stops the start: going on with a
    /// new epoch would look like a rebuilt cluster to every peer.
    pub(crate) fn membership(&self) -> Result<Membership> {
        let path = self.folder.join(MEMBERSHIP_FILE);
        if let Some(bytes) = read(&path)? {
            return serde_json::from_slice(&bytes).with_context(|| {
                format!("{} is broken: restore it, or delete it to appear as a rebuilt cluster", path.display())
            });
        }
        let mut random = [0; EPOCH_BYTES];
        getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("the kernel gives no random numbers: {error}"))?;
        let epoch = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let membership = Membership {
            version: 1,
            epoch,
            made: Some(clock::wall()),
            record: None,
            successions: Vec::new(),
            identity_rotating_since: None,
            control_prefix: None,
        };
        self.keep_membership(&membership)?;
        Ok(membership)
    }

    pub(crate) fn keep_membership(&self, membership: &Membership) -> Result<()> {
        write(&self.folder.join(MEMBERSHIP_FILE), &serde_json::to_vec_pretty(membership)?)
    }

    /// What peers remember of our exports. A broken file is named and left out: what a peer still remembers it says
    /// again.
    pub(crate) fn recall(&self) -> KeptRecall {
        let kept = read(&self.folder.join("recall.json"))
            .and_then(|bytes| bytes.map_or(Ok(KeptRecall::default()), |bytes| Ok(serde_json::from_slice(&bytes)?)));
        kept.unwrap_or_else(|error| {
            tracing::warn!(%error, "what peers remember of this cluster's exports cannot be read");
            KeptRecall::default()
        })
    }

    pub(crate) fn keep_recall(&self, recall: &KeptRecall) -> Result<()> {
        write(&self.folder.join("recall.json"), &serde_json::to_vec(recall)?)
    }

    /// What every peer said last. A broken file is named and left out: that peer sends everything again.
    pub(crate) fn memories(&self) -> Vec<(ClusterId, Memory)> {
        let mut found = Vec::new();
        let Ok(entries) = fs::read_dir(self.folder.join("peers")) else { return found };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
            let Some(cluster) = name.and_then(|name| ClusterId::new(name).ok()) else { continue };
            let memory =
                read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Memory>(&bytes.unwrap_or_default())?));
            match memory {
                Ok(memory) if memory.version == 1 => found.push((cluster, memory)),
                Ok(memory) => {
                    tracing::warn!(%cluster, version = memory.version, "what was kept of a peer is of another version")
                }
                Err(error) => {
                    tracing::warn!(%cluster, %error, "what was kept of a peer cannot be read: it will send everything again")
                }
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    pub(crate) fn keep_memory(&self, cluster: &ClusterId, memory: &Memory) -> Result<()> {
        write(&self.folder.join("peers").join(format!("{cluster}.json")), &serde_json::to_vec(memory)?)
    }

    pub(crate) fn forget(&self, cluster: &ClusterId) {
        // Absent is as good as deleted; what stays is read again at the next start and judged by the peers of then.
        let _ = fs::remove_file(self.folder.join("peers").join(format!("{cluster}.json")));
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Some(bytes))
}

/// Replaces a file in one step; readable by its owner alone.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let replaced = store::state_file::replace(path, bytes);
    replaced.with_context(|| format!("cannot write {}: is the disk full, or the folder not ours?", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let epoch = StateFiles::open(folder.path()).unwrap().membership().unwrap().epoch;
        assert_eq!(epoch.len(), 2 * EPOCH_BYTES);
        assert_eq!(StateFiles::open(folder.path()).unwrap().membership().unwrap().epoch, epoch);
    }

    #[test]
    fn a_broken_membership_stops_the_start_and_a_broken_memory_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let files = StateFiles::open(folder.path()).unwrap();
        let birch = ClusterId::new("birch").unwrap();
        files.keep_memory(&birch, &Memory { version: 1, ..Memory::default() }).unwrap();
        fs::write(folder.path().join("peers/cedar.json"), b"{").unwrap();
        assert_eq!(files.memories().into_iter().map(|(cluster, _)| cluster).collect::<Vec<_>>(), [birch]);
        fs::write(folder.path().join("membership.json"), b"{").unwrap();
        assert!(files.membership().is_err());
    }
}
