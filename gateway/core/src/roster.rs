//! [`Roster`]: the objects of this cluster as the core's [`Topology`]. Pure; every object that cannot be used is named.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use api::cluster_peer::PeerState;
use api::keys::control_address;
use api::member_record::{LaneRecord, MemberRecord, MemberState, SignedRecord, SlotRecord};
use api::prefix_claims::{self, PrefixClaims};
use api::{ClusterId, ClusterPeer, LocalCluster, Prefix};
use ipnet::{IpNet, Ipv6Net};

use crate::link::LaneNumber;
use crate::topology::{OurGateway, OurLane, PeerCluster, PeerGateway, PeerLane, Standing, Topology};
use crate::transit::{End, Transit, Way};

/// Who we are and whom we talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    pub topology: Topology,
    /// What to route into the tunnel for the control relay.
    pub control_prefixes: BTreeSet<Ipv6Net>,
    /// The keys of peers that are blocked: they are nobody here, but are refused under that name.
    pub blocked_keys: BTreeSet<[u8; 32]>,
    /// Any two clusters of one of these may use this one as their hub.
    pub between: Vec<BTreeSet<ClusterId>>,
    /// The hubs by which a peer may be reached where its own endpoints do not answer.
    pub hubs: BTreeMap<ClusterId, Vec<ClusterId>>,
    /// Peers and parts of them that are not used, and why.
    pub problems: Vec<String>,
}

/// The prefix of the control addresses of this cluster's gateways; `None` before the controller has made its identity.
///
/// The record says it, for it survives a rotation of the identity; before there is a record, the key does.
pub fn own_control_prefix(local: &LocalCluster) -> Option<Prefix> {
    let status = local.status.as_ref()?;
    let identity = status.identity_key?;
    let record = SignedRecord::from_base64(&status.record).and_then(|signed| signed.verify(&[identity]));
    Some(record.map_or_else(|_| identity.control_prefix(), |record| record.control_prefix))
}

impl Roster {
    /// `control` is this gateway's own address inside all tunnels.
    pub fn new(
        local: &LocalCluster,
        slot: u16,
        lanes: Vec<OurLane>,
        control: Ipv6Addr,
        peers: &BTreeMap<String, ClusterPeer>,
    ) -> Self {
        let spec = &local.spec;
        let ours = OurGateway {
            cluster: spec.cluster_id.clone(),
            slot,
            lanes,
            control_address: control,
            prefixes: spec.advertised_prefixes().copied().collect(),
            inner_mtu: spec.gateways.mtu,
        };
        let mut claims = prefix_claims::judge(spec, peers.values());
        let mut roster = Self {
            topology: Topology { ours, peers: vec![] },
            control_prefixes: BTreeSet::new(),
            blocked_keys: BTreeSet::new(),
            between: spec.transit.iter().map(|rule| rule.between.iter().cloned().collect()).collect(),
            hubs: BTreeMap::new(),
            problems: vec![],
        };
        for (name, peer) in peers {
            if peer.state() == PeerState::Blocked {
                let lanes =
                    peer.newest_record().into_iter().flat_map(|record| record.slots).flat_map(|slot| slot.lanes);
                roster
                    .blocked_keys
                    .extend(lanes.flat_map(|lane| [Some(lane.key), lane.next_key]).flatten().map(|key| key.0));
                continue;
            }
            let Some(record) = peer.newest_record() else {
                roster
                    .problems
                    .push(format!("{name}: no record signed by a trusted identity; import its export again"));
                continue;
            };
            if record.cluster_set_id != spec.cluster_set_id {
                let (theirs, ours) = (&record.cluster_set_id, &spec.cluster_set_id);
                roster.problems.push(format!("{name}: belongs to clusterset {theirs}, this cluster to {ours}"));
                continue;
            }
            if record.state == MemberState::Left {
                roster.problems.push(format!("{name}: has left the clusterset; delete its ClusterPeer"));
                continue;
            }
            let claims = claims.remove(&record.cluster_id).unwrap_or_default();
            roster.add(peer, &record, claims);
        }
        let known: BTreeSet<&ClusterId> = roster.topology.peers.iter().map(|peer| &peer.id).collect();
        let unknown = roster.hubs.iter().flat_map(|(peer, hubs)| hubs.iter().map(move |hub| (peer, hub)));
        let unknown = unknown.filter(|(_, hub)| !known.contains(hub));
        roster.problems.extend(unknown.map(|(peer, hub)| {
            format!("{peer}: 'via:{hub}' names no peer of this cluster; join {hub}, or name another hub")
        }));
        roster
    }

    /// What may be passed on, and by whom this cluster's own datagrams are.
    pub fn transit(&self) -> Transit {
        Transit::new(&self.topology, self.between.clone(), self.hubs.clone())
    }

    /// The same with the ways by hubs among the endpoints of peers that have some, last. `open` gives the endpoint that
    /// stands for a way to one of the peer's lanes, as [`is_by_hub`](crate::transit::is_by_hub) knows it.
    pub fn with_ways(&self, rules: &Transit, mut open: impl FnMut(&ClusterId, Way) -> Option<SocketAddr>) -> Self {
        let mut with_ways = self.clone();
        for peer in &mut with_ways.topology.peers {
            for gateway in &mut peer.gateways {
                let Some(address) = gateway.control_address else { continue };
                for (number, lane) in (0u8..).zip(&mut gateway.lanes) {
                    let remote = End { gateway: address, lane: LaneNumber(number) };
                    lane.learned.extend(rules.ways(&peer.id, remote).filter_map(|way| open(&peer.id, way)));
                }
            }
        }
        with_ways
    }

    fn add(&mut self, peer: &ClusterPeer, record: &MemberRecord, claims: PrefixClaims) {
        let standing = match (peer.state(), record.state) {
            (PeerState::Drained | PeerState::Blocked, _) => Standing::DrainedHere,
            (PeerState::Active, MemberState::Draining | MemberState::Left) => Standing::Draining,
            (PeerState::Active, MemberState::Active) => Standing::Active,
        };
        // A record of no protocol version is of a plain WireGuard peer, written by hand: nothing answers probes there.
        let speaks = record.protocol.1 > 0;
        if let (true, IpNet::V6(prefix)) = (speaks, record.control_prefix.net()) {
            self.control_prefixes.insert(prefix);
        }
        let hubs: Vec<ClusterId> = peer.spec.hubs().collect();
        if !hubs.is_empty() {
            self.hubs.insert(record.cluster_id.clone(), hubs);
        }
        let dialled: Vec<String> = peer.spec.dialled().cloned().collect();
        let first = record.slots.iter().map(|slot| slot.slot).min();
        let gateways = record.slots.iter().map(|slot| {
            // What the operator writes down is for the first gateway: with several, each record names its own.
            let configured = if Some(slot.slot) == first { dialled.as_slice() } else { &[] };
            PeerGateway {
                slot: slot.slot,
                control_address: speaks.then(|| control_address(&record.control_prefix, slot.slot)).flatten(),
                lanes: self.lanes(record, slot, configured),
            }
        });
        let gateways = gateways.collect();
        let (id, prefixes) = (record.cluster_id.clone(), claims.seen().collect());
        let translations = claims.translated;
        self.topology.peers.push(PeerCluster { id, prefixes, translations, standing, gateways });
    }

    fn lanes(&mut self, record: &MemberRecord, slot: &SlotRecord, configured: &[String]) -> Vec<PeerLane> {
        let mut resolve = |texts: &[String], number: u16, lane: &LaneRecord| {
            let mut addresses = Vec::new();
            for text in texts {
                match endpoint(text, number, lane.port) {
                    Some(address) => addresses.push(address),
                    None if number == 0 => self.problems.push(format!(
                        "{}: '{text}' is not an endpoint: write 203.0.113.9, [2001:db8::9]:51820, or via:NAME of a peer",
                        record.cluster_id
                    )),
                    None => {}
                }
            }
            addresses
        };
        let lane = |(number, lane): (u16, &LaneRecord)| PeerLane {
            public_key: lane.key,
            next_key: lane.next_key,
            preshared_key: None,
            configured: resolve(configured, number, lane),
            learned: resolve(&slot.endpoints, number, lane),
        };
        (0..).zip(&slot.lanes).map(lane).collect()
    }
}

/// Where a lane listens: at the named port plus its number, or at the port its record gives.
fn endpoint(text: &str, lane: u16, port: u16) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(SocketAddr::new(address.ip(), address.port().checked_add(lane)?));
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, port))
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
