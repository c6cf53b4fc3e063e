//! [`Controller`]: one replica of a cluster's controller: its disk, and the [`Process`] while it runs, as the crate
//! `controller` has them.

use std::collections::BTreeMap;

use api::keys::IdentityKey;
use api::kubernetes::{EndpointSlice, Namespace, Node, Service};
use api::member_record::{MemberRecord, SignedRecord, bytes_to_sign};
use api::time::{Instant, WallTime};
use api::{
    ClusterId, ClusterMember, ClusterPeer, ClusterRoutingPolicy, LocalCluster, RoutingPolicy, ServiceExport,
    ServiceImport, TunnelGateway,
};
use controller_core::Engine;
use controller_core::index::Observed;
use controller_core::lease::Tenancy;
use controller_core::plan::{Subject, Write};
use controller_core::recall::{KeptRecall, Recall};
use controller_core::remote::Memory;
use controller_core::validity::Bounds;
use ed25519_dalek::{Signer, SigningKey};

use crate::follower::{Disk, Follower};
use crate::object::{Held, Object};
use crate::objects::Change;
use crate::pretend::public_key;
use crate::process::Process;
use crate::shape::Shape;
use crate::site::{self, NAMES};

/// The two readings of a clock, and the world's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) world: u64,
    pub(crate) instant: Instant,
    pub(crate) wall: WallTime,
}

pub(crate) struct Controller {
    cluster: usize,
    shape: Shape,
    identity: SigningKey,
    pub(crate) follower: Follower,
    pub(crate) process: Option<Process>,
    /// Told apart from those before it, whose writes may still be under way. No two replicas have the same.
    pub(crate) incarnation: u64,
    /// Replicas before this one.
    replica: u64,
    /// Nobody else has taken its state folder.
    owns_disk: bool,
    disk: Kept,
    old: Kept,
}

/// The state folder.
#[derive(Clone, Default)]
struct Kept {
    epoch: String,
    /// When the epoch was made.
    made: Option<WallTime>,
    recall: KeptRecall,
    record: Option<SignedRecord>,
    memories: BTreeMap<ClusterId, Memory>,
}

impl Controller {
    pub(crate) fn new(cluster: usize, shape: Shape) -> Self {
        Self {
            cluster,
            shape,
            identity: SigningKey::from_bytes(&[cluster as u8 + 1; 32]),
            follower: Follower::default(),
            process: None,
            incarnation: 0,
            replica: 0,
            owns_disk: true,
            disk: Kept::default(),
            old: Kept::default(),
        }
    }

    /// Another replica takes this one's state folder, and nothing else of it.
    pub(crate) fn successor(&mut self) -> Self {
        self.owns_disk = false;
        Self {
            identity: self.identity.clone(),
            follower: Follower::default(),
            process: None,
            incarnation: self.incarnation + 1,
            replica: self.replica + 1,
            owns_disk: true,
            disk: self.disk.clone(),
            old: self.old.clone(),
            ..*self
        }
    }

    /// Its name in the Lease: the same after a restart, another for each replica.
    pub(crate) fn replica(&self) -> String {
        format!("{}-{}", NAMES[self.cluster], self.replica)
    }

    pub(crate) fn identity(&self) -> IdentityKey {
        IdentityKey(self.identity.verifying_key().to_bytes())
    }

    /// SIGKILL.
    pub(crate) fn stop(&mut self) {
        self.process = None;
        self.follower.is_connected = false;
        self.incarnation += 1;
    }

    /// What peers said is kept again as it was at some time before.
    pub(crate) fn back_up(&mut self) {
        self.old = self.disk.clone();
    }

    /// `random` names a new installation, where the disk is empty.
    pub(crate) fn start(&mut self, disk: Disk, random: u64, now: Now) {
        self.stop();
        match disk {
            Disk::Kept => {}
            // The member record is signed once for each generation: only what peers said can be older.
            Disk::Old => self.disk.memories = self.old.memories.clone(),
            Disk::Empty => self.disk = Kept::default(),
        }
        if self.disk.epoch.is_empty() {
            self.disk.epoch = format!("{random:016x}");
            self.disk.made = Some(now.wall);
        }
        let last = self.disk.record.clone();
        let last: Option<(SignedRecord, MemberRecord)> =
            last.and_then(|signed| Some((signed.clone(), signed.verify(&[signed.key]).ok()?)));
        let epoch = self.disk.epoch.clone();
        let mut engine = Engine::new(self.identity(), epoch, last, Bounds::default(), now.instant);
        engine.set_recall(Recall::new(self.disk.made, self.disk.recall.clone()));
        for (cluster, memory) in &self.disk.memories {
            engine.remember(cluster, memory.clone(), now.instant, now.wall);
        }
        engine.mark_all();
        self.process = Some(Process::new(engine, Tenancy::new(self.replica())));
    }

    /// Everything that is in the store.
    pub(crate) fn take_all(&mut self, all: &[Object], now: Now) {
        let Some(process) = &mut self.process else { return };
        let engine = &mut process.engine;
        macro_rules! reset {
            ($($kind:ty => $observe:ident $(, $argument:expr)*;)+) => { $({
                let of_kind: Vec<$kind> = all.iter().filter_map(Held::of).cloned().collect();
                engine.$observe(Observed::Reset(of_kind) $(, $argument)*);
            })+ };
        }
        reset!(
            LocalCluster => observe_local_cluster, now.instant, now.wall;
            ClusterPeer => observe_peers, now.instant, now.wall;
            ClusterMember => observe_members;
            TunnelGateway => observe_gateways;
            Service => observe_services;
            ServiceExport => observe_exports;
            ServiceImport => observe_imports;
            EndpointSlice => observe_slices;
            Namespace => observe_namespaces;
            Node => observe_nodes, now.instant;
            RoutingPolicy => observe_policies;
            ClusterRoutingPolicy => observe_cluster_policies;
        );
        let Shape { gateways, lanes, .. } = self.shape;
        let key = |slot: u16, lane: u16| public_key(site::secret(self.cluster, slot, lane));
        let of = |slot: u16| (0..lanes).map(|lane| key(slot, lane)).collect::<Vec<_>>();
        let keys = (0..gateways).map(|slot| (slot, of(slot).into()));
        engine.set_slot_keys(keys.collect());
        engine.mark_all();
    }

    pub(crate) fn take(&mut self, change: &Change, now: Now) {
        let Some(process) = &mut self.process else { return };
        let engine = &mut process.engine;
        macro_rules! step {
            ($step:ident, $object:expr) => {
                match $object.clone() {
                    Object::LocalCluster(o) => engine.observe_local_cluster(Observed::$step(*o), now.instant, now.wall),
                    Object::ClusterPeer(o) => engine.observe_peers(Observed::$step(*o), now.instant, now.wall),
                    Object::ClusterMember(o) => engine.observe_members(Observed::$step(*o)),
                    Object::TunnelGateway(o) => engine.observe_gateways(Observed::$step(*o)),
                    Object::Service(o) => engine.observe_services(Observed::$step(*o)),
                    Object::ServiceExport(o) => engine.observe_exports(Observed::$step(*o)),
                    Object::ServiceImport(o) => engine.observe_imports(Observed::$step(*o)),
                    Object::EndpointSlice(o) => engine.observe_slices(Observed::$step(*o)),
                    Object::Namespace(o) => engine.observe_namespaces(Observed::$step(*o)),
                    Object::Node(o) => engine.observe_nodes(Observed::$step(*o), now.instant),
                    Object::RoutingPolicy(o) => engine.observe_policies(Observed::$step(*o)),
                    Object::ClusterRoutingPolicy(o) => engine.observe_cluster_policies(Observed::$step(*o)),
                }
            };
        }
        match change {
            Change::Applied(object) => step!(Applied, object),
            Change::Deleted(object) => step!(Deleted, object),
        }
    }

    /// What follows from what was taken in; the writes that are due, where this replica may write.
    pub(crate) fn settle(&mut self, now: Now) -> Vec<(Subject, Vec<Write>)> {
        let Some(process) = &mut self.process else { return Vec::new() };
        for batch in process.engine.advertise(now.instant, now.wall) {
            process.export_sides().for_each(|side| side.changed(batch.clone()));
        }
        // A record that cannot be kept is not published.
        if let Some(record) = process.engine.unsigned_record().filter(|_| self.owns_disk) {
            let bytes = serde_json::to_vec(&record).unwrap_or_default();
            let signature = self.identity.sign(&bytes_to_sign(&bytes)).to_bytes().to_vec();
            let key = IdentityKey(self.identity.verifying_key().to_bytes());
            let signed = SignedRecord { record: bytes, key, signature };
            self.disk.record = Some(signed.clone());
            process.export_sides().for_each(|side| side.pass_on([signed.clone()]));
            process.engine.set_own_record(signed, record);
        }
        let planned = process.plan(now);
        let due: Vec<ClusterId> =
            process.unsaved.iter().filter(|(_, at)| **at <= now.world).map(|(cluster, _)| cluster.clone()).collect();
        for cluster in due {
            process.unsaved.remove(&cluster);
            if let Some(memory) = process.engine.remote().memory(&cluster).filter(|_| self.owns_disk) {
                self.disk.memories.insert(cluster, memory);
            }
        }
        self.disk.recall = process.engine.local().recall().kept();
        process.speak(now);
        planned
    }

    /// Time passes.
    pub(crate) fn tick(&mut self, now: Now) {
        let Some(process) = &mut self.process else { return };
        for cluster in process.engine.tick(now.instant) {
            self.disk.memories.remove(&cluster);
        }
        process.part_from_strangers(now);
    }
}
