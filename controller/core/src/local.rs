//! [`LocalIndex`]: what this cluster exports, out of its Services, ServiceExports, EndpointSlices, Namespaces and Nodes.
//!
//! Objects go in as the store shows them; changes of the advertisement come out. What is advertised is a pure function
//! of what is there, so every replica of the controller advertises the same (decision 12).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;

use api::conditions::ServiceReason;
use api::kubernetes::{EndpointSlice, Namespace, Node, Service};
use api::names;
use api::service_import::{ImportPort, ImportType};
use api::time::{Instant, WallTime};
use api::{ClusterId, ServiceExport};

use crate::advertisement::{
    AdvertisedEndpoint, AdvertisedService, Advertisement, Family, Item, ItemChange, ItemKey, ServiceName, TargetPort,
};
use crate::agents::Agents;
use crate::drained_nodes::DrainedNodes;
use crate::index::{Index, ObjectKey, Observed, Touched};
use crate::recall::{self, Recall, Remembered};
use crate::slices;

/// The most bytes of exported labels and annotations together: a page of the conversation must hold them.
pub const MAX_EXPORTED_BYTES: usize = 64 * 1024;

/// Whether a ServiceExport is in force, and how well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportVerdict {
    /// `Valid`, `NoService` or `InvalidServiceType`.
    pub valid: ServiceReason,
    /// `Exported`, `Pending`, `Failed` or `NodeNotConnected`.
    pub ready: ServiceReason,
    /// What the operator should know.
    pub message: String,
    /// Endpoints advertised, ready or not.
    pub endpoints: usize,
    /// Endpoints kept back because their node has no ready agent.
    pub withheld: usize,
    /// Endpoints that count as ready because nothing says otherwise: no check asks them, and their slice does not tell.
    pub unchecked: usize,
    /// Endpoints on drained nodes: they finish what they have.
    pub drained: usize,
}

pub struct LocalIndex {
    services: Index<Service>,
    exports: Index<ServiceExport>,
    slices: Index<EndpointSlice>,
    namespaces: Index<Namespace>,
    nodes: Index<Node>,
    agents: Agents,
    drained: DrainedNodes,
    /// Names of the slices of each service.
    slices_of: BTreeMap<ServiceName, BTreeSet<String>>,
    /// Services with endpoints on each node.
    on_node: BTreeMap<String, BTreeSet<ServiceName>>,
    /// Uid and time of each export as first advertised: a time that was in the future then stays what it was taken for.
    since: BTreeMap<ServiceName, (Option<String>, WallTime)>,
    /// The families of this cluster, for Services that name none.
    families: BTreeSet<Family>,
    verdicts: BTreeMap<ServiceName, ExportVerdict>,
    advertisement: Advertisement,
    /// What peers remember of exports that were lost here.
    recall: Recall,
    dirty: BTreeSet<ServiceName>,
    dirty_namespaces: BTreeSet<String>,
}

impl LocalIndex {
    pub fn new(started: Instant) -> Self {
        Self {
            services: Index::default(),
            exports: Index::default(),
            slices: Index::default(),
            namespaces: Index::default(),
            nodes: Index::default(),
            agents: Agents::new(started),
            drained: DrainedNodes::default(),
            slices_of: BTreeMap::new(),
            on_node: BTreeMap::new(),
            since: BTreeMap::new(),
            families: BTreeSet::new(),
            verdicts: BTreeMap::new(),
            advertisement: Advertisement::default(),
            recall: Recall::default(),
            dirty: BTreeSet::new(),
            dirty_namespaces: BTreeSet::new(),
        }
    }

    /// Whether every kind was shown once. Before that, absence means nothing.
    pub fn is_known(&self) -> bool {
        self.services.is_known()
            && self.exports.is_known()
            && self.slices.is_known()
            && self.namespaces.is_known()
            && self.nodes.is_known()
    }

    pub fn observe_services(&mut self, step: Observed<Service>) {
        for touched in self.services.observe(step) {
            self.dirty.insert(touched.key.service());
            self.dirty_namespaces.insert(touched.key.namespace);
        }
    }

    pub fn observe_exports(&mut self, step: Observed<ServiceExport>) {
        for touched in self.exports.observe(step) {
            self.dirty.insert(touched.key.service());
            self.dirty_namespaces.insert(touched.key.namespace);
        }
    }

    /// EndpointSlices of Services; those the controller itself writes are not for here.
    pub fn observe_slices(&mut self, step: Observed<EndpointSlice>) {
        for Touched { key, before } in self.slices.observe(step) {
            if let Some(service) = before.as_ref().and_then(service_of) {
                if let Some(names) = self.slices_of.get_mut(&service) {
                    names.remove(&key.name);
                    if names.is_empty() {
                        self.slices_of.remove(&service);
                    }
                }
                self.dirty.insert(service);
            }
            if let Some(service) = self.slices.get(&key).and_then(service_of) {
                self.slices_of.entry(service.clone()).or_default().insert(key.name);
                self.dirty.insert(service);
            }
        }
    }

    pub fn observe_namespaces(&mut self, step: Observed<Namespace>) {
        for touched in self.namespaces.observe(step) {
            let namespace = touched.key.name;
            self.dirty.extend(self.exports.in_namespace(&namespace).map(|(key, _)| key.service()));
            self.dirty_namespaces.insert(namespace);
        }
    }

    pub fn observe_nodes(&mut self, step: Observed<Node>, now: Instant) {
        for touched in self.nodes.observe(step) {
            let node = self.nodes.get(&touched.key);
            self.agents.observe_node(&touched.key.name, node);
            if self.drained.observe(&touched.key.name, node) {
                self.dirty.extend(self.exports.iter().map(|(key, _)| key.service()));
            }
        }
        self.tick(now);
    }

    /// A node's agent came or went.
    pub fn observe_agent(&mut self, node: &str, connected: bool, now: Instant) {
        self.agents.observe_agent(node, connected, now);
        self.tick(now);
    }

    /// Lets graces of agents run out.
    pub fn tick(&mut self, now: Instant) {
        for node in self.agents.refresh(now) {
            self.dirty.extend(self.on_node.get(&node).into_iter().flatten().cloned());
        }
    }

    /// What was kept of what peers remember.
    pub fn set_recall(&mut self, recall: Recall) {
        self.recall = recall;
        self.dirty.extend(self.exports.iter().map(|(key, _)| key.service()));
    }

    pub fn recall(&self) -> &Recall {
        &self.recall
    }

    /// A peer remembers exports of ours; `most` of them are taken.
    pub fn hear_remembered(
        &mut self,
        peer: &ClusterId,
        remembered: &[Remembered],
        most: usize,
        now: WallTime,
    ) -> recall::Heard {
        let heard = self.recall.hear(peer, remembered, most, now);
        self.dirty.extend(heard.touched.iter().cloned());
        heard
    }

    /// What peers that are not `trusted` remember counts no more.
    pub fn keep_recall_of(&mut self, trusted: impl Fn(&ClusterId) -> bool) {
        let others: Vec<ClusterId> = self.recall.peers().filter(|peer| !trusted(peer)).cloned().collect();
        self.dirty.extend(others.iter().flat_map(|peer| self.recall.forget_peer(peer)));
    }

    /// The families this cluster has, as its LocalCluster says.
    pub fn set_families(&mut self, families: &BTreeSet<Family>) {
        if self.families != *families {
            self.families = families.clone();
            self.dirty.extend(self.exports.iter().map(|(key, _)| key.service()));
        }
    }

    /// Whether imports may be written into a namespace (IM-2). On plain hosts nobody needs to declare one: a Service
    /// or an export in it says that it exists.
    pub fn has_namespace(&self, name: &str) -> bool {
        match self.namespaces.get(&ObjectKey::named(name)) {
            Some(namespace) => namespace.metadata.deletion_timestamp.is_none(),
            None => {
                self.services.in_namespace(name).next().is_some() || self.exports.in_namespace(name).next().is_some()
            }
        }
    }

    /// Namespaces that may have come or gone since the last call.
    pub fn take_touched_namespaces(&mut self) -> BTreeSet<String> {
        core::mem::take(&mut self.dirty_namespaces)
    }

    pub fn export(&self, name: &ServiceName) -> Option<&ServiceExport> {
        self.exports.get(&name.into())
    }
    pub fn exports(&self) -> impl Iterator<Item = (ServiceName, &ServiceExport)> {
        self.exports.iter().map(|(key, export)| (key.service(), export))
    }
    pub fn verdict(&self, name: &ServiceName) -> Option<&ExportVerdict> {
        self.verdicts.get(name)
    }
    pub fn nodes(&self) -> &Index<Node> {
        &self.nodes
    }
    pub fn advertisement(&self) -> &Advertisement {
        &self.advertisement
    }
    /// Takes in what a write returned, ahead of the watch.
    pub fn exports_mut(&mut self) -> &mut Index<ServiceExport> {
        &mut self.exports
    }

    /// Brings the advertisement up to date. Returns the services that were looked at and what changed of them.
    pub fn refresh(&mut self, now: WallTime) -> (BTreeSet<ServiceName>, Vec<ItemChange>) {
        let dirty = core::mem::take(&mut self.dirty);
        let mut changes = Vec::new();
        for name in &dirty {
            self.refresh_service(name, now, &mut changes);
        }
        (dirty, changes)
    }

    fn refresh_service(&mut self, name: &ServiceName, now: WallTime, changes: &mut Vec<ItemChange>) {
        let (verdict, wanted) = self.judge(name, now);
        match verdict {
            Some(verdict) => self.verdicts.insert(name.clone(), verdict),
            None => {
                let taken_back = self.verdicts.remove(name);
                if taken_back.is_some() {
                    self.recall.forget(name);
                }
                taken_back
            }
        };
        if wanted.is_empty() {
            self.since.remove(name);
        }
        let old: Vec<ItemKey> = self
            .advertisement
            .service(name)
            .map(|_| ItemKey::service(name.clone()))
            .into_iter()
            .chain(self.advertisement.slices(name).map(|(id, _)| ItemKey::slice(name.clone(), id)))
            .collect();
        for key in old {
            if !wanted.contains_key(&key) {
                self.advertisement.remove(&key);
                changes.push(ItemChange { key, item: None });
            }
        }
        for (key, item) in wanted {
            if self.advertisement.get(&key).is_some_and(|held| **held == item) {
                continue;
            }
            let item = Arc::new(item);
            self.advertisement.put(key.clone(), item.clone());
            changes.push(ItemChange { key, item: Some(item) });
        }
    }

    /// The verdict on an export, and its items when it is in force.
    fn judge(&mut self, name: &ServiceName, now: WallTime) -> (Option<ExportVerdict>, BTreeMap<ItemKey, Item>) {
        let nothing = BTreeMap::new();
        let key = ObjectKey::from(name);
        let Some(export) = self.exports.get(&key) else { return (None, nothing) };
        let refused = |valid, ready, message: &str| {
            Some(ExportVerdict {
                valid,
                ready,
                message: message.into(),
                endpoints: 0,
                withheld: 0,
                unchecked: 0,
                drained: 0,
            })
        };
        if export.metadata.deletion_timestamp.is_some() || !self.has_namespace(&name.namespace) {
            let message = "The export or its namespace is being deleted.";
            return (refused(ServiceReason::Valid, ServiceReason::Pending, message), nothing);
        }
        let Some(service) = self.services.get(&key) else {
            let message = "There is no Service of this name in this namespace: create it, or delete the export.";
            return (refused(ServiceReason::NoService, ServiceReason::Pending, message), nothing);
        };
        let spec = service.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            let message = "A Service of type ExternalName has no endpoints and cannot be exported.";
            return (refused(ServiceReason::InvalidServiceType, ServiceReason::Failed, message), nothing);
        }
        let exported_bytes: usize = export
            .spec
            .exported_labels
            .iter()
            .chain(&export.spec.exported_annotations)
            .map(|(key, value)| key.len() + value.len())
            .sum();
        if exported_bytes > MAX_EXPORTED_BYTES {
            let message = format!(
                "exportedLabels and exportedAnnotations have {exported_bytes} bytes: at most {MAX_EXPORTED_BYTES} are exported."
            );
            return (refused(ServiceReason::Valid, ServiceReason::Failed, &message), nothing);
        }

        let first_exported = self.recall.first_exported(name, first_exported(&mut self.since, name, export, now));
        let publish_unready = spec.publish_not_ready_addresses == Some(true);
        let mut items = BTreeMap::new();
        let (mut total, mut withheld, mut unchecked, mut drained) = (0, 0, 0, 0);
        let mut families = BTreeSet::new();
        let mut nodes = BTreeSet::new();
        for slice_name in self.slices_of.get(name).into_iter().flatten() {
            let slice_key = ObjectKey { namespace: name.namespace.clone(), name: slice_name.clone() };
            let Some(slice) = self.slices.get(&slice_key) else { continue };
            let Some(family) = Family::from_name(&slice.address_type) else { continue };
            families.insert(family);
            let mut endpoints = Vec::new();
            for endpoint in slice.endpoints.iter().flatten() {
                nodes.extend(endpoint.node_name.clone());
                if endpoint.node_name.as_deref().is_some_and(|node| self.agents.is_withheld(node)) {
                    withheld += endpoint.addresses.len();
                    continue;
                }
                let conditions = endpoint.conditions.as_ref();
                let told = conditions.and_then(|conditions| conditions.ready);
                let serving = conditions.and_then(|conditions| conditions.serving) == Some(true);
                if told.is_none() && !publish_unready && !has_check(slice) {
                    unchecked += endpoint.addresses.len();
                }
                let ready = publish_unready || told.unwrap_or(true);
                let addresses = endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
                endpoints.extend(addresses.filter(|address| Family::of(*address) == family).map(|address| {
                    let leaves = self.drained.hold(endpoint.node_name.as_deref(), address);
                    drained += usize::from(leaves);
                    AdvertisedEndpoint {
                        address,
                        hostname: endpoint.hostname.clone(),
                        node: endpoint.node_name.clone(),
                        zone: endpoint.zone.clone(),
                        ready: ready && !leaves,
                        finishing: (ready && leaves) || (!ready && serving),
                    }
                }));
            }
            total += endpoints.len();
            if endpoints.is_empty() {
                continue;
            }
            for (id, cut) in slices::cut(slice_name, family, &target_ports(slice), endpoints) {
                items.insert(ItemKey::slice(name.clone(), id), Item::Slice(cut));
            }
        }
        for node in &nodes {
            self.on_node.entry(node.clone()).or_default().insert(name.clone());
        }
        let named = spec.ip_families.iter().flatten().filter_map(|family| Family::from_name(family));
        let mut ip_families: Vec<Family> = named.collect();
        if ip_families.is_empty() {
            let guessed = if families.is_empty() { &self.families } else { &families };
            ip_families = guessed.iter().copied().collect();
        }
        let headless = spec.cluster_ip.as_deref() == Some("None");
        items.insert(
            ItemKey::service(name.clone()),
            Item::Service(AdvertisedService {
                service_type: if headless { ImportType::Headless } else { ImportType::ClusterSetIP },
                ports: service_ports(&spec),
                session_affinity: spec.session_affinity,
                session_affinity_config: spec.session_affinity_config,
                internal_traffic_policy: spec.internal_traffic_policy,
                traffic_distribution: spec.traffic_distribution,
                exported_labels: export.spec.exported_labels.clone(),
                exported_annotations: export.spec.exported_annotations.clone(),
                ip_families,
                first_exported,
            }),
        );
        let (ready, message) = match (total, withheld) {
            (0, 0) => (ServiceReason::Exported, "Exported; it has no endpoints.".to_string()),
            (0, _) => (
                ServiceReason::NodeNotConnected,
                format!(
                    "None of its {withheld} endpoints is on a node whose agent is ready: check 'tombolo node' there."
                ),
            ),
            (_, 0) => (ServiceReason::Exported, format!("Exported with {total} endpoints.")),
            (_, _) => (
                ServiceReason::Exported,
                format!("Exported with {total} endpoints; {withheld} more are on nodes whose agent is not ready."),
            ),
        };
        let message = match unchecked {
            0 => message,
            _ => format!(
                "{message} {unchecked} are Unchecked: nothing says whether they are ready; annotation {} on the EndpointSlice lets their nodes ask.",
                names::CHECK
            ),
        };
        let message = match drained {
            0 => message,
            _ => format!("{message} {drained} are on drained nodes and get no new connections."),
        };
        let valid = ServiceReason::Valid;
        (Some(ExportVerdict { valid, ready, message, endpoints: total, withheld, unchecked, drained }), items)
    }
}

/// Whether the nodes ask the slice's endpoints if they are ready.
fn has_check(slice: &EndpointSlice) -> bool {
    slice.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(names::CHECK))
}

/// The Service a slice belongs to; `None` for slices the controller writes and for those of no Service.
fn service_of(slice: &EndpointSlice) -> Option<ServiceName> {
    if slices::is_imported(slice) || slices::label(slice, names::mcs::SOURCE_CLUSTER).is_some() {
        return None;
    }
    let name = slices::label(slice, names::kubernetes::SERVICE_NAME)?;
    Some(ServiceName::new(slice.metadata.namespace.as_deref()?, name))
}

/// The export's creation, unless the clock says that it is yet to come: then the time it was first seen.
fn first_exported(
    since: &mut BTreeMap<ServiceName, (Option<String>, WallTime)>,
    name: &ServiceName,
    export: &ServiceExport,
    now: WallTime,
) -> WallTime {
    if let Some((uid, time)) = since.get(name)
        && *uid == export.metadata.uid
    {
        return *time;
    }
    let created = export
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(now, |time| WallTime::from_millis(u64::try_from(time.0.as_millisecond()).unwrap_or_default()));
    let time = created.min(now);
    since.insert(name.clone(), (export.metadata.uid.clone(), time));
    time
}

fn service_ports(spec: &api::kubernetes::ServiceSpec) -> Vec<ImportPort> {
    let mut seen = BTreeSet::new();
    spec.ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some(ImportPort {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_string()),
                app_protocol: port.app_protocol.clone(),
                port: u16::try_from(port.port).ok().filter(|number| *number > 0)?,
            })
        })
        .filter(|port| seen.insert(port.name.clone()))
        .take(crate::merge::MAX_PORTS)
        .collect()
}

fn target_ports(slice: &EndpointSlice) -> Vec<TargetPort> {
    let ports = slice.ports.iter().flatten().filter_map(|port| {
        Some(TargetPort {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_string()),
            port: u16::try_from(port.port?).ok().filter(|number| *number > 0)?,
            app_protocol: port.app_protocol.clone(),
        })
    });
    ports.take(crate::merge::MAX_PORTS).collect()
}

#[cfg(test)]
mod tests;
