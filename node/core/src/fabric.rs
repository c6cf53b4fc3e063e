//! [`fabric`]: links, routes, next hops, rules, settings and prefix sets of one host.
//!
//! All of it depends on few facts (nodes, gateways, peers), so it is made as a whole whenever one of them changes, and
//! compared with what it was. Services and their endpoints, which are many, are not in it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use core::net::IpAddr;

use api::ClusterId;
use api::cluster_peer::PeerState;
use api::local_cluster::{LocalClusterSpec, PodReachability, ServiceMode};
use api::names::{OUTER_MARK, VXLAN_ID, ports};
use ipnet::IpNet;
use kernel_core::route::BLACKHOLE_METRIC;
use kernel_core::setting::LOOSE;
use kernel_core::{
    Address, DeviceName, Family, ForwardingKey, Group, GroupId, HostClients, NeighbourKey, Nexthop, NexthopId, Route,
    RouteKey, Rule, Ruleset, Setting, State, Target, Vxlan,
};
use routing::slots::stable_hash;

use crate::connections;
use crate::facts::{GatewayFacts, NodeFacts, PeerFacts, mac_of};

/// Our VXLAN device.
pub const VXLAN_DEVICE: &str = kernel_core::link::NAME_PREFIX;

/// The netlink log group that refused packets are copied to: our number, as for VXLAN. One agent a network namespace.
pub const LOG_GROUP: u16 = 7447;

/// What a packet grows by inside VXLAN: inner Ethernet (14), VXLAN (8), UDP (8) and the outer IP header (20 or 40).
const VXLAN_OVER_IPV4: u32 = 50;
const VXLAN_OVER_IPV6: u32 = 70;

/// Below this a device has no IPv6 (RFC 8200, section 5).
const LEAST_MTU: u32 = 1280;

/// What a fabric is made of.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// This host's node.
    pub node: &'a str,
    /// None until the LocalCluster is known: then nothing is wanted.
    pub local: Option<&'a LocalClusterSpec>,
    pub nodes: &'a BTreeMap<String, NodeFacts>,
    pub gateways: &'a BTreeMap<u16, GatewayFacts>,
    pub peers: &'a BTreeMap<ClusterId, PeerFacts>,
    /// For each peer the gateways that reach it, with the largest packet that does.
    pub paths: &'a BTreeMap<ClusterId, BTreeMap<u16, u32>>,
    /// For each peer the gateways that said by which of their lanes they reach it: bit i for lane i.
    pub lanes: &'a BTreeMap<ClusterId, BTreeMap<u16, u16>>,
    /// Devices that are there and up.
    pub devices: &'a BTreeSet<DeviceName>,
    /// Largest packet of the device that holds this node's address.
    pub underlay_mtu: u32,
}

impl Facts<'_> {
    /// Tunnel devices of gateways on this host that are there now. A gateway host without them is none: its gateway is
    /// gone.
    pub fn tunnels(&self) -> impl Iterator<Item = &DeviceName> {
        self.lanes_here().map(|(_, _, device)| device)
    }

    /// The same with the slot and the lane of each.
    fn lanes_here(&self) -> impl Iterator<Item = (u16, usize, &DeviceName)> {
        let mine = self.gateways.iter().filter(|(_, gateway)| gateway.node == self.node);
        let lanes = mine
            .flat_map(|(slot, gateway)| gateway.devices.iter().enumerate().map(|(lane, device)| (*slot, lane, device)));
        lanes.filter(|(_, _, device)| self.devices.contains(device))
    }

    /// Whether a gateway has its place on this host, running or not.
    pub fn is_gateway_host(&self) -> bool {
        self.gateways.values().any(|gateway| gateway.node == self.node)
    }

    /// Whether the gateway of this host is among these.
    fn runs_one_of<T>(&self, slots: &BTreeMap<u16, T>) -> bool {
        let here = |slot| self.gateways.get(slot).is_some_and(|gateway| gateway.node == self.node);
        slots.keys().any(here)
    }

    fn me(&self) -> Option<&NodeFacts> {
        self.nodes.get(self.node)
    }

    /// The family of VXLAN's outer packets: that of this node's first address.
    fn outer_family(&self) -> Option<Family> {
        self.me()?.addresses.first().map(|address| Family::of(*address))
    }
}

/// Everything wanted on this host but services and endpoints.
pub fn fabric(facts: &Facts<'_>) -> State {
    let mut state = State::default();
    let Some(local) = facts.local else { return state };
    let vxlan = add_vxlan(facts, &mut state);
    add_settings(facts, vxlan.as_ref(), &mut state);
    add_nexthops(facts, vxlan.as_ref(), &mut state);
    add_outward_routes(facts, vxlan.as_ref(), &mut state);
    add_clusterset_routes(facts, local, vxlan.as_ref(), &mut state);
    add_translation_routes(facts, local, &mut state);
    if vxlan.is_some() {
        add_inward_routes(facts, &mut state);
    }
    for family in [Family::Ipv4, Family::Ipv6] {
        state.rules.insert(Rule::unless_marked(family, OUTER_MARK, OUTER_MARK));
        state.rules.extend(facts.tunnels().map(|device| Rule::arriving(family, device.clone())));
        // What other nodes send here by VXLAN goes into a tunnel or nowhere, and never to another gateway: two gateways that
        // sent to each other would do so until the packet's hops run out.
        let carries = vxlan.iter().filter(|_| facts.is_gateway_host());
        state.rules.extend(carries.map(|device| Rule::arriving(family, device.clone())));
    }
    add_sets(facts, local, vxlan.as_ref(), &mut state);
    let me = facts.me();
    let ruleset = Ruleset {
        reachability: match local.pod_reachability {
            PodReachability::Exported => kernel_core::PodReachability::Closed,
            PodReachability::Open => kernel_core::PodReachability::Open,
        },
        transit: facts.is_gateway_host(),
        vxlan_port: vxlan.is_some().then_some(ports::VXLAN),
        host_clients: HostClients {
            ipv4: me.and_then(NodeFacts::infrastructure_v4),
            ipv6: me.and_then(NodeFacts::infrastructure_v6),
        },
        log_group: Some(LOG_GROUP),
        targets: connections::targets(local, facts.peers),
    };
    state.table = Some(ruleset.table());
    state
}

/// The device that joins the nodes, who is behind it, and this node's own addresses on it.
fn add_vxlan(facts: &Facts<'_>, state: &mut State) -> Option<DeviceName> {
    let family = facts.outer_family()?;
    let me = facts.me()?;
    let device = DeviceName::new(VXLAN_DEVICE).ok()?;
    let overhead = if family == Family::Ipv4 { VXLAN_OVER_IPV4 } else { VXLAN_OVER_IPV6 };
    let vxlan = Vxlan {
        vni: VXLAN_ID,
        port: ports::VXLAN,
        local: me.address_of(family)?,
        mac: mac_of(facts.node),
        mtu: facts.underlay_mtu.saturating_sub(overhead).max(LEAST_MTU),
    };
    state.links.insert(device.clone(), vxlan);
    for address in &me.infrastructure {
        state.addresses.insert(Address { device: device.clone(), net: IpNet::from(*address) });
    }
    for (name, node) in facts.nodes.iter().filter(|(name, _)| name.as_str() != facts.node) {
        let Some(outer) = node.address_of(family) else { continue };
        let mac = mac_of(name);
        for address in [Family::Ipv4, Family::Ipv6].into_iter().filter_map(|family| node.next_hop(name, family)) {
            state.neighbours.insert(NeighbourKey { device: device.clone(), address }, mac);
        }
        state.forwarding.insert(ForwardingKey { device: device.clone(), mac }, outer);
    }
    Some(device)
}

fn add_settings(facts: &Facts<'_>, vxlan: Option<&DeviceName>, state: &mut State) {
    let settings = [Setting::ForwardIpv4, Setting::ForwardIpv6, Setting::SpreadIpv4, Setting::SpreadIpv6];
    state.settings.extend(settings.map(|setting| (setting, 1)));
    // What comes by these devices has its way back by another one, or by several.
    let loose = facts.tunnels().chain(vxlan).cloned().map(Setting::ReversePath);
    state.settings.extend(loose.map(|setting| (setting, LOOSE)));
}

/// The number of the next hop that leads to a gateway by VXLAN.
fn gateway_nexthop(slot: u16, family: Family) -> NexthopId {
    NexthopId(2 * slot.min(0x1fff) + u16::from(family == Family::Ipv6))
}

/// The number of the next hop that leads into a tunnel device of this host, by the device's place among them.
fn tunnel_nexthop(place: u16, family: Family) -> NexthopId {
    NexthopId(0x8000 + 2 * place.min(0x1fff) + u16::from(family == Family::Ipv6))
}

fn add_nexthops(facts: &Facts<'_>, vxlan: Option<&DeviceName>, state: &mut State) {
    for family in [Family::Ipv4, Family::Ipv6] {
        for (place, device) in (0u16..).zip(facts.tunnels()) {
            let nexthop = Nexthop { family, device: device.clone(), via: None };
            state.nexthops.insert(tunnel_nexthop(place, family), nexthop);
        }
        let Some(vxlan) = vxlan else { continue };
        for (slot, gateway) in facts.gateways.iter().filter(|(_, gateway)| gateway.node != facts.node) {
            let via = facts.nodes.get(&gateway.node).and_then(|node| node.next_hop(&gateway.node, family));
            if via.is_some() {
                let nexthop = Nexthop { family, device: vxlan.clone(), via };
                state.nexthops.insert(gateway_nexthop(*slot, family), nexthop);
            }
        }
    }
}

/// For each peer and family one group, and one route and one blackhole for each of its prefixes.
///
/// The group has its number from the peer's name, so that a change of one peer leaves the others in place, and a
/// restarted agent finds its groups again.
fn add_outward_routes(facts: &Facts<'_>, vxlan: Option<&DeviceName>, state: &mut State) {
    let vxlan_mtu = vxlan.and_then(|device| state.links.get(device)).map(|link| link.mtu);
    let nowhere = BTreeMap::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        let tunnels = own_tunnels(facts, family, state);
        for (id, peer) in facts.peers {
            // Control addresses are for gateways alone.
            let control = peer.control.filter(|_| facts.is_gateway_host());
            let nets: BTreeSet<IpNet> =
                peer.prefixes.iter().copied().chain(control).filter(|net| Family::of_net(net) == family).collect();
            if nets.is_empty() {
                continue;
            }
            let blocked = peer.state == PeerState::Blocked;
            let paths = facts.paths.get(id).unwrap_or(&nowhere);
            let measured = paths.values().copied().min();
            let tunnels = tunnels.as_ref().filter(|_| !blocked).map(|all| tunnels_to(facts, id, family, all, state));
            // A gateway host whose own gateway lacks the path, or is about to leave, sends its own packets by another.
            let by_own = tunnels.clone().filter(|_| paths.is_empty() || facts.runs_one_of(paths));
            let (target, mtu) = match by_own {
                Some(own) => (Some(own), measured),
                None => {
                    let others = paths.keys().filter(|_| !blocked).map(|slot| gateway_nexthop(*slot, family));
                    let group =
                        Group::equal(others.filter(|id| state.nexthops.contains_key(id)).collect::<BTreeSet<_>>());
                    let target = group.ok().map(|group| {
                        let number = free_group(state, id.as_str(), family);
                        state.groups.insert(number, group);
                        Target::Group(number)
                    });
                    (target.or_else(|| tunnels.clone()), measured.into_iter().chain(vxlan_mtu).min())
                }
            };
            let source = own_source(facts, family).filter(|_| vxlan.is_some());
            for net in nets {
                state.routes.insert(RouteKey::blackhole(net), Route::BLACKHOLE);
                let to_gateways = Some(net) == peer.control;
                if let Some(target) = if to_gateways { &tunnels } else { &target } {
                    // A gateway speaks to other gateways from its own control address, which no other may carry.
                    let source = source.filter(|_| !to_gateways);
                    state.routes.insert(RouteKey::carrying(net), Route { mtu, source, ..Route::to(target.clone()) });
                }
                if to_gateways || blocked || vxlan.is_none() || !facts.is_gateway_host() {
                    continue;
                }
                let passing = RouteKey::inward(net);
                state.routes.insert(RouteKey { metric: BLACKHOLE_METRIC, ..passing }, Route::BLACKHOLE);
                if let Some(tunnels) = &tunnels {
                    let route = Route { mtu: measured, ..Route::to(tunnels.clone()) };
                    state.routes.insert(passing, route);
                }
            }
        }
    }
}

/// The group of this host's tunnels, which all peers share; none where no gateway runs.
fn own_tunnels(facts: &Facts<'_>, family: Family, state: &mut State) -> Option<Target> {
    let tunnels: BTreeSet<NexthopId> =
        (0u16..).zip(facts.tunnels()).map(|(place, _)| tunnel_nexthop(place, family)).collect();
    let group = Group::equal(tunnels).ok()?;
    // No cluster has an empty name.
    let number = free_group(state, "", family);
    state.groups.insert(number, group);
    Some(Target::Group(number))
}

/// The group of those of this host's tunnels that reach a peer; that of all of them where all do, or none is known to.
fn tunnels_to(facts: &Facts<'_>, peer: &ClusterId, family: Family, all: &Target, state: &mut State) -> Target {
    let Some(reaching) = facts.lanes.get(peer) else { return all.clone() };
    let reaches = |slot: u16, lane: usize| {
        let lane = u32::try_from(lane).unwrap_or(u32::MAX);
        reaching.get(&slot).is_none_or(|lanes| lanes.checked_shr(lane).unwrap_or(0) & 1 == 1)
    };
    let places = (0u16..).zip(facts.lanes_here()).filter(|(_, (slot, lane, _))| reaches(*slot, *lane));
    let some: BTreeSet<NexthopId> = places.map(|(place, _)| tunnel_nexthop(place, family)).collect();
    if some.len() == facts.tunnels().count() {
        return all.clone();
    }
    let Ok(group) = Group::equal(some) else { return all.clone() };
    // No cluster's name has a slash: the group of its gateways elsewhere has the name alone.
    let number = free_group(state, &format!("{}/lanes", peer.as_str()), family);
    state.groups.insert(number, group);
    Target::Group(number)
}

fn free_group(state: &State, peer: &str, family: Family) -> GroupId {
    let [high, low, ..] = stable_hash(&(peer, family == Family::Ipv6)).to_be_bytes();
    let mut number = u16::from_be_bytes([high, low]);
    // There are far fewer groups than numbers.
    while state.groups.contains_key(&GroupId(number)) {
        number = number.wrapping_add(1);
    }
    GroupId(number)
}

/// The address of this host that other clusters can answer.
fn own_source(facts: &Facts<'_>, family: Family) -> Option<IpAddr> {
    facts.me()?.infrastructure.iter().copied().find(|address| Family::of(*address) == family)
}

/// The host's own clients need a route before their packets are translated; nothing ever leaves by it.
fn add_clusterset_routes(facts: &Facts<'_>, local: &LocalClusterSpec, vxlan: Option<&DeviceName>, state: &mut State) {
    if local.service_mode != ServiceMode::Nftables {
        return;
    }
    for prefix in &local.cluster_set_prefixes {
        let net = prefix.net();
        state.routes.insert(RouteKey::blackhole(net), Route::BLACKHOLE);
        if let Some(vxlan) = vxlan {
            let target = Target::Device { device: vxlan.clone(), via: None };
            let source = own_source(facts, Family::of_net(&net));
            state.routes.insert(RouteKey::carrying(net), Route { source, ..Route::to(target) });
        }
    }
}

/// What no peer is seen as leads nowhere: also while an endpoint is known here before its peer's translation is, and when
/// the peer is gone and its clients are not. A range that nodes live on was chosen wrongly, and is left alone.
fn add_translation_routes(facts: &Facts<'_>, local: &LocalClusterSpec, state: &mut State) {
    let nodes = || facts.nodes.values().flat_map(|node| &node.addresses);
    let pools = local.translation_prefixes.iter().map(|prefix| prefix.net());
    let free = pools.filter(|net| !nodes().any(|address| net.contains(address)));
    state.routes.extend(free.map(|net| (RouteKey::blackhole(net), Route::BLACKHOLE)));
}

/// From a tunnel to the endpoint's node.
fn add_inward_routes(facts: &Facts<'_>, state: &mut State) {
    if facts.tunnels().next().is_none() {
        return;
    }
    for (name, node) in facts.nodes.iter().filter(|(name, _)| name.as_str() != facts.node) {
        for net in node.inward_prefixes() {
            if let Some(route) = node.next_hop(name, Family::of_net(&net)).and_then(vxlan_route) {
                state.routes.insert(RouteKey::inward(net), route);
            }
        }
    }
}

/// The route by our VXLAN device to the node with that next hop.
pub(crate) fn vxlan_route(via: IpAddr) -> Option<Route> {
    let device = DeviceName::new(VXLAN_DEVICE).ok()?;
    Some(Route::to(Target::Device { device, via: Some(via) }))
}

fn add_sets(facts: &Facts<'_>, local: &LocalClusterSpec, vxlan: Option<&DeviceName>, state: &mut State) {
    let sets = &mut state.sets;
    let connected = facts.peers.values().filter(|peer| peer.state != PeerState::Blocked);
    for peer in connected {
        sets.remote.extend(&peer.prefixes);
        if facts.is_gateway_host() {
            sets.control.extend(&peer.control);
        }
    }
    sets.local = local.advertised_prefixes().map(|prefix| prefix.net()).collect();
    if local.service_mode == ServiceMode::Nftables {
        sets.clusterset = local.cluster_set_prefixes.iter().map(|prefix| prefix.net()).collect();
    }
    if let Some(me) = facts.me() {
        sets.here = me.inward_prefixes().collect();
    }
    sets.nodes = facts.nodes.values().flat_map(|node| node.addresses.iter().copied()).collect();
    sets.tunnels = facts.tunnels().chain(vxlan).cloned().collect();
}
