//! What a worker and a gateway host want, as promises.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use api::TranslatedPrefix;
use api::cluster_peer::PeerState;
use api::health::{HealthReport, Reachability};
use api::local_cluster::PodReachability;
use api::member_record::MemberState;
use kernel_core::route::{BLACKHOLE_METRIC, METRIC};
use kernel_core::setting::LOOSE;
use kernel_core::{
    DeviceName, Exported, NexthopId, Protocol, RouteKey, RouteTable, Rule, Selector, Setting, State, Target,
};
use node_core::fabric::VXLAN_DEVICE;
use node_core::{Input, NodeCore, ObjectChange};
use routing::gateway_reports::UNANSWERED;
use world::*;

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

fn device(name: &str) -> DeviceName {
    DeviceName::new(name).unwrap()
}

/// The devices and next hops a prefix is routed by; empty when only the blackhole is left.
fn ways(state: &State, prefix: &str) -> Vec<(String, Option<String>)> {
    let Some(route) = state.routes.get(&RouteKey::carrying(net(prefix))) else { return vec![] };
    let Target::Group(group) = &route.target else { panic!("{prefix} is not routed by a group") };
    let members = state.groups[group].members().keys().map(|id| &state.nexthops[id]);
    let mut ways: Vec<_> = members.map(|hop| (hop.device.to_string(), hop.via.map(|via| via.to_string()))).collect();
    ways.sort();
    ways
}

fn has_blackhole(state: &State, prefix: &str) -> bool {
    state.routes.contains_key(&RouteKey::blackhole(net(prefix)))
}

#[test]
fn a_worker_routes_other_clusters_by_the_gateways_node_inside_vxlan_with_a_blackhole_behind() {
    let state = host("worker").wanted();
    for prefix in ["10.2.0.0/16", "10.3.0.0/16"] {
        assert_eq!(ways(&state, prefix), [(VXLAN_DEVICE.into(), Some("172.31.1.1".into()))]);
        assert!(has_blackhole(&state, prefix));
    }
    let [(tombolo, Some(via))] = &ways(&state, "fd00:2::/48")[..] else { panic!("no way for IPv6") };
    assert!(tombolo == VXLAN_DEVICE && via.starts_with("fe80::"), "{via}");
    let route = &state.routes[&RouteKey::carrying(net("10.2.0.0/16"))];
    assert_eq!(route.mtu, Some(1370));
    assert_eq!(route.source, Some("10.101.0.2".parse().unwrap()));
    assert!(!state.routes.keys().any(|key| key.table == RouteTable::Inward));
}

#[test]
fn a_gateway_host_sends_to_a_peer_by_those_lanes_that_reach_it() {
    let mut core = host("gateway");
    let mut slot = gateway(0, "gateway");
    let lanes = &mut slot.status.as_mut().unwrap().lanes;
    lanes.push(api::tunnel_gateway::LaneStatus { device: "tombolo-0-1".into(), ..lanes[0].clone() });
    core.take(Input::TunnelGateways(ObjectChange::Reset(vec![slot])), at(20));
    core.take(devices(&["lo", "eth0", TUNNEL, "tombolo-0-1"]), at(20));
    let by = |core: &mut NodeCore, lanes: u16, prefix: &str| {
        let mut told = report(0, &[("birch", Reachability::Up), ("cedar", Reachability::Up)]);
        told.peers[0].lanes = lanes;
        told.peers[1].lanes = 0b11;
        core.take(Input::Report(told), at(30));
        core.delta(at(30));
        let ways = ways(&core.wanted(), prefix).into_iter().map(|(device, _)| device);
        ways.collect::<Vec<String>>()
    };
    let both = [TUNNEL.to_string(), "tombolo-0-1".to_string()];
    assert_eq!(by(&mut core, 0b11, "10.2.0.0/16"), both);
    assert_eq!(by(&mut core, 0b10, "10.2.0.0/16"), both[1..]);
    assert_eq!(by(&mut core, 0b10, "fd00:2::/48"), both[1..]);
    assert_eq!(by(&mut core, 0b10, "10.3.0.0/16"), both, "another peer is no concern of it");
    assert_eq!(by(&mut core, 0b01, "10.2.0.0/16"), both[..1]);
    assert_eq!(by(&mut core, 0, "10.2.0.0/16"), both, "better than nothing");
    assert_eq!(by(&mut core, 0b11, "10.2.0.0/16"), both);
}

#[test]
fn a_route_is_never_larger_than_the_vxlan_device() {
    let mut core = host("worker");
    core.take(Input::UnderlayMtu(1400), at(20));
    core.delta(at(20));
    let state = core.wanted();
    assert_eq!(state.links[&device(VXLAN_DEVICE)].mtu, 1350);
    assert_eq!(state.routes[&RouteKey::carrying(net("10.2.0.0/16"))].mtu, Some(1350));
}

#[test]
fn a_gateway_host_routes_other_clusters_into_its_tunnels_and_what_comes_out_to_the_endpoints_node() {
    let state = host("gateway").wanted();
    assert_eq!(ways(&state, "10.2.0.0/16"), [(TUNNEL.into(), None)]);
    assert!(has_blackhole(&state, "10.2.0.0/16"));
    for (prefix, via) in [("10.1.2.0/24", "172.31.1.2"), ("10.101.0.2/32", "172.31.1.2"), ("10.1.3.0/24", "172.31.1.3")]
    {
        let target = &state.routes[&RouteKey::inward(net(prefix))].target;
        assert_eq!(*target, Target::Device { device: device(VXLAN_DEVICE), via: Some(via.parse().unwrap()) });
    }
    assert!(!state.routes.contains_key(&RouteKey::inward(net("10.1.1.0/24"))), "its own pods are not elsewhere");
    for family in [kernel_core::Family::Ipv4, kernel_core::Family::Ipv6] {
        assert!(state.rules.contains(&Rule::arriving(family, device(TUNNEL))));
    }
}

#[test]
fn a_gateway_host_also_routes_the_control_addresses_of_peers_and_a_worker_does_not() {
    let control = |state: &State| {
        state.routes.keys().filter(|key| key.destination.prefix_len() == 64 && key.table == RouteTable::Outward).count()
    };
    assert_eq!(control(&host("gateway").wanted()), 4, "a route and a blackhole for each of two peers");
    assert_eq!(control(&host("worker").wanted()), 0);
    assert_eq!(host("gateway").wanted().sets.control.len(), 2);
}

/// Which of the addresses have a way of their own from the tunnel, when they are exported endpoints on the worker.
fn ways_in<'a>(addresses: &[&'a str]) -> Vec<&'a str> {
    let mut core = host("gateway");
    let endpoints: Vec<_> = addresses.iter().map(|address| (*address, true, Some("worker"))).collect();
    let inputs = vec![
        Input::Services(ObjectChange::Applied(service("web"))),
        Input::ServiceExports(ObjectChange::Applied(export("web"))),
        Input::EndpointSlices(ObjectChange::Applied(own("web", &endpoints))),
    ];
    after(&mut core, at(20), inputs);
    let routes = core.wanted().routes;
    let has_a_way = |address: &&str| routes.contains_key(&RouteKey::inward(net(&format!("{address}/32"))));
    addresses.iter().copied().filter(has_a_way).collect()
}

#[test]
fn an_endpoint_outside_its_nodes_prefixes_gets_a_way_of_its_own_from_the_tunnel() {
    assert_eq!(ways_in(&["10.1.9.9", "10.1.2.7"]), ["10.1.9.9"]);
}

#[test]
fn an_endpoint_outside_its_clusters_prefixes_gets_no_way() {
    // No peer takes it, and the way would draw what is meant for its true owner.
    assert_eq!(ways_in(&["10.7.9.9", "10.1.9.9"]), ["10.1.9.9"]);
}

#[test]
fn when_a_gateways_tunnel_is_gone_its_host_keeps_the_blackhole() {
    let mut core = host("gateway");
    let (delta, _) = after(&mut core, at(20), vec![devices(&["lo", "eth0"])]);
    let state = core.wanted();
    assert_eq!(ways(&state, "10.2.0.0/16"), []);
    assert!(has_blackhole(&state, "10.2.0.0/16"));
    assert!(!delta.whole);
}

#[test]
fn a_silent_gateway_leaves_the_routes_in_time_and_returns_with_its_next_answer() {
    let mut core = host("worker");
    core.take(Input::TunnelGateways(ObjectChange::Applied(gateway(1, "other"))), at(3_000));
    let both = [("birch", Reachability::Up), ("cedar", Reachability::Up)];
    for slot in [0, 1] {
        core.take(Input::Report(report(slot, &both)), at(3_000));
    }
    core.delta(at(3_000));
    assert_eq!(ways(&core.wanted(), "10.2.0.0/16").len(), 2);
    core.take(Input::Report(report(1, &both)), at(3_300));
    for _ in 0..UNANSWERED {
        core.take(Input::Asked(0), at(3_390));
    }
    core.delta(at(3_399));
    assert_eq!(ways(&core.wanted(), "10.2.0.0/16").len(), 2);
    assert_eq!(core.next_look(), Some(at(3_400)));
    core.delta(at(3_400));
    assert_eq!(ways(&core.wanted(), "10.2.0.0/16"), [(VXLAN_DEVICE.into(), Some("172.31.1.3".into()))]);
    core.take(Input::Report(report(0, &both)), at(3_500));
    core.delta(at(3_500));
    assert_eq!(ways(&core.wanted(), "10.2.0.0/16").len(), 2);
}

#[test]
fn an_agent_that_was_asleep_and_asked_nobody_takes_no_gateway_as_silent() {
    let mut core = host("worker");
    core.take(Input::Asked(0), at(110));
    core.delta(at(60_000));
    assert_eq!(ways(&core.wanted(), "10.2.0.0/16").len(), 1);
}

/// The gateway host of slot 0, with a second gateway on another node; both reach both peers.
fn one_of_two() -> NodeCore {
    with_two_gateways("gateway")
}

fn with_two_gateways(node: &str) -> NodeCore {
    let mut core = host(node);
    core.take(Input::TunnelGateways(ObjectChange::Applied(gateway(1, "other"))), at(20));
    let both = [("birch", Reachability::Up), ("cedar", Reachability::Up)];
    core.take(Input::Report(report(1, &both)), at(20));
    core.delta(at(20));
    core
}

/// The devices that packets from other nodes to a prefix leave by.
fn passed_on(state: &State, prefix: &str) -> Vec<String> {
    let Some(route) = state.routes.get(&RouteKey::inward(net(prefix))) else { return vec![] };
    let Target::Group(group) = &route.target else { panic!("{prefix} is not routed by a group") };
    let mut devices: Vec<_> =
        state.groups[group].members().keys().map(|id| state.nexthops[id].device.to_string()).collect();
    devices.sort();
    devices
}

/// Linux gives a packet the metrics and the source of any route that shares the next hop.
#[test]
fn routes_share_a_next_hop_only_where_they_agree_in_all_else() {
    for node in ["gateway", "worker"] {
        let state = with_two_gateways(node).wanted();
        let mut uses: BTreeMap<NexthopId, BTreeSet<_>> = BTreeMap::new();
        for (key, route) in &state.routes {
            if let Target::Group(group) = &route.target {
                for id in state.groups[group].members().keys() {
                    uses.entry(*id).or_default().insert((key.table, route.mtu, route.source));
                }
            }
        }
        assert!(!uses.is_empty());
        for (id, uses) in uses {
            assert_eq!(uses.len(), 1, "{node}: {id:?} serves {uses:?}");
        }
    }
}

#[test]
fn a_gateway_host_sends_by_its_own_tunnels_while_its_gateway_reaches_the_peer() {
    let state = one_of_two().wanted();
    assert_eq!(ways(&state, "10.2.0.0/16"), [(TUNNEL.into(), None)]);
    assert_eq!(passed_on(&state, "10.2.0.0/16"), [TUNNEL]);
}

#[test]
fn a_gateway_host_sends_its_own_packets_by_another_gateway_while_its_own_lacks_the_path_or_is_leaving() {
    let half = [("birch", Reachability::Down), ("cedar", Reachability::Up)];
    let both = [("birch", Reachability::Up), ("cedar", Reachability::Up)];
    let leaving = HealthReport { draining: true, ..report(0, &both) };
    for (report, cedar) in [(report(0, &half), TUNNEL), (leaving, VXLAN_DEVICE)] {
        let mut core = one_of_two();
        core.take(Input::Report(report), at(30));
        core.delta(at(30));
        let state = core.wanted();
        assert_eq!(ways(&state, "10.2.0.0/16"), [(VXLAN_DEVICE.into(), Some("172.31.1.3".into()))]);
        assert_eq!(ways(&state, "10.3.0.0/16")[0].0, cedar);
    }
}

#[test]
fn what_other_nodes_send_to_a_gateway_host_never_goes_on_to_another_gateway() {
    let mut core = one_of_two();
    core.take(Input::Report(report(0, &[("birch", Reachability::Down), ("cedar", Reachability::Down)])), at(30));
    core.delta(at(30));
    let state = core.wanted();
    for prefix in ["10.2.0.0/16", "fd00:2::/48", "10.3.0.0/16"] {
        assert_eq!(passed_on(&state, prefix), [TUNNEL]);
    }
    for family in [kernel_core::Family::Ipv4, kernel_core::Family::Ipv6] {
        assert!(state.rules.contains(&Rule::arriving(family, device(VXLAN_DEVICE))));
    }
    after(&mut core, at(40), vec![devices(&["lo", "eth0"])]);
    let state = core.wanted();
    assert!(passed_on(&state, "10.2.0.0/16").is_empty(), "its gateway is gone");
    let behind = RouteKey { metric: BLACKHOLE_METRIC, ..RouteKey::inward(net("10.2.0.0/16")) };
    assert_eq!(state.routes[&behind].target, Target::Blackhole);
    assert!(state.rules.contains(&Rule::arriving(kernel_core::Family::Ipv4, device(VXLAN_DEVICE))));

    let worker = host("worker").wanted();
    assert!(!worker.rules.iter().any(|rule| matches!(rule.selector, Selector::From(_))), "it passes nothing on");
}

#[test]
fn gateways_speak_to_each_other_by_their_own_tunnels_alone() {
    let mut core = one_of_two();
    core.take(Input::Report(report(0, &[("birch", Reachability::Down), ("cedar", Reachability::Up)])), at(30));
    core.delta(at(30));
    let state = core.wanted();
    let outward = |key: &&RouteKey| key.table == RouteTable::Outward && key.metric == METRIC;
    let control: Vec<_> =
        state.routes.keys().filter(outward).filter(|key| key.destination.prefix_len() == 64).collect();
    assert_eq!(control.len(), 2);
    for key in control {
        assert_eq!(ways(&state, &key.destination.to_string()), [(TUNNEL.into(), None)]);
        assert!(passed_on(&state, &key.destination.to_string()).is_empty());
    }
}

#[test]
fn a_gateway_without_a_path_to_one_peer_carries_only_the_others() {
    let mut core = with_two_gateways("worker");
    let up = ways(&core.wanted(), "10.3.0.0/16");
    assert_eq!(up.len(), 2);
    core.take(Input::Report(report(0, &[("birch", Reachability::Down), ("cedar", Reachability::Up)])), at(30));
    let delta = core.delta(at(30));
    let state = core.wanted();
    assert_eq!(ways(&state, "10.2.0.0/16").len(), 1);
    assert_eq!(ways(&state, "10.3.0.0/16"), up);
    assert!(!delta.whole && delta.services_touched == 0);
}

#[test]
fn open_connections_to_a_peer_that_no_gateway_reaches_keep_the_gateways_that_answer_and_new_ones_go_elsewhere() {
    let mut core = with_two_gateways("worker");
    let half = [("birch", Reachability::Down), ("cedar", Reachability::Up)];
    core.take(Input::Report(report(0, &half)), at(30));
    core.take(Input::Report(report(1, &half)), at(30));
    core.delta(at(30));
    let state = core.wanted();
    assert_eq!(ways(&state, "10.2.0.0/16").len(), 2);
    assert!(has_blackhole(&state, "10.2.0.0/16"));
    let slots = state.services.values().next().unwrap().slots().to_vec();
    assert!(slots.iter().all(|slot| slot.address.to_string().starts_with("10.3.")), "{slots:?}");
}

#[test]
fn just_after_the_start_gateways_are_taken_as_reachable_until_they_had_time_to_answer() {
    let mut core = NodeCore::new("worker", at(0));
    objects().into_iter().for_each(|input| core.take(input, at(0)));
    core.delta(at(0));
    assert_eq!(ways(&core.wanted(), "10.2.0.0/16").len(), 1);
    assert!(!core.wanted().services.values().next().unwrap().slots().is_empty());
    let end = core.next_look().unwrap();
    core.delta(end);
    assert_eq!(ways(&core.wanted(), "10.2.0.0/16").len(), 1, "open connections lose nothing by it");
    assert!(core.wanted().services.values().next().unwrap().slots().is_empty());
}

#[test]
fn to_a_blocked_peer_there_is_only_a_blackhole_and_it_is_no_member() {
    let mut core = host("worker");
    let blocked = peer_in("birch", 2, MemberState::Active, PeerState::Blocked);
    after(&mut core, at(20), vec![Input::ClusterPeers(ObjectChange::Applied(blocked))]);
    let state = core.wanted();
    assert_eq!(ways(&state, "10.2.0.0/16"), []);
    assert!(has_blackhole(&state, "10.2.0.0/16"));
    assert!(!state.sets.remote.contains(&net("10.2.0.0/16")) && state.sets.remote.contains(&net("10.3.0.0/16")));
}

#[test]
fn a_drained_peer_keeps_its_routes_for_connections_that_are_open() {
    let mut core = host("worker");
    let drained = peer_in("birch", 2, MemberState::Active, PeerState::Drained);
    after(&mut core, at(20), vec![Input::ClusterPeers(ObjectChange::Applied(drained))]);
    let state = core.wanted();
    assert_eq!(ways(&state, "10.2.0.0/16").len(), 1);
    let slots = state.services.values().next().unwrap().slots().to_vec();
    assert!(slots.iter().all(|slot| slot.address.to_string().starts_with("10.3.")), "{slots:?}");
}

#[test]
fn a_prefix_that_is_ours_is_refused_by_name_and_the_peers_other_prefix_is_routed() {
    let mut core = host("worker");
    let mut greedy = local();
    greedy.spec.pod_prefixes.push("10.2.0.0/16".parse().unwrap());
    after(&mut core, at(20), vec![Input::LocalClusters(ObjectChange::Applied(greedy))]);
    let state = core.wanted();
    assert!(!state.routes.contains_key(&RouteKey::carrying(net("10.2.0.0/16"))));
    assert_eq!(ways(&state, "fd00:2::/48").len(), 1);
    let problem = core.problems().iter().next().unwrap();
    assert_eq!((problem.0.1.1.as_str(), problem.1.name()), ("birch", "PrefixRefused"));
}

#[test]
fn an_overlapping_peer_is_reached_by_the_prefix_it_is_seen_as_and_leads_nowhere_when_blocked() {
    let mut local = local();
    local.spec.translation_prefixes = vec!["10.240.0.0/12".parse().unwrap()];
    for state in [PeerState::Active, PeerState::Blocked] {
        let mut core = host("worker");
        // Birch has 10.1.0.0/16, as this cluster has.
        let mut birch = peer_in("birch", 1, MemberState::Active, state);
        birch.spec.allow_overlap = true;
        let (real, seen) = ("10.1.0.0/16".parse().unwrap(), "10.241.0.0/16".parse().unwrap());
        birch.status = Some(Default::default());
        birch.status.as_mut().unwrap().translations = vec![TranslatedPrefix { real, seen }];
        let changes = vec![
            Input::LocalClusters(ObjectChange::Applied(local.clone())),
            Input::ClusterPeers(ObjectChange::Applied(birch)),
        ];
        after(&mut core, at(20), changes);
        let wanted = core.wanted();
        assert!(has_blackhole(&wanted, "10.241.0.0/16"), "{state:?}");
        assert_eq!(ways(&wanted, "10.241.0.0/16").len(), usize::from(state == PeerState::Active));
        assert!(!wanted.routes.keys().any(|key| key.destination == net("10.1.0.0/16")), "our own pods stay ours");
    }
}

#[test]
fn addresses_that_no_peer_is_seen_as_leave_the_host_by_no_route_of_another() {
    let mut local = local();
    // The third is where nodes live.
    const NODES: &str = "172.31.1.0/24";
    let pools = ["10.240.0.0/12", "fd0f::/16", NODES];
    local.spec.translation_prefixes = pools.map(|text| text.parse().unwrap()).to_vec();
    let mut core = host("worker");
    after(&mut core, at(20), vec![Input::LocalClusters(ObjectChange::Applied(local))]);
    let wanted = core.wanted();
    let held = pools.map(|text| has_blackhole(&wanted, text));
    assert_eq!(held, [true, true, false]);
}

#[test]
fn a_prefix_that_a_node_of_ours_lives_on_is_refused_by_name_also_of_a_blocked_peer() {
    for state in [PeerState::Active, PeerState::Blocked] {
        let mut core = host("worker");
        let peer = peer_in("birch", 2, MemberState::Active, state);
        after(&mut core, at(20), vec![Input::ClusterPeers(ObjectChange::Applied(peer))]);
        assert!(core.wanted().routes.contains_key(&RouteKey::blackhole(net("10.2.0.0/16"))));
        let mut inside = node("inside", 9);
        inside.status.as_mut().unwrap().addresses.as_mut().unwrap()[0].address = "10.2.9.9".into();
        let joins = Input::Nodes(ObjectChange::Applied(inside.clone()));
        after(&mut core, at(30), vec![joins]);
        let wanted = core.wanted();
        // Neither into the tunnel nor into the blackhole: the outer packets of VXLAN take the host's own routes.
        assert!(!wanted.routes.keys().any(|key| key.destination == net("10.2.0.0/16")), "{state:?}");
        assert!(!wanted.sets.remote.contains(&net("10.2.0.0/16")));
        assert!(wanted.routes.contains_key(&RouteKey::blackhole(net("fd00:2::/48"))), "the other prefix stays");
        let problem = core.problems().iter().map(|(_, problem)| problem.to_string()).next().unwrap();
        assert!(problem.contains("10.2.9.9 of node inside"), "{problem}");
        after(&mut core, at(40), vec![Input::Nodes(ObjectChange::Deleted(inside))]);
        assert!(core.wanted().routes.contains_key(&RouteKey::blackhole(net("10.2.0.0/16"))));
    }
}

#[test]
fn every_host_asks_our_table_for_all_but_outer_packets_and_changes_only_listed_settings() {
    for name in ["worker", "gateway"] {
        let state = host(name).wanted();
        assert!(state.rules.iter().all(|rule| rule.priority < 512));
        let marked = state.rules.iter().filter(|rule| matches!(rule.selector, Selector::NotMarked { .. })).count();
        assert_eq!(marked, 2, "one a family");
        assert_eq!(state.settings[&Setting::ForwardIpv4], 1);
        assert_eq!(state.settings[&Setting::ReversePath(device(VXLAN_DEVICE))], LOOSE);
    }
}

#[test]
fn the_nodes_of_a_cluster_know_each_other_on_the_vxlan_device_without_asking() {
    let (worker, gateway) = (host("worker").wanted(), host("gateway").wanted());
    let own = &gateway.links[&device(VXLAN_DEVICE)];
    let outer = worker.forwarding.iter().find(|(key, _)| key.mac == own.mac).unwrap().1;
    assert_eq!(*outer, own.local);
    let via = worker.nexthops.values().find_map(|hop| hop.via).unwrap();
    assert!(worker.neighbours.iter().any(|(key, mac)| key.address == via && *mac == own.mac));
    assert_eq!(worker.sets.nodes.len(), 3);
}

#[test]
fn pods_are_closed_until_exported_and_open_where_the_operator_says_so() {
    let admitted = Exported { address: "10.1.2.7".parse().unwrap(), protocol: Protocol::Tcp, port: 8080 };
    let mut core = host("worker");
    let endpoints = own("web", &[("10.1.2.7", true, Some("worker")), ("10.1.3.7", true, Some("other"))]);
    after(
        &mut core,
        at(20),
        vec![
            Input::EndpointSlices(ObjectChange::Applied(endpoints)),
            Input::Services(ObjectChange::Applied(service("web"))),
        ],
    );
    assert!(core.wanted().sets.exported.is_empty());
    let (_, changes) = after(&mut core, at(30), vec![Input::ServiceExports(ObjectChange::Applied(export("web")))]);
    assert_eq!(core.wanted().sets.exported, [admitted].into());
    assert_eq!(core.wanted().sets.echo, [admitted.address].into(), "what is exported may be pinged");
    assert_eq!(changes.len(), 2, "{changes:?}");
    let (_, changes) = after(&mut core, at(40), vec![Input::ServiceExports(ObjectChange::Deleted(export("web")))]);
    assert!(core.wanted().sets.exported.is_empty() && core.wanted().sets.echo.is_empty());
    assert_eq!(changes.len(), 2, "{changes:?}");

    let closed = core.wanted().table;
    let mut open = local();
    open.spec.pod_reachability = PodReachability::Open;
    after(&mut core, at(50), vec![Input::LocalClusters(ObjectChange::Applied(open))]);
    assert_ne!(core.wanted().table, closed);
}

#[test]
fn two_exports_of_one_endpoint_admit_it_until_both_are_gone() {
    let mut core = host("worker");
    for name in ["web", "alias"] {
        let inputs = vec![
            Input::Services(ObjectChange::Applied(service(name))),
            Input::ServiceExports(ObjectChange::Applied(export(name))),
            Input::EndpointSlices(ObjectChange::Applied(own(name, &[("10.1.2.7", true, Some("worker"))]))),
        ];
        after(&mut core, at(20), inputs);
    }
    let (_, changes) = after(&mut core, at(30), vec![Input::Services(ObjectChange::Deleted(service("web")))]);
    assert!(changes.is_empty() && core.wanted().sets.exported.len() == 1);
    after(&mut core, at(40), vec![Input::ServiceExports(ObjectChange::Deleted(export("alias")))]);
    assert!(core.wanted().sets.exported.is_empty());
}

#[test]
fn without_a_local_cluster_nothing_is_wanted() {
    let mut core = host("worker");
    let (delta, _) = after(&mut core, at(20), vec![Input::LocalClusters(ObjectChange::Reset(vec![]))]);
    assert!(delta.whole);
    assert_eq!(core.wanted(), State::default());
    assert_eq!(core.awaiting().len(), 1);
}

#[test]
fn an_endpoint_that_left_is_admitted_until_other_clusters_had_time_to_know() {
    let mut core = host("worker");
    let inputs = vec![
        Input::Services(ObjectChange::Applied(service("web"))),
        Input::ServiceExports(ObjectChange::Applied(export("web"))),
        Input::EndpointSlices(ObjectChange::Applied(own("web", &[("10.1.2.7", true, Some("worker"))]))),
    ];
    after(&mut core, at(20), inputs);
    let moved = own("web", &[("10.1.2.8", true, Some("worker"))]);
    after(&mut core, at(30), vec![Input::EndpointSlices(ObjectChange::Applied(moved))]);
    assert_eq!(core.wanted().sets.exported.len(), 2, "the old one lingers beside the new one");
    let over = core.next_look().unwrap();
    assert!(over <= at(30 + 5_000), "nobody would look again in time: {over:?}");
    core.delta(at(30 + 5_000));
    assert_eq!(core.wanted().sets.exported.len(), 1);

    let gone = own("web", &[("10.1.2.8", true, Some("worker"))]);
    after(&mut core, at(6_000), vec![Input::EndpointSlices(ObjectChange::Deleted(gone))]);
    assert_eq!(core.wanted().sets.exported.len(), 1);
    after(&mut core, at(6_010), vec![Input::ServiceExports(ObjectChange::Deleted(export("web")))]);
    assert!(core.wanted().sets.exported.is_empty(), "what is no longer exported closes at once");
}
