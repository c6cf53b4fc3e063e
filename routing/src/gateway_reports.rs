//! [`GatewayReports`]: what all gateways of this cluster tell, as one view.
//!
//! Nodes and DNS servers ask every gateway ten times a second, nodes more often while an answer is late. A gateway that is
//! silent for [`SILENCE`] is not used, and what it told does not count.

use alloc::collections::{BTreeMap, BTreeSet};
use core::time::Duration;

use api::ClusterId;
use api::health::{ClusterHealth, ClusterHealths, HealthReport, PathReason, PeerHealth, Reachability};
use api::time::Instant;

/// A gateway without an answer for this long is not used. TCP flows go on within a second when their path is repaired
/// within 550 ms, and this leaves 150 ms to replace next hops.
pub const SILENCE: Duration = Duration::from_millis(400);

/// Fewer unanswered questions prove nothing, however long it has been: this process may have been asleep.
pub const UNANSWERED: u32 = 10;

/// How long a gateway must have reached a peer without a break before it is used beside others that have: a path that
/// comes back, and the host around it, must first prove itself. So must a cluster that fell silent, where others can serve.
pub const PROVEN: Duration = Duration::from_secs(1);

/// The latest report of every gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayReports {
    by_slot: BTreeMap<u16, Heard>,
    merged: ClusterHealths,
}

#[derive(Clone, Debug, PartialEq)]
struct Heard {
    report: HealthReport,
    at: Instant,
    /// Questions since then; none where nobody counts them.
    unanswered: Option<u32>,
}

impl Heard {
    fn is_silent(&self, now: Instant) -> bool {
        now.since(self.at) >= SILENCE && self.was_asked_enough()
    }

    fn was_asked_enough(&self) -> bool {
        self.unanswered.is_none_or(|count| count >= UNANSWERED)
    }
}

/// What one gateway is good for, towards one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    pub mtu: u16,
    /// Its lanes that reach the peer: bit i for lane i.
    pub lanes: u16,
}

impl GatewayReports {
    /// Takes a report. True when the merged view or a gateway's use changed in more than ages and round-trip times.
    pub fn take(&mut self, report: HealthReport, now: Instant) -> bool {
        let before = self.by_slot.get(&report.slot).map(|heard| essence(&heard.report));
        let after = essence(&report);
        let changed = before.as_ref() != Some(&after);
        let unanswered = self.by_slot.get(&report.slot).and_then(|heard| heard.unanswered).map(|_| 0);
        self.by_slot.insert(report.slot, Heard { report, at: now, unanswered });
        self.merge(now) || changed
    }

    /// Counts a question to a gateway. For those who count, a gateway is silent only after [`UNANSWERED`] of them.
    pub fn asked(&mut self, slot: u16) {
        if let Some(heard) = self.by_slot.get_mut(&slot) {
            heard.unanswered = Some(heard.unanswered.unwrap_or(0).saturating_add(1));
        }
    }

    /// Forgets gateways that fell silent. True when there was one.
    pub fn expire(&mut self, now: Instant) -> bool {
        let before = self.by_slot.len();
        self.by_slot.retain(|_, heard| !heard.is_silent(now));
        if before == self.by_slot.len() {
            return false;
        }
        self.merge(now);
        true
    }

    /// When the next gateway would fall silent; those that were not asked often enough wait for the next question.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.by_slot.values().filter(|heard| heard.was_asked_enough()).map(|heard| heard.at + SILENCE).min()
    }

    /// Forgets a gateway whose slot is gone.
    pub fn forget(&mut self, slot: u16, now: Instant) -> bool {
        let known = self.by_slot.remove(&slot).is_some();
        if known {
            self.merge(now);
        }
        known
    }

    /// The gateways that answer, by slot, whether they reach anybody or not.
    pub fn answering(&self) -> BTreeSet<u16> {
        self.by_slot.keys().copied().collect()
    }

    /// The latest report of one gateway and when it came.
    pub fn latest(&self, slot: u16) -> Option<(&HealthReport, Instant)> {
        self.by_slot.get(&slot).map(|heard| (&heard.report, heard.at))
    }

    /// One figure for each peer: up when one gateway reaches it; down when none does and one says so; else unknown.
    pub fn clusters(&self) -> &ClusterHealths {
        &self.merged
    }

    /// The gateways that reach `peer`, by slot: those of the best standing alone.
    pub fn paths(&self, peer: &ClusterId) -> BTreeMap<u16, Path> {
        let all = self.by_slot.iter().filter_map(|(slot, heard)| {
            let health = of_peer(&heard.report, peer)?;
            let standing = Standing::of(&heard.report, health);
            (health.reachability == Reachability::Up).then_some((
                *slot,
                standing,
                Path { mtu: health.mtu, lanes: health.lanes },
            ))
        });
        let best = all.clone().map(|(_, standing, _)| standing).min();
        all.filter(|(_, standing, _)| Some(*standing) == best).map(|(slot, _, path)| (slot, path)).collect()
    }

    /// Builds the merged view anew; true when more than round-trip times changed.
    fn merge(&mut self, now: Instant) -> bool {
        let mut merged = ClusterHealths::new();
        for heard in self.by_slot.values() {
            for peer in &heard.report.peers {
                let since = Instant::from_micros(
                    heard.at.as_micros().saturating_sub(u64::try_from(peer.age.as_micros()).unwrap_or(u64::MAX)),
                );
                let told = ClusterHealth {
                    reachability: peer.reachability,
                    reason: peer.reason,
                    since,
                    proving_until: None,
                    round_trip: peer.round_trip,
                };
                match merged.get_mut(&peer.cluster) {
                    None => {
                        merged.insert(peer.cluster.clone(), told);
                    }
                    Some(known) if rank(told.reachability) > rank(known.reachability) => *known = told,
                    Some(known) if told.reachability == known.reachability => {
                        known.since = known.since.min(told.since);
                        known.round_trip = match (known.round_trip, told.round_trip) {
                            (Some(a), Some(b)) => Some(a.min(b)),
                            (a, b) => a.or(b),
                        };
                    }
                    Some(_) => {}
                }
            }
        }
        // A state that goes on began when it was first seen, whichever gateway is asked now.
        let mut changed = merged.len() != self.merged.len();
        for (cluster, health) in &mut merged {
            match self.merged.get(cluster) {
                Some(old) if old.reachability == health.reachability && old.reason == health.reason => {
                    health.since = old.since;
                    health.proving_until = old.proving_until;
                }
                old => {
                    health.since = health.since.min(now);
                    health.proving_until = old.and_then(|old| proving_until(old, health));
                    changed = true;
                }
            }
        }
        self.merged = merged;
        changed
    }
}

/// Until when a peer has to prove itself after this change. Who is reached for the first time, or by a gateway that just
/// started, was never away.
fn proving_until(old: &ClusterHealth, new: &ClusterHealth) -> Option<Instant> {
    match (old.reachability, new.reachability) {
        (Reachability::Down, Reachability::Up) if old.reason != PathReason::NoHandshakeYet => Some(new.since + PROVEN),
        (Reachability::Up, Reachability::Up) => old.proving_until,
        _ => None,
    }
}

/// How much a gateway is to be preferred towards a peer it reaches, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Proven,
    Fresh,
    Draining,
}

impl Standing {
    fn of(report: &HealthReport, health: &PeerHealth) -> Self {
        match (report.draining, health.age >= PROVEN) {
            (true, _) => Self::Draining,
            (false, true) => Self::Proven,
            (false, false) => Self::Fresh,
        }
    }
}

const fn rank(reachability: Reachability) -> u8 {
    match reachability {
        Reachability::Unknown => 0,
        Reachability::Down => 1,
        Reachability::Up => 2,
    }
}

fn of_peer<'a>(report: &'a HealthReport, peer: &ClusterId) -> Option<&'a PeerHealth> {
    report.peers.iter().find(|health| health.cluster == *peer)
}

/// What of a report decides on routes.
fn essence(report: &HealthReport) -> BTreeMap<ClusterId, (Reachability, Standing, u16, u16)> {
    let told = |peer: &PeerHealth| (peer.reachability, Standing::of(report, peer), peer.mtu, peer.lanes);
    let of = |peer: &PeerHealth| (peer.cluster.clone(), told(peer));
    report.peers.iter().map(of).collect()
}
