//! What new connections would do if a cluster were drained: the same decision, asked on altered inputs.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use api::ClusterId;
use api::cluster_peer::PeerState;
use api::health::{ClusterHealth, PathReason, Reachability};
use api::member_record::MemberState;
use api::report::{MoveReport, MoveShare};
use api::time::Instant;
use kernel_core::Family;
use routing::{Cluster, Clusters, Decision, PolicySet};

use crate::NodeCore;
use crate::frontends::{Scene, decision, endpoints};

/// What is supposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Supposed {
    /// We give that peer no new connections.
    PeerDrained(ClusterId),
    /// No member gives us any. Asked as a member would that knows what we know, and has no policies: theirs are not
    /// ours to know.
    WeDrain,
}

impl NodeCore {
    /// Every port whose new connections would go elsewhere, in the order of the services.
    pub fn moves(&self, supposed: &Supposed, now: Instant) -> Vec<MoveReport> {
        let none = PolicySet::default();
        let (before, after, policies) = match supposed {
            Supposed::PeerDrained(peer) => {
                let mut after = self.clusters.clone();
                if let Some(peer) = after.remote.get_mut(peer) {
                    peer.peer = peer.peer.max(PeerState::Drained);
                }
                (self.clusters.clone(), after, &self.policies)
            }
            Supposed::WeDrain => {
                let elsewhere = |state| self.seen_from_elsewhere(state, now);
                (elsewhere(MemberState::Active), elsewhere(MemberState::Draining), &none)
            }
        };
        let mut moves = Vec::new();
        for (key, import) in self.catalog.imports() {
            for port in &import.ports {
                let shares = |clusters: &Clusters, family| {
                    let endpoints = endpoints(self.catalog.slices_of_import(key), port, family);
                    let served = self.served.get(key);
                    let memory = served.and_then(|served| served.memories.get(&(port.name.clone(), family)));
                    shares(&decision(key, port, memory, &endpoints, Scene { clusters, policies, ..self.scene(now) }))
                };
                let of_family = |family| (shares(&before, family), shares(&after, family));
                let moved = [Family::Ipv4, Family::Ipv6].map(of_family).into_iter().filter(|(one, other)| one != other);
                // Of two families the one that would lose more says it: who has nobody in one is without an answer there.
                if let Some((before, after)) = moved.min_by_key(|(_, after)| after.len()) {
                    let service = format!("{}/{}", key.0, key.1);
                    moves.push(MoveReport { service, port: port.name.clone(), before, after });
                }
            }
        }
        moves
    }

    /// The clusters as a member sees them that has no endpoints itself.
    fn seen_from_elsewhere(&self, ours: MemberState, now: Instant) -> Clusters {
        let mut name = 0;
        let id = loop {
            match ClusterId::new(&format!("elsewhere-{name}")) {
                Ok(id) if !self.clusters.remote.contains_key(&id) && id != self.clusters.local => break id,
                _ => name += 1,
            }
        };
        let mut seen = Clusters { local: id, labels: BTreeMap::new(), ..self.clusters.clone() };
        let health = ClusterHealth {
            reachability: Reachability::Up,
            reason: PathReason::Answering,
            since: now,
            round_trip: None,
        };
        let us = Cluster { member: Some(ours), health: Some(health), ..Cluster::default() };
        seen.remote.insert(self.clusters.local.clone(), us);
        seen
    }
}

fn shares(decision: &Decision) -> Vec<MoveShare> {
    let share = |share: &routing::Share| MoveShare {
        cluster: share.cluster.to_string(),
        percent: decision.percent(&share.cluster),
    };
    decision.shares.iter().map(share).collect()
}
