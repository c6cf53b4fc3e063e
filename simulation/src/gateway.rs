//! [`Gateway`]: one gateway process: the cores with pretend sessions, told by its follower what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use api::keys::control_address;
use api::local_cluster::PodReachability;
use api::names::{self, LOCAL_CLUSTER};
use api::time::Instant;
use api::{ClusterPeer, LocalCluster, ServiceExport, TunnelGateway};
use gateway_core::export_index::{ExportIndex, key_of};
use gateway_core::roster::{Roster, own_control_prefix};
use gateway_core::transit::is_by_hub;
use gateway_core::{
    Arena, ExportChange, Inbound, LaneNumber, Link, Opened, Outbound, Outgoing, PathState, Paths, Received,
    Reconfigured, RouteTable, Sealed, Verdict,
};

use crate::follower::Follower;
use crate::object::{Held, Object};
use crate::objects::Change;
use crate::pretend::{PretendLane, public_key};
use crate::transit::Ways;

const BYTES: usize = 1 << 16;
const BATCH: usize = 64;

/// What a gateway wants done: datagrams to send, packets for its own host, and what it has to tell.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// By lane.
    pub(crate) datagrams: Vec<(u16, SocketAddr, Vec<u8>)>,
    pub(crate) delivered: Vec<(u16, Vec<u8>)>,
    pub(crate) events: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) slot: u16,
    /// Its host, by place in the cluster.
    pub(crate) host: usize,
    /// Of each lane.
    secrets: Vec<u64>,
    pub(crate) runs: bool,
    pub(crate) follower: Follower,
    pub(crate) wakes_at: u64,
    local: Option<LocalCluster>,
    peers: BTreeMap<String, ClusterPeer>,
    exports: ExportIndex,
    /// An operator ordered that others take its traffic.
    is_drained: bool,
    pub(crate) core: Option<Core>,
    incarnation: u64,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) paths: Paths,
    pub(crate) roster: Roster,
    pub(crate) control: Ipv6Addr,
    pub(crate) ways: Ways,
    lanes: Vec<(Inbound, Outbound)>,
    sessions: Vec<PretendLane>,
    table: Arc<RouteTable>,
    datagrams: Arena<Received>,
    opened: Arena<Opened>,
    outgoing: Arena<Outgoing>,
    sealed: Arena<Sealed>,
    replies: Arena<Sealed>,
}

impl Gateway {
    pub(crate) fn new(slot: u16, host: usize, secrets: Vec<u64>) -> Self {
        Self {
            slot,
            host,
            secrets,
            runs: false,
            follower: Follower::default(),
            wakes_at: u64::MAX,
            local: None,
            peers: BTreeMap::new(),
            exports: ExportIndex::default(),
            is_drained: false,
            core: None,
            incarnation: 0,
        }
    }

    /// The name of a lane's TUN device.
    pub(crate) fn device(&self, lane: u16) -> String {
        format!("tombolo-{}-{lane}", self.slot)
    }

    pub(crate) fn devices(&self) -> impl Iterator<Item = String> {
        (0..).zip(&self.secrets).map(|(lane, _)| self.device(lane))
    }

    /// SIGKILL: the device, the keys and all it knew are gone.
    pub(crate) fn stop(&mut self) {
        self.runs = false;
        self.core = None;
        self.local = None;
        self.peers.clear();
        self.is_drained = false;
        self.exports = ExportIndex::default();
        self.follower.is_connected = false;
        self.wakes_at = u64::MAX;
    }

    pub(crate) fn start(&mut self, incarnation: u64, known: Option<Vec<Object>>, now: Instant) {
        self.stop();
        self.runs = true;
        self.incarnation = incarnation;
        if let Some(known) = known {
            self.take_all(&known, now);
        }
    }

    /// Everything as it is now.
    pub(crate) fn take_all(&mut self, all: &[Object], now: Instant) {
        self.local = all.iter().filter_map(LocalCluster::of).next().cloned();
        self.peers = all.iter().filter_map(ClusterPeer::of).map(|peer| (name(peer), peer.clone())).collect();
        self.is_drained = all.iter().filter_map(TunnelGateway::of).any(|known| self.is_it(known) && known.is_drained());
        let exports: Vec<ServiceExport> = all.iter().filter_map(Held::of).cloned().collect();
        let slices: Vec<_> = all.iter().filter_map(Held::of).cloned().collect();
        let mut changes = self.exports.reset_exports(&exports);
        changes.extend(self.exports.reset_slices(&slices, now));
        self.admit(changes);
        self.configure(now);
    }

    pub(crate) fn take(&mut self, change: &Change, now: Instant) {
        let changes = match change {
            Change::Applied(Object::ServiceExport(export)) => self.exports.apply_export(export),
            Change::Deleted(Object::ServiceExport(export)) => self.exports.remove_export(key_of(&export.metadata)),
            Change::Applied(Object::EndpointSlice(slice)) => self.exports.apply_slice(slice, now),
            Change::Deleted(Object::EndpointSlice(slice)) => self.exports.remove_slice(&key_of(&slice.metadata), now),
            Change::Applied(Object::LocalCluster(local)) => {
                self.local = Some((**local).clone());
                return self.configure(now);
            }
            Change::Applied(Object::ClusterPeer(peer)) => {
                self.peers.insert(name(peer), (**peer).clone());
                return self.configure(now);
            }
            Change::Deleted(Object::ClusterPeer(peer)) => {
                self.peers.remove(&name(peer));
                return self.configure(now);
            }
            Change::Applied(Object::TunnelGateway(known)) if self.is_it(known) => {
                self.is_drained = known.is_drained();
                return self.configure(now);
            }
            _ => return,
        };
        self.admit(changes);
    }

    fn is_it(&self, known: &TunnelGateway) -> bool {
        known.metadata.name.as_deref() == Some(&names::slot_gateway(self.slot))
    }

    /// Lets every connection in: what the oracle must see.
    pub(crate) fn open_up(&mut self) {
        self.admit(vec![ExportChange::SetOpen(true)]);
    }

    /// Forgets as what overlapping peers are seen: what the oracle must see.
    pub(crate) fn forget_translations(&mut self, now: Instant) {
        let statuses = self.peers.values_mut().filter_map(|peer| peer.status.as_mut());
        let known: usize = statuses.map(|status| std::mem::take(&mut status.translations).len()).sum();
        if known > 0 {
            self.configure(now);
        }
    }

    /// What left an exported service long enough ago is closed.
    pub(crate) fn expire(&mut self, now: Instant) {
        let changes = self.exports.expire(now);
        self.admit(changes);
    }

    fn admit(&mut self, changes: Vec<ExportChange>) {
        let Some(core) = &mut self.core else { return };
        changes.into_iter().for_each(|change| core.admit(change));
    }

    fn configure(&mut self, now: Instant) {
        let Some(local) = self.local.as_ref().filter(|local| local.metadata.name.as_deref() == Some(LOCAL_CLUSTER))
        else {
            return;
        };
        let Some(control) = own_control_prefix(local).and_then(|prefix| control_address(&prefix, self.slot)) else {
            return;
        };
        let roster = Roster::new(
            local,
            self.slot,
            self.secrets.iter().map(|secret| public_key(*secret).into()).collect(),
            control,
            &self.peers,
        );
        let open = local.spec.pod_reachability == PodReachability::Open;
        match &mut self.core {
            Some(core) if core.control == control => core.reconfigure(roster, now),
            _ => {
                let mut core = Core::start(roster, control, &self.secrets, self.incarnation, now);
                self.exports.everything().for_each(|change| core.admit(change));
                self.core = Some(core);
            }
        }
        self.admit(vec![ExportChange::SetOpen(open)]);
        if let Some(core) = self.core.as_mut().filter(|core| core.paths.is_draining() != self.is_drained) {
            core.paths.set_draining(self.is_drained, now);
        }
    }
}

fn name(peer: &ClusterPeer) -> String {
    peer.metadata.name.clone().unwrap_or_default()
}

impl Core {
    fn start(roster: Roster, control: Ipv6Addr, secrets: &[u64], incarnation: u64, now: Instant) -> Self {
        let mut ways = Ways::default();
        let (paths, reconfigured) = Paths::new(ways.configure(&roster).topology, incarnation, now);
        let numbers = (0..secrets.len()).map(|lane| LaneNumber(lane as u8));
        let mut core = Self {
            table: paths.table(),
            paths,
            roster,
            control,
            ways,
            lanes: numbers.clone().map(|lane| (Inbound::new(lane, BATCH), Outbound::new(lane, BATCH))).collect(),
            sessions: numbers.zip(secrets).map(|(lane, secret)| PretendLane::new(lane, &[*secret])).collect(),
            datagrams: Arena::new(BYTES, BATCH),
            opened: Arena::new(BYTES, BATCH),
            outgoing: Arena::new(BYTES, BATCH),
            sealed: Arena::new(BYTES, 4 * BATCH),
            replies: Arena::new(BYTES, 4 * BATCH),
        };
        core.take(&reconfigured);
        core
    }

    fn reconfigure(&mut self, roster: Roster, now: Instant) {
        if roster != self.roster {
            let reconfigured = self.paths.reconfigure(self.ways.configure(&roster).topology, now);
            self.roster = roster;
            self.take(&reconfigured);
        }
    }

    fn take(&mut self, reconfigured: &Reconfigured) {
        for link in &reconfigured.removed {
            self.sessions.iter_mut().for_each(|lane| lane.remove(*link));
        }
        reconfigured.added.iter().for_each(|link| self.sessions[usize::from(link.lane.0)].add(link));
    }

    fn admit(&mut self, change: ExportChange) {
        self.lanes.iter_mut().for_each(|(inbound, _)| inbound.apply(change));
    }

    /// A datagram arrives at a lane from the world.
    pub(crate) fn receive(&mut self, lane: u16, from: SocketAddr, bytes: &[u8], now: Instant) -> Outcome {
        let place = usize::from(lane);
        let Self { lanes, table, sessions, datagrams, opened, replies, .. } = self;
        datagrams.clear();
        opened.clear();
        replies.clear();
        if datagrams.push(bytes, Received::from(from)).is_err() {
            return Outcome::default();
        }
        let inbound = &mut lanes[place].0;
        inbound.receive(table, &sessions[place], datagrams, opened, replies, now);
        let mut outcome = Outcome::default();
        drain(&mut self.replies, &mut outcome);
        for (bytes, meta) in self.opened.iter() {
            if meta.verdict == Verdict::Deliver {
                outcome.delivered.push((lane, bytes.to_vec()));
            }
        }
        let notices = self.lanes[place].0.notices().to_vec();
        self.sealed.clear();
        for notice in notices {
            self.paths.notice(notice, &self.sessions, &mut self.sealed, now);
        }
        drain(&mut self.sealed, &mut outcome);
        self.publish(&mut outcome);
        outcome
    }

    /// A packet arrives at a lane's TUN device.
    pub(crate) fn forward(&mut self, lane: u16, packet: &[u8], now: Instant) -> Outcome {
        self.outgoing.clear();
        self.sealed.clear();
        let mut outcome = Outcome::default();
        if self.outgoing.push(packet, Outgoing::default()).is_err() {
            return outcome;
        }
        let mut answers = Arena::new(4096, 4);
        let place = usize::from(lane);
        let Self { lanes, table, sessions, outgoing, sealed, .. } = self;
        lanes[place].1.forward(table, &sessions[place], outgoing, sealed, &mut answers, now);
        drain(&mut self.sealed, &mut outcome);
        outcome
    }

    pub(crate) fn poll(&mut self, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        self.sealed.clear();
        if now >= self.paths.next_deadline() {
            self.paths.poll(&self.sessions, &mut self.sealed, now);
        }
        drain(&mut self.sealed, &mut outcome);
        self.publish(&mut outcome);
        outcome
    }

    fn publish(&mut self, outcome: &mut Outcome) {
        if let Some(table) = self.paths.take_table_change() {
            self.table = table;
        }
        outcome.events.extend(self.paths.take_events().0.iter().map(ToString::to_string));
    }

    /// The gateways, by control address, that are reached without a hub now.
    pub(crate) fn direct(&self, now: Instant) -> BTreeSet<Ipv6Addr> {
        let up = self.paths.statuses(now).filter(|(_, status)| status.state == PathState::Up);
        let direct = up.filter(|(_, status)| status.endpoint.is_some_and(|endpoint| !is_by_hub(endpoint)));
        direct.filter_map(|(link, _)| self.control_of(link)).collect()
    }

    fn control_of(&self, link: &Link) -> Option<Ipv6Addr> {
        let peer = self.paths.topology().peers.iter().find(|peer| peer.id == link.cluster)?;
        peer.gateways.iter().find(|gateway| gateway.slot == link.slot)?.control_address
    }

    /// The gateways of each peer to which packets pass now, by control address.
    pub(crate) fn reachable(&self, now: Instant) -> BTreeMap<String, Vec<Ipv6Addr>> {
        let mut found: BTreeMap<String, Vec<Ipv6Addr>> = BTreeMap::new();
        for (link, _) in self.paths.statuses(now).filter(|(_, status)| status.state == PathState::Up) {
            if let Some(address) = self.control_of(link) {
                found.entry(link.cluster.to_string()).or_default().push(address);
            }
        }
        found
    }

    /// The paths that are not up.
    pub(crate) fn broken(&self, now: Instant) -> impl Iterator<Item = &Link> {
        self.paths.statuses(now).filter(|(_, status)| status.state != PathState::Up).map(|(link, _)| link)
    }
}

fn drain(sealed: &mut Arena<Sealed>, outcome: &mut Outcome) {
    outcome.datagrams.extend(sealed.iter().map(|(bytes, meta)| (u16::from(meta.lane.0), meta.to, bytes.to_vec())));
    sealed.clear();
}
