//! [`NodeCore`]: takes what a node is told, and gives what changed in what its kernel should hold.

mod intake;
mod leaving;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use ipnet::IpNet;

use api::cluster_peer::PeerState;
use api::health::{ClusterHealth, ClusterHealths, PathReason, Reachability};
use api::local_cluster::{LocalState, ServiceMode};
use api::member_record::MemberState;
use api::time::Instant;
use api::{ClusterId, ClusterPeer, LocalCluster, Prefix};
use kernel_core::{Backend, DeviceName, Element, Exported, Family, Frontend, RouteKey, Service, State};
use routing::clusters::START_GRACE;
use routing::slots::stable_hash;
use routing::{Clusters, GatewayReports, PolicySet, Reason};

use crate::catalog::{Catalog, EndpointFacts, Touched};
use crate::fabric::{Facts, fabric, vxlan_route};
use crate::facts::{GatewayFacts, NodeFacts, PeerFacts};
use crate::frontends::{Scene, Served, hairpins, serve};
use crate::input::Key;
use crate::problem::{Problem, Problems};
use crate::shares::ShareChange;
use leaving::Leaving;

/// How often services with a `Nearest` policy are looked at again: round-trip times are smoothed over longer than that.
const NEAREST_EVERY: Duration = Duration::from_secs(1);

/// The cluster id taken while the LocalCluster is not known; nothing is served then.
const NO_CLUSTER: &str = "unknown";

/// Ethernet's largest packet, until the device's own is known.
const USUAL_MTU: u32 = 1500;

/// Everything one node knows, and what its kernel should hold because of it.
pub struct NodeCore {
    pub(crate) name: String,
    started: Instant,
    pub(crate) seed: u64,
    pub(crate) local: Option<LocalCluster>,
    peer_objects: BTreeMap<ClusterId, ClusterPeer>,
    peers: BTreeMap<ClusterId, PeerFacts>,
    nodes: BTreeMap<String, NodeFacts>,
    gateways: BTreeMap<u16, GatewayFacts>,
    /// Which object each slot was read from.
    gateway_keys: BTreeMap<Key, u16>,
    devices: BTreeSet<DeviceName>,
    underlay_mtu: u32,
    pub(crate) reports: GatewayReports,
    /// Gateways that answered since the start.
    heard: BTreeSet<u16>,
    pub(crate) policies: PolicySet,
    policy_keys: BTreeSet<Key>,
    cluster_policy_keys: BTreeSet<Key>,
    pub(crate) clusters: Clusters,
    /// Whether each may get new connections, and whether it may finish those it has.
    standings: BTreeMap<ClusterId, (Result<Reason, Reason>, bool)>,
    pub(crate) catalog: Catalog,
    problems: Problems,

    fabric: State,
    pub(crate) served: BTreeMap<Key, Served>,
    frontend_owners: BTreeMap<Frontend, BTreeSet<Key>>,
    pub(crate) services: BTreeMap<Frontend, Service>,
    /// What each service adds to sets and routes.
    hairpins: BTreeMap<Key, BTreeSet<Piece>>,
    admitted: BTreeMap<Key, BTreeSet<Piece>>,
    leaving: Leaving,
    pieces: BTreeMap<Piece, usize>,

    dirty: Touched,
    fabric_dirty: bool,
    following: BTreeSet<Key>,
    /// Services to be looked at again at a time.
    waiting: BTreeSet<(Instant, Key)>,
    next_nearest: Instant,
    last_look: Instant,
}

/// A thing several services may want at once; it goes when the last of them does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    Element(Element),
    /// A way from a tunnel to an endpoint outside its node's prefixes, by that next hop.
    Inward(RouteKey, IpAddr),
}

/// What changed since the last one: two states that hold only that.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    pub before: State,
    pub after: State,
    /// The change cannot be made in part: compare [`NodeCore::wanted`] with everything that is there.
    pub whole: bool,
    /// UDP flows that were left to finish ([`NodeCore::finishes`]) and are not any more: to be ended.
    pub ended: BTreeSet<(Frontend, Backend)>,
    /// Services whose traffic goes elsewhere than before.
    pub shares: BTreeSet<ShareChange>,
    /// Services of the clusterset that were looked at.
    pub services_touched: usize,
}

impl Delta {
    pub fn is_empty(&self) -> bool {
        !self.whole && self.before == self.after && self.ended.is_empty()
    }
}

impl NodeCore {
    /// `node` is the name of this host's Node object.
    pub fn new(node: &str, now: Instant) -> Self {
        Self {
            name: node.to_string(),
            started: now,
            seed: stable_hash(node),
            local: None,
            peer_objects: BTreeMap::new(),
            peers: BTreeMap::new(),
            nodes: BTreeMap::new(),
            gateways: BTreeMap::new(),
            gateway_keys: BTreeMap::new(),
            devices: BTreeSet::new(),
            underlay_mtu: USUAL_MTU,
            reports: GatewayReports::default(),
            heard: BTreeSet::new(),
            policies: PolicySet::default(),
            policy_keys: BTreeSet::new(),
            cluster_policy_keys: BTreeSet::new(),
            clusters: Clusters::new(no_cluster(), now),
            standings: BTreeMap::new(),
            catalog: Catalog::default(),
            problems: Problems::default(),
            fabric: State::default(),
            served: BTreeMap::new(),
            frontend_owners: BTreeMap::new(),
            services: BTreeMap::new(),
            hairpins: BTreeMap::new(),
            admitted: BTreeMap::new(),
            leaving: Leaving::default(),
            pieces: BTreeMap::new(),
            dirty: Touched::default(),
            fabric_dirty: true,
            following: BTreeSet::new(),
            waiting: BTreeSet::new(),
            next_nearest: now,
            last_look: now,
        }
    }

    /// What changed since the last call, through inputs or through time.
    pub fn delta(&mut self, now: Instant) -> Delta {
        self.look_at_health(now);
        let mut delta = Delta::default();
        if core::mem::take(&mut self.fabric_dirty) {
            self.renew_fabric(now, &mut delta);
        }
        let mut dirty = core::mem::take(&mut self.dirty);
        dirty.exports.extend(self.leaving.due(now));
        delta.services_touched = dirty.imports.len();
        for key in &dirty.imports {
            self.renew_service(key, now, &mut delta);
        }
        for key in &dirty.exports {
            self.renew_export(key, now, &mut delta);
        }
        delta
    }

    /// Everything wanted.
    pub fn wanted(&self) -> State {
        let mut state = self.fabric.clone();
        state.services = self.services.clone();
        for piece in self.pieces.keys() {
            put(piece, &mut state);
        }
        state
    }

    /// When [`NodeCore::delta`] may say something though nothing is told; none: when told.
    pub fn next_look(&self) -> Option<Instant> {
        let asked = self.waiting.first().map(|(at, _)| *at);
        let nearest = (!self.following.is_empty()).then_some(self.next_nearest);
        let early = self.clusters.in_grace(self.last_look).then(|| self.started + START_GRACE);
        [asked, nearest, early, self.reports.next_expiry(), self.leaving.next()].into_iter().flatten().min()
    }

    fn look_at_health(&mut self, now: Instant) {
        let was_early = self.clusters.in_grace(self.last_look);
        self.fabric_dirty |= self.reports.expire(now);
        self.fabric_dirty |= was_early && !self.clusters.in_grace(now);
        for (id, known) in &mut self.clusters.remote {
            known.health = self.reports.clusters().get(id).cloned();
        }
        let standings: BTreeMap<ClusterId, _> =
            self.clusters.remote.keys().map(|id| (id.clone(), standing(&self.clusters, id, now))).collect();
        let changed = standings.iter().filter(|(id, standing)| self.standings.get(id) != Some(standing));
        for (id, _) in changed {
            self.dirty.imports.extend(self.catalog.services_of_cluster(id).cloned());
        }
        self.standings = standings;
        let overdue = self.waiting.iter().take_while(|(at, _)| *at <= now);
        self.dirty.imports.extend(overdue.map(|(_, key)| key.clone()));
        if now >= self.next_nearest {
            self.dirty.imports.extend(self.following.iter().cloned());
            self.next_nearest = now + NEAREST_EVERY;
        }
        self.last_look = now;
    }

    fn renew_fabric(&mut self, now: Instant, delta: &mut Delta) {
        let (paths, lanes) = (self.paths(now), self.lanes());
        let new = fabric(&self.facts(&paths, &lanes));
        if new == self.fabric {
            return;
        }
        let old = core::mem::replace(&mut self.fabric, new.clone());
        let fits = match (&new.table, &old.table) {
            (Some(new), Some(old)) => new.fits(old),
            (None, None) => true,
            _ => false,
        };
        let remade =
            old.links.iter().any(|(name, link)| new.links.get(name).is_none_or(|new| !new.differs_only_in_mtu(link)));
        // A device that comes back has lost what leaned on it.
        delta.whole |= !fits || remade || new.links.keys().any(|name| !old.links.contains_key(name));
        delta.before = old;
        delta.after = new;
    }

    /// For each peer the gateways that reach it. Just after the start, where none says so, those that were not heard yet.
    ///
    /// Where none reaches it, all that answer, and where none answers, all there are: a measurement that is wrong on a
    /// starved host must not stop flows that could go on, and a packet lost on its way costs no more than one dropped
    /// here. New connections are not given to the cluster meanwhile, for that is decided by its health.
    fn paths(&self, now: Instant) -> BTreeMap<ClusterId, BTreeMap<u16, u32>> {
        let early = self.clusters.in_grace(now);
        let configured = self.local.as_ref().map_or(USUAL_MTU, |local| u32::from(local.spec.gateways.mtu));
        let unheard = self.gateways.keys().filter(|slot| early && !self.heard.contains(slot));
        let unheard: BTreeMap<u16, u32> = unheard.map(|slot| (*slot, configured)).collect();
        let answering = self.reports.answering();
        let answering = self.gateways.keys().filter(|slot| answering.is_empty() || answering.contains(slot));
        let last_resort: BTreeMap<u16, u32> = answering.map(|slot| (*slot, configured)).collect();
        let of_peer = |id: &ClusterId| {
            let told = self.reports.paths(id).into_iter();
            let told: BTreeMap<u16, u32> = told.map(|(slot, path)| (slot, u32::from(path.mtu))).collect();
            match (told.is_empty(), unheard.is_empty()) {
                (false, _) => told,
                (true, false) => unheard.clone(),
                (true, true) => last_resort.clone(),
            }
        };
        self.peers.keys().map(|id| (id.clone(), of_peer(id))).collect()
    }

    /// For each peer the gateways that said by which of their lanes they reach it.
    fn lanes(&self) -> BTreeMap<ClusterId, BTreeMap<u16, u16>> {
        let told = |id: &ClusterId| self.reports.paths(id).into_iter().map(|(slot, path)| (slot, path.lanes));
        self.peers.keys().map(|id| (id.clone(), told(id).filter(|(_, lanes)| *lanes != 0).collect())).collect()
    }

    fn facts<'a>(
        &'a self,
        paths: &'a BTreeMap<ClusterId, BTreeMap<u16, u32>>,
        lanes: &'a BTreeMap<ClusterId, BTreeMap<u16, u16>>,
    ) -> Facts<'a> {
        Facts {
            node: &self.name,
            local: self.local.as_ref().map(|local| &local.spec),
            nodes: &self.nodes,
            gateways: &self.gateways,
            peers: &self.peers,
            paths,
            lanes,
            devices: &self.devices,
            underlay_mtu: self.underlay_mtu,
        }
    }

    pub(crate) fn scene(&self, now: Instant) -> Scene<'_> {
        Scene { clusters: &self.clusters, policies: &self.policies, catalog: &self.catalog, seed: self.seed, now }
    }

    fn renew_service(&mut self, key: &Key, now: Instant, delta: &mut Delta) {
        let translated = self.local.as_ref().is_some_and(|local| local.spec.service_mode == ServiceMode::Nftables);
        let import = self.catalog.imports.get(key).filter(|_| translated);
        let before = self.served.remove(key).unwrap_or_default();
        before.ask_again.map(|at| self.waiting.remove(&(at, key.clone())));
        let mut after = import.map(|import| serve(key, import, &before, &self.services, self.scene(now)));
        let around = import.map(|import| {
            hairpins(key, import, &self.catalog, &self.clusters.local, |endpoint| self.is_here(endpoint))
        });
        let around: BTreeSet<Piece> =
            around.into_iter().flatten().map(|address| Piece::Element(Element::Hairpin(address))).collect();

        let known = BTreeMap::new();
        let frontends = before.frontends.keys().chain(after.as_ref().map_or(&known, |new| &new.frontends).keys());
        let frontends: BTreeSet<Frontend> = frontends.copied().collect();
        self.following.remove(key);
        self.waiting.extend(after.as_ref().and_then(|after| after.ask_again).map(|at| (at, key.clone())));
        delta.shares.extend(after.as_mut().map(|after| core::mem::take(&mut after.changes)).into_iter().flatten());
        if !before.finishing.is_empty() {
            let none = BTreeSet::new();
            let still = after.as_ref().map_or(&none, |after| &after.finishing);
            let served = |(frontend, backend): &(Frontend, Backend)| {
                let service = after.as_ref().and_then(|after| after.frontends.get(frontend));
                service.is_some_and(|service| service.slots().contains(backend))
            };
            delta.ended.extend(before.finishing.difference(still).filter(|flow| !served(flow)).copied());
        }
        if let Some(after) = after {
            if after.follows_round_trips {
                self.following.insert(key.clone());
            }
            self.served.insert(key.clone(), after);
        }
        let mut taken = Vec::new();
        for frontend in frontends {
            let wanted = self.served.get(key).is_some_and(|served| served.frontends.contains_key(&frontend));
            let owners = self.frontend_owners.entry(frontend).or_default();
            if wanted {
                owners.insert(key.clone());
            } else {
                owners.remove(key);
            }
            // The first by name: which is no matter, but it must be the same one whatever came first.
            let owner = owners.first().cloned();
            if wanted && owner.as_ref() != Some(key) {
                taken.push(Problem::AddressTaken(frontend.address.to_string()));
            }
            if owners.is_empty() {
                self.frontend_owners.remove(&frontend);
            }
            let service = owner.and_then(|owner| self.served.get(&owner)?.frontends.get(&frontend).cloned());
            let old = match &service {
                Some(service) => self.services.insert(frontend, service.clone()),
                None => self.services.remove(&frontend),
            };
            if old != service {
                delta.before.services.extend(old.map(|old| (frontend, old)));
                delta.after.services.extend(service.map(|service| (frontend, service)));
            }
        }
        taken.dedup();
        self.problems.set("ServiceImport's address", key, taken);
        let before = match around.is_empty() {
            true => self.hairpins.remove(key),
            false => self.hairpins.insert(key.clone(), around.clone()),
        };
        self.exchange(&before.unwrap_or_default(), &around, delta);
    }

    fn renew_export(&mut self, key: &Key, now: Instant, delta: &mut Delta) {
        let mut around = BTreeSet::new();
        let (paths, lanes) = (BTreeMap::new(), BTreeMap::new());
        let carries_in = self.facts(&paths, &lanes).is_gateway_host();
        for slice in self.catalog.exported_slices(key) {
            for endpoint in &slice.endpoints {
                if self.is_here(endpoint) {
                    if !slice.ports.is_empty() {
                        around.insert(Piece::Element(Element::Echo(endpoint.address)));
                    }
                    around.extend(slice.ports.iter().map(|port| {
                        let exported = Exported { address: endpoint.address, protocol: port.protocol, port: port.port };
                        Piece::Element(Element::Exported(exported))
                    }));
                } else if carries_in && let Some(piece) = self.way_in(endpoint) {
                    around.insert(piece);
                }
            }
        }
        if self.catalog.is_exported(key) {
            let none = BTreeSet::new();
            let before = self.admitted.get(key).unwrap_or(&none);
            around.extend(self.leaving.keep(key, before, &around, now));
        } else {
            self.leaving.forget(key);
        }
        let before = match around.is_empty() {
            true => self.admitted.remove(key),
            false => self.admitted.insert(key.clone(), around.clone()),
        };
        self.exchange(&before.unwrap_or_default(), &around, delta);
    }

    /// A route to an endpoint on another node that is outside that node's prefixes. One outside the cluster's own
    /// prefixes has none: no peer takes it, and packets for the address's owner would go to that node instead.
    fn way_in(&self, endpoint: &EndpointFacts) -> Option<Piece> {
        let own = &self.local.as_ref()?.spec.pod_prefixes;
        if !own.iter().any(|prefix| prefix.net().contains(&endpoint.address)) {
            return None;
        }
        let name = endpoint.node.as_ref()?;
        let node = self.nodes.get(name)?;
        if node.pod_prefixes.iter().any(|net| net.contains(&endpoint.address)) {
            return None;
        }
        let via = node.next_hop(name, Family::of(endpoint.address))?;
        Some(Piece::Inward(RouteKey::inward(endpoint.address.into()), via))
    }

    /// Whether an endpoint of this cluster lives on this host.
    fn is_here(&self, endpoint: &EndpointFacts) -> bool {
        self.is_at(endpoint, &self.name)
    }

    /// Whether an endpoint of this cluster lives on that node.
    pub(crate) fn is_at(&self, endpoint: &EndpointFacts, name: &str) -> bool {
        match &endpoint.node {
            Some(node) => node == name,
            None => self
                .nodes
                .get(name)
                .is_some_and(|node| node.inward_prefixes().any(|net| net.contains(&endpoint.address))),
        }
    }

    fn exchange(&mut self, before: &BTreeSet<Piece>, after: &BTreeSet<Piece>, delta: &mut Delta) {
        for piece in after.difference(before) {
            let count = self.pieces.entry(piece.clone()).or_default();
            *count += 1;
            if *count == 1 {
                put(piece, &mut delta.after);
            }
        }
        for piece in before.difference(after) {
            let Some(count) = self.pieces.get_mut(piece) else { continue };
            *count -= 1;
            if *count == 0 {
                self.pieces.remove(piece);
                put(piece, &mut delta.before);
            }
        }
    }

    /// What is wrong with objects now.
    pub fn problems(&self) -> &Problems {
        &self.problems
    }

    /// Where each gateway's health port answers, for those that somebody holds.
    pub fn gateway_addresses(&self) -> BTreeMap<u16, Vec<IpAddr>> {
        let held = self.gateways.iter().filter(|(_, gateway)| !gateway.addresses.is_empty());
        held.map(|(slot, gateway)| (*slot, gateway.addresses.clone())).collect()
    }

    /// The addresses of this node inside the cluster.
    pub fn own_addresses(&self) -> Vec<IpAddr> {
        self.nodes.get(&self.name).map(|me| me.addresses.clone()).unwrap_or_default()
    }

    /// Whether what we want in the kernel goes when this device does.
    pub fn leans_on(&self, device: &DeviceName) -> bool {
        self.fabric.links.contains_key(device) || self.fabric.sets.tunnels.contains(device)
    }

    /// Whether flows to this endpoint are left to finish, though its slots go to others.
    pub fn finishes(&self, frontend: &Frontend, backend: &Backend) -> bool {
        let owners = self.frontend_owners.get(frontend).into_iter().flatten();
        owners
            .filter_map(|owner| self.served.get(owner))
            .any(|served| served.finishing.contains(&(*frontend, *backend)))
    }

    /// Whose prefixes are whose, among the peers.
    pub fn peer_prefixes(&self) -> Vec<(Prefix, ClusterId)> {
        let of_peer = |(id, peer): (&ClusterId, &PeerFacts)| {
            let prefixes = peer.prefixes.iter().map(|net| (Prefix::truncating(*net), id.clone()));
            prefixes.collect::<Vec<_>>()
        };
        self.peers.iter().flat_map(of_peer).collect()
    }

    /// What is drained and reached, as far as this host knows: `peer birch`, by our order or its own word, `cluster`,
    /// `node worker`.
    pub fn drained(&self) -> Vec<String> {
        let leaves = |peer: &PeerFacts| match peer.state {
            PeerState::Active => matches!(peer.member, Some(MemberState::Draining | MemberState::Left)),
            PeerState::Drained => true,
            PeerState::Blocked => false,
        };
        let peers = self.peers.iter().filter(|(_, peer)| leaves(peer)).map(|(id, _)| format!("peer {id}"));
        let draining = |local: &&LocalCluster| local.state() == LocalState::Draining;
        let ours = self.local.iter().filter(draining).map(|_| String::from("cluster"));
        let nodes = self.nodes.iter().filter(|(_, node)| node.drained).map(|(name, _)| format!("node {name}"));
        peers.chain(ours).chain(nodes).collect()
    }

    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Exported endpoints on this host, with their ports.
    pub fn own_endpoints(&self) -> BTreeSet<(IpAddr, u16)> {
        let exported = self.pieces.keys().filter_map(|piece| match piece {
            Piece::Element(Element::Exported(exported)) => Some((exported.address, exported.port)),
            _ => None,
        });
        exported.collect()
    }

    /// The prefixes of one peer that are in force here; none for a cluster that is no peer.
    pub fn prefixes_of(&self, peer: &ClusterId) -> Option<&BTreeSet<IpNet>> {
        self.peers.get(peer).map(|peer| &peer.prefixes)
    }

    /// The gateway slot of a node that has this address, or whose tunnel on this host is this device.
    pub fn gateway_at(&self, node: Option<IpAddr>, device: &str) -> Option<u16> {
        let is_at = |gateway: &GatewayFacts| match node {
            Some(address) => self.nodes.get(&gateway.node).is_some_and(|node| node.addresses.contains(&address)),
            None => gateway.node == self.name && gateway.devices.iter().any(|own| own.as_str() == device),
        };
        self.gateways.iter().find(|(_, gateway)| is_at(gateway)).map(|(slot, _)| *slot)
    }

    /// This cluster's id; none until the LocalCluster is known.
    pub fn local_cluster(&self) -> Option<&ClusterId> {
        self.local.as_ref().map(|local| &local.spec.cluster_id)
    }

    /// The health of every peer as the gateways tell it; unknown since the start where none does.
    pub fn cluster_healths(&self) -> ClusterHealths {
        let unknown = ClusterHealth {
            reachability: Reachability::Unknown,
            reason: PathReason::NoHandshakeYet,
            since: self.started,
            proving_until: None,
            round_trip: None,
        };
        let told = self.reports.clusters();
        self.peers.keys().map(|id| (id.clone(), told.get(id).unwrap_or(&unknown).clone())).collect()
    }

    pub fn reports(&self) -> &GatewayReports {
        &self.reports
    }

    /// Whether the LocalCluster and this host's Node are known.
    pub fn awaiting(&self) -> Vec<String> {
        let mut awaiting = Vec::new();
        if self.local.is_none() {
            awaiting.push(String::from("the LocalCluster from the controller"));
        }
        match self.nodes.get(&self.name) {
            None => awaiting.push(alloc::format!("the Node '{}' from the controller", self.name)),
            Some(me) if me.addresses.is_empty() => awaiting.push(alloc::format!("an address of Node '{}'", self.name)),
            Some(_) => {}
        }
        awaiting
    }
}

fn standing(clusters: &Clusters, id: &ClusterId, now: Instant) -> (Result<Reason, Reason>, bool) {
    (clusters.standing(id, now), clusters.lets_finish(id, now))
}

fn put(piece: &Piece, state: &mut State) {
    match piece {
        Piece::Element(element) => drop(state.sets.insert(element.clone())),
        Piece::Inward(key, via) => drop(vxlan_route(*via).map(|route| state.routes.insert(*key, route))),
    }
}

fn no_cluster() -> ClusterId {
    ClusterId::new(NO_CLUSTER).unwrap_or_else(|_| unreachable!("the constant is a DNS label"))
}
