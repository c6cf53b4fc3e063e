//! [`OwnIdentity`]: the keys by which others know this cluster, and how one takes the place of another.
//!
//! | step | who | what |
//! |---|---|---|
//! | 1 | the controller | makes the next identity; both sign the [`Succession`]; the record names both, signed by the current one |
//! | 2 | a peer's controller | takes the record, keeps it in its store, and from then on lets either identity in |
//! | 3 | the same | says in each conversation which identities it trusts |
//! | 4 | the controller | when all peers trust the next one, makes it the current one, in one write; the record names it alone |
//! | 5 | a peer's controller | takes that record, and refuses the old identity from then on |
//!
//! A peer says so only of what is in its store, so none that is killed forgets what it said. Each step follows from what
//! is on disk, so it does not matter who was killed when. A peer that is away keeps step 4 from coming, but not for ever.
//!
//! What an old identity signs after step 5 is refused by every peer that has heard of that step: such a record is neither
//! newer nor as good, whatever generation it claims.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use api::cluster_peer::PeerState;
use api::keys::IdentityKey;
use api::succession::{MAX_SUCCESSIONS, Succession};
use api::time::WallTime;
use api::{ClusterId, Prefix};

use crate::engine::Engine;
use crate::plan::Subject;
use crate::rotation::LONGEST;

/// As they stand on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnIdentity {
    /// Signs the record, and is shown in every connection.
    pub current: IdentityKey,
    /// The last of `successions` leads to it.
    pub next: Option<NextIdentity>,
    /// Oldest first.
    pub successions: Vec<Succession>,
    /// From the first identity of all; survives every change (decision 13).
    pub control_prefix: Prefix,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextIdentity {
    pub key: IdentityKey,
    pub since: WallTime,
}

/// A cluster that never changed its identity.
impl From<IdentityKey> for OwnIdentity {
    fn from(current: IdentityKey) -> Self {
        Self { current, next: None, successions: Vec::new(), control_prefix: current.control_prefix() }
    }
}

impl OwnIdentity {
    /// The ones that speak for this cluster, the current one first.
    pub fn keys(&self) -> Vec<IdentityKey> {
        [self.current].into_iter().chain(self.next.map(|next| next.key)).collect()
    }

    /// Whether a key is or was one of them: what it signed is no other cluster's.
    pub fn is_or_was(&self, key: &IdentityKey) -> bool {
        self.keys().contains(key) || self.successions.iter().any(|succession| succession.from == *key)
    }

    /// The successions that lead to the current one.
    pub fn taken(&self) -> &[Succession] {
        let announced = usize::from(self.next.is_some()).min(self.successions.len());
        &self.successions[..self.successions.len() - announced]
    }

    /// With the next one beside the current one; none while one is there already.
    pub fn begun(&self, succession: Succession, since: WallTime) -> Option<Self> {
        if self.next.is_some() || succession.from != self.current {
            return None;
        }
        let next = Some(NextIdentity { key: succession.to, since });
        // The oldest go: a peer that knows nothing newer says that it does not trust the next one, and is waited for.
        let surplus = (self.successions.len() + 1).saturating_sub(MAX_SUCCESSIONS);
        let successions = self.successions.iter().skip(surplus).cloned().chain([succession]).collect();
        Some(Self { next, successions, ..self.clone() })
    }

    /// With the next one in the place of the current one; none where there is no next one.
    pub fn retired(&self) -> Option<Self> {
        self.next.map(|next| Self { current: next.key, next: None, ..self.clone() })
    }
}

/// How far the change of the identity has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRotation {
    pub next: IdentityKey,
    pub age: Duration,
    /// The peers that have not said yet that they trust the next identity; `None` until the peers are known.
    pub waiting_for: Option<Vec<String>>,
}

impl IdentityRotation {
    /// Whether the old identity is to be retired now.
    pub fn is_over(&self) -> bool {
        match &self.waiting_for {
            None => false,
            Some(waiting_for) => self.age >= LONGEST || waiting_for.is_empty(),
        }
    }
}

impl Engine {
    pub fn identity(&self) -> &OwnIdentity {
        &self.identity
    }

    /// The identity was changed, and that is on disk: the record follows.
    pub fn set_identity(&mut self, identity: OwnIdentity) {
        self.identity = identity;
        self.dirty.insert(Subject::LocalCluster);
    }

    /// A peer says which of our identities it trusts.
    pub fn hear_trust(&mut self, peer: &ClusterId, identities: Vec<IdentityKey>) {
        self.talks.entry(peer.clone()).or_default().trusts = identities;
    }

    /// Whether the identity changes, and who is waited for. Peers that are blocked are not.
    pub fn identity_rotation(&self, now: WallTime) -> Option<IdentityRotation> {
        let NextIdentity { key, since } = self.identity.next?;
        let has_taken_it = |id: &ClusterId| self.talks.get(id).is_some_and(|talk| talk.trusts.contains(&key));
        let active = self.peers.values().filter(|peer| peer.state() != PeerState::Blocked);
        let ids = active.filter_map(|peer| ClusterId::new(peer.metadata.name.as_deref()?).ok());
        let waiting = ids.filter(|id| Some(id) != self.cluster_id() && !has_taken_it(id)).map(|id| id.to_string());
        Some(IdentityRotation {
            next: key,
            age: Duration::from_millis(now.as_millis().saturating_sub(since.as_millis())),
            waiting_for: self.is_known().then(|| waiting.collect()),
        })
    }
}

#[cfg(test)]
mod tests;
