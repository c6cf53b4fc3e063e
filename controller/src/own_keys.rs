//! The cluster's own private keys, as they are on disk and as others are shown them.
//!
//! `membership.json` says which identity is the current one, and is written in one step; the key files follow it. So a
//! kill between two writes is made good at the next start.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result, bail};
use controller_core::own_identity::{NextIdentity, OwnIdentity};
use identity::Identity;
use rustls::ServerConfig;
use store::feed;

use crate::listener::SYNC_PROTOCOL;
use crate::state_files::{Membership, StateFiles};

/// What this cluster proves to be, in connections and under its record.
pub(crate) struct Shown {
    pub(crate) identity: Identity,
    /// What connections are taken with.
    pub(crate) tls: Arc<ServerConfig>,
}

impl Shown {
    pub(crate) fn new(identity: Identity) -> Result<Self> {
        let tls = identity::server_config(&identity, &[feed::PROTOCOL, SYNC_PROTOCOL])?;
        Ok(Self { identity, tls })
    }
}

/// Which identity is shown now; every connection asks when it begins.
pub(crate) struct OwnKeys(RwLock<Arc<Shown>>);

impl OwnKeys {
    pub(crate) fn new(shown: Shown) -> Self {
        Self(RwLock::new(Arc::new(shown)))
    }

    pub(crate) fn shown(&self) -> Arc<Shown> {
        // It is replaced as a whole.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn show(&self, shown: Shown) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(shown);
    }
}

/// What a start finds.
pub(crate) struct Found {
    pub(crate) current: Identity,
    pub(crate) next: Option<Identity>,
    pub(crate) own: OwnIdentity,
}

/// The identities on disk; the first is made where there is none.
pub(crate) fn load(files: &StateFiles, membership: &Membership) -> Result<Found> {
    let mut current = Identity::load_or_create(files.identity_file())?;
    let next_file = files.next_identity_file();
    let held = if next_file.try_exists()? { Some(Identity::load_or_create(&next_file)?) } else { None };
    let mut own = OwnIdentity::from(current.public());
    own.control_prefix = membership.control_prefix.unwrap_or(own.control_prefix);
    own.successions.clone_from(&membership.successions);
    // A next one that nobody was told of is from an order that was cut short: the next order takes it up.
    let Some(last) = membership.successions.last() else { return Ok(Found { current, next: None, own }) };
    match (membership.identity_rotating_since, held) {
        (Some(since), Some(next)) if (last.from, last.to) == (current.public(), next.public()) => {
            own.next = Some(NextIdentity { key: last.to, since });
            return Ok(Found { current, next: Some(next), own });
        }
        (None, Some(next)) if last.to == next.public() => {
            files.promote_identity()?;
            current = next;
        }
        (None, _) if last.to == current.public() => {}
        (Some(_), _) => bail!(
            "{} does not hold {}, which peers were told comes next: restore both key files from one backup",
            next_file.display(),
            last.to.fingerprint()
        ),
        (None, _) => bail!(
            "{} holds {}, but peers know this cluster as {}: restore the newer key file",
            files.identity_file().display(),
            current.public().fingerprint(),
            last.to.fingerprint()
        ),
    }
    own.current = current.public();
    Ok(Found { current, next: None, own })
}

/// Makes the next identity beside the current one. Peers are told by the record that follows.
pub(crate) fn begin(
    files: &StateFiles,
    membership: &mut Membership,
    own: &OwnIdentity,
    current: &Identity,
    cluster: &api::ClusterId,
) -> Result<Option<(OwnIdentity, Identity)>> {
    if own.next.is_some() {
        return Ok(None);
    }
    let next = Identity::load_or_create(files.next_identity_file())?;
    let now = clock::wall();
    let begun = own.begun(current.succeeded_by(&next, cluster), now).context("the identity on disk is another one")?;
    let changed = Membership {
        successions: begun.successions.clone(),
        identity_rotating_since: Some(now),
        control_prefix: Some(own.control_prefix),
        ..membership.clone()
    };
    files.keep_membership(&changed)?;
    *membership = changed;
    Ok(Some((begun, next)))
}

/// Puts the next identity in the place of the current one.
pub(crate) fn retire(
    files: &StateFiles,
    membership: &mut Membership,
    own: &OwnIdentity,
) -> Result<Option<OwnIdentity>> {
    let Some(retired) = own.retired() else { return Ok(None) };
    let changed = Membership { identity_rotating_since: None, ..membership.clone() };
    files.keep_membership(&changed)?;
    *membership = changed;
    // From here on it is done, whatever else fails.
    if let Err(error) = files.promote_identity() {
        tracing::warn!(%error, "the old identity's key stays on disk until the next start");
    }
    Ok(Some(retired))
}

#[cfg(test)]
mod tests {
    use api::ClusterId;

    use super::*;

    fn amber() -> ClusterId {
        ClusterId::new("amber").unwrap()
    }

    /// What the next process finds.
    fn start(folder: &std::path::Path) -> Result<(StateFiles, Membership, Found)> {
        let files = StateFiles::open(folder)?;
        let membership = files.membership()?;
        let found = load(&files, &membership)?;
        Ok((files, membership, found))
    }

    fn begun(folder: &std::path::Path) -> (StateFiles, Membership, Found) {
        let (files, mut membership, found) = start(folder).unwrap();
        begin(&files, &mut membership, &found.own, &found.current, &amber()).unwrap().unwrap();
        start(folder).unwrap()
    }

    #[test]
    fn a_rotation_goes_on_after_a_kill_between_any_two_writes() {
        let folder = tempfile::tempdir().unwrap();
        let (files, _, found) = start(folder.path()).unwrap();
        let first = found.current.public();
        // Killed after the next key was made, before anybody was told: it is no rotation yet.
        let made = Identity::load_or_create(files.next_identity_file()).unwrap().public();
        assert_eq!(start(folder.path()).unwrap().2.own, OwnIdentity::from(first));

        let (files, mut membership, found) = begun(folder.path());
        assert_eq!((found.own.keys(), found.own.control_prefix), (vec![first, made], first.control_prefix()));
        assert!(found.own.successions[0].is_valid(&amber()));
        assert_eq!(found.next.as_ref().map(Identity::public), Some(made));
        assert!(begin(&files, &mut membership, &found.own, &found.current, &amber()).unwrap().is_none());

        // Killed after the membership says so, before the key file was renamed.
        let old_key = std::fs::read(files.identity_file()).unwrap();
        let new_key = std::fs::read(files.next_identity_file()).unwrap();
        retire(&files, &mut membership, &found.own).unwrap().unwrap();
        std::fs::write(files.next_identity_file(), &new_key).unwrap();
        std::fs::set_permissions(files.next_identity_file(), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        std::fs::write(files.identity_file(), old_key).unwrap();
        let (files, _, found) = start(folder.path()).unwrap();
        assert_eq!((found.own.keys(), found.own.control_prefix), (vec![made], first.control_prefix()));
        assert_eq!(found.current.public(), made);
        assert!(!files.next_identity_file().exists());
        assert_eq!(std::fs::read(files.identity_file()).unwrap(), new_key);
        // And the next rotation begins from there.
        assert_eq!(begun(folder.path()).2.own.successions.len(), 2);
    }

    #[test]
    fn keys_that_are_not_those_peers_know_stop_the_start_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let (files, ..) = begun(folder.path());
        let next_key = std::fs::read(files.next_identity_file()).unwrap();
        std::fs::remove_file(files.next_identity_file()).unwrap();
        let refused = |text: &str| start(folder.path()).err().unwrap().to_string().contains(text);
        assert!(refused("identity.next.key does not hold SHA256:"));
        std::fs::write(files.next_identity_file(), next_key).unwrap();
        std::fs::set_permissions(files.next_identity_file(), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let (files, mut membership, found) = start(folder.path()).unwrap();
        retire(&files, &mut membership, &found.own).unwrap().unwrap();
        std::fs::remove_file(files.identity_file()).unwrap();
        assert!(refused("but peers know this cluster as SHA256:"));
    }
}
