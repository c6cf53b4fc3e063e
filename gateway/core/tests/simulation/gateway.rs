//! One simulated gateway: the core with pretend sessions, called in the order the crate's front page gives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::time::Instant;
use gateway_core::{
    Arena, Event, ExportChange, Inbound, LaneNumber, LinkId, Notice, Opened, Outbound, Outgoing, Paths, Received,
    Reconfigured, RouteTable, SealBatch, Sealed, Session, Sessions, Topology, Verdict,
};

use crate::pretend::PretendLane;

const BYTES: usize = 1 << 16;
const BATCH: usize = 64;

/// A datagram on its way out of a lane.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) lane: usize,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) inbound: Inbound,
    pub(crate) outbound: Outbound,
}

#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) paths: Paths,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) sessions: Vec<PretendLane>,
    pub(crate) table: Arc<RouteTable>,
    /// What reached the TUN devices and was not yet taken.
    pub(crate) delivered: Vec<Vec<u8>>,
    /// What the gateway answered to its own cluster.
    pub(crate) answers: Vec<Vec<u8>>,
    pub(crate) events: Vec<Event>,
    datagrams: Arena<Received>,
    opened: Arena<Opened>,
    outgoing: Arena<Outgoing>,
    sealed: Arena<Sealed>,
    replies: Arena<Sealed>,
}

impl Gateway {
    /// `secrets` are the private keys of each lane.
    pub(crate) fn start(topology: Topology, secrets: &[Vec<u64>], incarnation: u64, now: Instant) -> Self {
        let (paths, reconfigured) = Paths::new(topology, incarnation, now);
        let numbers = || (0u8..).map(LaneNumber);
        let lane = |number| Lane { inbound: Inbound::new(number, BATCH), outbound: Outbound::new(number, BATCH) };
        let mut gateway = Self {
            table: paths.table(),
            paths,
            lanes: numbers().take(secrets.len()).map(lane).collect(),
            sessions: numbers().zip(secrets).map(|(number, secret)| PretendLane::new(number, secret)).collect(),
            delivered: Vec::new(),
            answers: Vec::new(),
            events: Vec::new(),
            datagrams: Arena::new(BYTES, BATCH),
            opened: Arena::new(BYTES, BATCH),
            outgoing: Arena::new(BYTES, BATCH),
            sealed: Arena::new(BYTES, 4 * BATCH),
            replies: Arena::new(BYTES, 4 * BATCH),
        };
        gateway.take(&reconfigured);
        gateway
    }

    pub(crate) fn reconfigure(&mut self, topology: Topology, now: Instant) -> Reconfigured {
        let reconfigured = self.paths.reconfigure(topology, now);
        self.take(&reconfigured);
        self.publish();
        reconfigured
    }

    pub(crate) fn export(&mut self, change: ExportChange) {
        for lane in &mut self.lanes {
            lane.inbound.apply(change);
        }
    }

    /// Datagrams arrive at a lane's socket.
    pub(crate) fn receive(&mut self, lane: usize, batch: &[(SocketAddr, Vec<u8>)], now: Instant) -> Vec<Leaving> {
        let Self { datagrams, opened, replies, .. } = self;
        datagrams.clear();
        opened.clear();
        replies.clear();
        for (from, bytes) in batch {
            datagrams.push(bytes, Received::from(*from)).unwrap();
        }
        let inbound = &mut self.lanes[lane].inbound;
        inbound.receive(&self.table, &self.sessions[lane], datagrams, opened, replies, now);
        let mut leaving = drain(&mut self.replies);
        for (bytes, meta) in self.opened.iter() {
            assert_ne!(meta.verdict, Verdict::Unjudged);
            if meta.verdict == Verdict::Deliver {
                self.delivered.push(bytes.to_vec());
            }
        }
        let notices: Vec<Notice> = self.lanes[lane].inbound.notices().to_vec();
        self.sealed.clear();
        for notice in notices {
            self.paths.notice(notice, &self.sessions, &mut self.sealed, now);
        }
        leaving.extend(drain(&mut self.sealed));
        self.publish();
        leaving
    }

    /// Packets arrive at a lane's TUN device.
    pub(crate) fn forward(&mut self, lane: usize, packets: &[Vec<u8>], now: Instant) -> Vec<Leaving> {
        self.outgoing.clear();
        for packet in packets {
            self.outgoing.push(packet, Outgoing::default()).unwrap();
        }
        let mut answers = Arena::new(BYTES, BATCH);
        self.sealed.clear();
        let outbound = &mut self.lanes[lane].outbound;
        let (plain, sealed) = (&mut self.outgoing, &mut self.sealed);
        outbound.forward(&self.table, &self.sessions[lane], plain, sealed, &mut answers, now);
        for (_, meta) in self.outgoing.iter() {
            assert!(meta.refused.is_some() || meta.link.is_some(), "every packet's fate is written down");
        }
        self.answers.extend(answers.iter().map(|(bytes, ())| bytes.to_vec()));
        drain(&mut self.sealed)
    }

    /// The control thread wakes up.
    pub(crate) fn poll(&mut self, now: Instant) -> Vec<Leaving> {
        self.sealed.clear();
        self.paths.poll(&self.sessions, &mut self.sealed, now);
        let next = self.paths.next_deadline();
        assert!(next > now, "a control thread that never sleeps: {next:?} at {now:?}");
        self.publish();
        drain(&mut self.sealed)
    }

    /// Seals a packet past all checks, as a gateway that went bad would.
    pub(crate) fn seal_unchecked(&mut self, link: LinkId, packet: &[u8], now: Instant) -> Vec<Leaving> {
        let Some(route) = self.table.link(link).copied() else { return Vec::new() };
        let Some(to) = route.endpoint else { return Vec::new() };
        let Some(session) = self.sessions[usize::from(route.lane.0)].session(link) else { return Vec::new() };
        let mut plain = Arena::new(BYTES, 1);
        plain.push(packet, Outgoing { link: Some(link), refused: None }).unwrap();
        self.sealed.clear();
        let sealed = &mut self.sealed;
        session.seal_batch(SealBatch { plain: &plain, chosen: &[0], lane: route.lane, link, to, sealed }, now);
        drain(&mut self.sealed)
    }

    fn take(&mut self, reconfigured: &Reconfigured) {
        for link in &reconfigured.removed {
            self.sessions.iter_mut().for_each(|lane| lane.remove(*link));
        }
        for link in &reconfigured.added {
            self.sessions[usize::from(link.lane.0)].add(link);
        }
    }

    fn publish(&mut self) {
        if let Some(table) = self.paths.take_table_change() {
            self.table = table;
        }
        let (events, lost) = self.paths.take_events();
        assert_eq!(lost, 0);
        self.events.extend(events);
    }
}

fn drain(sealed: &mut Arena<Sealed>) -> Vec<Leaving> {
    let leaving = sealed
        .iter()
        .map(|(bytes, meta)| Leaving { lane: usize::from(meta.lane.0), to: meta.to, bytes: bytes.to_vec() })
        .collect();
    sealed.clear();
    leaving
}

/// A clock that reads this much.
pub(crate) fn clock(time: Duration) -> Instant {
    Instant::from_micros(time.as_micros() as u64)
}
