//! [`Clusters`]: every cluster this one knows, and whether it may be sent traffic now.

use alloc::collections::BTreeMap;
use alloc::string::String;
use core::time::Duration;

use api::ClusterId;
use api::cluster_peer::PeerState;
use api::health::{ClusterHealth, PathReason, Reachability};
use api::member_record::MemberState;
use api::time::Instant;

use crate::Reason;

/// How long after its own start a part takes clusters as reachable that it has heard nothing about.
///
/// A restarted agent has not asked the gateways yet, and the last known state should serve within a second. Two seconds
/// is also the promise for a silent cluster to leave service, so a cluster that is truly gone is left no later than that.
pub const START_GRACE: Duration = Duration::from_secs(2);

/// The local cluster and the remote ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Clusters {
    pub local: ClusterId,
    /// Labels of the local cluster, for `matchLabels`.
    pub labels: BTreeMap<String, String>,
    pub remote: BTreeMap<ClusterId, Cluster>,
    pub strangers: Strangers,
    /// When the part that asks was started.
    pub started: Instant,
}

/// A remote cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    pub labels: BTreeMap<String, String>,
    /// What this cluster's gateways measured; none when no gateway tells.
    pub health: Option<ClusterHealth>,
    /// What the operator decided here.
    pub peer: PeerState,
    /// What the cluster says of itself; none while no record of it is known.
    pub member: Option<MemberState>,
}

/// What endpoints of clusters that are not in [`Clusters::remote`] are worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strangers {
    /// Nothing: who is no peer gets no traffic.
    #[default]
    Excluded,
    /// As good as reachable: beside another implementation of the Multi-Cluster Services API, which knows its members
    /// itself.
    Trusted,
}

impl Clusters {
    /// Knows the local cluster alone.
    pub fn new(local: ClusterId, started: Instant) -> Self {
        Self { local, labels: BTreeMap::new(), remote: BTreeMap::new(), strangers: Strangers::Excluded, started }
    }

    /// Whether new connections may go to `cluster` at all: `Ok` with [`Reason::Serving`],
    /// [`Reason::NotMeasuredYet`], or one that is a last resort ([`Reason::is_last_resort`]); else the reason against it.
    /// Says nothing of endpoints and policy.
    pub fn standing(&self, cluster: &ClusterId, now: Instant) -> Result<Reason, Reason> {
        if *cluster == self.local {
            return Ok(Reason::Serving);
        }
        let Some(known) = self.remote.get(cluster) else {
            return match self.strangers {
                Strangers::Excluded => Err(Reason::NotAPeer),
                Strangers::Trusted => Ok(Reason::Serving),
            };
        };
        match known.peer {
            PeerState::Active => {}
            PeerState::Drained => return Err(Reason::Drained),
            PeerState::Blocked => return Err(Reason::Blocked),
        }
        match known.member {
            Some(MemberState::Draining) => return Err(Reason::Draining),
            Some(MemberState::Left) => return Err(Reason::Left),
            Some(MemberState::Active) | None => {}
        }
        let reason = match &known.health {
            None => Reason::NoGatewayAnswers,
            Some(health) => match (health.reachability, health.reason) {
                // One gateway that is going away may be all that is left: it carries until it is gone.
                (Reachability::Up, PathReason::PeerDraining) => return Ok(Reason::GatewaysDraining),
                (_, PathReason::PeerDraining) => return Err(Reason::Draining),
                (_, PathReason::DrainedHere) => return Err(Reason::Drained),
                (Reachability::Up, _) if self.proving_until(cluster, now).is_some() => return Ok(Reason::Proving),
                (Reachability::Up, _) => return Ok(Reason::Serving),
                (Reachability::Down, PathReason::NoHandshakeYet) => return Err(Reason::NeverConnected),
                (Reachability::Down, _) => return Err(Reason::SilentPeer),
                (Reachability::Unknown, PathReason::SilentPeer) => Reason::SilentPeer,
                (Reachability::Unknown, _) => Reason::NeverConnected,
            },
        };
        if self.in_grace(now) { Ok(Reason::NotMeasuredYet) } else { Err(reason) }
    }

    /// Until when a cluster that came back is used only where nobody else can serve; none when it has proved itself, or
    /// was never away.
    pub fn proving_until(&self, cluster: &ClusterId, now: Instant) -> Option<Instant> {
        self.remote.get(cluster)?.health.as_ref()?.proving_until.filter(|until| now < *until)
    }

    /// Whether a cluster that gets no new connections may finish those it has: somebody drains it, here or there, and
    /// packets reach it.
    pub fn lets_finish(&self, cluster: &ClusterId, now: Instant) -> bool {
        let standing = self.standing(cluster, now);
        let drained = matches!(standing, Err(Reason::Drained | Reason::Draining) | Ok(Reason::GatewaysDraining));
        let health = self.remote.get(cluster).and_then(|known| known.health.as_ref());
        drained && health.is_some_and(|health| health.reachability == Reachability::Up)
    }

    /// Whether `now` is so soon after the start that unmeasured clusters count as reachable.
    pub fn in_grace(&self, now: Instant) -> bool {
        now.since(self.started) < START_GRACE
    }

    /// The measured round-trip time; zero for the local cluster.
    pub fn round_trip(&self, cluster: &ClusterId) -> Option<Duration> {
        if *cluster == self.local {
            return Some(Duration::ZERO);
        }
        self.remote.get(cluster)?.health.as_ref()?.round_trip
    }

    /// The labels of a known cluster.
    pub fn labels_of(&self, cluster: &ClusterId) -> Option<&BTreeMap<String, String>> {
        if *cluster == self.local { Some(&self.labels) } else { self.remote.get(cluster).map(|known| &known.labels) }
    }
}
