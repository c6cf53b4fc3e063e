//! [`View`]: everything a zone is made of: objects, policies, and what the gateways report. It is told changes and the
//! time, and says what the zone is now.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::health::message::AgentKey;
use api::health::{ClusterHealths, HealthReport, PathReason, Reachability};
use api::kubernetes::{EndpointSlice, ObjectMeta, Secret};
use api::names::{self, mcs};
use api::time::Instant;
use api::{ClusterId, ClusterPeer, ClusterRoutingPolicy, LocalCluster, RoutingPolicy, ServiceImport, TunnelGateway};
use routing::{Cluster, Clusters, GatewayReports, Reason, Strangers};
use store::Event;

use crate::catalog::Catalog;
use crate::reach::{Measured, Reach};
use crate::refusal::RefusalLog;
use crate::selection::Selections;
use crate::zone::Zone;

/// One change of the world.
#[derive(Clone, Debug)]
pub enum Change {
    Import(Event<ServiceImport>),
    Slice(Event<EndpointSlice>),
    Local(Event<LocalCluster>),
    Peer(Event<ClusterPeer>),
    Gateway(Event<TunnelGateway>),
    Policy(Event<RoutingPolicy>),
    ClusterPolicy(Event<ClusterRoutingPolicy>),
    Secret(Event<Secret>),
}

/// One gateway as its probes show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayState {
    pub slot: u16,
    pub addresses: Vec<IpAddr>,
    pub answering: bool,
    pub draining: bool,
    pub last_answer: Option<Instant>,
}

/// One cluster whose endpoints are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfService {
    pub cluster: ClusterId,
    pub reachability: Reachability,
    pub reason: PathReason,
    pub since: Option<Instant>,
}

/// The sum of what was told.
pub struct View {
    catalog: Catalog,
    agent: String,
    started: Instant,
    local: Option<LocalCluster>,
    /// Without their health, which is measured.
    peers: BTreeMap<ClusterId, Cluster>,
    gateways: BTreeMap<u16, Vec<IpAddr>>,
    heard: BTreeMap<u16, Instant>,
    reports: GatewayReports,
    /// What was known when the last gateway fell silent. A DNS server cut off from its gateways knows nothing new.
    last_known: Option<ClusterHealths>,
    key: Option<AgentKey>,
    selections: Selections,
    awaited: BTreeSet<&'static str>,
}

const AWAITED: [&str; 3] = ["ServiceImports", "EndpointSlices", "LocalCluster"];

impl View {
    /// `agent` is the name this server has among the agents; its probe key is kept under it.
    pub fn new(zone: Zone, agent: &str, started: Instant) -> Self {
        Self {
            catalog: Catalog::new(zone),
            agent: agent.to_owned(),
            started,
            local: None,
            peers: BTreeMap::new(),
            gateways: BTreeMap::new(),
            heard: BTreeMap::new(),
            reports: GatewayReports::default(),
            last_known: None,
            key: None,
            selections: Selections::default(),
            awaited: AWAITED.into(),
        }
    }

    /// Takes one change.
    pub fn apply(&mut self, change: Change, now: Instant) {
        match change {
            Change::Import(event) => self.apply_import(event),
            Change::Slice(event) => self.apply_slice(event),
            Change::Local(event) => self.apply_local(event),
            Change::Peer(event) => self.apply_peer(event),
            Change::Gateway(event) => self.apply_gateway(event, now),
            Change::Policy(event) => self.selections.apply(event),
            Change::ClusterPolicy(event) => self.selections.apply_cluster_wide(event),
            Change::Secret(event) => self.apply_secret(event),
        }
        if self.awaited.is_empty() {
            self.catalog.complete();
        }
    }

    fn apply_import(&mut self, event: Event<ServiceImport>) {
        match event {
            Event::Reset(imports) => {
                imports.iter().for_each(|import| self.selections.touch(object_name(&import.metadata)));
                self.catalog.reset_imports(&imports);
                self.awaited.remove(AWAITED[0]);
            }
            Event::Applied(import) => {
                self.selections.touch(object_name(&import.metadata));
                self.catalog.set_import(&import);
            }
            Event::Deleted(import) => {
                let (namespace, name) = object_name(&import.metadata);
                self.catalog.remove_import(&namespace, &name);
                self.selections.touch((namespace, name));
            }
        }
    }

    fn apply_slice(&mut self, event: Event<EndpointSlice>) {
        let service = |slice: &EndpointSlice| {
            let name = slice.metadata.labels.as_ref()?.get(mcs::SERVICE_NAME)?;
            Some((slice.metadata.namespace.clone()?, name.clone()))
        };
        match event {
            Event::Reset(slices) => {
                slices.iter().filter_map(service).for_each(|name| self.selections.touch(name));
                // A service that lost its slices while nobody was watching is asked about as well.
                self.selections.touch_selected();
                self.catalog.reset_slices(&slices);
                self.awaited.remove(AWAITED[1]);
            }
            Event::Applied(slice) => {
                service(&slice).into_iter().for_each(|name| self.selections.touch(name));
                self.catalog.set_slice(&slice);
            }
            Event::Deleted(slice) => {
                service(&slice).into_iter().for_each(|name| self.selections.touch(name));
                let (namespace, name) = object_name(&slice.metadata);
                self.catalog.remove_slice(&namespace, &name);
            }
        }
    }

    fn apply_local(&mut self, event: Event<LocalCluster>) {
        let is_local = |local: &LocalCluster| local.metadata.name.as_deref() == Some(names::LOCAL_CLUSTER);
        match event {
            Event::Reset(all) => {
                self.local = all.into_iter().find(is_local);
                self.awaited.remove(AWAITED[2]);
            }
            Event::Applied(local) if is_local(&local) => self.local = Some(local),
            Event::Deleted(local) if is_local(&local) => self.local = None,
            Event::Applied(_) | Event::Deleted(_) => return,
        }
        self.catalog.set_settings(self.local.as_ref().map(|local| local.spec.dns).unwrap_or_default());
    }

    fn apply_peer(&mut self, event: Event<ClusterPeer>) {
        match event {
            Event::Reset(all) => {
                self.peers.clear();
                all.iter().for_each(|peer| self.set_peer(peer));
            }
            Event::Applied(peer) => self.set_peer(&peer),
            Event::Deleted(peer) => {
                if let Ok(id) = ClusterId::new(peer.metadata.name.as_deref().unwrap_or_default()) {
                    self.peers.remove(&id);
                }
            }
        }
    }

    fn set_peer(&mut self, peer: &ClusterPeer) {
        let Ok(id) = ClusterId::new(peer.metadata.name.as_deref().unwrap_or_default()) else {
            return;
        };
        let record = peer.newest_record();
        let cluster = Cluster {
            labels: record.as_ref().map(|record| record.labels.clone()).unwrap_or_default(),
            health: None,
            peer: peer.state(),
            member: record.map(|record| record.state),
        };
        self.peers.insert(id, cluster);
    }

    fn apply_gateway(&mut self, event: Event<TunnelGateway>, now: Instant) {
        match event {
            Event::Reset(all) => {
                let before = std::mem::take(&mut self.gateways);
                all.iter().for_each(|gateway| self.set_gateway(gateway));
                let gone: Vec<u16> = before.into_keys().filter(|slot| !self.gateways.contains_key(slot)).collect();
                gone.into_iter().for_each(|slot| self.forget_gateway(slot, now));
            }
            Event::Applied(gateway) => self.set_gateway(&gateway),
            Event::Deleted(gateway) => self.forget_gateway(gateway.spec.slot, now),
        }
    }

    fn set_gateway(&mut self, gateway: &TunnelGateway) {
        let status = gateway.status.as_ref();
        let texts = status.map(|status| status.node_addresses.as_slice()).unwrap_or_default();
        self.gateways.insert(gateway.spec.slot, texts.iter().filter_map(|text| text.parse().ok()).collect());
    }

    fn forget_gateway(&mut self, slot: u16, now: Instant) {
        self.gateways.remove(&slot);
        self.heard.remove(&slot);
        self.keep_last_known();
        self.reports.forget(slot, now);
    }

    fn apply_secret(&mut self, event: Event<Secret>) {
        let wanted = names::agent_secret(&self.agent);
        let is_ours = |secret: &Secret| {
            secret.metadata.namespace.as_deref() == Some(names::SYSTEM_NAMESPACE)
                && secret.metadata.name.as_deref() == Some(&*wanted)
        };
        match event {
            Event::Reset(all) => self.key = all.iter().find(|secret| is_ours(secret)).and_then(newest_key),
            Event::Applied(secret) if is_ours(&secret) => self.key = newest_key(&secret),
            Event::Deleted(secret) if is_ours(&secret) => self.key = None,
            Event::Applied(_) | Event::Deleted(_) => {}
        }
    }

    /// The gateway of this slot was asked for a report.
    pub fn asked(&mut self, slot: u16) {
        self.reports.asked(slot);
    }

    /// Takes a gateway's report.
    pub fn take_report(&mut self, report: HealthReport, now: Instant) {
        // A slot nobody speaks of any more may still have a datagram under way.
        if self.gateways.contains_key(&report.slot) {
            self.heard.insert(report.slot, now);
            self.last_known = None;
            self.reports.take(report, now);
        }
    }

    fn keep_last_known(&mut self) {
        if !self.reports.answering().is_empty() {
            self.last_known = Some(self.reports.clusters().clone());
        }
    }

    /// When to [`publish`](Self::publish) again though nothing was told.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let grace = self.started + routing::clusters::START_GRACE;
        let proving = self.reports.clusters().values().filter_map(|health| health.proving_until);
        let proved = proving.filter(|until| now < *until).min();
        [self.reports.next_expiry(), (now < grace).then_some(grace), proved].into_iter().flatten().min()
    }

    /// The zone as it is now, when it is another one than at the last call.
    pub fn publish(&mut self, now: Instant) -> Option<Zone> {
        let known = self.reports.clusters().clone();
        if self.reports.expire(now) && self.reports.answering().is_empty() {
            self.last_known = Some(known);
        }
        let clusters = self.clusters();
        let changed = self.catalog.set_reach(self.reach(clusters.as_ref(), now));
        self.select_headless(clusters, changed, now);
        self.catalog.publish()
    }

    /// What routing has to know of the clusters; `None` where nobody measures: beside another implementation's
    /// controller there is no LocalCluster, and without peers and gateways there is nothing to measure.
    fn clusters(&self) -> Option<Clusters> {
        let local = self.local.as_ref()?;
        if self.peers.is_empty() && self.gateways.is_empty() {
            return None;
        }
        let healths = self.last_known.as_ref().unwrap_or(self.reports.clusters());
        let mut clusters = Clusters::new(local.spec.cluster_id.clone(), self.started);
        clusters.strangers = Strangers::Excluded;
        clusters.labels = local.spec.labels.clone();
        clusters.remote = self
            .peers
            .iter()
            .map(|(id, peer)| (id.clone(), Cluster { health: healths.get(id).cloned(), ..peer.clone() }))
            .collect();
        Some(clusters)
    }

    fn reach(&self, clusters: Option<&Clusters>, now: Instant) -> Reach {
        let Some(clusters) = clusters else {
            return Reach::default();
        };
        let mut measured = Measured { local: Some(clusters.local.clone()), ..Measured::default() };
        for cluster in clusters.remote.keys() {
            match clusters.standing(cluster, now) {
                Ok(reason) => {
                    measured.up.insert(cluster.clone());
                    if reason.is_last_resort() {
                        measured.last_resorts.insert(cluster.clone());
                    }
                }
                Err(reason) => {
                    measured.reasons.insert(cluster.clone(), reason.to_string());
                }
            }
        }
        Reach::measured(measured)
    }

    /// Asks the policies about headless services that something changed for.
    fn select_headless(&mut self, clusters: Option<Clusters>, reach_changed: bool, now: Instant) {
        // Where nobody measures, whoever is in the slices is as good as reachable.
        let trusting = |local: &LocalCluster| {
            let mut clusters = Clusters::new(local.spec.cluster_id.clone(), self.started);
            clusters.strangers = Strangers::Trusted;
            clusters
        };
        if let Some(clusters) = clusters.or_else(|| self.local.as_ref().map(trusting)) {
            self.selections.renew(&mut self.catalog, &clusters, reach_changed, now);
        }
    }

    /// What is still awaited before names can be denied.
    pub fn awaited(&self) -> impl Iterator<Item = &'static str> {
        self.awaited.iter().copied()
    }

    pub fn refusals(&self) -> &RefusalLog {
        self.catalog.refusals()
    }

    pub fn local_cluster(&self) -> Option<&ClusterId> {
        self.local.as_ref().map(|local| &local.spec.cluster_id)
    }

    /// The key by which gateways know this server.
    pub fn key(&self) -> Option<&AgentKey> {
        self.key.as_ref()
    }

    /// The gateways to ask, and the addresses each answers on.
    pub fn gateways(&self) -> &BTreeMap<u16, Vec<IpAddr>> {
        &self.gateways
    }

    /// Whether what counts is what was known before every gateway fell silent.
    pub fn is_last_known(&self) -> bool {
        self.last_known.is_some()
    }

    pub fn gateway_states(&self) -> Vec<GatewayState> {
        let state = |(slot, addresses): (&u16, &Vec<IpAddr>)| {
            let latest = self.reports.latest(*slot);
            GatewayState {
                slot: *slot,
                addresses: addresses.clone(),
                answering: latest.is_some(),
                draining: latest.is_some_and(|(report, _)| report.draining),
                last_answer: self.heard.get(slot).copied(),
            }
        };
        self.gateways.iter().map(state).collect()
    }

    /// The peers whose endpoints are left out now.
    pub fn out_of_service(&self, now: Instant) -> Vec<OutOfService> {
        let Some(clusters) = self.clusters() else {
            return Vec::new();
        };
        let out = clusters.remote.iter().filter_map(|(id, cluster)| {
            let standing = clusters.standing(id, now).err()?;
            let health = cluster.health.as_ref();
            let reason = match standing {
                Reason::Drained | Reason::Blocked => PathReason::DrainedHere,
                Reason::Draining | Reason::Left => PathReason::PeerDraining,
                _ => health.map_or(PathReason::NoHandshakeYet, |health| health.reason),
            };
            Some(OutOfService {
                cluster: id.clone(),
                reachability: health.map_or(Reachability::Unknown, |health| health.reachability),
                reason,
                since: health.map(|health| health.since),
            })
        });
        out.collect()
    }
}

/// A Secret may hold the key in use and the next one: the newest counts.
fn newest_key(secret: &Secret) -> Option<AgentKey> {
    let texts = secret.data.iter().flatten().filter_map(|(_, value)| std::str::from_utf8(&value.0).ok());
    texts.filter_map(AgentKey::from_text).max_by_key(|key| key.id)
}

fn object_name(meta: &ObjectMeta) -> (String, String) {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}
