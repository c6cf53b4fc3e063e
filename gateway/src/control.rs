//! The control thread: owns [`Paths`], probes, times handshakes, and publishes what the packet threads use.
//!
//! Everything it learns comes by one bounded channel of [`Order`]s, and everything it knows is read from one
//! [`Snapshot`], so nobody waits for it and it waits for nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use anyhow::Result;
use api::ClusterId;
use api::health::HealthReport;
use api::time::Instant;
use arc_swap::ArcSwap;
use gateway_core::pace::Pace;
use gateway_core::paths::{PACKETS_PER_LINK, ROOM_PER_LINK, RefusedClaim, TICK};
use gateway_core::transit::is_by_hub;
use gateway_core::{
    Arena, LaneNumber, Link, Notice, PathState, PathStatus, Paths, Reconfigured, Sealed, Session, Topology,
};

use tokio::sync::watch;

use crate::journal::EventJournal;
use crate::lane::{Lane, View};
use crate::lane_sessions::LaneSessions;
use crate::metrics::{PeerLabels, RoundTrips};
use crate::session::{LaneKeys, Traffic};
use crate::udp::{BATCH, Sender};

/// Orders that may wait. Notices come ten times a second from each link, and fifty times from a busy one: this is a
/// second of a hundred links. What does not fit is dropped: the next notice says the same.
const WAITING_ORDERS: usize = 4_096;

/// How often handshake limits begin anew: they are per second.
const LIMIT_PERIOD: Duration = Duration::from_secs(1);

/// What the control thread is told.
pub(crate) enum Order {
    Notice(Notice),
    /// The whole wanted topology, and the keys of each lane that it names.
    Topology(Box<Topology>, Vec<LaneKeys>),
    /// Say in every probe and health report that this gateway is to be spared, or is not any more.
    Drain(bool),
    Stop,
}

/// What is known, at one moment. Replaced whole.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) at: Instant,
    pub(crate) topology: Topology,
    pub(crate) links: Vec<LinkSnapshot>,
    pub(crate) report: HealthReport,
    /// What peers' records claim and do not get, in words.
    pub(crate) refused_claims: Vec<String>,
    pub(crate) drain_is_acknowledged: bool,
    /// While our keys rotate: who still needs the old ones.
    pub(crate) waiting_for: Option<BTreeSet<ClusterId>>,
    pub(crate) pace: Pace,
}

#[derive(Clone, Debug)]
pub(crate) struct LinkSnapshot {
    pub(crate) link: Link,
    pub(crate) status: PathStatus,
    pub(crate) last_handshake: Option<Instant>,
    pub(crate) traffic: Traffic,
}

/// How others speak to the control thread and read what it knows.
#[derive(Clone)]
pub(crate) struct Control {
    orders: SyncSender<Order>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    reachable: watch::Receiver<ReachablePeers>,
    direct: watch::Receiver<BTreeSet<Ipv6Addr>>,
    round_trips: RoundTrips,
}

/// The gateways of each peer to which packets pass now, by their control addresses, the best first.
pub(crate) type ReachablePeers = BTreeMap<ClusterId, Vec<Ipv6Addr>>;

impl Control {
    /// Takes notices of a packet thread, without ever making it wait.
    pub(crate) fn notices(&self, notices: &[Notice]) {
        for notice in notices {
            match self.orders.try_send(Order::Notice(*notice)) {
                Ok(()) | Err(TrySendError::Full(_)) => {}
                Err(TrySendError::Disconnected(_)) => return,
            }
        }
    }

    /// Gives an order that must arrive. Waits while the channel is full.
    pub(crate) fn order(&self, order: Order) {
        // After the thread has ended nothing is left to order.
        let _ = self.orders.send(order);
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Which peers' gateways can be reached, and every change of it.
    pub(crate) fn reachable(&self) -> watch::Receiver<ReachablePeers> {
        self.reachable.clone()
    }

    /// The control addresses that tunnels without a hub reach, and every change of it.
    pub(crate) fn direct(&self) -> watch::Receiver<BTreeSet<Ipv6Addr>> {
        self.direct.clone()
    }

    pub(crate) fn round_trips(&self) -> &RoundTrips {
        &self.round_trips
    }
}

/// Made before the lanes start, for their threads need its [`Control`]; run after.
pub(crate) struct ControlThread {
    orders: Receiver<Order>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    journal: EventJournal,
    reachable: watch::Sender<ReachablePeers>,
    direct: watch::Sender<BTreeSet<Ipv6Addr>>,
    round_trips: RoundTrips,
    paths: Paths,
    sessions: Vec<LaneSessions>,
    refused_claims: Vec<RefusedClaim>,
}

impl ControlThread {
    /// `sessions` are the lanes' sessions, empty yet; entry i is lane i.
    pub(crate) fn new(
        topology: Topology,
        sessions: Vec<LaneSessions>,
        incarnation: u64,
        journal: EventJournal,
    ) -> (Self, Control) {
        let now = clock::now();
        let (paths, reconfigured) = Paths::new(topology, incarnation, now);
        let (sender, orders) = sync_channel(WAITING_ORDERS);
        let sessions: Vec<_> =
            sessions.iter().map(|sessions| sessions.changed(&reconfigured.removed, &reconfigured.added)).collect();
        let refused_claims = reconfigured.refused;
        let first = Arc::new(ArcSwap::from_pointee(snapshot_of(&paths, &sessions, &refused_claims, now)));
        let (news, reachable) = watch::channel(ReachablePeers::new());
        let (direct_news, direct) = watch::channel(BTreeSet::new());
        let round_trips = RoundTrips::new();
        let control = Control {
            orders: sender,
            snapshot: Arc::clone(&first),
            reachable,
            direct,
            round_trips: round_trips.clone(),
        };
        let thread = Self {
            orders,
            snapshot: first,
            journal,
            reachable: news,
            direct: direct_news,
            round_trips,
            paths,
            sessions,
            refused_claims,
        };
        (thread, control)
    }

    /// What each lane starts with.
    pub(crate) fn view(&self, lane: LaneNumber) -> Option<View> {
        let sessions = self.sessions.get(usize::from(lane.0))?.clone();
        Some(View { table: self.paths.table(), sessions })
    }

    /// Runs until [`Order::Stop`].
    pub(crate) fn run(mut self, lanes: &[Arc<Lane>]) {
        // Every link may have something to say in one call; a batch is sent before the next is made.
        let mut out = Arena::new(ROOM_PER_LINK * BATCH, PACKETS_PER_LINK * BATCH);
        let mut sender = Sender::new();
        let mut next_snapshot = Instant::default();
        let mut next_limit = clock::now() + LIMIT_PERIOD;
        loop {
            let mut now = clock::now();
            let next = self.paths.next_deadline().min(next_snapshot).min(next_limit);
            match self.orders.recv_timeout(next.since(now)) {
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(order) => {
                    if matches!(order, Order::Drain(_)) {
                        next_snapshot = now;
                    }
                    self.take(order, &mut out);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            // What else has come belongs to the same moment, as far as there is room for answers.
            while out.room().len() >= ROOM_PER_LINK {
                match self.orders.try_recv() {
                    Ok(Order::Stop) => {
                        self.send(lanes, &mut sender, &mut out);
                        return;
                    }
                    Ok(order) => self.take(order, &mut out),
                    Err(_) => break,
                }
            }
            now = clock::now();
            if now >= self.paths.next_deadline() {
                self.paths.poll(&self.sessions, &mut out, now);
            }
            // Before anything is sent: a peer that is told that its drain was seen gets no more packets of new batches.
            if let Some(table) = self.paths.take_table_change() {
                for (lane, sessions) in lanes.iter().zip(&self.sessions) {
                    lane.publish(View { table: Arc::clone(&table), sessions: sessions.clone() });
                }
                next_snapshot = now;
                self.publish_reachable(now);
            }
            self.send(lanes, &mut sender, &mut out);
            self.take_events();
            if now >= next_limit {
                next_limit = now + LIMIT_PERIOD;
                self.sessions.iter().for_each(LaneSessions::reset_limit);
            }
            if now >= next_snapshot {
                next_snapshot = now + TICK;
                let snapshot = snapshot_of(&self.paths, &self.sessions, &self.refused_claims, now);
                self.observe_round_trips(&snapshot);
                self.snapshot.store(Arc::new(snapshot));
            }
        }
    }

    fn take(&mut self, order: Order, out: &mut Arena<Sealed>) {
        let now = clock::now();
        match order {
            Order::Notice(notice) => self.paths.notice(notice, &self.sessions, out, now),
            Order::Topology(topology, keys) => {
                let Reconfigured { added, removed, refused } = self.paths.reconfigure(*topology, now);
                for (sessions, keys) in self.sessions.iter_mut().zip(&keys) {
                    *sessions = sessions.with_keys(keys).changed(&removed, &added);
                }
                for claim in refused.iter().filter(|claim| !self.refused_claims.contains(claim)) {
                    tracing::warn!(%claim, "part of a peer's record is refused");
                }
                self.refused_claims = refused;
            }
            Order::Drain(draining) => self.paths.set_draining(draining, now),
            Order::Stop => {}
        }
    }

    fn send(&self, lanes: &[Arc<Lane>], sender: &mut Sender, out: &mut Arena<Sealed>) {
        if !out.is_empty() {
            lanes.iter().for_each(|lane| lane.send(sender, out));
            out.clear();
        }
    }

    fn observe_round_trips(&self, snapshot: &Snapshot) {
        for link in snapshot.links.iter().filter(|link| link.status.state == PathState::Up) {
            if let Some(time) = link.status.last_round_trip {
                let labels = PeerLabels::new(&snapshot.topology.ours.cluster, &link.link.cluster);
                self.round_trips.observe(&labels, time.as_secs_f64());
            }
        }
    }

    fn publish_reachable(&self, now: Instant) {
        let peers = &self.paths.topology().peers;
        let address_of = |link: &Link| {
            let peer = peers.iter().find(|peer| peer.id == link.cluster)?;
            peer.gateways.iter().find(|gateway| gateway.slot == link.slot)?.control_address
        };
        let mut found: BTreeMap<ClusterId, Vec<(bool, u16, Ipv6Addr)>> = BTreeMap::new();
        let mut direct = BTreeSet::new();
        for (link, status) in self.paths.statuses(now).filter(|(_, status)| status.state == PathState::Up) {
            let Some(address) = address_of(link) else { continue };
            if status.endpoint.is_some_and(|endpoint| !is_by_hub(endpoint)) {
                direct.insert(address);
            }
            let gateways = found.entry(link.cluster.clone()).or_default();
            if !gateways.iter().any(|(_, _, known)| *known == address) {
                gateways.push((status.peer_draining, link.slot, address));
            }
        }
        let sorted = found.into_iter().map(|(peer, mut gateways)| {
            gateways.sort_unstable();
            (peer, gateways.into_iter().map(|(_, _, address)| address).collect())
        });
        let reachable: ReachablePeers = sorted.collect();
        replace_if_other(&self.reachable, reachable);
        replace_if_other(&self.direct, direct);
    }

    fn take_events(&mut self) {
        let (events, lost) = self.paths.take_events();
        if events.is_empty() && lost == 0 {
            return;
        }
        if lost > 0 {
            tracing::warn!(lost, "events were lost: paths changed faster than they could be written down");
        }
        let ours = self.paths.topology().ours.cluster.to_string();
        for event in events {
            tracing::info!(%event, "path event");
            self.journal.record(&event, &ours);
        }
    }
}

/// Wakes nobody for what is as it was.
fn replace_if_other<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|known| {
        let changed = *known != value;
        *known = value;
        changed
    });
}

fn snapshot_of(paths: &Paths, sessions: &[LaneSessions], refused: &[RefusedClaim], now: Instant) -> Snapshot {
    let links = paths.statuses(now).map(|(link, status)| {
        let session = sessions.get(usize::from(link.lane.0)).and_then(|lane| lane.get(link.id));
        LinkSnapshot {
            link: link.clone(),
            status,
            last_handshake: session.and_then(|session| session.last_handshake()),
            traffic: session.map(|session| session.traffic()).unwrap_or_default(),
        }
    });
    Snapshot {
        at: now,
        topology: paths.topology().clone(),
        links: links.collect(),
        report: paths.health_report(now),
        refused_claims: refused.iter().map(ToString::to_string).collect(),
        drain_is_acknowledged: paths.drain_is_acknowledged(),
        waiting_for: paths.waiting_for(),
        pace: paths.pace(),
    }
}

/// Starts the thread.
pub(crate) fn spawn(thread: ControlThread, lanes: Vec<Arc<Lane>>) -> Result<std::thread::JoinHandle<()>> {
    crate::lane::spawn("gateway-control".to_owned(), move || {
        thread.run(&lanes);
        Ok(())
    })
}
