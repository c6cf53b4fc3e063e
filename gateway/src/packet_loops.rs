//! The two loops of a lane: TUN to UDP and UDP to TUN. Nothing here allocates for a packet.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result};
use api::time::Instant;
use gateway_core::session::SEALED_OVERHEAD;
use gateway_core::{
    Arena, ExportChange, Inbound, LinkId, Notice, Opened, Outbound, Outgoing, Received, RefusalLog, RouteTable, Sealed,
    Verdict,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::lane::{Lane, Refusals};
use crate::lane_sessions::LaneSessions;
use crate::udp::{Asked, BATCH, Departure, Receiver, Sender};

/// Batches that still go through after the stop: more than any queue of ours holds, so that constant traffic cannot keep
/// a thread from ending.
const BATCHES_AFTER_STOP: u32 = 128;

/// How long refusals wait to be shown. They are copied, so not with each batch.
const PUBLISH_AFTER: Duration = Duration::from_millis(100);

/// Waits for one of the descriptors; gives back at once when woken or signalled.
pub(crate) fn wait(descriptors: &[BorrowedFd<'_>], wake: &EventFd, limit: PollTimeout) -> Result<()> {
    // One wake-up descriptor, and a device or two sockets.
    let mut entries = std::array::from_fn::<_, 3, _>(|_| PollFd::new(wake.as_fd(), PollFlags::POLLIN));
    for (entry, descriptor) in entries[1..].iter_mut().zip(descriptors) {
        *entry = PollFd::new(*descriptor, PollFlags::POLLIN);
    }
    let used = (descriptors.len() + 1).min(entries.len());
    match poll(&mut entries[..used], limit) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error).context("waiting for packets"),
    }
    let woken = entries[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
    if woken {
        // Reading empties the counter; that it is empty already is fine.
        let _ = wake.read();
    }
    Ok(())
}

/// The local address each datagram of a batch leaves from. Datagrams of one link lie together, so that its lock is
/// taken once for all of them.
fn find_sources(sources: &mut Vec<Option<IpAddr>>, datagrams: &Arena<Sealed>, sessions: &LaneSessions) {
    sources.clear();
    let mut last: Option<(Option<LinkId>, SocketAddr, Option<IpAddr>)> = None;
    for (_, Sealed { to, link, .. }) in datagrams.iter() {
        let source = match last {
            Some((known, address, source)) if known == *link && address == *to => source,
            _ => link.and_then(|link| sessions.get(link)).and_then(|session| session.source_for(*to)),
        };
        last = Some((*link, *to, source));
        sources.push(source);
    }
}

/// Sends a batch from this lane's sockets.
fn send(lane: &Lane, sender: &mut Sender, datagrams: &Arena<Sealed>, sources: &[Option<IpAddr>], table: &RouteTable) {
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let is_too_narrow = |link: LinkId| table.link(link).is_some_and(|link| link.is_too_narrow);
    let sent = sender.send(&lane.sockets, datagrams.len(), |index| {
        let meta = datagrams.meta(index);
        Departure {
            bytes: datagrams.bytes(index),
            to: meta.map_or(nowhere, |meta| meta.to),
            source: sources.get(index).copied().flatten(),
            is_too_narrow: meta.and_then(|meta| meta.link).is_some_and(is_too_narrow),
        }
    });
    lane.counters.count_sent(sent);
}

/// When a thread's refusals were last shown to others.
struct Publication {
    shown: u64,
    at: Instant,
}

impl Publication {
    fn new() -> Self {
        Self { shown: 0, at: Instant::default() }
    }

    /// Copies the log out when there is news and the last copy is not too fresh. Gives how long to wait at most before
    /// asking again.
    fn publish(&mut self, log: &RefusalLog, place: &Mutex<Refusals>, lane: &Lane) -> PollTimeout {
        if log.total() == self.shown {
            return PollTimeout::NONE;
        }
        if clock::now().since(self.at) < PUBLISH_AFTER {
            return PollTimeout::try_from(PUBLISH_AFTER).unwrap_or(PollTimeout::ZERO);
        }
        self.publish_now(log, place, lane);
        PollTimeout::NONE
    }

    fn publish_now(&mut self, log: &RefusalLog, place: &Mutex<Refusals>, lane: &Lane) {
        place.lock().unwrap_or_else(PoisonError::into_inner).update(log, &lane.view().table);
        (self.shown, self.at) = (log.total(), clock::now());
    }
}

/// TUN to UDP.
pub(crate) struct OutboundLoop<'a> {
    lane: &'a Lane,
    core: Outbound,
    plain: Arena<Outgoing>,
    sealed: Arena<Sealed>,
    answers: Arena<()>,
    sources: Vec<Option<IpAddr>>,
    sender: Sender,
}

impl<'a> OutboundLoop<'a> {
    pub(crate) fn new(lane: &'a Lane) -> Self {
        let packet = lane.piece();
        Self {
            lane,
            core: Outbound::new(lane.number(), BATCH),
            plain: Arena::new(packet * BATCH, BATCH),
            sealed: Arena::new((packet + SEALED_OVERHEAD) * BATCH, BATCH),
            // An answer quotes what fits into 1280 bytes at most (RFC 4443, 2.4).
            answers: Arena::new(1280 * BATCH, BATCH),
            sources: Vec::with_capacity(BATCH),
            sender: Sender::new(),
        }
    }

    pub(crate) fn run(mut self) -> Result<()> {
        let lane = self.lane;
        let mut publication = Publication::new();
        let mut left = BATCHES_AFTER_STOP;
        loop {
            // Asked before reading, so that what the kernel handed over before the stop still goes out.
            let stopping = lane.is_stopping();
            left -= u32::from(stopping);
            self.plain.clear();
            lane.tun.read_batch(&mut self.plain, lane.piece())?;
            if !self.plain.is_empty() {
                self.forward();
            }
            if stopping && (self.plain.is_empty() || left == 0) {
                publication.publish_now(self.core.refusals(), lane.counters.outbound_refusals(), lane);
                return Ok(());
            }
            let limit = publication.publish(self.core.refusals(), lane.counters.outbound_refusals(), lane);
            if self.plain.is_empty() {
                wait(&[lane.tun.descriptor()], lane.wake_outbound(), limit)?;
            }
        }
    }

    fn forward(&mut self) {
        let lane = self.lane;
        self.sealed.clear();
        self.answers.clear();
        let view = lane.view();
        let (plain, sealed, answers) = (&mut self.plain, &mut self.sealed, &mut self.answers);
        self.core.forward(&view.table, &view.sessions, plain, sealed, answers, clock::now());
        find_sources(&mut self.sources, &self.sealed, &view.sessions);
        send(lane, &mut self.sender, &self.sealed, &self.sources, &view.table);
        let unwritten = self.answers.iter().filter(|(packet, ())| !lane.tun.write(packet)).count();
        lane.counters.packets_undelivered.fetch_add(unwritten as u64, Ordering::Relaxed);
    }
}

/// UDP to TUN.
pub(crate) struct InboundLoop<'a> {
    lane: &'a Lane,
    core: Inbound,
    exports: mpsc::Receiver<ExportChange>,
    datagrams: Arena<Received>,
    asked: Vec<Asked>,
    plain: Arena<Opened>,
    replies: Arena<Sealed>,
    sources: Vec<Option<IpAddr>>,
    receiver: Receiver,
    sender: Sender,
}

impl<'a> InboundLoop<'a> {
    pub(crate) fn new(lane: &'a Lane, exports: mpsc::Receiver<ExportChange>) -> Self {
        let datagram = lane.piece();
        // Both sockets may fill a batch each.
        let most = 2 * BATCH;
        Self {
            lane,
            core: Inbound::new(lane.number(), most),
            exports,
            datagrams: Arena::new(datagram * most, most),
            asked: Vec::with_capacity(most),
            plain: Arena::new(datagram * most, most),
            // Whatever is answered is answered by a handshake message or a cookie, but sessions ask for a packet's room.
            replies: Arena::new(datagram * BATCH, most),
            sources: Vec::with_capacity(most),
            receiver: Receiver::new(datagram),
            sender: Sender::new(),
        }
    }

    pub(crate) fn run(mut self, notices: &dyn Fn(&[Notice])) -> Result<()> {
        let lane = self.lane;
        let sockets: Vec<BorrowedFd<'_>> = lane.sockets.descriptors().collect();
        let mut publication = Publication::new();
        let mut left = BATCHES_AFTER_STOP;
        loop {
            let stopping = lane.is_stopping();
            left -= u32::from(stopping);
            self.exports.try_iter().for_each(|change| self.core.apply(change));
            self.datagrams.clear();
            self.asked.clear();
            let oversized = self.receiver.receive(&lane.sockets, &mut self.datagrams, &mut self.asked)?;
            lane.counters.datagrams_oversized.fetch_add(oversized, Ordering::Relaxed);
            if !self.datagrams.is_empty() {
                self.deliver();
                if !self.core.notices().is_empty() {
                    notices(self.core.notices());
                }
            }
            if stopping && (self.datagrams.is_empty() || left == 0) {
                publication.publish_now(self.core.refusals(), lane.counters.inbound_refusals(), lane);
                return Ok(());
            }
            let limit = publication.publish(self.core.refusals(), lane.counters.inbound_refusals(), lane);
            if self.datagrams.is_empty() && oversized == 0 {
                wait(&sockets, lane.wake_inbound_descriptor(), limit)?;
            }
        }
    }

    fn deliver(&mut self) {
        let lane = self.lane;
        lane.counters.datagrams_received.fetch_add(self.datagrams.len() as u64, Ordering::Relaxed);
        self.plain.clear();
        self.replies.clear();
        let view = lane.view();
        let (datagrams, plain, replies) = (&mut self.datagrams, &mut self.plain, &mut self.replies);
        self.core.receive(&view.table, &view.sessions, datagrams, plain, replies, clock::now());
        self.remember_asked(&view.sessions);
        self.sources.clear();
        for (_, reply) in self.replies.iter() {
            let asked = self.asked.iter().find(|asked| asked.from == reply.to);
            self.sources.push(asked.and_then(|asked| asked.local));
        }
        send(lane, &mut self.sender, &self.replies, &self.sources, &view.table);
        let mut undelivered = 0;
        for (packet, opened) in self.plain.iter() {
            if opened.verdict == Verdict::Deliver && !lane.tun.write(packet) {
                undelivered += 1;
            }
        }
        lane.counters.packets_undelivered.fetch_add(undelivered, Ordering::Relaxed);
    }

    /// Only what opened tells where a peer sends to: anybody can send a datagram with a peer's receiver index.
    fn remember_asked(&self, sessions: &LaneSessions) {
        let mut last = None;
        for (_, opened) in self.plain.iter() {
            if last == Some((opened.link, opened.from)) {
                continue;
            }
            last = Some((opened.link, opened.from));
            let asked = self.asked.iter().find(|asked| asked.from == opened.from);
            if let (Some(session), Some(local)) = (sessions.get(opened.link), asked.and_then(|asked| asked.local)) {
                session.remember_asked(opened.from, local);
            }
        }
    }
}
