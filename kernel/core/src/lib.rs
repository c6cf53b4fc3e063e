//! Wanted kernel state against observed kernel state: the difference.
//!
//! Everything Tombolo makes in a host's kernel is a value of this crate. [`State`] holds all of it; [`difference`]
//! compares two states and says in which order to turn one into the other. The crate `kernel` reads a `State` from the
//! kernel and applies the [`Change`]s; nothing here touches anything.
//!
//! | module | holds |
//! |---|---|
//! | [`device`] | names of network devices |
//! | [`link`] | the VXLAN device between the nodes of one cluster, addresses |
//! | [`neighbour`] | who is behind which link-layer address, and behind which node |
//! | [`nexthop`] | next hops and weighted groups of them |
//! | [`route`] | routes in our own table, blackholes behind them |
//! | [`rule`] | when our table is asked |
//! | [`setting`] | the closed list of settings of others that we may change |
//! | [`ruleset`], [`table`] | our nftables table: what it does, and as typed chains and rules |
//! | [`sets`] | the elements of its sets |
//! | [`service`] | clusterset addresses and the endpoints their connections are given to |
//! | [`refusal`], [`refused`] | every reason a packet is refused for, one counter each; whose packet it was |
//! | [`change`] | steps; [`difference`] says their order |
//!
//! # Whole and partial states
//!
//! At start and at resync a whole wanted state is compared with what `kernel` observed. In between nothing is dumped:
//! the caller gives two *partial* states that hold only what a change touches, as it was wanted before and as it is
//! wanted now. The cost is the size of the change. Two things are given whole or left out of both: the prefix sets
//! (intervals of one set must not overlap) and the table.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod change;
pub mod device;
mod difference;
pub mod link;
pub mod neighbour;
pub mod nexthop;
pub mod refusal;
pub mod refused;
pub mod route;
pub mod rule;
pub mod ruleset;
pub mod service;
pub mod sets;
pub mod setting;
pub mod state;
pub mod table;

pub use change::Change;
pub use device::{DeviceName, InvalidDeviceName};
pub use difference::difference;
pub use link::{Address, Vxlan};
pub use neighbour::{ForwardingKey, Mac, NeighbourKey};
pub use nexthop::{Group, GroupId, InvalidGroup, Nexthop, NexthopId};
pub use refusal::Refusal;
pub use refused::Flow;
pub use route::{Route, RouteKey, RouteTable, Target};
pub use rule::{Rule, Selector};
pub use ruleset::{HostClients, PodReachability, Ruleset, Targets};
pub use service::{Affinity, Backend, Frontend, InvalidService, Protocol, Service};
pub use sets::{Element, Exported, Sets};
pub use setting::Setting;
pub use state::State;
pub use table::Table;

/// The `protocol` every route, rule, next hop and address of ours carries, so that they are told from all others.
///
/// 116 is the letter `t`; no routing daemon known to iproute2 uses it.
pub const PROTOCOL: u8 = 116;

/// The routing table that is ours alone: the letters `tm` as a number, far from the tables people number by hand.
pub const TABLE: u32 = 0x746d;

/// The routing table for packets that arrive from other clusters: the next number.
pub const INWARD_TABLE: u32 = 0x746e;

/// The address family of a thing that names no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: core::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    /// The family of a prefix.
    pub fn of_net(net: &ipnet::IpNet) -> Self {
        Self::of(net.addr())
    }
}
