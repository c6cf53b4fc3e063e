//! [`Controller`]: one controller process around its engine: conversations over streams that gateways carry, and the
//! disk, as the crate `controller` has them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use api::cluster_peer::PeerState;
use api::keys::IdentityKey;
use api::kubernetes::{EndpointSlice, Namespace, Node, Service};
use api::member_record::{MemberRecord, SignedRecord, bytes_to_sign};
use api::time::{Instant, WallTime};
use api::{
    ClusterId, ClusterMember, ClusterPeer, ClusterRoutingPolicy, LocalCluster, RoutingPolicy, ServiceExport,
    ServiceImport, TunnelGateway,
};
use controller_core::Engine;
use controller_core::conversation::{ExportHeard, ExportSide, ImportHeard, ImportSide};
use controller_core::index::Observed;
use controller_core::message::{FrameReader, Message};
use controller_core::plan::{Outcome, Subject, Write};
use controller_core::recall::{KeptRecall, Recall};
use controller_core::remote::Memory;
use controller_core::validity::Bounds;
use ed25519_dalek::{Signer, SigningKey};

use crate::follower::{Disk, Follower};
use crate::object::{Held, Object};
use crate::objects::Change;
use crate::pretend::public_key;
use crate::shape::Shape;
use crate::site;

/// How long what a peer said may wait to be kept on disk (controller/src/owner.rs), in microseconds.
const KEEP_WITHIN: u64 = 100_000;

/// A stream: the slot of the gateway that carries it, our end, and the other.
pub(crate) type StreamKey = (u16, SocketAddr, SocketAddr);

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
    /// Told apart from those before it, whose writes may still be under way.
    pub(crate) incarnation: u64,
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

pub(crate) struct Process {
    pub(crate) engine: Engine,
    imports: BTreeMap<ClusterId, Vec<Import>>,
    exports: Vec<Export>,
    unsaved: BTreeMap<ClusterId, u64>,
    /// Bytes to send, by stream.
    pub(crate) outbox: Vec<(StreamKey, Vec<u8>)>,
    /// Streams that this end is done with.
    pub(crate) closed: Vec<StreamKey>,
    pub(crate) told: Vec<String>,
}

/// A way to a peer's controller; the first of a peer's is used, the others wait.
struct Import {
    key: StreamKey,
    side: Option<ImportSide>,
    reader: FrameReader,
}

struct Export {
    peer: ClusterId,
    key: StreamKey,
    side: ExportSide,
    reader: FrameReader,
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
            disk: Kept::default(),
            old: Kept::default(),
        }
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
        self.process = Some(Process {
            engine,
            imports: BTreeMap::new(),
            exports: Vec::new(),
            unsaved: BTreeMap::new(),
            outbox: Vec::new(),
            closed: Vec::new(),
            told: Vec::new(),
        });
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

    /// What follows from what was taken in; the writes that are due.
    pub(crate) fn settle(&mut self, now: Now) -> Vec<(Subject, Vec<Write>)> {
        let Some(process) = &mut self.process else { return Vec::new() };
        for batch in process.engine.advertise(now.instant, now.wall) {
            process.exports.iter_mut().for_each(|export| export.side.changed(batch.clone()));
        }
        if let Some(record) = process.engine.unsigned_record() {
            let bytes = serde_json::to_vec(&record).unwrap_or_default();
            let signature = self.identity.sign(&bytes_to_sign(&bytes)).to_bytes().to_vec();
            let key = IdentityKey(self.identity.verifying_key().to_bytes());
            let signed = SignedRecord { record: bytes, key, signature };
            self.disk.record = Some(signed.clone());
            process.exports.iter_mut().for_each(|export| export.side.pass_on([signed.clone()]));
            process.engine.set_own_record(signed, record);
        }
        let writes = process.engine.plan(now.wall);
        let due: Vec<ClusterId> =
            process.unsaved.iter().filter(|(_, at)| **at <= now.world).map(|(cluster, _)| cluster.clone()).collect();
        for cluster in due {
            process.unsaved.remove(&cluster);
            if let Some(memory) = process.engine.remote().memory(&cluster) {
                self.disk.memories.insert(cluster, memory);
            }
        }
        self.disk.recall = process.engine.local().recall().kept();
        process.speak(now);
        writes
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

impl Process {
    pub(crate) fn finished(&mut self, subject: &Subject, outcomes: Vec<Outcome>, now: Now) {
        self.engine.finished(subject, outcomes, now.instant, now.wall);
    }

    /// The peer an identity belongs to, unless it is blocked.
    pub(crate) fn peer_of(&self, identity: &IdentityKey) -> Option<ClusterId> {
        let known = self
            .engine
            .peers()
            .find(|peer| peer.state() != PeerState::Blocked && peer.trusted_identities().contains(identity))?;
        ClusterId::new(known.metadata.name.as_deref()?).ok()
    }

    fn is_peer(&self, id: &ClusterId) -> bool {
        self.engine
            .peers()
            .any(|peer| peer.state() != PeerState::Blocked && peer.metadata.name.as_deref() == Some(id.as_str()))
    }

    /// A gateway of ours offers a way to a peer's controller.
    pub(crate) fn offered(&mut self, peer: &ClusterId, key: StreamKey) {
        let import = Import { key, side: None, reader: FrameReader::default() };
        self.imports.entry(peer.clone()).or_default().push(import);
    }

    /// A peer's controller, known by its identity, is on the line.
    pub(crate) fn called(&mut self, peer: ClusterId, key: StreamKey, now: Now) {
        let side = ExportSide::new(self.engine.ledger().epoch().to_owned(), now.instant);
        self.exports.push(Export { peer, key, side, reader: FrameReader::default() });
    }

    /// A stream is gone.
    pub(crate) fn hung_up(&mut self, key: &StreamKey, why: &str, now: Now) {
        self.exports.retain(|export| export.key != *key);
        let of = self.imports.iter().find(|(_, ways)| ways.iter().any(|way| way.key == *key));
        if let Some(peer) = of.map(|(peer, _)| peer.clone()) {
            self.end_import(&peer, key, why, now);
        }
    }

    fn end_import(&mut self, peer: &ClusterId, key: &StreamKey, why: &str, now: Now) {
        let Some(ways) = self.imports.get_mut(peer) else { return };
        let Some(place) = ways.iter().position(|way| way.key == *key) else { return };
        let gone = ways.remove(place);
        if gone.side.is_some() {
            self.told.push(format!("the import from {peer} ended: {why}"));
            self.engine.set_synced(peer, Some(why.to_owned()), now.instant, now.wall);
        }
    }

    fn part_from_strangers(&mut self, now: Now) {
        let strangers: Vec<StreamKey> = self
            .exports
            .iter()
            .filter(|export| !self.is_peer(&export.peer))
            .map(|export| export.key)
            .chain(
                self.imports
                    .iter()
                    .filter(|(peer, _)| !self.is_peer(peer))
                    .flat_map(|(_, ways)| ways.iter().map(|way| way.key)),
            )
            .collect();
        for key in strangers {
            self.hung_up(&key, "it is no peer any more", now);
            self.closed.push(key);
        }
    }

    /// Bytes came over a stream.
    pub(crate) fn hear(&mut self, key: &StreamKey, bytes: &[u8], now: Now) {
        if let Some(place) = self.exports.iter().position(|export| export.key == *key) {
            self.exports[place].reader.push(bytes);
            if let Err(why) = self.hear_asked(place, now) {
                let export = self.exports.remove(place);
                self.say(export.key, &Message::Refuse { reason: why });
                self.closed.push(export.key);
            }
            return;
        }
        let Some((peer, place)) = self
            .imports
            .iter()
            .find_map(|(peer, ways)| Some((peer.clone(), ways.iter().position(|way| way.key == *key)?)))
        else {
            return;
        };
        if let Some(way) = self.imports.get_mut(&peer).and_then(|ways| ways.get_mut(place)) {
            way.reader.push(bytes);
        }
        if let Err(why) = self.hear_answered(&peer, place, now) {
            self.end_import(&peer, key, &why, now);
            self.closed.push(*key);
        }
    }

    fn hear_asked(&mut self, place: usize, now: Now) -> Result<(), String> {
        let export = &mut self.exports[place];
        while let Some(message) = export.reader.next_message().map_err(|error| error.to_string())? {
            let peer = export.peer.clone();
            match export.side.receive(message, now.instant).map_err(|ended| ended.to_string())? {
                ExportHeard::Asked { record } => self.engine.hear_record(&peer, record, now.instant, now.wall),
                ExportHeard::Remembered(exports) => drop(self.engine.hear_remembered(&peer, &exports, now.wall)),
                ExportHeard::Trusts(identities) => self.engine.hear_trust(&peer, identities),
                ExportHeard::Alive { .. } => {}
            }
        }
        Ok(())
    }

    fn hear_answered(&mut self, peer: &ClusterId, place: usize, now: Now) -> Result<(), String> {
        loop {
            let Some(way) = self.imports.get_mut(peer).and_then(|ways| ways.get_mut(place)) else { return Ok(()) };
            let Some(message) = way.reader.next_message().map_err(|error| error.to_string())? else { return Ok(()) };
            let Some(side) = &mut way.side else { return Err("it spoke out of turn".into()) };
            let heard = side.receive(message, now.instant).map_err(|ended| ended.to_string())?;
            let synced = self.take_word(peer, heard, now);
            let remembered = if synced { self.engine.remote().remembered(peer) } else { Vec::new() };
            let side = self.imports.get_mut(peer).and_then(|ways| ways.get_mut(place)?.side.as_mut());
            side.into_iter().for_each(|side| side.remember(&remembered));
            if self.engine.remote().is_astray(peer) {
                return Err("what was heard is not what the peer says it holds".into());
            }
        }
    }

    /// True when what the peer exports is known as it is now.
    fn take_word(&mut self, peer: &ClusterId, heard: ImportHeard, now: Now) -> bool {
        let synced = match heard {
            ImportHeard::Answered { record, resumed } => {
                self.engine.hear_record(peer, record, now.instant, now.wall);
                resumed
            }
            ImportHeard::Snapshot { items, token } => {
                self.engine.hear_snapshot(peer, items, token, now.instant, now.wall);
                self.unsaved.insert(peer.clone(), now.world);
                true
            }
            ImportHeard::Changes { changes, token, .. } => {
                self.engine.hear_changes(peer, &changes, token, now.instant, now.wall);
                self.unsaved.entry(peer.clone()).or_insert(now.world + KEEP_WITHIN);
                false
            }
            ImportHeard::Alive => {
                self.engine.hear_alive(peer);
                false
            }
            ImportHeard::Records(records) => {
                for signed in records {
                    self.engine.hear_record(peer, signed, now.instant, now.wall);
                }
                false
            }
        };
        if synced {
            self.told.push(format!("what {peer} exports is known"));
            self.engine.set_synced(peer, None, now.instant, now.wall);
        }
        synced
    }

    /// Says what there is to say on every stream.
    fn speak(&mut self, now: Now) {
        let mut ended: Vec<(ClusterId, StreamKey, String)> = Vec::new();
        let mut said: Vec<(StreamKey, Message)> = Vec::new();
        for (peer, ways) in &mut self.imports {
            let somebody_waits = ways.len() > 1;
            let Some(way) = ways.first_mut() else { continue };
            if way.side.is_none() {
                let Some(record) = self.engine.own_record().cloned() else { continue };
                let token = self.engine.remote().token(peer);
                way.side = Some(ImportSide::new(token, record, Bounds::default(), now.instant));
            }
            let Some(side) = &mut way.side else { continue };
            if somebody_waits && side.is_overdue(now.instant) {
                ended.push((peer.clone(), way.key, "nothing was heard, and another connection waits".into()));
                continue;
            }
            loop {
                match side.next_message(now.instant) {
                    Ok(Some(message)) => said.push((way.key, message)),
                    Ok(None) => break,
                    Err(why) => {
                        ended.push((peer.clone(), way.key, why.to_string()));
                        break;
                    }
                }
            }
        }
        for (peer, key, why) in ended {
            self.end_import(&peer, &key, &why, now);
            self.closed.push(key);
        }
        let mut over: Vec<(StreamKey, String)> = Vec::new();
        for export in &mut self.exports {
            if let Some(token) = export.side.wants_resumption() {
                match self.engine.own_record().filter(|_| self.engine.is_known()) {
                    Some(record) => {
                        let resumption = self.engine.ledger().resume(token);
                        export.side.answer(resumption, record);
                        export.side.pass_on(self.engine.records_for(&export.peer));
                    }
                    None => over.push((export.key, "the gateways' keys are not made yet: ask again later".into())),
                }
            }
            loop {
                match export.side.next_message(now.instant) {
                    Ok(Some(message)) => said.push((export.key, message)),
                    Ok(None) => break,
                    Err(why) => {
                        over.push((export.key, why.to_string()));
                        break;
                    }
                }
            }
        }
        for (key, message) in said {
            self.say(key, &message);
        }
        for (key, reason) in over {
            self.say(key, &Message::Refuse { reason });
            self.exports.retain(|export| export.key != key);
            self.closed.push(key);
        }
    }

    fn say(&mut self, key: StreamKey, message: &Message) {
        if let Ok(frame) = message.to_frame() {
            self.outbox.push((key, frame));
        }
    }
}
