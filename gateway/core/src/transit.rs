//! [`Transit`]: datagrams between two clusters that cannot reach each other, passed on by a third one, the *hub*.
//!
//! What is passed on are whole WireGuard datagrams of the tunnel between the two ends, so a hub can neither read nor
//! forge what is inside, and both ends measure, protect and time that tunnel like any other. A datagram travels in a
//! [`Frame`]: UDP between control addresses, inside the tunnels of each end with the hub. To a lane a hub is an endpoint
//! like any other: a port on this host's loopback, behind which the `gateway` crate makes frames of datagrams.
//!
//! An end names its hubs in `ClusterPeer.spec.endpoints` (`via:birch`); the other end needs nothing, for it answers to
//! where it was called from. A hub passes on what `LocalCluster.spec.transit` allows. A frame counts the hubs it may
//! still pass, so that two hubs that name each other end a frame, not the network.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::{Ipv6Addr, SocketAddr};

use api::ClusterId;

use crate::link::LaneNumber;
use crate::refusal::Refusal;
use crate::topology::Topology;

/// Bytes of a frame before its datagram: version, hubs left, the lanes of source and destination, and their gateways.
pub const FRAME_HEADER: usize = 4 + 16 + 16;

/// The only layout so far.
const VERSION: u8 = 1;

/// How many hubs a frame may pass. One is usual; a chain of three is a clusterset that somebody should look at.
pub const MOST_HUBS: u8 = 3;

/// One end of a tunnel, by names that every gateway of the clusterset understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// The control address of the gateway.
    pub gateway: Ipv6Addr,
    pub lane: LaneNumber,
}

/// A datagram on its way past hubs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Hubs it may still pass.
    pub hubs_left: u8,
    pub source: End,
    pub destination: End,
    pub datagram: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads a frame of another gateway.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let (header, datagram) = bytes.split_first_chunk::<FRAME_HEADER>().ok_or(Refusal::MalformedTransit)?;
        let [VERSION, hubs_left, source_lane, destination_lane, addresses @ ..] = header else {
            return Err(Refusal::MalformedTransit);
        };
        let (source, destination) = addresses.split_at(16);
        let address =
            |bytes: &[u8]| <[u8; 16]>::try_from(bytes).map(Ipv6Addr::from).map_err(|_| Refusal::MalformedTransit);
        Ok(Self {
            hubs_left: *hubs_left,
            source: End { gateway: address(source)?, lane: LaneNumber(*source_lane) },
            destination: End { gateway: address(destination)?, lane: LaneNumber(*destination_lane) },
            datagram,
        })
    }

    /// The bytes before the datagram.
    pub fn header(&self) -> [u8; FRAME_HEADER] {
        let mut header = [0; FRAME_HEADER];
        header[..4].copy_from_slice(&[VERSION, self.hubs_left, self.source.lane.0, self.destination.lane.0]);
        header[4..20].copy_from_slice(&self.source.gateway.octets());
        header[20..].copy_from_slice(&self.destination.gateway.octets());
        header
    }
}

/// The way to a lane of a peer's gateway that is not the direct one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// The control address of the hub's gateway.
    pub hub: Ipv6Addr,
    pub remote: End,
}

/// What to do with a frame that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It is for a lane of ours, which is to answer by `back`.
    Arrived { lane: LaneNumber, back: Way },
    /// To be sent on to that gateway.
    On { to: Ipv6Addr, hubs_left: u8 },
}

/// What is allowed and known, for one topology.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transit {
    own: Option<End>,
    /// Whose each control address is.
    gateways: BTreeMap<Ipv6Addr, ClusterId>,
    /// Any two clusters of one of these may use this one as their hub.
    between: Vec<BTreeSet<ClusterId>>,
    /// The hubs by which a cluster may be reached from here.
    hubs: BTreeMap<ClusterId, Vec<ClusterId>>,
}

impl Transit {
    pub fn new(
        topology: &Topology,
        between: Vec<BTreeSet<ClusterId>>,
        hubs: BTreeMap<ClusterId, Vec<ClusterId>>,
    ) -> Self {
        let gateways = topology.peers.iter().flat_map(|peer| peer.gateways.iter().map(|gateway| (&peer.id, gateway)));
        let gateways = gateways.filter_map(|(peer, gateway)| Some((gateway.control_address?, peer.clone()))).collect();
        // Our lane count stands in the place of a lane: one behind the last.
        let own = End {
            gateway: topology.ours.control_address,
            lane: LaneNumber(u8::try_from(topology.ours.lanes.len()).unwrap_or(u8::MAX)),
        };
        Self { own: Some(own), gateways, between, hubs }
    }

    /// The ways to a lane of a peer, in the order in which they are to be tried.
    pub fn ways(&self, peer: &ClusterId, remote: End) -> impl Iterator<Item = Way> {
        let hubs = self.hubs.get(peer).into_iter().flatten().filter(move |hub| *hub != peer);
        hubs.flat_map(|hub| self.gateways_of(hub)).map(move |hub| Way { hub, remote })
    }

    /// Whose gateway has that control address.
    pub fn cluster_of(&self, gateway: Ipv6Addr) -> Option<&ClusterId> {
        self.gateways.get(&gateway)
    }

    /// Whether a way leads by gateways that are still known.
    pub fn knows(&self, way: &Way) -> bool {
        self.gateways.contains_key(&way.hub) && self.gateways.contains_key(&way.remote.gateway)
    }

    /// Judges a frame that `sender`, a control address, handed to us. `direct` are the control addresses that tunnels
    /// without a hub reach now.
    pub fn judge(&self, sender: Ipv6Addr, frame: &Frame<'_>, direct: &BTreeSet<Ipv6Addr>) -> Result<Passage, Refusal> {
        let hub = self.cluster_of(sender).ok_or(Refusal::UnknownTransit)?;
        let source = self.cluster_of(frame.source.gateway).ok_or(Refusal::UnknownTransit)?;
        let own = self.own.ok_or(Refusal::UnknownTransit)?;
        let End { gateway, lane } = frame.destination;
        if gateway == own.gateway {
            let back = Way { hub: sender, remote: frame.source };
            return if lane < own.lane { Ok(Passage::Arrived { lane, back }) } else { Err(Refusal::UnknownTransit) };
        }
        let destination = self.cluster_of(gateway).ok_or(Refusal::UnknownTransit)?;
        let all = [hub, source, destination];
        if source == destination || !self.between.iter().any(|group| all.iter().all(|one| group.contains(*one))) {
            return Err(Refusal::TransitNotAllowed);
        }
        let hubs_left = frame.hubs_left.checked_sub(1).ok_or(Refusal::TooManyHubs)?;
        let next = self.hubs.get(destination).into_iter().flatten().flat_map(|hub| self.gateways_of(hub));
        let mut candidates = core::iter::once(gateway).chain(next).filter(|to| *to != sender);
        let to = candidates.find(|to| direct.contains(to)).ok_or(Refusal::NoTransitPath)?;
        Ok(Passage::On { to, hubs_left })
    }

    fn gateways_of(&self, cluster: &ClusterId) -> impl Iterator<Item = Ipv6Addr> {
        self.gateways.iter().filter(move |(_, of)| *of == cluster).map(|(address, _)| *address)
    }
}

/// Whether an endpoint stands for a way by a hub. No peer listens on our own loopback.
pub fn is_by_hub(endpoint: SocketAddr) -> bool {
    endpoint.ip().is_loopback()
}

#[cfg(test)]
#[path = "transit_tests.rs"]
mod tests;
