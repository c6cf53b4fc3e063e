//! Slots: which one this gateway holds, by a Lease (DESIGN, decision 3).
//!
//! The holder is a node, not a process: a gateway that is started again on its node goes on at once, and another
//! node's waits until the Lease has not changed for its duration, by its own clock.

use std::collections::BTreeMap;
use std::time::Duration;

use api::kubernetes::{Lease, LeaseSpec, MicroTime, ObjectMeta};
use api::names::{self, SYSTEM_NAMESPACE};
use api::time::Instant;
use store::{Error, Store};

/// How long a slot stays its holder's after the last renewal. Longer than a busy API server is away, short enough for
/// a slot to be used again while an operator still looks.
pub(crate) const LEASE_DURATION: Duration = Duration::from_secs(15);
/// Three chances to renew within a duration.
pub(crate) const RENEW_EVERY: Duration = Duration::from_secs(5);

/// The Leases of all slots, each with the time it was last seen to change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leases {
    known: BTreeMap<String, (Lease, Instant)>,
}

/// What to do about a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// It is ours already.
    Ours(u16),
    /// Nobody holds it.
    Free(u16),
    /// All are held; look again then.
    WaitUntil(Instant),
}

impl Leases {
    pub(crate) fn apply(&mut self, lease: Lease, now: Instant) {
        let name = lease.metadata.name.clone().unwrap_or_default();
        let unchanged = self.known.get(&name).is_some_and(|(known, _)| known.spec == lease.spec);
        if unchanged {
            // Only the version moved: whoever holds it did not renew it.
            if let Some((known, _)) = self.known.get_mut(&name) {
                *known = lease;
            }
        } else {
            self.known.insert(name, (lease, now));
        }
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.known.remove(name);
    }

    pub(crate) fn reset(&mut self, leases: Vec<Lease>, now: Instant) {
        let names: Vec<_> = leases.iter().filter_map(|lease| lease.metadata.name.clone()).collect();
        self.known.retain(|name, _| names.contains(name));
        leases.into_iter().for_each(|lease| self.apply(lease, now));
    }

    /// The slot to hold: one that is ours, else the preferred one if it is free, else the first that is free.
    pub(crate) fn choose(&self, node: &str, slots: u16, preferred: Option<u16>, now: Instant) -> Choice {
        let ordered = || preferred.into_iter().filter(|slot| *slot < slots).chain(0..slots);
        if let Some(ours) = ordered().find(|slot| self.holder(*slot) == Some(node)) {
            return Choice::Ours(ours);
        }
        if let Some(free) = ordered().find(|slot| self.expires(*slot).is_none_or(|at| at <= now)) {
            return Choice::Free(free);
        }
        let earliest = ordered().filter_map(|slot| self.expires(slot)).min();
        Choice::WaitUntil(earliest.unwrap_or(now + LEASE_DURATION))
    }

    /// Who holds a slot, in force or not.
    pub(crate) fn holder(&self, slot: u16) -> Option<&str> {
        let (lease, _) = self.known.get(&names::slot_lease(slot))?;
        lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
    }

    fn expires(&self, slot: u16) -> Option<Instant> {
        self.holder(slot)?;
        let (lease, changed) = self.known.get(&names::slot_lease(slot))?;
        let seconds = lease.spec.as_ref()?.lease_duration_seconds.unwrap_or_default();
        Some(*changed + Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
    }

    /// Takes the slot or renews it. [`Error::is_conflict`] says that somebody else was faster.
    pub(crate) async fn hold(&self, store: &Store, slot: u16, node: &str) -> Result<Lease, Error> {
        let time = MicroTime(now_in_kubernetes());
        let mut spec = LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: Some(time.clone()),
            renew_time: Some(time),
            lease_transitions: Some(0),
            ..LeaseSpec::default()
        };
        let name = names::slot_lease(slot);
        let Some((known, _)) = self.known.get(&name) else {
            let metadata =
                ObjectMeta { name: Some(name), namespace: Some(SYSTEM_NAMESPACE.to_owned()), ..ObjectMeta::default() };
            return store.create(&Lease { metadata, spec: Some(spec) }).await;
        };
        let before = known.spec.clone().unwrap_or_default();
        if before.holder_identity.as_deref() == Some(node) {
            spec.acquire_time = before.acquire_time.or(spec.acquire_time);
            spec.lease_transitions = before.lease_transitions;
        } else {
            spec.lease_transitions = Some(before.lease_transitions.unwrap_or_default().saturating_add(1));
        }
        store.update(&Lease { metadata: known.metadata.clone(), spec: Some(spec) }).await
    }

    /// Gives the slot back, so that the next gateway need not wait.
    pub(crate) async fn release(&self, store: &Store, slot: u16, node: &str) -> Result<(), Error> {
        if self.holder(slot) != Some(node) {
            return Ok(());
        }
        let Some((known, _)) = self.known.get(&names::slot_lease(slot)) else { return Ok(()) };
        let mut lease = known.clone();
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(now_in_kubernetes()));
        }
        store.update(&lease).await.map(|_| ())
    }
}

fn now_in_kubernetes() -> jiff::Timestamp {
    // The store keeps microseconds; more digits would differ from what is read back.
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

#[cfg(test)]
#[path = "slot_tests.rs"]
mod tests;
