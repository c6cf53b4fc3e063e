//! What new connections would do if a cluster or a node were drained: the same decision, asked on altered inputs.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
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
use crate::catalog::{PortFacts, SliceFacts};
use crate::frontends::{Endpoints, Scene, decision, endpoints};
use crate::input::Key;

/// What is supposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Supposed {
    /// We give that peer no new connections.
    PeerDrained(ClusterId),
    /// No member gives us any. Asked as a member would that knows what we know, and has no policies: theirs are not
    /// ours to know.
    WeDrain,
    /// The endpoints on that node of this cluster get no new connections, from our own clients or from members.
    NodeDrained(String),
}

/// Who answers, as somebody decides it, before and after.
struct View<'a> {
    before: Clusters,
    after: Clusters,
    policies: &'a PolicySet,
}

impl NodeCore {
    /// Every port whose new connections would go elsewhere, in the order of the services.
    pub fn moves(&self, supposed: &Supposed, now: Instant) -> Vec<MoveReport> {
        let none = PolicySet::default();
        let elsewhere = |before, after| View {
            before: self.seen_from_elsewhere(before, now),
            after: self.seen_from_elsewhere(after, now),
            policies: &none,
        };
        let here = |after| View { before: self.clusters.clone(), after, policies: &self.policies };
        let mut drained = None;
        let views = match supposed {
            Supposed::PeerDrained(peer) => {
                let mut after = self.clusters.clone();
                if let Some(peer) = after.remote.get_mut(peer) {
                    peer.peer = peer.peer.max(PeerState::Drained);
                }
                vec![here(after)]
            }
            Supposed::WeDrain => vec![elsewhere(MemberState::Active, MemberState::Draining)],
            Supposed::NodeDrained(node) => {
                drained = Some(node.as_str());
                vec![here(self.clusters.clone()), elsewhere(MemberState::Active, MemberState::Active)]
            }
        };
        let mut moves = Vec::new();
        for (key, import) in self.catalog.imports() {
            for port in &import.ports {
                let of_family = |family| self.moved(key, port, family, &views, drained, now);
                let moved = [Family::Ipv4, Family::Ipv6].into_iter().flat_map(of_family);
                // Of two families, and of ourselves and members, the one that would lose more says it: who has nobody in
                // one is without an answer there.
                moves.extend(moved.min_by_key(|moved| moved.after.len()));
            }
        }
        moves
    }

    /// What would move of one port in one family, in each view where something does.
    fn moved(
        &self,
        key: &Key,
        port: &PortFacts,
        family: Family,
        views: &[View<'_>],
        drained: Option<&str>,
        now: Instant,
    ) -> Vec<MoveReport> {
        let slices = || self.catalog.slices_of_import(key);
        let before = endpoints(slices(), port, family);
        let after = drained.map(|node| {
            let without: Vec<(ClusterId, SliceFacts)> =
                slices().map(|(cluster, slice)| (cluster.clone(), self.without(cluster, slice, node))).collect();
            endpoints(without.iter().map(|(cluster, slice)| (cluster, slice)), port, family)
        });
        let ready = |endpoints: &Endpoints| endpoints.counts.get(&self.clusters.local).map_or(0, |count| count.ready);
        let (count, leaving) = match &after {
            Some(after) => (ready(&before), ready(&before).saturating_sub(ready(after))),
            None => (0, 0),
        };
        let memory = self.served.get(key).and_then(|served| served.memories.get(&(port.name.clone(), family)));
        let report = |view: &View<'_>| {
            let decided = |clusters: &Clusters, endpoints: &Endpoints| {
                let scene = Scene { clusters, policies: view.policies, ..self.scene(now) };
                shares(&decision(key, port, memory, endpoints, scene))
            };
            MoveReport {
                service: format!("{}/{}", key.0, key.1),
                port: port.name.clone(),
                before: decided(&view.before, &before),
                after: decided(&view.after, after.as_ref().unwrap_or(&before)),
                endpoints: count,
                leaving,
            }
        };
        let says_something =
            |moved: &MoveReport| moved.before != moved.after || (moved.leaving > 0 && !moved.before.is_empty());
        views.iter().map(report).filter(says_something).collect()
    }

    /// A slice as it would be with a node drained.
    fn without(&self, cluster: &ClusterId, slice: &SliceFacts, node: &str) -> SliceFacts {
        let mut slice = slice.clone();
        if *cluster == self.clusters.local {
            for endpoint in slice.endpoints.iter_mut().filter(|endpoint| self.is_at(endpoint, node)) {
                endpoint.ready = false;
            }
        }
        slice
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
            proving_until: None,
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
