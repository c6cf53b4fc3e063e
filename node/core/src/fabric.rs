//! [`fabric`]: links, routes, rules, settings and prefix sets of one host. The ways to peers are in `outward`.
//!
//! All of it depends on few facts (nodes, gateways, peers), so it is made as a whole whenever one of them changes, and
//! compared with what it was. Services and their endpoints, which are many, are not in it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use core::net::IpAddr;

use api::ClusterId;
use api::cluster_peer::PeerState;
use api::local_cluster::{LocalClusterSpec, PodReachability, ServiceMode};
use api::names::{OUTER_MARK, VXLAN_ID, ports};
use ipnet::IpNet;
use kernel_core::setting::LOOSE;
use kernel_core::{
    Address, DeviceName, Family, ForwardingKey, HostClients, NeighbourKey, Route, RouteKey, Rule, Ruleset, Setting,
    State, Target, Vxlan,
};

use crate::connections;
use crate::facts::{GatewayFacts, NodeFacts, PeerFacts, mac_of};
use crate::outward;

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
    pub(crate) fn lanes_here(&self) -> impl Iterator<Item = (u16, usize, &DeviceName)> {
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
    pub(crate) fn runs_one_of<T>(&self, slots: &BTreeMap<u16, T>) -> bool {
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
    outward::add_routes(facts, vxlan.as_ref(), &mut state);
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

/// The address of this host that other clusters can answer.
pub(crate) fn own_source(facts: &Facts<'_>, family: Family) -> Option<IpAddr> {
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
