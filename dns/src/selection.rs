//! Which clusters a routing policy selects for the answers of a headless service (decision 6): those that get a share on
//! any of its ports, for an address record knows no ports.

use std::collections::{BTreeMap, BTreeSet};

use api::ClusterId;
use api::time::Instant;
use routing::{Clusters, EndpointCounts, Memory, PolicySet, Question, decide};

use crate::service::Service;

/// What one service's decisions come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// `None`: no policy selects headless answers.
    pub clusters: Option<BTreeSet<ClusterId>>,
    /// What to remember for the next time, by port.
    pub memory: BTreeMap<String, Memory>,
    /// Round-trip times alone may change it.
    pub follows_round_trips: bool,
}

/// Asks the policies about each port of a headless service.
pub fn select(
    service: &Service,
    clusters: &Clusters,
    policies: &PolicySet,
    before: &Selection,
    now: Instant,
) -> Selection {
    let mut selection = Selection::default();
    if !service.is_headless() {
        return selection;
    }
    for (port, endpoints) in &endpoints_by_port(service) {
        let (namespace, name) = (&*service.namespace, &*service.name);
        if !policies.policy_for(namespace, name, port).rules.is_some_and(|rules| rules.headless) {
            continue;
        }
        let fresh = Memory::default();
        let memory = before.memory.get(port).unwrap_or(&fresh);
        let question = Question { namespace, service: name, port, clusters, policies, endpoints, memory, now };
        let decision = decide(&question);
        selection
            .clusters
            .get_or_insert_default()
            .extend(decision.shares.into_iter().filter(|share| share.weight > 0).map(|share| share.cluster));
        selection.follows_round_trips |= decision.follows_round_trips;
        selection.memory.insert(port.clone(), decision.memory);
    }
    selection
}

/// Counts endpoints for each named port; under the empty name for a service that has none.
fn endpoints_by_port(service: &Service) -> BTreeMap<String, EndpointCounts> {
    let mut counts: BTreeMap<String, EndpointCounts> = BTreeMap::new();
    for cluster in service.clusters.values() {
        // Both families of a pod are one endpoint, and which family is larger does not matter to a policy.
        let mut of_cluster: BTreeMap<(&str, bool), (u32, u32)> = BTreeMap::new();
        for slice in cluster.slices.values() {
            let labels: BTreeSet<&str> = slice.hosts.iter().map(|host| &*host.label).collect();
            let unnamed = slice.ports.is_empty().then_some("");
            let ports: BTreeSet<&str> = slice.ports.iter().map(|port| &*port.name).chain(unnamed).collect();
            for port in ports {
                let (ready, total) = of_cluster.entry((port, slice.ipv6)).or_default();
                *ready += labels.len() as u32;
                *total += labels.len() as u32 + slice.unready;
            }
        }
        for ((port, _), (ready, total)) in of_cluster {
            let count = counts.entry(port.to_owned()).or_default().entry(cluster.id.clone()).or_default();
            count.ready = count.ready.max(ready);
            count.total = count.total.max(total);
        }
    }
    counts
}
