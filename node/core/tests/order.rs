//! Whatever the order of what a node is told, it wants the same in the end; and the sum of its deltas is the whole.

mod world;

use std::collections::BTreeMap;

use api::cluster_peer::PeerState;
use api::health::Reachability;
use api::member_record::MemberState;
use kernel_core::{RouteKey, RouteTable, State};
use node_core::{Delta, Input, NodeCore, ObjectChange};
use proptest::prelude::*;
use world::*;

/// One thing a node may be told; the last of each kind and number counts.
#[derive(Clone, Debug)]
enum Story {
    Peer(u8, u8),
    Node(u8, bool),
    Gateway(u8, bool),
    Import(u8, u8),
    Imported(u8, u8, Vec<(u8, bool)>),
    Own(u8, Vec<(u8, u8)>),
    Export(u8, bool),
    Service(u8, bool),
    Report(u8, u8),
    Tunnel(bool),
}

const NODES: [&str; 3] = ["gateway", "worker", "other"];
const PEERS: [&str; 2] = ["birch", "cedar"];

fn story() -> impl Strategy<Value = Story> {
    let endpoints = proptest::collection::vec((0u8..4, any::<bool>()), 0..4);
    let own = proptest::collection::vec((0u8..4, 0u8..3), 0..4);
    prop_oneof![
        (0u8..2, 0u8..5).prop_map(|(peer, state)| Story::Peer(peer, state)),
        (0u8..3, any::<bool>()).prop_map(|(node, there)| Story::Node(node, there)),
        (0u8..2, any::<bool>()).prop_map(|(slot, there)| Story::Gateway(slot, there)),
        (0u8..3, 0u8..4).prop_map(|(service, how)| Story::Import(service, how)),
        (0u8..3, 0u8..3, endpoints).prop_map(|(service, cluster, list)| Story::Imported(service, cluster, list)),
        (0u8..3, own).prop_map(|(service, list)| Story::Own(service, list)),
        (0u8..3, any::<bool>()).prop_map(|(service, there)| Story::Export(service, there)),
        (0u8..3, any::<bool>()).prop_map(|(service, there)| Story::Service(service, there)),
        (0u8..2, 0u8..9).prop_map(|(slot, how)| Story::Report(slot, how)),
        any::<bool>().prop_map(Story::Tunnel),
    ]
}

fn change<K>(there: bool, object: K) -> ObjectChange<K> {
    if there { ObjectChange::Applied(object) } else { ObjectChange::Deleted(object) }
}

fn told(story: &Story) -> Input {
    let reach = |how: u8| [Reachability::Up, Reachability::Down, Reachability::Unknown][usize::from(how)];
    match story {
        Story::Peer(number, how) => {
            let states = [PeerState::Active, PeerState::Active, PeerState::Drained, PeerState::Blocked];
            let state = states.get(usize::from(*how)).copied().unwrap_or_default();
            let peer = peer_in(PEERS[usize::from(*number)], number + 2, MemberState::Active, state);
            Input::ClusterPeers(change(*how < 4, peer))
        }
        Story::Node(number, there) => Input::Nodes(change(*there, node(NODES[usize::from(*number)], number + 1))),
        Story::Gateway(slot, there) => {
            let host = ["gateway", "other"][usize::from(*slot)];
            Input::TunnelGateways(change(*there, gateway(u16::from(*slot), host)))
        }
        Story::Import(service, how) => {
            let mut import = import(&format!("s{service}"), &format!("10.201.0.{}", service % 2));
            import.spec.session_affinity = (*how == 1).then(|| "ClientIP".into());
            if *how == 2 {
                import.spec.import_type = api::service_import::ImportType::Headless;
            }
            Input::ServiceImports(change(*how < 3, import))
        }
        Story::Imported(service, cluster, list) => {
            let name = ["amber", "birch", "cedar"][usize::from(*cluster)];
            let list: BTreeMap<String, bool> =
                list.iter().map(|(place, ready)| (format!("10.{}.2.{place}", cluster + 1), *ready)).collect();
            let list: Vec<_> = list.iter().map(|(address, ready)| (address.as_str(), *ready, None)).collect();
            Input::EndpointSlices(change(!list.is_empty(), imported(&format!("s{service}"), name, &list)))
        }
        Story::Own(service, list) => {
            // An address lives on one node.
            let list: BTreeMap<String, &str> = list
                .iter()
                .map(|(place, node)| (format!("10.1.9.{}", place + 10 * node), NODES[usize::from(*node)]))
                .collect();
            let list: Vec<_> = list.iter().map(|(address, node)| (address.as_str(), true, Some(*node))).collect();
            Input::EndpointSlices(change(!list.is_empty(), own(&format!("s{service}"), &list)))
        }
        Story::Export(number, there) => Input::ServiceExports(change(*there, export(&format!("s{number}")))),
        Story::Service(number, there) => Input::Services(change(*there, service(&format!("s{number}")))),
        Story::Report(slot, how) => {
            Input::Report(report(u16::from(*slot), &[("birch", reach(how / 3)), ("cedar", reach(how % 3))]))
        }
        Story::Tunnel(there) => devices(if *there { &["lo", TUNNEL] } else { &["lo"] }),
    }
}

/// The state after a delta: what was before is gone, what is after is there.
fn fold(state: &mut State, delta: &Delta, core: &NodeCore) {
    if delta.whole {
        *state = core.wanted();
        return;
    }
    let (before, after) = (&delta.before, &delta.after);
    macro_rules! map {
        ($($field:ident),*) => { $(
            state.$field.retain(|key, _| !before.$field.contains_key(key));
            state.$field.extend(after.$field.clone());
        )* };
    }
    macro_rules! set {
        ($($field:ident),*) => { $(
            state.sets.$field.retain(|element| !before.sets.$field.contains(element));
            state.sets.$field.extend(after.sets.$field.clone());
        )* };
    }
    map!(links, neighbours, forwarding, nexthops, groups, routes, settings, services);
    set!(remote, local, clusterset, here, control, nodes, hairpin, exported, echo, tunnels);
    state.addresses.retain(|address| !before.addresses.contains(address));
    state.addresses.extend(after.addresses.clone());
    state.rules.retain(|rule| !before.rules.contains(rule));
    state.rules.extend(after.rules.clone());
    if before.table.is_some() || after.table.is_some() {
        state.table = after.table.clone();
    }
}

/// Slots keep their places from one change to the next, so only how many each endpoint has is the same.
fn without_places(mut state: State) -> (State, Vec<(kernel_core::Frontend, Vec<kernel_core::Backend>)>) {
    let services = std::mem::take(&mut state.services);
    let counted = services.into_iter().map(|(frontend, service)| {
        let mut slots = service.slots().to_vec();
        if service.affinity() == kernel_core::Affinity::None {
            slots.sort_unstable();
        }
        (frontend, slots)
    });
    let counted = counted.collect();
    (state, counted)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn step_by_step_and_at_once_lead_to_the_same(stories in proptest::collection::vec(story(), 1..40)) {
        let now = at(5_000);
        let mut stepwise = NodeCore::new("worker", at(0));
        let mut kernel = State::default();
        let mut telling: Vec<Input> = vec![Input::LocalClusters(ObjectChange::Applied(local()))];
        telling.extend(stories.iter().map(told));
        for input in &telling {
            stepwise.take(input.clone(), now);
            let delta = stepwise.delta(now);
            fold(&mut kernel, &delta, &stepwise);
            prop_assert_eq!(&kernel, &stepwise.wanted());
        }
        let mut at_once = NodeCore::new("worker", at(0));
        for input in &telling {
            at_once.take(input.clone(), now);
        }
        at_once.delta(now);
        // Only the first saw endpoints leave: both agree when what lingers is over. Gateways go on reporting.
        let later = at(20_000);
        for input in telling.iter().filter(|input| matches!(input, Input::Report(_))) {
            stepwise.take(input.clone(), later);
            at_once.take(input.clone(), later);
        }
        fold(&mut kernel, &stepwise.delta(later), &stepwise);
        at_once.delta(later);
        prop_assert_eq!(&kernel, &stepwise.wanted());
        prop_assert_eq!(without_places(stepwise.wanted()), without_places(at_once.wanted()));
    }

    #[test]
    fn every_route_to_another_cluster_has_a_blackhole_behind_it(stories in proptest::collection::vec(story(), 1..40)) {
        for host in NODES {
            let mut core = NodeCore::new(host, at(0));
            core.take(Input::LocalClusters(ObjectChange::Applied(local())), at(0));
            for story in &stories {
                core.take(told(story), at(100));
            }
            core.delta(at(100));
            let state = core.wanted();
            for key in state.routes.keys().filter(|key| key.table == RouteTable::Outward) {
                prop_assert!(state.routes.contains_key(&RouteKey::blackhole(key.destination)));
            }
            for prefix in &state.sets.remote {
                prop_assert!(state.routes.contains_key(&RouteKey::blackhole(*prefix)));
            }
        }
    }
}
