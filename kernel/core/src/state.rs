//! [`State`]: everything of ours in one kernel, wanted or observed, whole or in part.

use alloc::collections::{BTreeMap, BTreeSet};

use core::net::IpAddr;

use crate::{
    Address, DeviceName, ForwardingKey, Frontend, Group, GroupId, Mac, NeighbourKey, Nexthop, NexthopId, Route,
    RouteKey, Rule, Service, Sets, Setting, Table, Vxlan,
};

/// Everything of ours in the kernel of one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// VXLAN devices of ours, by name; the name begins with [`crate::link::NAME_PREFIX`].
    pub links: BTreeMap<DeviceName, Vxlan>,
    pub addresses: BTreeSet<Address>,
    /// Neighbours on links of ours.
    pub neighbours: BTreeMap<NeighbourKey, Mac>,
    /// Which node is behind a link-layer address, on links of ours.
    pub forwarding: BTreeMap<ForwardingKey, IpAddr>,
    pub nexthops: BTreeMap<NexthopId, Nexthop>,
    pub groups: BTreeMap<GroupId, Group>,
    pub routes: BTreeMap<RouteKey, Route>,
    pub rules: BTreeSet<Rule>,
    /// Settings that are not ours, and the value they should have while we run.
    pub settings: BTreeMap<Setting, u8>,
    /// Our nftables table, made by [`crate::Ruleset::table`]; none: no table, and then no sets and services either.
    pub table: Option<Table>,
    pub sets: Sets,
    pub services: BTreeMap<Frontend, Service>,
}
