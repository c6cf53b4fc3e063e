//! [`Topology`]: who we are and whom we talk to, as the configuration wants it.
//!
//! The `gateway` crate makes it from member records and `ClusterPeer` objects; nothing else of those objects comes here.

use alloc::vec::Vec;
use core::net::{Ipv6Addr, SocketAddr};

use api::keys::TunnelKey;
use api::{ClusterId, Prefix, TranslatedPrefix};

/// The whole wanted state. [`crate::Paths::reconfigure`] works out what changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    pub ours: OurGateway,
    pub peers: Vec<PeerCluster>,
}

/// This gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OurGateway {
    pub cluster: ClusterId,
    pub slot: u16,
    /// The lanes this gateway runs; at least 1.
    pub lanes: Vec<OurLane>,
    /// Our address inside all tunnels.
    pub control_address: Ipv6Addr,
    /// Pods, nodes and infrastructure of our cluster: what a peer may send to.
    pub prefixes: Vec<Prefix>,
    /// Largest packet that fits into a tunnel, in bytes; at least 1280.
    pub inner_mtu: u16,
}

/// The public keys of one of our lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OurLane {
    pub key: TunnelKey,
    /// While the keys rotate: the one that comes after. Both are answered to.
    pub next_key: Option<TunnelKey>,
}

impl From<TunnelKey> for OurLane {
    fn from(key: TunnelKey) -> Self {
        Self { key, next_key: None }
    }
}

/// A cluster we have tunnels to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCluster {
    pub id: ClusterId,
    /// What is routed to it, and what it may use as source: its addresses as they are seen here.
    pub prefixes: Vec<Prefix>,
    /// Which of these are not its own, and what they are between the clusters (decision 7).
    pub translations: Vec<TranslatedPrefix>,
    pub standing: Standing,
    pub gateways: Vec<PeerGateway>,
}

/// Whether new traffic should go to a cluster, apart from what is measured. Tunnels stay up either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    #[default]
    Active,
    /// Its own record says so.
    Draining,
    /// The operator of this cluster says so.
    DrainedHere,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerGateway {
    pub slot: u16,
    /// Its address inside the tunnel. `None` says it is some other WireGuard program: it is not probed, and counts as up
    /// while WireGuard itself hears from it.
    pub control_address: Option<Ipv6Addr>,
    pub lanes: Vec<PeerLane>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLane {
    pub public_key: TunnelKey,
    /// While its keys rotate: the one that comes after.
    pub next_key: Option<TunnelKey>,
    pub preshared_key: Option<[u8; 32]>,
    /// Endpoints the operator wrote down; tried first.
    pub configured: Vec<SocketAddr>,
    /// Endpoints its member record names; tried next.
    pub learned: Vec<SocketAddr>,
}
