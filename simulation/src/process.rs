//! [`Process`]: a controller that runs: its engine, its place among the replicas, and its conversations over streams
//! that gateways carry, as the crate `controller` has them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use api::ClusterId;
use api::cluster_peer::PeerState;
use api::keys::IdentityKey;
use controller_core::Engine;
use controller_core::conversation::{ExportHeard, ExportSide, ImportHeard, ImportSide};
use controller_core::lease::Tenancy;
use controller_core::message::{FrameReader, Message};
use controller_core::plan::{Outcome, Subject, Write};
use controller_core::validity::Bounds;

use crate::controller::Now;

/// How long what a peer said may wait to be kept on disk (controller/src/owner.rs), in microseconds.
const KEEP_WITHIN: u64 = 100_000;

/// A stream: the slot of the gateway that carries it, our end, and the other.
pub(crate) type StreamKey = (u16, SocketAddr, SocketAddr);

pub(crate) struct Process {
    pub(crate) engine: Engine,
    pub(crate) tenancy: Tenancy,
    /// When it looks at the Lease next.
    pub(crate) looks_at: u64,
    /// It wrote when it last planned.
    led: bool,
    imports: BTreeMap<ClusterId, Vec<Import>>,
    exports: Vec<Export>,
    pub(crate) unsaved: BTreeMap<ClusterId, u64>,
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

impl Process {
    pub(crate) fn new(engine: Engine, tenancy: Tenancy) -> Self {
        Self {
            engine,
            tenancy,
            looks_at: 0,
            led: false,
            imports: BTreeMap::new(),
            exports: Vec::new(),
            unsaved: BTreeMap::new(),
            outbox: Vec::new(),
            closed: Vec::new(),
            told: Vec::new(),
        }
    }

    /// The writes that are due. A replica that begins to write begins with everything (controller/src/owner.rs).
    pub(crate) fn plan(&mut self, now: Now) -> Vec<(Subject, Vec<Write>)> {
        let writes = self.tenancy.may_write(now.instant);
        let led = std::mem::replace(&mut self.led, writes);
        if writes && !led {
            self.engine.mark_all();
        }
        if writes { self.engine.plan(now.wall) } else { Vec::new() }
    }

    /// Every stream broke while it slept.
    pub(crate) fn lose_streams(&mut self, now: Now) {
        let of_imports = self.imports.values().flatten().map(|way| way.key);
        let keys: Vec<StreamKey> = of_imports.chain(self.exports.iter().map(|export| export.key)).collect();
        keys.iter().for_each(|key| self.hung_up(key, "nothing was heard of the other end", now));
    }

    pub(crate) fn finished(&mut self, subject: &Subject, outcomes: Vec<Outcome>, now: Now) {
        self.engine.finished(subject, outcomes, now.instant, now.wall);
    }

    /// Its ends of all conversations in which a peer is told what this cluster exports.
    pub(crate) fn export_sides(&mut self) -> impl Iterator<Item = &mut ExportSide> {
        self.exports.iter_mut().map(|export| &mut export.side)
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

    pub(crate) fn part_from_strangers(&mut self, now: Now) {
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
    pub(crate) fn speak(&mut self, now: Now) {
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
