//! Routes in our own table, and the blackholes that outlive our processes.

use core::net::IpAddr;

use ipnet::IpNet;

use crate::{DeviceName, GroupId, INWARD_TABLE, NexthopId, TABLE};

/// Metric of a route that carries packets.
pub const METRIC: u32 = 100;

/// Metric of the blackhole behind it. A worse metric is asked only when the better route is gone: a tunnel device takes
/// its routes along when its process dies, and without a blackhole the packet would leave by the default route, in
/// clear.
pub const BLACKHOLE_METRIC: u32 = 4096;

/// One of our two tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteTable {
    /// Asked for every packet but the outer ones of tunnels: the way to other clusters.
    #[default]
    Outward,
    /// Asked only for packets that arrive by a device a [`Selector::From`](crate::Selector::From) names: on a gateway
    /// host, the way from a tunnel to the endpoint's node. Traffic inside the cluster never sees it.
    Inward,
}

impl RouteTable {
    pub const ALL: [Self; 2] = [Self::Outward, Self::Inward];

    /// The number the kernel knows it by.
    pub const fn number(self) -> u32 {
        match self {
            Self::Outward => TABLE,
            Self::Inward => INWARD_TABLE,
        }
    }

    /// The table of that number, if it is ours.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.number() == number)
    }
}

/// What tells one route from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    pub table: RouteTable,
    /// Without host bits.
    pub destination: IpNet,
    /// Above zero: the kernel reads zero as 1024 for IPv6.
    pub metric: u32,
}

impl RouteKey {
    /// The route that carries packets to `destination`.
    pub fn carrying(destination: IpNet) -> Self {
        Self { table: RouteTable::Outward, destination: destination.trunc(), metric: METRIC }
    }

    /// The route that carries packets of other clusters on to `destination` inside this one.
    pub fn inward(destination: IpNet) -> Self {
        Self { table: RouteTable::Inward, ..Self::carrying(destination) }
    }

    /// The blackhole behind it.
    pub fn blackhole(destination: IpNet) -> Self {
        Self { metric: BLACKHOLE_METRIC, ..Self::carrying(destination) }
    }
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub target: Target,
    /// The largest packet that may take this route, bytes. It stands on the client's own node, so that the client is
    /// told at once, also through address translation.
    pub mtu: Option<u32>,
    /// The source address for packets of this host that have none yet. Must be an address of this host.
    pub source: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Nexthop(NexthopId),
    Group(GroupId),
    /// Without a next hop object: out of the device, to `via` if there is one, which is not asked for (`onlink`).
    Device {
        device: DeviceName,
        via: Option<IpAddr>,
    },
    /// Dropped without a word.
    Blackhole,
}

impl Route {
    /// The route that drops.
    pub const BLACKHOLE: Self = Self { target: Target::Blackhole, mtu: None, source: None };

    /// A route to `target` without a limit of its own.
    pub const fn to(target: Target) -> Self {
        Self { target, mtu: None, source: None }
    }
}
