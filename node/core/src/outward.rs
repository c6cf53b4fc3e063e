//! The ways to other clusters: for each peer its routes, the groups they go by, and the groups' next hops.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use api::ClusterId;
use api::cluster_peer::PeerState;
use ipnet::IpNet;
use kernel_core::route::BLACKHOLE_METRIC;
use kernel_core::{DeviceName, Family, Group, GroupId, Nexthop, NexthopId, Route, RouteKey, State, Target};
use routing::slots::stable_hash;

use crate::fabric::{Facts, own_source};
use crate::facts::PeerFacts;

/// What a peer's routes are for. Those for one use agree in largest packet, source and table.
///
/// Linux keeps one cached route for each next hop object and core, and gives it to every packet that goes by the object,
/// with the metrics and the table of whichever route was asked first (seen on Linux 6.18, in both families). Routes
/// that differ in these would take one another's, so no two uses share a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Use {
    /// From this host and its pods to the peer's pods and hosts.
    Pods,
    /// From the gateway to the peer's gateways.
    Gateways,
    /// From other hosts, into the tunnels.
    Passing,
}

/// One peer in one family.
#[derive(Clone, Copy)]
struct Way<'a> {
    peer: &'a ClusterId,
    family: Family,
}

/// For each peer and family its groups, and one route and one blackhole for each of its prefixes.
pub(crate) fn add_routes(facts: &Facts<'_>, vxlan: Option<&DeviceName>, state: &mut State) {
    for family in [Family::Ipv4, Family::Ipv6] {
        for (id, peer) in facts.peers {
            // Control addresses are for gateways alone.
            let control = peer.control.filter(|_| facts.is_gateway_host());
            let nets: BTreeSet<IpNet> =
                peer.prefixes.iter().copied().chain(control).filter(|net| Family::of_net(net) == family).collect();
            if !nets.is_empty() {
                add_routes_to(facts, vxlan, Way { peer: id, family }, peer, &nets, state);
            }
        }
    }
}

fn add_routes_to(
    facts: &Facts<'_>,
    vxlan: Option<&DeviceName>,
    way: Way<'_>,
    peer: &PeerFacts,
    nets: &BTreeSet<IpNet>,
    state: &mut State,
) {
    let nowhere = BTreeMap::new();
    let blocked = peer.state == PeerState::Blocked;
    let paths = facts.paths.get(way.peer).unwrap_or(&nowhere);
    let measured = paths.values().copied().min();
    let tunnels = if blocked { Vec::new() } else { tunnels(facts, way) };
    // A gateway host whose own gateway lacks the path, or is about to leave, sends its own packets by another.
    let by_own = !tunnels.is_empty() && (paths.is_empty() || facts.runs_one_of(paths));
    let others = if blocked || by_own { Vec::new() } else { gateways(facts, vxlan, way, paths) };
    let vxlan_mtu = vxlan.and_then(|device| state.links.get(device)).map(|link| link.mtu);
    let mtu = if by_own { measured } else { measured.into_iter().chain(vxlan_mtu).min() };
    let source = own_source(facts, way.family).filter(|_| vxlan.is_some());

    let pods = add_group(state, way, Use::Pods, if others.is_empty() { &tunnels } else { &others });
    let gateways = peer.control.filter(|control| nets.contains(control));
    let gateways = gateways.and_then(|control| Some((control, add_group(state, way, Use::Gateways, &tunnels)?)));
    let passes = !blocked && vxlan.is_some() && facts.is_gateway_host();
    let passing = if passes { add_group(state, way, Use::Passing, &tunnels) } else { None };

    for net in nets {
        state.routes.insert(RouteKey::blackhole(*net), Route::BLACKHOLE);
        if Some(*net) == peer.control {
            continue;
        }
        if let Some(target) = &pods {
            state.routes.insert(RouteKey::carrying(*net), Route { mtu, source, ..Route::to(target.clone()) });
        }
        if passes {
            let key = RouteKey::inward(*net);
            state.routes.insert(RouteKey { metric: BLACKHOLE_METRIC, ..key }, Route::BLACKHOLE);
            if let Some(target) = &passing {
                state.routes.insert(key, Route { mtu: measured, ..Route::to(target.clone()) });
            }
        }
    }
    // A gateway speaks to other gateways from its own control address, which no other may carry.
    if let Some((control, target)) = gateways {
        state.routes.insert(RouteKey::carrying(control), Route { mtu, ..Route::to(target) });
    }
}

/// Those of this host's tunnels that reach a peer; all of them where none is known to.
fn tunnels(facts: &Facts<'_>, way: Way<'_>) -> Vec<Nexthop> {
    let reaching = facts.lanes.get(way.peer);
    let reaches = |slot: u16, lane: usize| {
        let lane = u32::try_from(lane).unwrap_or(u32::MAX);
        let lanes = reaching.and_then(|slots| slots.get(&slot));
        lanes.is_none_or(|lanes| lanes.checked_shr(lane).unwrap_or(0) & 1 == 1)
    };
    let into = |device: &DeviceName| Nexthop { family: way.family, device: device.clone(), via: None };
    let some = facts.lanes_here().filter(|(slot, lane, _)| reaches(*slot, *lane));
    let some: Vec<Nexthop> = some.map(|(_, _, device)| into(device)).collect();
    if some.is_empty() { facts.tunnels().map(into).collect() } else { some }
}

/// The gateways on other hosts that reach a peer, by VXLAN.
fn gateways(facts: &Facts<'_>, vxlan: Option<&DeviceName>, way: Way<'_>, paths: &BTreeMap<u16, u32>) -> Vec<Nexthop> {
    let Some(vxlan) = vxlan else { return Vec::new() };
    let elsewhere =
        paths.keys().filter_map(|slot| facts.gateways.get(slot)).filter(|gateway| gateway.node != facts.node);
    let addresses = elsewhere.filter_map(|gateway| facts.nodes.get(&gateway.node)?.next_hop(&gateway.node, way.family));
    addresses.map(|via| Nexthop { family: way.family, device: vxlan.clone(), via: Some(via) }).collect()
}

/// The group of these next hops, and they themselves; none of none.
///
/// Numbers are made from what they stand for, so that a change of one peer leaves the others in place, and a restarted
/// agent finds its own again.
fn add_group(state: &mut State, way: Way<'_>, purpose: Use, nexthops: &[Nexthop]) -> Option<Target> {
    let mut members = BTreeSet::new();
    for nexthop in nexthops {
        let hash = stable_hash(&(way.peer.as_str(), purpose, nexthop.device.as_str(), nexthop.via));
        // The lowest bit keeps the families apart: the kernel moves no next hop from one to the other.
        let first = first_number(hash) & !1 | u16::from(way.family == Family::Ipv6);
        let number = free_number(first, 2, |number| state.nexthops.contains_key(&NexthopId(number)));
        state.nexthops.insert(NexthopId(number), nexthop.clone());
        members.insert(NexthopId(number));
    }
    let group = Group::equal(members).ok()?;
    let first = first_number(stable_hash(&(way.peer.as_str(), purpose, way.family == Family::Ipv6)));
    let number = free_number(first, 1, |number| state.groups.contains_key(&GroupId(number)));
    state.groups.insert(GroupId(number), group);
    Some(Target::Group(GroupId(number)))
}

fn first_number(hash: u64) -> u16 {
    let [high, low, ..] = hash.to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// The next number that is not taken. There are far fewer groups and next hops than numbers: a hundred peers by eight
/// gateways in two families and three uses are 4,800 of 65,536.
fn free_number(first: u16, step: u16, taken: impl Fn(u16) -> bool) -> u16 {
    let mut number = first;
    while taken(number) {
        number = number.wrapping_add(step);
    }
    number
}
