//! [`Paths`]: every link of this gateway: which exist, which are up, where their peers are, and what to say of it.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv6Addr;
use core::time::Duration;

use api::ClusterId;
use api::health::{HealthReport, PathReason, PeerHealth, Reachability};
use api::time::Instant;

use crate::arena::Arena;
use crate::endpoints::CALLED_AT_ONCE;
use crate::event::{Event, EventKind};
use crate::inbound::Notice;
use crate::link::{LaneNumber, Link, LinkId};
use crate::outbound::Outgoing;
use crate::pace::Pace;
use crate::pairing::{free_number, identity, new_link, wanted_links};
use crate::path::{Path, PathState, PathStatus, Resized, SessionView, Width, Work};
use crate::path_mtu::{LARGEST, SizeProbe};
use crate::probe::{PROBE_LEN, Probe, ProbeKind};
use crate::route_table::{LinkRoute, Rank, RouteTable};
use crate::session::{HANDSHAKE_ROOM, SEALED_OVERHEAD, SealBatch, Sealed, Session, Sessions};
use crate::succession::Succession;
use crate::topology::{Standing, Topology};
use crate::topology_check;

pub use crate::topology_check::RefusedClaim;

/// How often sessions look at their own timers: boringtun's resolution.
pub const TICK: Duration = Duration::from_millis(250);

/// Room that one link may need in one call: a handshake of its timers, one that is asked for, one that goes everywhere, a
/// probe, and one of a size.
pub const ROOM_PER_LINK: usize =
    (2 + CALLED_AT_ONCE) * HANDSHAKE_ROOM + PROBE_LEN + SEALED_OVERHEAD + LARGEST as usize + SEALED_OVERHEAD;

/// Packets that one link may need in one call.
pub const PACKETS_PER_LINK: usize = 2 + CALLED_AT_ONCE + 2;

/// Events kept until somebody takes them: an hour of a path that flaps every seven seconds.
const EVENTS: usize = 1024;

/// What a new topology means for the sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconfigured {
    /// Make a session for each.
    pub added: Vec<Link>,
    /// Drop these sessions.
    pub removed: Vec<LinkId>,
    /// What was not accepted; everything else was.
    pub refused: Vec<RefusedClaim>,
}

/// What one probe says beside what all of a link's say.
#[derive(Clone, Copy, Debug)]
struct Saying {
    kind: ProbeKind,
    sequence: u64,
    size: u16,
    held: Duration,
}

/// Owned by the control thread; the only part that changes what is known.
#[derive(Debug)]
pub struct Paths {
    topology: Topology,
    links: BTreeMap<LinkId, (Link, Path)>,
    succession: Succession,
    table: Arc<RouteTable>,
    table_is_news: bool,
    /// What each cluster was last said to be, and since when.
    clusters: BTreeMap<ClusterId, (Reachability, Instant)>,
    events: VecDeque<Event>,
    events_lost: u64,
    incarnation: u64,
    draining: bool,
    pace: Pace,
    next_tick: Instant,
    /// Links whose sessions still have to look at their timers this time.
    ticking: BTreeSet<LinkId>,
    /// One probe on its way to be sealed.
    probe: Arena<Outgoing>,
}

impl Paths {
    /// `incarnation` is a random number drawn at the start of the process.
    pub fn new(topology: Topology, incarnation: u64, now: Instant) -> (Self, Reconfigured) {
        let empty = Topology { ours: topology.ours.clone(), peers: Vec::new() };
        let mut paths = Self {
            table: Arc::new(RouteTable::new(&empty, &[])),
            topology: empty,
            links: BTreeMap::new(),
            succession: Succession::default(),
            table_is_news: true,
            clusters: BTreeMap::new(),
            events: VecDeque::new(),
            events_lost: 0,
            incarnation,
            draining: false,
            pace: Pace::default(),
            next_tick: now,
            ticking: BTreeSet::new(),
            probe: Arena::new(usize::from(LARGEST), 1),
        };
        let reconfigured = paths.reconfigure(topology, now);
        (paths, reconfigured)
    }

    // In.

    /// Takes a new topology. Links that are in the old one too go on undisturbed.
    pub fn reconfigure(&mut self, topology: Topology, now: Instant) -> Reconfigured {
        let (topology, refused) = topology_check::admissible(&topology, &self.topology);
        let wanted = wanted_links(&topology);
        let removed: Vec<LinkId> = self
            .links
            .iter()
            .filter(|(_, (link, _))| !wanted.contains_key(&identity(link)))
            .map(|(id, _)| *id)
            .collect();
        let known: BTreeMap<_, LinkId> = self.links.iter().map(|(id, (link, _))| (identity(link), *id)).collect();
        let mut added = Vec::new();
        for (key, lane) in &wanted {
            let id = known.get(key).copied().or_else(|| {
                let link = new_link(key, free_number(&self.links)?);
                let probed = topology.peers.iter().any(|peer| {
                    let is_probed = |slot| peer.gateways.iter().any(|g| g.slot == slot && g.control_address.is_some());
                    peer.id == link.cluster && is_probed(link.slot)
                });
                added.push(link.clone());
                let id = link.id;
                self.links.insert(id, (link, Path::new(probed, topology.ours.inner_mtu, now)));
                Some(id)
            });
            if let Some((_, path)) = id.and_then(|id| self.links.get_mut(&id)) {
                path.endpoints.replace(&lane.configured, &lane.learned);
                path.set_mtu(topology.ours.inner_mtu);
            }
        }
        for id in &removed {
            self.links.remove(id);
        }
        self.topology = topology;
        self.succession = Succession::new(&self.topology, self.links.values().map(|(link, _)| link));
        self.table = Arc::new(RouteTable::new(&self.topology, &self.routes()));
        self.table_is_news = true;
        self.clusters.retain(|id, _| self.topology.peers.iter().any(|peer| peer.id == *id));
        self.note_clusters(now);
        self.set_pace();
        Reconfigured { added, removed, refused }
    }

    /// Takes news from a receiving thread. Answers go to `out`, which needs the room of one link.
    pub fn notice<S: Sessions>(&mut self, notice: Notice, lanes: &[S], out: &mut Arena<Sealed>, now: Instant) {
        let (id, from, at) = match notice {
            Notice::Heard { link, from, at } | Notice::Probe { link, from, at, .. } => (link, from, at),
        };
        let Some((link, path)) = self.links.get_mut(&id) else { return };
        let moved = path.hear(from, at);
        let knew_mtu = path.knows_mtu();
        let was_established = path.is_established();
        let news = match &notice {
            Notice::Heard { .. } => None,
            Notice::Probe { probe, .. } => Some(path.take_probe(probe, at)),
        };
        self.table_is_news |= knew_mtu != path.knows_mtu();
        let link = link.clone();
        if let Some(before) = moved {
            self.table_is_news = true;
            self.record(&link, EventKind::EndpointMoved { from: before, to: from }, at);
        }
        if let Some(news) = news {
            if news.restarted {
                self.table_is_news = true;
                self.record(&link, EventKind::PeerRestarted, at);
            }
            if let Some(draining) = news.draining {
                self.table_is_news = true;
                self.record(&link, EventKind::PeerDraining(draining), at);
            }
            self.note_change(&link, news.changed, at);
            self.note_size(&link, news.resized, at);
        }
        if let Notice::Probe { probe: Probe { kind, sequence, size, .. }, .. } = notice {
            let reply = match kind {
                ProbeKind::Request => Some(ProbeKind::Reply),
                ProbeKind::SizeRequest => Some(ProbeKind::SizeReply),
                ProbeKind::Reply | ProbeKind::SizeReply => None,
            };
            if let Some(kind) = reply {
                self.send_probe(&link, Saying { kind, sequence, size, held: now.since(at) }, lanes, out, now);
            }
        }
        if !was_established {
            self.work(id, lanes, out, now);
        }
    }

    /// Does what is due. Each link needs [`ROOM_PER_LINK`] bytes and [`PACKETS_PER_LINK`] packets of room in `out`; those that find
    /// none are served by the next call, for which [`next_deadline`](Self::next_deadline) is then not later than now.
    pub fn poll<S: Sessions>(&mut self, lanes: &[S], out: &mut Arena<Sealed>, now: Instant) {
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.set_pace();
            self.ticking = self.links.keys().copied().collect();
        }
        while out.room().len() >= ROOM_PER_LINK {
            let Some(id) = self.ticking.pop_first() else { break };
            self.tick(id, lanes, out, now);
            self.work(id, lanes, out, now);
        }
        let is_due = |path: &Path| path.deadline().is_some_and(|at| at <= now);
        let due: Vec<LinkId> = self.links.iter().filter(|(_, (_, path))| is_due(path)).map(|(id, _)| *id).collect();
        for id in due {
            if out.room().len() < ROOM_PER_LINK {
                break;
            }
            self.work(id, lanes, out, now);
        }
    }

    /// Says in every probe from now on that this gateway is going away, or that it stays; the first goes out at the next
    /// [`poll`](Self::poll).
    pub fn set_draining(&mut self, draining: bool, now: Instant) {
        self.draining = draining;
        for (_, path) in self.links.values_mut() {
            path.hurry(now);
        }
    }

    // Out.

    /// When [`poll`](Self::poll) should be called next.
    pub fn next_deadline(&self) -> Instant {
        if !self.ticking.is_empty() {
            return Instant::default();
        }
        let earliest = self.links.values().filter_map(|(_, path)| path.deadline()).min();
        earliest.map_or(self.next_tick, |at| at.min(self.next_tick))
    }

    /// The table in force.
    pub fn table(&self) -> Arc<RouteTable> {
        Arc::clone(&self.table)
    }

    /// The table, if it changed since this was last asked.
    pub fn take_table_change(&mut self) -> Option<Arc<RouteTable>> {
        if !core::mem::take(&mut self.table_is_news) {
            return None;
        }
        self.table = Arc::new(self.table.with_links(&self.routes()));
        Some(Arc::clone(&self.table))
    }

    /// Events since this was last asked, oldest first, and how many were lost because nobody asked in time.
    pub fn take_events(&mut self) -> (Vec<Event>, u64) {
        (self.events.drain(..).collect(), core::mem::take(&mut self.events_lost))
    }

    // Ask.

    /// Whether every gateway that can be reached knows that this one is going away.
    pub fn drain_is_acknowledged(&self) -> bool {
        let up = |path: &&Path| path.state() == PathState::Up;
        self.draining && self.links.values().map(|(_, path)| path).filter(up).all(Path::peer_saw_draining)
    }

    /// While our keys rotate: the peers that still need the old ones. Empty: nothing passes under them any more.
    pub fn waiting_for(&self) -> Option<BTreeSet<ClusterId>> {
        let rotates = self.topology.ours.lanes.iter().any(|lane| lane.next_key.is_some());
        rotates.then(|| {
            let peers = self.topology.peers.iter().map(|peer| &peer.id);
            peers.filter(|peer| !self.has_taken_next_keys(peer)).cloned().collect()
        })
    }

    fn has_taken_next_keys(&self, peer: &ClusterId) -> bool {
        let links =
            || self.links.values().filter(|(link, path)| link.cluster == *peer && path.state() == PathState::Up);
        let has_links = self.links.values().any(|(link, _)| link.cluster == *peer);
        let (mut old, mut new) = (links().peekable(), links());
        let is_old = |link: &Link| self.succession.is_old(link.id);
        !has_links
            || (old.all(|(link, path)| !is_old(link) || (self.is_idle(link.id) && path.peer_is_idle()))
                && new.any(|(link, path)| !is_old(link) && path.is_proven()))
    }

    /// Whether a link with newer keys between the same two lanes carries what this one did.
    fn is_idle(&self, id: LinkId) -> bool {
        // What passes on the older one would be lost where its size is not known yet.
        let is_measured = self.links.get(&id).is_some_and(|(_, path)| path.knows_mtu());
        let carries = |(_, path): &(Link, Path)| {
            path.state() == PathState::Up && path.is_proven() && (path.knows_mtu() || !is_measured)
        };
        self.succession.after(id).any(|newer| self.links.get(&newer).is_some_and(carries))
    }

    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// The topology in force: what was accepted.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values().map(|(link, _)| link)
    }

    /// What is measured of every link.
    pub fn statuses(&self, now: Instant) -> impl Iterator<Item = (&Link, PathStatus)> {
        self.links.values().map(move |(link, path)| (link, path.status(now)))
    }

    /// What nodes and DNS servers are told.
    pub fn health_report(&self, now: Instant) -> HealthReport {
        let peers = self.topology.peers.iter().map(|peer| self.peer_health(&peer.id, peer.standing, now)).collect();
        HealthReport { slot: self.topology.ours.slot, draining: self.draining, peers }
    }

    /// How often links are probed now.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    // Inside.

    fn set_pace(&mut self) {
        let waiting = self.links.values().filter(|(_, path)| !path.is_established()).count();
        let probed = self.links.values().filter(|(_, path)| path.is_probed()).count();
        self.pace = Pace::of(probed, waiting);
        self.links.values_mut().for_each(|(_, path)| path.set_pace(self.pace));
    }

    fn work<S: Sessions>(&mut self, id: LinkId, lanes: &[S], out: &mut Arena<Sealed>, now: Instant) {
        let Some((link, path)) = self.links.get_mut(&id) else { return };
        let session = session(lanes, link.lane, id);
        let view = SessionView {
            established: session.is_some_and(|session| session.is_established(now)),
            last_handshake: session.and_then(Session::last_handshake),
        };
        let knew_mtu = path.knows_mtu();
        let Work { probe, size_probe, initiate, scatter, changed, proven, resized } = path.poll(view, now);
        self.table_is_news |= proven || knew_mtu != path.knows_mtu();
        let link = link.clone();
        self.note_change(&link, changed, now);
        self.note_size(&link, resized, now);
        if let (Some(to), Some(session)) = (initiate, session) {
            session.initiate(to, out, now);
        }
        if let (Some(first), Some(session)) = (scatter.first(), session) {
            let at = out.len();
            session.initiate(*first, out, now);
            // The same bytes: a second handshake of ours would make the first one worthless.
            let copy = out.meta(at).copied().map(|meta| (meta, Vec::from(out.bytes(at))));
            for to in scatter.iter().skip(1) {
                let Some((meta, bytes)) = &copy else { break };
                if let Some(room) = out.room().get_mut(..bytes.len()) {
                    room.copy_from_slice(bytes);
                    // There is room by the promise of the caller; a call that found none is made again in a second.
                    let _ = out.commit(bytes.len(), Sealed { to: *to, ..*meta });
                }
            }
        }
        let small = probe.map(|sequence| Saying { kind: ProbeKind::Request, sequence, size: 0, held: Duration::ZERO });
        let large = size_probe.map(|SizeProbe { sequence, size }| {
            // What is held is said by replies alone.
            Saying { kind: ProbeKind::SizeRequest, sequence, size, held: Duration::ZERO }
        });
        for saying in small.into_iter().chain(large) {
            self.send_probe(&link, saying, lanes, out, now);
        }
    }

    fn tick<S: Sessions>(&self, id: LinkId, lanes: &[S], out: &mut Arena<Sealed>, now: Instant) {
        let Some((link, path)) = self.links.get(&id) else { return };
        if let (Some(session), Some(to)) = (session(lanes, link.lane, id), path.endpoints.current()) {
            session.tick(to, out, now);
        }
    }

    fn send_probe<S: Sessions>(
        &mut self,
        link: &Link,
        Saying { kind, sequence, size, held }: Saying,
        lanes: &[S],
        out: &mut Arena<Sealed>,
        now: Instant,
    ) {
        let Some((_, path)) = self.links.get(&link.id) else { return };
        let Some(to) = path.endpoints.current() else { return };
        let Some(session) = session(lanes, link.lane, link.id).filter(|session| session.is_established(now)) else {
            return;
        };
        let Some(destination) = self.control_address(link) else { return };
        let probe = Probe {
            kind,
            draining: self.draining,
            saw_draining: path.peer_draining(),
            hears_you: path.hears_peer(now),
            idle: self.is_idle(link.id),
            lane: link.lane,
            incarnation: self.incarnation,
            sequence,
            held: held.as_micros() as u64,
            size,
        };
        self.probe.clear();
        let written = probe.write(self.topology.ours.control_address, destination, self.probe.room());
        let outgoing = Outgoing { link: Some(link.id), refused: None };
        if written.is_some_and(|len| self.probe.commit(len, outgoing).is_ok()) {
            let batch = SealBatch { plain: &self.probe, chosen: &[0], lane: link.lane, link: link.id, to, sealed: out };
            let sealed = session.seal_batch(batch, now);
            if let Some(last) = out.len().checked_sub(1).filter(|_| sealed > 0 && kind == ProbeKind::SizeRequest)
                && let Some(meta) = out.meta_mut(last)
            {
                meta.whole = true;
            }
        }
    }

    fn control_address(&self, link: &Link) -> Option<Ipv6Addr> {
        let peer = self.topology.peers.iter().find(|peer| peer.id == link.cluster)?;
        peer.gateways.iter().find(|gateway| gateway.slot == link.slot)?.control_address
    }

    fn note_change(&mut self, link: &Link, changed: Option<(PathState, PathState, crate::path::Cause)>, at: Instant) {
        if let Some((from, to, cause)) = changed {
            self.table_is_news = true;
            self.record(link, EventKind::PathChanged { from, to, cause }, at);
            self.note_clusters(at);
        }
    }

    fn note_size(&mut self, link: &Link, resized: Option<Resized>, at: Instant) {
        let Some(Resized { from, to }) = resized else { return };
        self.table_is_news = true;
        if from.mtu != to.mtu {
            self.record(link, EventKind::MtuChanged { from: from.mtu, to: to.mtu }, at);
        }
        if from.is_too_narrow != to.is_too_narrow {
            self.record(link, EventKind::PathTooNarrow(to.is_too_narrow), at);
        }
    }

    fn note_clusters(&mut self, at: Instant) {
        for peer in &self.topology.peers {
            let now = best(self.states(&peer.id));
            let known = self.clusters.entry(peer.id.clone()).or_insert((now, at));
            if known.0 != now {
                *known = (now, at);
            }
        }
    }

    fn states(&self, cluster: &ClusterId) -> impl Iterator<Item = PathState> {
        let paths = self.links.values().filter(move |(link, _)| link.cluster == *cluster);
        paths.map(|(_, path)| path.state())
    }

    fn record(&mut self, link: &Link, kind: EventKind, at: Instant) {
        // What becomes of keys that are not used any more is no news of the peer.
        if self.is_idle(link.id) {
            return;
        }
        if self.events.len() == EVENTS {
            self.events.pop_front();
            self.events_lost += 1;
        }
        let Link { id, lane, cluster, slot, .. } = link.clone();
        self.events.push_back(Event { at, link: id, lane, cluster, slot, kind });
    }

    fn routes(&self) -> Vec<LinkRoute> {
        let numbers: BTreeMap<&ClusterId, u16> = self.topology.peers.iter().map(|peer| &peer.id).zip(0..).collect();
        let route = |(link, path): &(Link, Path)| {
            let Width { mtu, is_too_narrow } = path.width();
            Some(LinkRoute {
                id: link.id,
                lane: link.lane,
                cluster: *numbers.get(&link.cluster)?,
                slot: link.slot,
                endpoint: path.endpoints.current(),
                mtu,
                is_too_narrow,
                rank: self.rank(link.id, path),
            })
        };
        self.links.values().filter_map(route).collect()
    }

    fn rank(&self, link: LinkId, path: &Path) -> Rank {
        match path.state() {
            PathState::Up if path.peer_draining() || self.is_idle(link) => Rank::Draining,
            PathState::Up if path.is_proven() => Rank::Up,
            PathState::Up => Rank::Fresh,
            PathState::Unknown => Rank::Unknown,
            PathState::Down => Rank::Down,
        }
    }

    /// The lanes by which packets reach a peer: those that have a path of the best rank, so that none leads to a gateway
    /// that is going away while another lane leads elsewhere.
    fn lanes_up(&self, cluster: &ClusterId) -> u16 {
        let paths =
            self.links.values().filter(|(link, path)| link.cluster == *cluster && path.state() == PathState::Up);
        let ranked: Vec<(Rank, &Link)> = paths.map(|(link, path)| (self.rank(link.id, path), link)).collect();
        let best = ranked.iter().map(|(rank, _)| *rank).min();
        lanes_of(ranked.iter().filter(|(rank, _)| Some(*rank) == best).map(|(_, link)| *link))
    }

    fn peer_health(&self, cluster: &ClusterId, standing: Standing, now: Instant) -> PeerHealth {
        let statuses: Vec<PathStatus> = self
            .links
            .values()
            .filter(|(link, _)| link.cluster == *cluster)
            .map(|(_, path)| path.status(now))
            .collect();
        let reachability = best(statuses.iter().map(|status| status.state));
        let decisive = || statuses.iter().filter(|status| Reachability::from(status.state) == reachability);
        let nearest = decisive().min_by_key(|status| status.round_trip.unwrap_or(Duration::MAX));
        let all_draining = decisive().count() > 0 && decisive().all(|status| status.peer_draining);
        let reason = match standing {
            Standing::DrainedHere => PathReason::DrainedHere,
            Standing::Draining => PathReason::PeerDraining,
            Standing::Active if all_draining => PathReason::PeerDraining,
            Standing::Active => nearest.map_or(PathReason::NoHandshakeYet, |status| status.cause.reason()),
        };
        PeerHealth {
            cluster: cluster.clone(),
            reachability,
            reason,
            age: self.clusters.get(cluster).map_or(Duration::ZERO, |(_, since)| now.since(*since)),
            round_trip: nearest.and_then(|status| status.round_trip),
            loss_permille: nearest.map_or(0, |status| status.loss_permille),
            mtu: smallest(decisive()).unwrap_or(self.topology.ours.inner_mtu),
            lanes: self.lanes_up(cluster),
        }
    }
}

/// What passes by every one of the paths: where it was measured, that counts.
fn smallest<'a>(paths: impl Iterator<Item = &'a PathStatus> + Clone) -> Option<u16> {
    let measured = paths.clone().filter(|status| status.mtu_measured_since.is_some()).map(|status| status.mtu).min();
    measured.or_else(|| paths.map(|status| status.mtu).min())
}

/// One bit for each lane.
fn lanes_of<'a>(links: impl Iterator<Item = &'a Link>) -> u16 {
    links.fold(0, |lanes, link| lanes | 1u16.checked_shl(link.lane.0.into()).unwrap_or(0))
}

/// Up when any link is; down only when all are.
fn best(states: impl Iterator<Item = PathState>) -> Reachability {
    let rank = |state: &PathState| match state {
        PathState::Up => 0,
        PathState::Unknown => 1,
        PathState::Down => 2,
    };
    states.min_by_key(rank).map_or(Reachability::Unknown, Reachability::from)
}

fn session<S: Sessions>(lanes: &[S], lane: LaneNumber, link: LinkId) -> Option<&S::Session> {
    lanes.get(usize::from(lane.0))?.session(link)
}
