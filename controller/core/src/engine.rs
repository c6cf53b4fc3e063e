//! [`Engine`]: everything the controller knows, in one place with one owner. What the store shows and what other
//! clusters say goes in; the writes that are due come out of [`Engine::plan`].
//!
//! Nothing is planned before every kind was shown once, for absence would be taken for a deletion. What is planned is
//! always the difference between what should be and what was last seen, so planning again does no harm.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use api::cluster_peer::PeerState;
use api::keys::IdentityKey;
use api::kubernetes::EndpointSlice;
use api::member_record::{MemberRecord, SignedRecord};
use api::names;
use api::prefix_claims::{self, PrefixClaims};
use api::time::{Instant, WallTime};
use api::{
    ClusterId, ClusterMember, ClusterPeer, ClusterRoutingPolicy, LocalCluster, RoutingPolicy, ServiceImport,
    TranslatedPrefix, TunnelGateway,
};

use crate::addresses::AddressPool;
use crate::advertisement::{Advertisement, Family, ItemChange, ServiceName};
use crate::host_flows::AllHostFlows;
use crate::index::{Index, ObjectKey};
use crate::ledger::{Batch, Ledger};
use crate::local::LocalIndex;
use crate::membership::{self, SlotKeys};
use crate::own_identity::OwnIdentity;
use crate::plan::{Outcome, Subject, Write};
use crate::recall::{self, Recall, Remembered};
use crate::remote::{Memory, RemoteIndex, Token};
use crate::translations;
use crate::validity::{Bounds, Terms};

/// How long a subject waits after a write failed: a store that is away is not asked harder.
const RETRY: Duration = Duration::from_secs(1);

/// An agent that has connected to this controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAgent {
    pub connected: bool,
    /// When it came or went last.
    pub since: WallTime,
    pub addresses: Vec<String>,
    pub pod_prefixes: Vec<String>,
}

pub struct Engine {
    pub(crate) identity: OwnIdentity,
    pub(crate) locals: Index<LocalCluster>,
    pub(crate) peers: Index<ClusterPeer>,
    pub(crate) members: Index<ClusterMember>,
    pub(crate) gateways: Index<TunnelGateway>,
    pub(crate) policies: Index<RoutingPolicy>,
    pub(crate) cluster_policies: Index<ClusterRoutingPolicy>,
    pub(crate) imports: Index<ServiceImport>,
    pub(crate) imported: Index<EndpointSlice>,
    /// Names of the imported slices of each service.
    pub(crate) imported_of: BTreeMap<ServiceName, BTreeSet<String>>,
    pub(crate) local: LocalIndex,
    pub(crate) remote: RemoteIndex,
    ledger: Ledger,
    pub(crate) cluster_addresses: AddressPool,
    pub(crate) node_addresses: AddressPool,
    pub(crate) addresses_read_back: bool,
    pub(crate) claims: BTreeMap<ClusterId, PrefixClaims>,
    /// How each peer's overlapping prefixes are to be seen here; in force once its status says so.
    pub(crate) translations: BTreeMap<ClusterId, Vec<TranslatedPrefix>>,
    /// The identities each peer may be known by, as its object has it; of blocked ones too.
    pub(crate) trusted: BTreeMap<ClusterId, Vec<IdentityKey>>,
    pub(crate) slot_keys: SlotKeys,
    pub(crate) own: Option<(SignedRecord, MemberRecord)>,
    pub(crate) talks: BTreeMap<ClusterId, Talk>,
    /// Newer records of peers than their status shows.
    pub(crate) learned: BTreeMap<ClusterId, SignedRecord>,
    /// Records of clusters that are no peers, with who passed them on.
    pub(crate) heard_of: BTreeMap<ClusterId, (SignedRecord, ClusterId)>,
    /// Peers that said since the start how things are now. What the others export is what was kept of it.
    spoken: BTreeSet<ClusterId>,
    pub(crate) node_agents: BTreeMap<String, NodeAgent>,
    /// Services of which agents are to be shown something new; none where nobody shows them.
    pub(crate) unshown: Option<BTreeSet<ServiceName>>,
    /// Whether Nodes are others' to make, as on Kubernetes.
    pub(crate) kubelets_register_nodes: bool,
    pub(crate) host_flows: AllHostFlows,
    pub(crate) unserved: BTreeSet<ServiceName>,
    /// The namespaces that were there when last looked at.
    namespaces: BTreeSet<String>,
    /// What the store refuses, by object, in its words.
    store_refusals: BTreeMap<Subject, String>,
    pub(crate) dirty: BTreeSet<Subject>,
    in_flight: BTreeSet<Subject>,
    retries: BTreeMap<Subject, Instant>,
    batches: Vec<Arc<Batch>>,
}

impl Engine {
    /// `last_record` is what was signed last, as kept on disk.
    pub fn new(
        identity: impl Into<OwnIdentity>,
        epoch: String,
        last_record: Option<(SignedRecord, MemberRecord)>,
        bounds: Bounds,
        started: Instant,
    ) -> Self {
        Self {
            identity: identity.into(),
            locals: Index::default(),
            peers: Index::default(),
            members: Index::default(),
            gateways: Index::default(),
            policies: Index::default(),
            cluster_policies: Index::default(),
            imports: Index::default(),
            imported: Index::default(),
            imported_of: BTreeMap::new(),
            local: LocalIndex::new(started),
            remote: RemoteIndex::new(bounds),
            ledger: Ledger::new(epoch),
            cluster_addresses: AddressPool::default(),
            node_addresses: AddressPool::default(),
            addresses_read_back: false,
            claims: BTreeMap::new(),
            translations: BTreeMap::new(),
            trusted: BTreeMap::new(),
            slot_keys: SlotKeys::new(),
            own: last_record,
            talks: BTreeMap::new(),
            learned: BTreeMap::new(),
            heard_of: BTreeMap::new(),
            spoken: BTreeSet::new(),
            node_agents: BTreeMap::new(),
            unshown: None,
            kubelets_register_nodes: false,
            host_flows: AllHostFlows::default(),
            unserved: BTreeSet::new(),
            namespaces: BTreeSet::new(),
            store_refusals: BTreeMap::new(),
            dirty: BTreeSet::new(),
            in_flight: BTreeSet::new(),
            retries: BTreeMap::new(),
            batches: Vec::new(),
        }
    }

    // ---- what other clusters say

    pub fn remember(&mut self, cluster: &ClusterId, memory: Memory, now: Instant, wall: WallTime) {
        let services = self.remote.remember(cluster, memory, now, wall);
        self.talks.entry(cluster.clone()).or_default().ever_synced = true;
        self.touch_services(services);
    }

    pub fn hear_snapshot(
        &mut self,
        cluster: &ClusterId,
        items: Advertisement,
        token: Token,
        now: Instant,
        wall: WallTime,
    ) {
        let services = self.remote.snapshot(cluster, items, token, now, wall);
        self.touch_services(services);
        self.touch_peer(cluster);
        self.hear_alive(cluster);
    }

    /// A peer says that nothing changed.
    pub fn hear_alive(&mut self, cluster: &ClusterId) {
        if self.spoken.insert(cluster.clone()) {
            self.touch_imports_of(cluster);
        }
    }

    /// Plans anew what was imported from a cluster, whether it is remembered to have said so or not.
    pub(crate) fn touch_imports_of(&mut self, cluster: &ClusterId) {
        let named = self.imports.iter().filter(|(_, import)| names_cluster(import, cluster));
        let named = named.map(|(key, _)| ServiceName::new(&key.namespace, &key.name));
        let services: Vec<ServiceName> = named.collect();
        self.touch_services(services);
    }

    /// Whether an import names a trusted peer that said nothing since the start, and whose kept word knows nothing of the
    /// service: its last words before a kill may be lost, and it keeps its vote until it speaks (decision 16).
    pub(crate) fn awaits_a_word(&self, name: &ServiceName, import: &ServiceImport) -> bool {
        let silent = |cluster: &ClusterId| {
            let trusted = self.peers.values().any(|peer| {
                peer.metadata.name.as_deref() == Some(cluster.as_str()) && peer.state() != PeerState::Blocked
            });
            trusted
                && !self.spoken.contains(cluster)
                && self.remote.claims(name).all(|(claimant, _)| claimant != cluster)
        };
        exporters(import).any(|cluster| silent(&cluster))
    }

    pub fn hear_changes(
        &mut self,
        cluster: &ClusterId,
        changes: &[ItemChange],
        token: Option<Token>,
        now: Instant,
        wall: WallTime,
    ) {
        let refused = self.remote.refusals(cluster).len();
        let services = self.remote.changes(cluster, changes, token, now, wall);
        if self.remote.refusals(cluster).len() != refused {
            self.touch_peer(cluster);
        }
        self.touch_services(services);
        self.hear_alive(cluster);
    }

    /// A conversation has brought everything, or it ended and why.
    pub fn set_synced(&mut self, cluster: &ClusterId, ended: Option<String>, now: Instant, wall: WallTime) {
        let services = self.remote.set_connected(cluster, ended.is_none(), now);
        self.touch_services(services);
        let talk = self.talks.entry(cluster.clone()).or_default();
        if talk.synced != ended.is_none() {
            talk.since = Some(wall);
        }
        talk.synced = ended.is_none();
        talk.ever_synced |= talk.synced;
        talk.ended = ended.unwrap_or_default();
        self.touch_peer(cluster);
    }

    /// What a peer has taken of what we say; none: it does not listen any more.
    pub fn set_taken(&mut self, cluster: &ClusterId, taken: Option<Taken>) {
        self.talks.entry(cluster.clone()).or_default().taken = taken;
    }

    /// A peer remembers exports of ours to be older than we say. Answers with what of it was refused.
    pub fn hear_remembered(&mut self, cluster: &ClusterId, remembered: &[Remembered], wall: WallTime) -> recall::Heard {
        self.local.hear_remembered(cluster, remembered, self.remote.bounds().services, wall)
    }

    /// Nodes are made by their kubelets: an agent whose Node is not there makes none.
    pub fn leave_nodes_to_kubelets(&mut self) {
        self.kubelets_register_nodes = true;
    }

    /// What was kept on disk of what peers remember.
    pub fn set_recall(&mut self, recall: Recall) {
        self.local.set_recall(recall);
    }

    /// Lets time pass: silence, graces, retries. Returns clusters that were forgotten.
    pub fn tick(&mut self, now: Instant) -> Vec<ClusterId> {
        self.local.tick(now);
        let (services, forgotten) = self.remote.tick(now);
        let silenced = !services.is_empty();
        self.touch_services(services);
        for cluster in &forgotten {
            self.hear_alive(cluster);
        }
        if silenced {
            self.dirty.extend(self.peers.iter().map(|(key, _)| Subject::Peer(key.name.clone())));
        }
        let due: Vec<Subject> =
            self.retries.iter().filter(|(_, at)| **at <= now).map(|(subject, _)| subject.clone()).collect();
        for subject in due {
            self.retries.remove(&subject);
            self.dirty.insert(subject);
        }
        forgotten
    }

    // ---- what comes out

    /// Brings the advertisement up to date and returns what every peer has to be told.
    pub fn advertise(&mut self, now: Instant, wall: WallTime) -> Vec<Arc<Batch>> {
        let (touched, changes) = self.local.refresh(wall);
        self.touch_services(touched);
        for namespace in self.local.take_touched_namespaces() {
            let is_there = self.local.has_namespace(&namespace);
            let was_there = self.namespaces.contains(&namespace);
            if is_there != was_there {
                self.touch_namespace(&namespace);
                if is_there {
                    self.namespaces.insert(namespace);
                } else {
                    self.namespaces.remove(&namespace);
                }
            }
        }
        // Before everything was shown, what is missing may only not have been shown yet.
        if self.is_known() {
            if self.ledger.current().is_empty() && !self.local.advertisement().is_empty() {
                let all = Advertisement::default().changes_to(self.local.advertisement());
                self.batches.extend(self.ledger.record(all, now));
            } else {
                self.batches.extend(self.ledger.record(changes, now));
            }
        }
        core::mem::take(&mut self.batches)
    }

    /// The writes that are due, by subject. A subject is not planned again before [`Engine::finished`] was called.
    pub fn plan(&mut self, wall: WallTime) -> Vec<(Subject, Vec<Write>)> {
        if !self.is_ready() {
            return Vec::new();
        }
        self.read_back_addresses();
        let mut planned = Vec::new();
        let due: Vec<Subject> =
            self.dirty.iter().filter(|subject| !self.in_flight.contains(*subject)).cloned().collect();
        for subject in due {
            self.dirty.remove(&subject);
            if self.retries.contains_key(&subject) {
                continue;
            }
            let writes = match &subject {
                Subject::LocalCluster => self.plan_local_cluster(wall),
                Subject::Gateways => self.plan_gateways(),
                Subject::Node(name) => self.plan_node(name),
                Subject::Peer(name) => self.plan_peer(name, wall),
                Subject::Member(name) => self.plan_member(name, wall),
                Subject::Service(name) => self.plan_service(name, wall),
                Subject::Policies(namespace) => self.plan_policies(namespace, wall),
                Subject::ClusterPolicies => self.plan_cluster_policies(wall),
            };
            if writes.is_empty() {
                self.store_refusals.remove(&subject);
            } else {
                self.in_flight.insert(subject.clone());
                planned.push((subject, writes));
            }
        }
        planned
    }

    /// What became of a subject's writes.
    pub fn finished(&mut self, subject: &Subject, outcomes: Vec<Outcome>, now: Instant, wall: WallTime) {
        self.in_flight.remove(subject);
        self.dirty.insert(subject.clone());
        for outcome in outcomes {
            match outcome {
                Outcome::Written(object) => self.take_in(Some(object), None, now, wall),
                Outcome::Deleted(object) => self.take_in(None, Some(object), now, wall),
                Outcome::Conflict { attempted, now: found } => {
                    let gone = found.is_none().then_some(attempted);
                    self.take_in(found, gone, now, wall);
                }
                Outcome::Refused { object, reason } => {
                    // Trying again the same would be refused again; the next change of the subject tries anew.
                    self.store_refusals.insert(subject.clone(), format!("{}: {reason}", object.kind()));
                    self.retries.insert(subject.clone(), now + RETRY * 60);
                    self.dirty.remove(subject);
                }
                Outcome::Failed { .. } => {
                    self.retries.insert(subject.clone(), now + RETRY);
                    self.dirty.remove(subject);
                }
            }
        }
    }

    /// Plans everything anew: at the start of a turn as the one that writes.
    pub fn mark_all(&mut self) {
        self.retries.clear();
        self.dirty.extend([Subject::LocalCluster, Subject::Gateways, Subject::ClusterPolicies]);
        self.dirty.extend(self.local.nodes().iter().map(|(key, _)| Subject::Node(key.name.clone())));
        self.dirty.extend(self.node_agents.keys().cloned().map(Subject::Node));
        self.dirty.extend(self.peers.iter().map(|(key, _)| Subject::Peer(key.name.clone())));
        self.dirty.extend(self.members.iter().map(|(key, _)| Subject::Member(key.name.clone())));
        self.dirty.extend(self.policies.iter().map(|(key, _)| Subject::Policies(key.namespace.clone())));
        let services: BTreeSet<ServiceName> = self
            .imports
            .iter()
            .map(|(key, _)| key.service())
            .chain(self.local.exports().map(|(name, _)| name))
            .chain(self.imported_of.keys().cloned())
            .chain(self.remote_services())
            .collect();
        self.touch_services(services);
    }

    /// Whether the store has shown every kind once.
    pub fn is_known(&self) -> bool {
        self.local.is_known()
            && self.locals.is_known()
            && self.peers.is_known()
            && self.members.is_known()
            && self.gateways.is_known()
            && self.policies.is_known()
            && self.cluster_policies.is_known()
            && self.imports.is_known()
            && self.imported.is_known()
    }

    /// Whether there is enough to work with.
    pub fn is_ready(&self) -> bool {
        self.is_known() && self.local_cluster().is_some()
    }

    pub fn local_cluster(&self) -> Option<&LocalCluster> {
        self.locals.get(&ObjectKey::named(names::LOCAL_CLUSTER))
    }
    pub fn cluster_id(&self) -> Option<&ClusterId> {
        self.local_cluster().map(|local| &local.spec.cluster_id)
    }
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
    pub fn remote(&self) -> &RemoteIndex {
        &self.remote
    }
    pub fn local(&self) -> &LocalIndex {
        &self.local
    }
    pub fn peers(&self) -> impl Iterator<Item = &ClusterPeer> {
        self.peers.values()
    }
    pub fn gateways(&self) -> impl Iterator<Item = &TunnelGateway> {
        self.gateways.values()
    }
    pub fn imports(&self) -> &Index<ServiceImport> {
        &self.imports
    }
    pub fn talk(&self, cluster: &ClusterId) -> Option<&Talk> {
        self.talks.get(cluster)
    }
    pub fn claims(&self, cluster: &ClusterId) -> Option<&PrefixClaims> {
        self.claims.get(cluster)
    }
    pub fn node_agents(&self) -> &BTreeMap<String, NodeAgent> {
        &self.node_agents
    }
    /// Services that no ready endpoint of any cluster can answer for.
    pub fn unserved(&self) -> &BTreeSet<ServiceName> {
        &self.unserved
    }
    pub fn store_refusals(&self) -> &BTreeMap<Subject, String> {
        &self.store_refusals
    }
    /// Whether writes of a subject are to be planned, under way, or to be tried again.
    pub fn is_due(&self, subject: &Subject) -> bool {
        self.dirty.contains(subject) || self.in_flight.contains(subject) || self.retries.contains_key(subject)
    }
    /// Subjects planned and not finished.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    // ---- inside

    /// The families clusterset IPs can be given of, and those that pods have.
    pub(crate) fn address_families(&self) -> BTreeSet<Family> {
        let pool = &self.cluster_addresses;
        [Family::V4, Family::V6].into_iter().filter(|family| pool.has_family(*family)).collect()
    }

    pub(crate) fn pod_families(&self) -> BTreeSet<Family> {
        let prefixes = self.local_cluster().map(|local| local.spec.pod_prefixes.as_slice()).unwrap_or_default();
        prefixes.iter().map(|prefix| if prefix.is_ipv4() { Family::V4 } else { Family::V6 }).collect()
    }

    /// What each peer may contribute follows from its ClusterPeer, its record, our LocalCluster, and the other peers.
    pub(crate) fn refresh_terms(&mut self, now: Instant, wall: WallTime) {
        let identities = self.peers.values().filter_map(|peer| {
            let id = ClusterId::new(peer.metadata.name.as_deref()?).ok()?;
            Some((id, peer.trusted_identities()))
        });
        self.trusted = identities.collect();
        let Some(local) = self.local_cluster() else { return };
        let (own, claims) = (local.spec.cluster_id.clone(), prefix_claims::judge(&local.spec, self.peers.values()));
        let mut terms: BTreeMap<ClusterId, Terms> = BTreeMap::new();
        for peer in self.peers.values().filter(|peer| peer.state() != PeerState::Blocked) {
            let Some(id) = peer.metadata.name.as_deref().and_then(|name| ClusterId::new(name).ok()) else { continue };
            // A peer of our own name could speak for our own endpoints.
            if id != own {
                let PrefixClaims { accepted: prefixes, translated: translations, .. } =
                    claims.get(&id).cloned().unwrap_or_default();
                terms.insert(id, Terms { accept: peer.spec.accept.clone(), prefixes, translations });
            }
        }
        // Before all peers were shown, what they were given may look free.
        if self.peers.is_known() {
            let (peers, before) = (self.peers.values(), &self.translations);
            self.translations = translations::allocate(&local.spec, peers, &claims, before);
        }
        self.claims = claims;
        // Before the peers were shown, nobody's trust was taken back.
        if self.peers.is_known() {
            self.local.keep_recall_of(|peer| terms.contains_key(peer));
        }
        let known: BTreeSet<ClusterId> = self.remote.clusters().cloned().chain(terms.keys().cloned()).collect();
        for id in known {
            if self.remote.has_terms(&id) && !terms.contains_key(&id) {
                // Nobody waits any more for what it might say.
                self.touch_imports_of(&id);
            }
            let services = self.remote.set_terms(&id, terms.remove(&id), now, wall);
            self.touch_services(services);
            self.touch_peer(&id);
        }
    }

    /// Addresses in use are read back before the first new one is given: older imports first, for of two with one
    /// address the older keeps it.
    fn read_back_addresses(&mut self) {
        if core::mem::replace(&mut self.addresses_read_back, true) {
            return;
        }
        let mut imports: Vec<(&ObjectKey, &ServiceImport)> = self.imports.iter().collect();
        imports.sort_by_key(|(key, import)| (import.metadata.creation_timestamp.clone(), (*key).clone()));
        for (key, import) in imports {
            claim_addresses(&mut self.cluster_addresses, &key.service(), import);
        }
        for (key, node) in self.local.nodes().iter() {
            for address in crate::host_plan::infrastructure_addresses(node) {
                self.node_addresses.claim(&key.name, address);
            }
        }
    }
}

pub(crate) fn claim_addresses(pool: &mut AddressPool, service: &ServiceName, import: &ServiceImport) {
    for address in import.spec.ips.iter().filter_map(|text| text.parse().ok()) {
        pool.claim(&service.to_string(), address);
    }
}

impl Engine {
    /// What our record should say now, with the next generation, when that differs from what was signed last.
    /// Sign it, keep it on disk, and hand it to [`Engine::set_own_record`].
    pub fn unsigned_record(&self) -> Option<MemberRecord> {
        let local = self.local_cluster().filter(|_| self.is_known() && !self.slot_keys.is_empty())?;
        let wanted =
            membership::own_record(local, &self.identity, self.ledger.epoch(), &self.slot_keys, self.gateways.values());
        membership::next_generation(self.own.as_ref().map(|(_, record)| record), wanted)
    }

    pub fn set_own_record(&mut self, signed: SignedRecord, record: MemberRecord) {
        self.own = Some((signed, record));
        self.dirty.insert(Subject::LocalCluster);
    }

    /// What our record says; `None` before the first was signed.
    pub fn own_record_said(&self) -> Option<&MemberRecord> {
        self.own.as_ref().map(|(_, record)| record)
    }

    /// Our record as peers get it; `None` before the first was signed.
    pub fn own_record(&self) -> Option<&SignedRecord> {
        self.own.as_ref().map(|(signed, _)| signed)
    }
}

mod due;
mod talk;
pub use talk::{Taken, Talk};

#[cfg(test)]
mod ahead_tests;
#[cfg(test)]
mod identity_tests;
#[cfg(test)]
mod overlap_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

/// The clusters an import names as its exporters.
fn exporters(import: &ServiceImport) -> impl Iterator<Item = ClusterId> {
    import
        .status
        .iter()
        .flat_map(|status| &status.clusters)
        .filter_map(|exporter| ClusterId::new(&exporter.cluster).ok())
}

fn names_cluster(import: &ServiceImport, cluster: &ClusterId) -> bool {
    exporters(import).any(|exporter| exporter == *cluster)
}
