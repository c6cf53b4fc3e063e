//! What a node is told: each input is read, checked, and marks what it touches.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use api::health::HealthReport;
use api::time::Instant;
use api::{ClusterId, ClusterPeer, LocalCluster, names};
use routing::{Affected, Cluster};

use super::{NodeCore, no_cluster};
use crate::catalog::{ImportFacts, SliceFacts, Touched, is_exportable};
use crate::facts::{self, GatewayFacts, NodeFacts};
use crate::input::{Input, Key, ObjectChange};
use crate::problem::Problem;

impl NodeCore {
    /// Takes one input. Nothing is decided before [`NodeCore::delta`] is called.
    pub fn take(&mut self, input: Input, now: Instant) {
        match input {
            Input::LocalClusters(change) => self.take_local_clusters(change),
            Input::ClusterPeers(change) => self.take_peers(change),
            Input::TunnelGateways(change) => self.take_gateways(change, now),
            Input::Nodes(change) => self.take_nodes(change),
            Input::Services(change) => {
                for (key, service) in change.steps(|| self.catalog.services().cloned().collect::<Vec<_>>()) {
                    let touched = self.catalog.set_service(&key, service.as_ref().is_some_and(is_exportable));
                    self.touch(touched);
                }
            }
            Input::ServiceExports(change) => {
                for (key, export) in change.steps(|| self.catalog.exports().cloned().collect::<Vec<_>>()) {
                    let touched = self.catalog.set_export(&key, export.is_some());
                    self.touch(touched);
                }
            }
            Input::ServiceImports(change) => {
                for (key, import) in change.steps(|| self.catalog.imports.keys().cloned().collect::<Vec<_>>()) {
                    let (facts, problems) = import.as_ref().map(ImportFacts::of).unzip();
                    self.problems.set("ServiceImport", &key, problems.unwrap_or_default());
                    let touched = self.catalog.set_import(&key, facts);
                    self.touch(touched);
                }
            }
            Input::EndpointSlices(change) => {
                for (key, slice) in change.steps(|| self.catalog.slices().cloned().collect::<Vec<_>>()) {
                    let (facts, problems) = slice.as_ref().map(SliceFacts::of).unzip();
                    self.problems.set("EndpointSlice", &key, problems.unwrap_or_default());
                    let touched = self.catalog.set_slice(&key, facts.flatten());
                    self.touch(touched);
                }
            }
            Input::RoutingPolicies(change) => {
                for (key, policy) in change.steps(|| self.policy_keys.clone()) {
                    let affected = match &policy {
                        Some(policy) => self.policies.apply(policy),
                        None => self.policies.delete(&key.0, &key.1),
                    };
                    remember(&mut self.policy_keys, key, policy.is_some());
                    self.touch_affected(&affected);
                }
            }
            Input::ClusterRoutingPolicies(change) => {
                for (key, policy) in change.steps(|| self.cluster_policy_keys.clone()) {
                    let affected = match &policy {
                        Some(policy) => self.policies.apply_cluster_wide(policy),
                        None => self.policies.delete_cluster_wide(&key.1),
                    };
                    remember(&mut self.cluster_policy_keys, key, policy.is_some());
                    self.touch_affected(&affected);
                }
            }
            Input::Devices(devices) => {
                self.fabric_dirty |= self.devices != devices;
                self.devices = devices;
            }
            Input::UnderlayMtu(mtu) => {
                self.fabric_dirty |= self.underlay_mtu != mtu;
                self.underlay_mtu = mtu;
            }
            Input::Asked(slot) => self.reports.asked(slot),
            Input::Report(report) => self.take_report(report, now),
            Input::Tick => {}
        }
    }

    fn take_local_clusters(&mut self, change: ObjectChange<LocalCluster>) {
        let known = self.local.iter().map(crate::input::key_of).collect::<Vec<_>>();
        for (key, local) in change.steps(|| known) {
            if key.1 != names::LOCAL_CLUSTER {
                continue;
            }
            let facts = |local: &Option<LocalCluster>| local.as_ref().map(|local| local.spec.clone());
            let before = facts(&self.local);
            self.local = local;
            let after = facts(&self.local);
            if before == after {
                continue;
            }
            let mode = |spec: &Option<api::local_cluster::LocalClusterSpec>| {
                spec.as_ref().map(|spec| (spec.cluster_id.clone(), spec.service_mode, spec.labels.clone()))
            };
            if mode(&before) != mode(&after) {
                self.clusters.local = after.as_ref().map_or_else(no_cluster, |spec| spec.cluster_id.clone());
                self.clusters.labels = after.as_ref().map(|spec| spec.labels.clone()).unwrap_or_default();
                self.touch_affected(&Affected::All);
            }
            self.judge_peers();
        }
    }

    fn take_peers(&mut self, change: ObjectChange<ClusterPeer>) {
        let known: Vec<Key> = self.peer_objects.keys().map(|id| (String::new(), id.to_string())).collect();
        for (key, peer) in change.steps(|| known) {
            let Ok(id) = ClusterId::new(&key.1) else {
                let problem = peer.map(|_| Problem::BadClusterId(key.1.clone()));
                self.problems.set("ClusterPeer", &key, problem.into_iter().collect());
                continue;
            };
            match peer {
                Some(peer) => drop(self.peer_objects.insert(id, peer)),
                None => {
                    self.peer_objects.remove(&id);
                    self.problems.set("ClusterPeer", &key, Vec::new());
                }
            }
        }
        self.judge_peers();
    }

    /// Peers together: what one claims another may not.
    fn judge_peers(&mut self) {
        let Some(local) = &self.local else {
            self.peers.clear();
            self.fabric_dirty = true;
            return;
        };
        let (peers, problems) = facts::peers(&local.spec, &self.nodes, &self.peer_objects);
        for id in self.peer_objects.keys() {
            let problems = problems.get(id).cloned().unwrap_or_default();
            self.problems.set("ClusterPeer", &(String::new(), id.to_string()), problems);
        }
        self.fabric_dirty = true;
        if peers == self.peers {
            return;
        }
        let changed: BTreeSet<ClusterId> = peers.keys().chain(self.peers.keys()).cloned().collect();
        for id in changed.into_iter().filter(|id| peers.get(id) != self.peers.get(id)) {
            let services: Vec<Key> = self.catalog.services_of_cluster(&id).cloned().collect();
            self.dirty.imports.extend(services);
        }
        self.clusters.remote = peers
            .iter()
            .map(|(id, peer)| {
                let known = Cluster {
                    labels: peer.labels.clone(),
                    health: self.reports.clusters().get(id).cloned(),
                    peer: peer.state,
                    member: peer.member,
                };
                (id.clone(), known)
            })
            .collect();
        self.peers = peers;
    }

    fn take_gateways(&mut self, change: ObjectChange<api::TunnelGateway>, now: Instant) {
        let known = self.gateway_keys.keys().cloned().collect::<Vec<_>>();
        for (key, gateway) in change.steps(|| known) {
            let (facts, problems) = gateway.as_ref().map(GatewayFacts::of).unzip();
            self.problems.set("TunnelGateway", &key, problems.unwrap_or_default());
            let slot = gateway.as_ref().map(|gateway| gateway.spec.slot);
            let before = match slot {
                Some(slot) => self.gateway_keys.insert(key, slot),
                None => self.gateway_keys.remove(&key),
            };
            if let Some(gone) = before.filter(|before| Some(*before) != slot) {
                self.gateways.remove(&gone);
                self.reports.forget(gone, now);
                self.fabric_dirty = true;
            }
            if let (Some(slot), Some(facts)) = (slot, facts)
                && self.gateways.get(&slot) != Some(&facts)
            {
                self.gateways.insert(slot, facts);
                self.fabric_dirty = true;
                // Whether this is a gateway host decides on routes to single endpoints.
                self.dirty.exports.extend(self.catalog.exports().cloned());
            }
        }
    }

    fn take_nodes(&mut self, change: ObjectChange<api::kubernetes::Node>) {
        let known = self.nodes.keys().map(|name| (String::new(), name.clone())).collect::<Vec<_>>();
        for (key, node) in change.steps(|| known) {
            let (facts, problems) = node.as_ref().map(NodeFacts::of).unzip();
            self.problems.set("Node", &key, problems.unwrap_or_default());
            if self.nodes.get(&key.1) == facts.as_ref() {
                continue;
            }
            match facts {
                Some(facts) => drop(self.nodes.insert(key.1, facts)),
                None => drop(self.nodes.remove(&key.1)),
            }
            self.fabric_dirty = true;
            // Which endpoints are here, and which need a route of their own, depends on nodes' prefixes.
            self.dirty.exports.extend(self.catalog.exports().cloned());
            let imports: Vec<Key> = self.catalog.services_of_cluster(&self.clusters.local).cloned().collect();
            self.dirty.imports.extend(imports);
            self.judge_peers();
        }
    }

    fn take_report(&mut self, report: HealthReport, now: Instant) {
        // A slot without a gateway is none of ours.
        if !self.gateways.contains_key(&report.slot) {
            return;
        }
        self.heard.insert(report.slot);
        self.fabric_dirty |= self.reports.take(report, now);
    }

    fn touch(&mut self, touched: Touched) {
        self.dirty.imports.extend(touched.imports);
        self.dirty.exports.extend(touched.exports);
    }

    fn touch_affected(&mut self, affected: &Affected) {
        let keys: Vec<Key> = match affected {
            Affected::Services(services) => {
                services.iter().filter(|key| self.catalog.imports.contains_key(*key)).cloned().collect()
            }
            _ => self.catalog.imports.keys().filter(|key| affected.contains(&key.0, &key.1)).cloned().collect(),
        };
        self.dirty.imports.extend(keys);
    }
}

fn remember(keys: &mut BTreeSet<Key>, key: Key, present: bool) {
    if present {
        keys.insert(key);
    } else {
        keys.remove(&key);
    }
}
