//! [`Inbound`]: datagrams from peers on their way to our cluster.

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use api::names::ports;
use api::time::Instant;

use crate::arena::Arena;
use crate::datagram::Message;
use crate::exports::{ExportChange, Exports};
use crate::link::{LaneNumber, LinkId};
use crate::outbound::Traffic;
use crate::packet::{Intent, Packet, protocol};
use crate::probe::Probe;
use crate::refusal::Refusal;
use crate::refusal_log::RefusalLog;
use crate::route_table::{Owner, RouteTable};
use crate::session::{OpenBatch, Opened, Received, Sealed, Session, Sessions};

/// A link that is busy says so to the control thread this often: five times within the time after which it would be
/// thought silent, at no cost to the packets between.
const HEARD_EVERY: Duration = Duration::from_millis(20);

/// What to do with a packet that came out of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody has looked at it yet.
    Unjudged,
    /// Write it to the TUN device.
    Deliver,
    /// It had no bytes; hearing it was all.
    Keepalive,
    /// It was for us, and is among the notices.
    Probe,
    Refused(Refusal),
}

/// What the receiving thread tells the control thread. Small and `Copy`, so that a bounded channel can hold many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something authentic came from a link's peer.
    Heard { link: LinkId, from: SocketAddr, at: Instant },
    /// A probe came.
    Probe { link: LinkId, from: SocketAddr, at: Instant, probe: Probe },
}

/// Owned by a lane's UDP → TUN thread.
#[derive(Debug)]
pub struct Inbound {
    lane: LaneNumber,
    exports: Exports,
    /// Positions of data messages, grouped by link. Kept between batches for its memory.
    order: Vec<u32>,
    notices: Vec<Notice>,
    /// By link number: when and with which address the control thread last heard of it.
    last_heard: Vec<Option<(Instant, SocketAddr)>>,
    refusals: RefusalLog,
    delivered: Traffic,
}

impl Inbound {
    /// `batch` is the most datagrams one call will get; more is right too, and costs an allocation once.
    pub fn new(lane: LaneNumber, batch: usize) -> Self {
        Self {
            lane,
            exports: Exports::default(),
            order: Vec::with_capacity(batch),
            // A notice of having heard, and one of a probe, for each datagram.
            notices: Vec::with_capacity(2 * batch),
            last_heard: Vec::new(),
            refusals: RefusalLog::default(),
            delivered: Traffic::default(),
        }
    }

    /// What peers may open connections to.
    pub fn apply(&mut self, change: ExportChange) {
        self.exports.apply(change);
    }

    /// Opens and judges a batch. Datagrams that are dropped have their `refused` written, packets their verdict.
    pub fn receive<S: Sessions + ?Sized>(
        &mut self,
        table: &RouteTable,
        sessions: &S,
        datagrams: &mut Arena<Received>,
        plain: &mut Arena<Opened>,
        replies: &mut Arena<Sealed>,
        now: Instant,
    ) {
        self.notices.clear();
        self.order.clear();
        for index in 0..datagrams.len() {
            self.classify(sessions, datagrams, index, replies, now);
        }
        self.order.sort_unstable_by_key(|index| (link_of(datagrams, *index), *index));
        let mut from = 0;
        while let Some(first) = self.order.get(from) {
            let link = link_of(datagrams, *first);
            let same = self.order.iter().skip(from).take_while(|index| link_of(datagrams, **index) == link).count();
            let chosen = self.order.get(from..from + same).unwrap_or_default();
            if let Some((link, session)) = link.and_then(|link| Some((link, sessions.session(link)?))) {
                session.open_batch(OpenBatch { datagrams, chosen, lane: self.lane, link, plain, replies }, now);
            }
            from += same;
        }
        self.count_refused(datagrams, now);
        for index in 0..plain.len() {
            self.judge_opened(table, plain, index, now);
        }
    }

    /// What the control thread should know of the last batch.
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// What was refused here.
    pub fn refusals(&self) -> &RefusalLog {
        &self.refusals
    }

    pub fn delivered(&self) -> Traffic {
        self.delivered
    }

    fn classify<S: Sessions + ?Sized>(
        &mut self,
        sessions: &S,
        datagrams: &mut Arena<Received>,
        index: usize,
        replies: &mut Arena<Sealed>,
        now: Instant,
    ) {
        let Some(from) = datagrams.meta(index).map(|meta| meta.from) else { return };
        let refused = match Message::parse(datagrams.bytes(index)) {
            None => Some(Refusal::MalformedDatagram),
            Some(Message::Data(link)) if sessions.session(link).is_none() => Some(Refusal::UnknownSession),
            Some(Message::Data(link)) => {
                if let Some(meta) = datagrams.meta_mut(index) {
                    meta.link = Some(link);
                }
                self.order.push(index as u32);
                None
            }
            Some(message) => match sessions.handshake(datagrams.bytes(index), from, replies, now) {
                // An initiation may be an old one, sent again by a stranger to a gateway that forgot it: only what
                // answers us proves that the peer is at this address now. A real initiator goes on with data at once.
                Ok(Some(link)) if message != Message::HandshakeInitiation => {
                    self.heard(link, from, now);
                    None
                }
                Ok(_) => None,
                Err(refusal) => Some(refusal),
            },
        };
        if let Some(meta) = datagrams.meta_mut(index) {
            meta.refused = refused;
        }
    }

    fn count_refused(&mut self, datagrams: &Arena<Received>, now: Instant) {
        for (_, meta) in datagrams.iter() {
            if let Some(refusal) = meta.refused {
                self.refusals.record(refusal, meta.link, Some(meta.from), None, now);
            }
        }
    }

    fn judge_opened(&mut self, table: &RouteTable, plain: &mut Arena<Opened>, index: usize, now: Instant) {
        let Some(opened) = plain.meta(index).copied() else { return };
        self.heard(opened.link, opened.from, now);
        let bytes = plain.bytes(index);
        let (verdict, len) = if bytes.is_empty() {
            (Verdict::Keepalive, 0)
        } else {
            match Packet::parse(bytes) {
                Ok(packet) => (self.judge(table, opened, &packet, bytes, now), packet.len),
                Err(refusal) => {
                    self.refusals.record(refusal, Some(opened.link), Some(opened.from), None, now);
                    (Verdict::Refused(refusal), bytes.len())
                }
            }
        };
        plain.truncate(index, len);
        if verdict == Verdict::Deliver {
            translate(table, opened.link, plain.bytes_mut(index));
            self.delivered.packets += 1;
            self.delivered.bytes += len as u64;
        }
        if let Some(meta) = plain.meta_mut(index) {
            meta.verdict = verdict;
        }
    }

    fn judge(&mut self, table: &RouteTable, opened: Opened, packet: &Packet, bytes: &[u8], now: Instant) -> Verdict {
        let judged = check(table, &self.exports, opened.link, packet).and_then(|way| match way {
            Way::Cluster => Ok(Verdict::Deliver),
            Way::Probe => {
                let probe = Probe::read(packet, bytes)?;
                self.notices.push(Notice::Probe { link: opened.link, from: opened.from, at: now, probe });
                Ok(Verdict::Probe)
            }
        });
        judged.unwrap_or_else(|refusal| {
            self.refusals.record(refusal, Some(opened.link), Some(opened.from), Some(packet.flow), now);
            Verdict::Refused(refusal)
        })
    }

    fn heard(&mut self, link: LinkId, from: SocketAddr, now: Instant) {
        // Grows only when a link with a higher number than ever before is heard.
        if self.last_heard.len() <= link.slot() {
            self.last_heard.resize(link.slot() + 1, None);
        }
        let Some(last) = self.last_heard.get_mut(link.slot()) else { return };
        if last.is_some_and(|(at, known)| known == from && now.since(at) < HEARD_EVERY) {
            return;
        }
        *last = Some((now, from));
        self.notices.push(Notice::Heard { link, from, at: now });
    }
}

/// From here on the packet has addresses that mean something in this cluster.
fn translate(table: &RouteTable, link: LinkId, bytes: &mut [u8]) {
    let Some(translation) = table.translation(link) else { return };
    if let Ok(packet) = Packet::parse(bytes) {
        translation.rewrite_inbound(&packet, bytes);
    }
}

fn link_of(datagrams: &Arena<Received>, index: u32) -> Option<LinkId> {
    datagrams.meta(index as usize).and_then(|meta| meta.link)
}

enum Way {
    Cluster,
    Probe,
}

/// Decision 9: a peer's packet has a source of that peer and a destination of ours, and opens only what is exported.
fn check(table: &RouteTable, exports: &Exports, link: LinkId, packet: &Packet) -> Result<Way, Refusal> {
    let flow = &packet.flow;
    // The addresses in `flow` are the peer's own; only as it is seen here has the source an owner here.
    let source = match table.translation(link) {
        Some(translation) => translation.seen_source(flow.source).ok_or(Refusal::WrongSource)?,
        None => flow.source,
    };
    let link = table.link(link).ok_or(Refusal::UnknownSession)?;
    let from_control = match table.owner(source) {
        Some(Owner::Peer(cluster)) if cluster == link.cluster => false,
        Some(Owner::PeerControl { cluster, slot }) if cluster == link.cluster && slot == link.slot => true,
        _ => return Err(Refusal::WrongSource),
    };
    let is_icmp = matches!(flow.protocol, protocol::ICMP | protocol::ICMPV6);
    match table.owner(flow.destination) {
        Some(Owner::OurControl) if from_control => check_control(packet, is_icmp),
        Some(Owner::OurControl) => Err(Refusal::ControlRefused),
        // From a gateway's own address a pod gets only errors and echo replies.
        Some(Owner::Ours) if from_control && !(is_icmp && packet.intent == Intent::Continue) => {
            Err(Refusal::ControlRefused)
        }
        Some(Owner::Ours) => check_admission(exports, packet).map(|()| Way::Cluster),
        _ => Err(Refusal::WrongDestination),
    }
}

fn check_control(packet: &Packet, is_icmp: bool) -> Result<Way, Refusal> {
    let relay = packet.flow.destination_port == ports::CONTROL_RELAY;
    let transit = packet.flow.protocol == protocol::UDP && packet.flow.destination_port == ports::TRANSIT;
    match packet.intent {
        _ if Probe::is_addressed(packet) => Ok(Way::Probe),
        Intent::Connect if packet.flow.protocol == protocol::TCP && relay => Ok(Way::Cluster),
        Intent::Continue if packet.flow.protocol == protocol::TCP || is_icmp || transit => Ok(Way::Cluster),
        Intent::Echo => Ok(Way::Cluster),
        Intent::NeighbourIcmp => Err(Refusal::ForbiddenIcmp),
        _ => Err(Refusal::ControlRefused),
    }
}

fn check_admission(exports: &Exports, packet: &Packet) -> Result<(), Refusal> {
    let flow = &packet.flow;
    match packet.intent {
        Intent::Continue => Ok(()),
        Intent::Connect if exports.admits(flow.destination, flow.protocol, flow.destination_port) => Ok(()),
        Intent::Echo if exports.admits_echo(flow.destination) => Ok(()),
        Intent::Connect | Intent::Echo => Err(Refusal::Unexported),
        Intent::NeighbourIcmp => Err(Refusal::ForbiddenIcmp),
        Intent::Other if exports.is_open() => Ok(()),
        Intent::Other => Err(Refusal::UnsupportedProtocol),
    }
}
