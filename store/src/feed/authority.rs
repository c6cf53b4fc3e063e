//! [`Authority`]: which identity an agent takes for its controller's, now and after it was replaced.
//!
//! The enrolment file pins one identity, and nobody goes round the hosts when the cluster gets another. So a controller
//! shows how it came from the one to the other (`api::succession`); an agent follows from what it pins, however long it
//! was away, keeps what it was shown, and takes no older identity from then on.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use api::keys::IdentityKey;
use api::succession::{self, MAX_SUCCESSIONS, Succession};
use serde::{Deserialize, Serialize};

use crate::{Error, state_file};

/// Successions of some 350 bytes each, with room to spare.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// How a cluster came to its identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lineage {
    /// Oldest first.
    pub(crate) successions: Vec<Succession>,
}

impl Lineage {
    /// The identities that `pinned` leads to, itself among them.
    fn reached(&self, pinned: &IdentityKey) -> BTreeSet<IdentityKey> {
        let cluster = self.successions.first().map(|first| &first.cluster);
        cluster.map_or([*pinned].into(), |cluster| succession::reached(&[*pinned], &self.successions, cluster))
    }

    /// The last identity, where `pinned` leads to it.
    fn end(&self, pinned: &IdentityKey) -> Option<IdentityKey> {
        let last = self.successions.last()?.to;
        (self.successions.len() <= MAX_SUCCESSIONS && self.reached(pinned).contains(&last)).then_some(last)
    }

    /// Whether it goes on from an identity to another one.
    fn leads_on_from(&self, held: &IdentityKey) -> bool {
        self.successions.iter().any(|step| step.from == *held)
    }

    /// Whether `pinned` leads to an identity that others took the place of, and `key` is that one.
    fn left_behind(&self, pinned: &IdentityKey, key: &IdentityKey) -> bool {
        let reached = self.reached(pinned);
        reached.contains(key) && self.successions.iter().any(|step| step.from == *key && reached.contains(&step.to))
    }
}

/// What is to be thought of a controller that proves an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Trusted,
    /// It may show how it came to it.
    Unknown,
    /// Another took its place.
    Retired,
}

/// What one agent has been shown, on its disk.
#[derive(Debug)]
pub(crate) struct Authority {
    path: PathBuf,
    known: Mutex<Option<Lineage>>,
}

impl Authority {
    /// Reads what was kept in `folder`. What cannot be read is named and left out: a controller shows it again.
    pub(crate) fn open(folder: &Path) -> Self {
        let path = folder.join("controller.json");
        let known = match read(&path) {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(%error, "which identities the controller had cannot be read");
                None
            }
        };
        Self { path, known: Mutex::new(known) }
    }

    /// How a controller with this key stands for an agent whose enrolment file names `pinned`.
    pub(crate) fn standing(&self, pinned: &IdentityKey, key: &IdentityKey) -> Standing {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.as_ref();
        if known.is_some_and(|known| known.left_behind(pinned, key)) {
            return Standing::Retired;
        }
        let end = known.and_then(|known| known.end(pinned)).unwrap_or(*pinned);
        if end == *key { Standing::Trusted } else { Standing::Unknown }
    }

    /// Takes what a controller shows, where it leads from `pinned` to somewhere new. On disk before it counts.
    pub(crate) fn shown(&self, pinned: &IdentityKey, lineage: Lineage) -> Result<(), Error> {
        let Some(end) = lineage.end(pinned) else { return Ok(()) };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // What was left behind stays so: who has an old key may show another way from it.
        if known.as_ref().is_some_and(|known| known.end(pinned).is_some_and(|held| !lineage.leads_on_from(&held))) {
            return Ok(());
        }
        let disk = |detail: String| Error::Disk { path: self.path.display().to_string(), detail };
        let bytes = serde_json::to_vec(&lineage).map_err(|error| disk(error.to_string()))?;
        state_file::replace(&self.path, &bytes).map_err(|error| disk(error.to_string()))?;
        tracing::info!(fingerprint = %end.fingerprint(), "the cluster has another identity");
        *known = Some(lineage);
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<Lineage>, Error> {
    let disk = |detail: String| Error::Disk { path: path.display().to_string(), detail };
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)),
    }
    .map_err(|error| disk(error.to_string()))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| disk(error.to_string()))
}

#[cfg(test)]
mod tests {
    use api::ClusterId;
    use identity::Identity;

    use super::*;

    fn amber() -> ClusterId {
        ClusterId::new("amber").unwrap()
    }

    fn lineage(identities: &[&Identity]) -> Lineage {
        let steps = identities.windows(2).map(|pair| pair[0].succeeded_by(pair[1], &amber()));
        Lineage { successions: steps.collect() }
    }

    #[test]
    fn a_controller_is_followed_from_what_is_pinned_and_never_back_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c, thief] = std::array::from_fn(|_| Identity::generate().unwrap());
        let pinned = a.public();
        let agent = Authority::open(folder.path());
        assert_eq!(agent.standing(&pinned, &a.public()), Standing::Trusted);
        assert_eq!(agent.standing(&pinned, &b.public()), Standing::Unknown);
        agent.shown(&pinned, lineage(&[&a, &b])).unwrap();
        let agent = Authority::open(folder.path());
        assert_eq!(agent.standing(&pinned, &b.public()), Standing::Trusted);
        assert_eq!(agent.standing(&pinned, &a.public()), Standing::Retired);
        // Who has the first key leads nobody away any more.
        agent.shown(&pinned, lineage(&[&a, &thief])).unwrap();
        assert_eq!(agent.standing(&pinned, &thief.public()), Standing::Unknown);
        agent.shown(&pinned, lineage(&[&a, &b, &c])).unwrap();
        agent.shown(&pinned, lineage(&[&a, &b])).unwrap();
        assert_eq!(agent.standing(&pinned, &c.public()), Standing::Trusted);
        assert_eq!(agent.standing(&pinned, &b.public()), Standing::Retired);
    }

    #[test]
    fn an_agent_that_missed_several_changes_follows_all_of_them_and_one_that_is_enrolled_anew_begins_there() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c, other] = std::array::from_fn(|_| Identity::generate().unwrap());
        let agent = Authority::open(folder.path());
        agent.shown(&a.public(), lineage(&[&a, &b, &c])).unwrap();
        assert_eq!(agent.standing(&a.public(), &c.public()), Standing::Trusted);
        assert_eq!(agent.standing(&b.public(), &c.public()), Standing::Trusted);
        assert_eq!(agent.standing(&other.public(), &other.public()), Standing::Trusted);
        assert_eq!(agent.standing(&other.public(), &c.public()), Standing::Unknown);
    }

    #[test]
    fn what_was_kept_and_cannot_be_read_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = std::array::from_fn(|_| Identity::generate().unwrap());
        std::fs::write(folder.path().join("controller.json"), b"[{").unwrap();
        let agent = Authority::open(folder.path());
        assert_eq!(agent.standing(&a.public(), &a.public()), Standing::Trusted);
        agent.shown(&a.public(), lineage(&[&a, &b])).unwrap();
        assert_eq!(Authority::open(folder.path()).standing(&a.public(), &b.public()), Standing::Trusted);
    }

    #[test]
    fn what_leads_nowhere_or_was_signed_by_one_alone_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c] = std::array::from_fn(|_| Identity::generate().unwrap());
        let agent = Authority::open(folder.path());
        let mut unwilling = lineage(&[&a, &b]);
        unwilling.successions[0].accepted = unwilling.successions[0].named.clone();
        for shown in [unwilling, lineage(&[&b, &c]), lineage(&[])] {
            agent.shown(&a.public(), shown).unwrap();
            assert_eq!(agent.standing(&a.public(), &a.public()), Standing::Trusted);
            assert_eq!(agent.standing(&a.public(), &b.public()), Standing::Unknown);
        }
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
    }
}
