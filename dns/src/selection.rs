//! Which clusters a routing policy selects for the answers of a headless service (decision 6): those that get a share on
//! any of its ports, for an address record knows no ports.

use std::collections::{BTreeMap, BTreeSet};

use api::kubernetes::ObjectMeta;
use api::time::Instant;
use api::{ClusterId, ClusterRoutingPolicy, RoutingPolicy};
use routing::{Affected, Clusters, EndpointCounts, Memory, PolicySet, Question, decide};
use store::Event;

use crate::catalog::Catalog;
use crate::service::Service;

/// Notes of changed policies that are kept one by one; more of them mean that everything is asked about.
const MOST_NOTES: usize = 256;

/// Namespace and name.
type ServiceName = (String, String);

/// All policies, and every headless service that one of them selects for.
#[derive(Default)]
pub struct Selections {
    policies: PolicySet,
    names: BTreeSet<ServiceName>,
    cluster_wide_names: BTreeSet<String>,
    by_service: BTreeMap<ServiceName, Selection>,
    /// Services whose endpoints changed since the last [`renew`](Self::renew).
    touched: BTreeSet<ServiceName>,
    /// What changed policies speak for.
    affected: Vec<Affected>,
}

impl Selections {
    /// Takes a change of the namespaces' policies.
    pub fn apply(&mut self, event: Event<RoutingPolicy>) {
        match event {
            Event::Reset(all) => {
                let listed: BTreeSet<ServiceName> = all.iter().map(|policy| object_name(&policy.metadata)).collect();
                let gone: Vec<ServiceName> = self.names.difference(&listed).cloned().collect();
                gone.iter().for_each(|name| self.remove(name));
                all.iter().for_each(|policy| self.set(policy));
            }
            Event::Applied(policy) => self.set(&policy),
            Event::Deleted(policy) => self.remove(&object_name(&policy.metadata)),
        }
    }

    fn set(&mut self, policy: &RoutingPolicy) {
        self.names.insert(object_name(&policy.metadata));
        let affected = self.policies.apply(policy);
        self.note(affected);
    }

    fn remove(&mut self, name: &ServiceName) {
        self.names.remove(name);
        let affected = self.policies.delete(&name.0, &name.1);
        self.note(affected);
    }

    /// Takes a change of the cluster-wide policies.
    pub fn apply_cluster_wide(&mut self, event: Event<ClusterRoutingPolicy>) {
        match event {
            Event::Reset(all) => {
                let listed: BTreeSet<String> = all.iter().map(|policy| object_name(&policy.metadata).1).collect();
                let gone: Vec<String> = self.cluster_wide_names.difference(&listed).cloned().collect();
                gone.iter().for_each(|name| self.remove_cluster_wide(name));
                all.iter().for_each(|policy| self.set_cluster_wide(policy));
            }
            Event::Applied(policy) => self.set_cluster_wide(&policy),
            Event::Deleted(policy) => self.remove_cluster_wide(&object_name(&policy.metadata).1),
        }
    }

    fn set_cluster_wide(&mut self, policy: &ClusterRoutingPolicy) {
        self.cluster_wide_names.insert(object_name(&policy.metadata).1);
        let affected = self.policies.apply_cluster_wide(policy);
        self.note(affected);
    }

    fn remove_cluster_wide(&mut self, name: &str) {
        self.cluster_wide_names.remove(name);
        let affected = self.policies.delete_cluster_wide(name);
        self.note(affected);
    }

    fn note(&mut self, affected: Affected) {
        // Without a LocalCluster nobody asks, and notes must not pile up until there is one.
        if self.affected.len() >= MOST_NOTES {
            self.affected = vec![Affected::All];
        }
        self.affected.push(affected);
    }

    /// Notes that a service's endpoints or type changed.
    pub fn touch(&mut self, service: ServiceName) {
        self.touched.insert(service);
    }

    /// Notes that any selected service may have changed.
    pub fn touch_selected(&mut self) {
        self.touched.extend(self.by_service.keys().cloned());
    }

    /// Asks the policies about every service that something changed for, and tells the catalog.
    pub fn renew(&mut self, catalog: &mut Catalog, clusters: &Clusters, health_changed: bool, now: Instant) {
        let mut asked = std::mem::take(&mut self.touched);
        let affected = std::mem::take(&mut self.affected);
        if self.names.is_empty() && self.cluster_wide_names.is_empty() && self.by_service.is_empty() {
            return;
        }
        let again = self.by_service.iter().filter(|(_, selection)| health_changed || selection.follows_round_trips);
        asked.extend(again.map(|(name, _)| name.clone()));
        if !affected.is_empty() {
            let speaks = |name: &ServiceName| affected.iter().any(|one| one.contains(&name.0, &name.1));
            asked.extend(catalog.headless_services().filter(speaks));
        }
        for name in asked {
            let before = self.by_service.remove(&name).unwrap_or_default();
            let Some(service) = catalog.service(&name.0, &name.1) else {
                continue;
            };
            let selection = select(service, clusters, &self.policies, &before, now);
            catalog.select(&name.0, &name.1, selection.clusters.clone());
            if selection.clusters.is_some() {
                self.by_service.insert(name, selection);
            }
        }
    }
}

fn object_name(meta: &ObjectMeta) -> ServiceName {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

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
