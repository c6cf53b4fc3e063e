//! What the engine takes in of the store and of agents, and what each change makes due.

use alloc::string::ToString;
use alloc::vec::Vec;

use api::kubernetes::{EndpointSlice, Namespace, Node, Service};
use api::time::{Instant, WallTime};
use api::{
    ClusterId, ClusterMember, ClusterPeer, ClusterRoutingPolicy, LocalCluster, RoutingPolicy, ServiceExport,
    ServiceImport, TunnelGateway, names,
};

use crate::advertisement::ServiceName;
use crate::engine::{Engine, NodeAgent, claim_addresses};
use crate::index::Observed;
use crate::membership::SlotKeys;
use crate::plan::{Object, Subject};
use crate::slices;

impl Engine {
    pub fn observe_local_cluster(&mut self, step: Observed<LocalCluster>, now: Instant, wall: WallTime) {
        let before = self.local_cluster().map(|local| local.spec.clone());
        if self.locals.observe(step).is_empty() {
            return;
        }
        self.dirty.insert(Subject::LocalCluster);
        let after = self.local_cluster().map(|local| local.spec.clone());
        if before == after {
            return;
        }
        if let Some(spec) = after {
            self.local.set_families(&self.pod_families());
            let lost = self.cluster_addresses.set_prefixes(&spec.cluster_set_prefixes);
            self.touch_services(lost.iter().filter_map(|owner| service_named(owner)).collect::<Vec<_>>());
            let lost = self.node_addresses.set_prefixes(&spec.infrastructure_prefixes);
            self.dirty.extend(lost.into_iter().map(Subject::Node));
        }
        self.refresh_terms(now, wall);
        self.mark_all();
    }

    pub fn observe_peers(&mut self, step: Observed<ClusterPeer>, now: Instant, wall: WallTime) {
        let mut terms_changed = false;
        for touched in self.peers.observe(step) {
            let after = self.peers.get(&touched.key);
            let meaning = |peer: &ClusterPeer| {
                let record = peer.status.as_ref().map(|status| status.record.clone());
                (peer.state(), peer.spec.clone(), record, peer.translations().to_vec())
            };
            terms_changed |= touched.before.as_ref().map(meaning) != after.map(meaning);
            if let Ok(id) = ClusterId::new(&touched.key.name) {
                if after.is_none() {
                    let services = self.remote.forget(&id);
                    self.touch_services(services);
                    self.touch_imports_of(&id);
                    self.talks.remove(&id);
                    self.learned.remove(&id);
                }
                self.heard_of.remove(&id);
                self.dirty.insert(Subject::Member(touched.key.name.clone()));
            }
            self.dirty.insert(Subject::Peer(touched.key.name));
        }
        if terms_changed {
            self.refresh_terms(now, wall);
        }
    }

    pub fn observe_members(&mut self, step: Observed<ClusterMember>) {
        let touched = self.members.observe(step);
        self.dirty.extend(touched.into_iter().map(|touched| Subject::Member(touched.key.name)));
    }

    pub fn observe_gateways(&mut self, step: Observed<TunnelGateway>) {
        if !self.gateways.observe(step).is_empty() {
            self.dirty.extend([Subject::Gateways, Subject::LocalCluster]);
        }
    }

    pub fn observe_services(&mut self, step: Observed<Service>) {
        self.local.observe_services(step);
    }

    pub fn observe_exports(&mut self, step: Observed<ServiceExport>) {
        self.local.observe_exports(step);
    }

    /// EndpointSlices of both sorts: those of Services, and those imported by a controller.
    pub fn observe_slices(&mut self, step: Observed<EndpointSlice>) {
        let (ours, others): (Vec<_>, Vec<_>) = match step {
            Observed::Reset(all) => {
                let (ours, others) = all.into_iter().partition(slices::is_imported);
                (vec![Observed::Reset(ours)], vec![Observed::Reset(others)])
            }
            Observed::Applied(slice) if slices::is_imported(&slice) => (vec![Observed::Applied(slice)], vec![]),
            Observed::Deleted(slice) if slices::is_imported(&slice) => (vec![Observed::Deleted(slice)], vec![]),
            other => (vec![], vec![other]),
        };
        others.into_iter().for_each(|step| self.local.observe_slices(step));
        let touched: Vec<_> = ours.into_iter().flat_map(|step| self.imported.observe(step)).collect();
        for touched in touched {
            let after = self.imported.get(&touched.key);
            let services = [touched.before.as_ref(), after].map(|slice| slice.and_then(imported_service));
            let [before, after] = services;
            if let Some(service) = before {
                if let Some(names) = self.imported_of.get_mut(&service) {
                    names.remove(&touched.key.name);
                    if names.is_empty() {
                        self.imported_of.remove(&service);
                    }
                }
                self.touch_service(service);
            }
            if let Some(service) = after {
                self.imported_of.entry(service.clone()).or_default().insert(touched.key.name);
                self.touch_service(service);
            }
        }
    }

    pub fn observe_imports(&mut self, step: Observed<ServiceImport>) {
        for touched in self.imports.observe(step) {
            let service = touched.key.service();
            if self.addresses_read_back
                && let Some(import) = self.imports.get(&touched.key)
            {
                claim_addresses(&mut self.cluster_addresses, &service, import);
            }
            // A policy says whether its targets are there.
            if touched.before.is_none() || self.imports.get(&touched.key).is_none() {
                self.dirty.insert(Subject::Policies(service.namespace.clone()));
            }
            self.touch_service(service);
        }
    }

    pub fn observe_namespaces(&mut self, step: Observed<Namespace>) {
        self.local.observe_namespaces(step);
    }

    pub fn observe_nodes(&mut self, step: Observed<Node>, now: Instant) {
        if let Observed::Applied(node) | Observed::Deleted(node) = &step {
            self.dirty.extend(node.metadata.name.clone().map(Subject::Node));
        }
        let was_known = self.local.nodes().is_known();
        self.local.observe_nodes(step, now);
        if !was_known {
            self.dirty.extend(self.local.nodes().iter().map(|(key, _)| Subject::Node(key.name.clone())));
        }
    }

    pub fn observe_policies(&mut self, step: Observed<RoutingPolicy>) {
        let touched = self.policies.observe(step);
        self.dirty.extend(touched.into_iter().map(|touched| Subject::Policies(touched.key.namespace)));
    }

    pub fn observe_cluster_policies(&mut self, step: Observed<ClusterRoutingPolicy>) {
        if !self.cluster_policies.observe(step).is_empty() {
            self.dirty.insert(Subject::ClusterPolicies);
        }
    }

    /// A node agent connected to this controller, or went away.
    pub fn observe_agent(&mut self, name: &str, agent: NodeAgent, now: Instant) {
        self.local.observe_agent(name, agent.connected, now);
        let known = self.node_agents.entry(name.to_string()).or_default();
        let (addresses, pod_prefixes) =
            (core::mem::take(&mut known.addresses), core::mem::take(&mut known.pod_prefixes));
        *known = agent;
        if !known.connected {
            // One that goes away says nothing more; what it said last stays true.
            (known.addresses, known.pod_prefixes) = (addresses, pod_prefixes);
        }
        self.dirty.insert(Subject::Node(name.to_string()));
    }

    /// The public keys of the slots, once they are made.
    pub fn set_slot_keys(&mut self, keys: SlotKeys) {
        if self.slot_keys != keys {
            self.slot_keys = keys;
            self.dirty.insert(Subject::LocalCluster);
        }
    }

    /// Takes in what a write showed, ahead of the watch.
    pub(crate) fn take_in(&mut self, there: Option<Object>, gone: Option<Object>, now: Instant, wall: WallTime) {
        macro_rules! step {
            ($object:expr, $step:ident) => {
                match $object {
                    Object::ServiceImport(object) => self.observe_imports(Observed::$step(*object)),
                    Object::EndpointSlice(object) => self.observe_slices(Observed::$step(*object)),
                    Object::ServiceExport(object) => {
                        // Our own status on it changes nothing of what is exported.
                        let _ = self.local.exports_mut().observe(Observed::$step(*object));
                    }
                    Object::ClusterPeer(object) => self.observe_peers(Observed::$step(*object), now, wall),
                    Object::ClusterMember(object) => self.observe_members(Observed::$step(*object)),
                    Object::TunnelGateway(object) => self.observe_gateways(Observed::$step(*object)),
                    Object::RoutingPolicy(object) => self.observe_policies(Observed::$step(*object)),
                    Object::ClusterRoutingPolicy(object) => self.observe_cluster_policies(Observed::$step(*object)),
                    Object::LocalCluster(object) => self.observe_local_cluster(Observed::$step(*object), now, wall),
                    Object::Node(object) => self.observe_nodes(Observed::$step(*object), now),
                }
            };
        }
        if let Some(object) = there {
            step!(object, Applied);
        }
        if let Some(object) = gone {
            step!(object, Deleted);
        }
    }
}

/// The service an imported slice belongs to.
fn imported_service(slice: &EndpointSlice) -> Option<ServiceName> {
    let name = slices::label(slice, names::mcs::SERVICE_NAME)?;
    Some(ServiceName::new(slice.metadata.namespace.as_deref()?, name))
}

/// Reads what [`ServiceName`] shows.
fn service_named(text: &str) -> Option<ServiceName> {
    text.split_once('/').map(|(namespace, name)| ServiceName::new(namespace, name))
}
