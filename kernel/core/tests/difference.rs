//! The difference, tried on a model of a kernel that refuses whatever the real one would refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use kernel_core::{
    Address, Affinity, Backend, Change, DeviceName, Exported, Family, ForwardingKey, Frontend, Group, GroupId, Mac,
    NeighbourKey, Nexthop, NexthopId, PodReachability, Protocol, Route, RouteKey, Rule, Ruleset, Service, Setting,
    State, Target, Vxlan, difference,
};
use proptest::prelude::*;

/// Applies one step; panics where the kernel would refuse it.
fn step(state: &mut State, change: &Change) {
    let has_table = state.table.is_some();
    match change.clone() {
        Change::SetTable(table) => {
            assert!(state.table.as_ref().is_none_or(|there| table.fits(there)), "a set or hook changed its shape");
            state.table = Some(table);
        }
        Change::RemoveTable => {
            assert!(has_table);
            state.table = None;
            state.sets = Default::default();
            state.services.clear();
        }
        Change::AddElement(element) => {
            assert!(has_table);
            assert!(state.sets.insert(element.clone()), "{element:?} is there");
            assert_eq!(state.sets.normalized(), state.sets, "intervals overlap after {element:?}");
        }
        Change::RemoveElement(element) => assert!(state.sets.remove(&element), "{element:?} is not there"),
        Change::SetService { frontend, before, after } => {
            assert!(has_table);
            assert_eq!(state.services.get(&frontend), before.as_ref());
            match after {
                Some(service) => drop(state.services.insert(frontend, service)),
                None => drop(state.services.remove(&frontend)),
            }
        }
        Change::ForgetFlows { frontend, backend } => {
            let slots = state.services.get(&frontend).map(Service::slots).unwrap_or_default();
            assert!(!slots.contains(&backend), "a flow was forgotten before its endpoint left");
        }
        Change::SetSetting(setting, value) => drop(state.settings.insert(setting, value)),
        Change::RestoreSetting(setting) => assert!(state.settings.remove(&setting).is_some()),
        Change::AddLink(name, link) => assert!(state.links.insert(name, link).is_none()),
        Change::SetMtu(name, mtu) => state.links.get_mut(&name).expect("the link").mtu = mtu,
        Change::RemoveLink(name) => {
            assert!(state.links.remove(&name).is_some());
            state.addresses.retain(|address| address.device != name);
            state.neighbours.retain(|key, _| key.device != name);
            state.forwarding.retain(|key, _| key.device != name);
            let gone: Vec<NexthopId> =
                state.nexthops.iter().filter(|(_, hop)| hop.device == name).map(|(id, _)| *id).collect();
            gone.into_iter().for_each(|id| remove_nexthop(state, id));
            state.routes.retain(|_, route| !matches!(&route.target, Target::Device { device, .. } if *device == name));
        }
        Change::AddAddress(address) => {
            assert!(state.links.contains_key(&address.device));
            assert!(state.addresses.insert(address));
        }
        Change::RemoveAddress(address) => assert!(state.addresses.remove(&address)),
        Change::SetNeighbour(key, mac) => {
            assert!(state.links.contains_key(&key.device));
            state.neighbours.insert(key, mac);
        }
        Change::RemoveNeighbour(key) => assert!(state.neighbours.remove(&key).is_some()),
        Change::SetForwarding(key, remote) => {
            assert!(state.links.contains_key(&key.device));
            state.forwarding.insert(key, remote);
        }
        Change::RemoveForwarding(key) => assert!(state.forwarding.remove(&key).is_some()),
        Change::SetNexthop(id, hop) => {
            assert!(state.links.contains_key(&hop.device));
            assert!(state.nexthops.get(&id).is_none_or(|there| there.family == hop.family), "the family changed");
            state.nexthops.insert(id, hop);
        }
        Change::RemoveNexthop(id) => {
            assert!(state.nexthops.contains_key(&id));
            remove_nexthop(state, id);
        }
        Change::SetGroup(id, group) => {
            assert!(group.members().keys().all(|member| state.nexthops.contains_key(member)), "a member is missing");
            state.groups.insert(id, group);
        }
        Change::RemoveGroup(id) => {
            assert!(state.groups.remove(&id).is_some());
            state.routes.retain(|_, route| route.target != Target::Group(id));
        }
        Change::SetRoute(key, route) => {
            match &route.target {
                Target::Nexthop(id) => assert!(state.nexthops.contains_key(id)),
                Target::Group(id) => assert!(state.groups.contains_key(id)),
                Target::Device { device, .. } => assert!(state.links.contains_key(device)),
                Target::Blackhole => {}
            }
            state.routes.insert(key, route);
        }
        Change::RemoveRoute(key) => assert!(state.routes.remove(&key).is_some()),
        Change::AddRule(rule) => assert!(state.rules.insert(rule)),
        Change::RemoveRule(rule) => assert!(state.rules.remove(&rule)),
    }
}

fn remove_nexthop(state: &mut State, id: NexthopId) {
    state.nexthops.remove(&id);
    state.groups = std::mem::take(&mut state.groups)
        .into_iter()
        .filter_map(|(group, value)| {
            let rest = value.members().iter().filter(|(member, _)| **member != id).map(|(id, weight)| (*id, *weight));
            Some((group, Group::new(rest.collect()).ok()?))
        })
        .collect();
    let State { groups, routes, .. } = state;
    routes.retain(|_, route| match &route.target {
        Target::Nexthop(used) => *used != id,
        Target::Group(group) => groups.contains_key(group),
        _ => true,
    });
}

fn name(number: u8) -> DeviceName {
    DeviceName::new(&format!("tombolo{number}")).unwrap()
}

fn v4(a: u8, b: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, a, b))
}

prop_compose! {
    fn links()(values in prop::collection::btree_map(0u8..3, (0u32..2, 1280u32..1282), 0..3)) -> BTreeMap<DeviceName, Vxlan> {
        values.into_iter().map(|(number, (vni, mtu))| {
            (name(number), Vxlan { vni, port: 4801, local: v4(0, 1), mac: Mac::local([number; 5]), mtu })
        }).collect()
    }
}

fn prefixes() -> impl Strategy<Value = BTreeSet<IpNet>> {
    prop::collection::btree_set(
        (0u8..4, 22u8..=24).prop_map(|(third, length)| IpNet::new(v4(third, 0), length).unwrap().trunc()),
        0..5,
    )
}

fn services() -> impl Strategy<Value = BTreeMap<Frontend, Service>> {
    let frontend = (0u8..3, any::<bool>()).prop_map(|(last, udp)| Frontend {
        address: v4(200, last),
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
        port: 80,
    });
    let service = (prop::collection::vec(0u8..4, 0..5), any::<bool>()).prop_map(|(ends, client)| {
        let slots = ends.into_iter().map(|last| Backend { address: v4(1, last), port: 8080 }).collect();
        Service::new(slots, if client { Affinity::ClientAddress } else { Affinity::None }).unwrap()
    });
    prop::collection::btree_map(frontend, service, 0..4)
}

/// Settings, and for the others numbers that pick among what there is to lean on.
fn states() -> impl Strategy<Value = State> {
    let table = prop::option::of((any::<bool>(), any::<bool>()).prop_map(|(open, transit)| {
        let reachability = if open { PodReachability::Open } else { PodReachability::Closed };
        Ruleset { reachability, transit, ..Ruleset::default() }.table()
    }));
    let picks = prop::collection::vec(any::<(u8, u8, u8)>(), 0..12);
    (links(), table, prefixes(), services(), prop::collection::btree_map(0u8..2, 0u8..3, 0..2), picks).prop_map(
        |(links, table, remote, services, settings, picks)| {
            let mut state = State { links, ..State::default() };
            for (number, value) in settings {
                let setting = if number == 0 { Setting::ForwardIpv4 } else { Setting::ReversePath(name(9)) };
                state.settings.insert(setting, value);
            }
            if table.is_some() {
                state.sets.exported = remote
                    .iter()
                    .map(|net| Exported { address: net.addr(), protocol: Protocol::Tcp, port: 80 })
                    .collect();
                state.sets.remote = remote;
                state.services = services;
                state.table = table;
            }
            for (kind, which, value) in picks {
                lean(&mut state, kind, which, value);
            }
            state
        },
    )
}

fn lean(state: &mut State, kind: u8, which: u8, value: u8) {
    let device = state.links.keys().nth(usize::from(value) % state.links.len().max(1)).cloned();
    let hop = state.nexthops.keys().nth(usize::from(value) % state.nexthops.len().max(1)).copied();
    let group = state.groups.keys().nth(usize::from(value) % state.groups.len().max(1)).copied();
    let key = RouteKey::carrying(IpNet::new(v4(which % 4, 0), 24).unwrap());
    match (kind % 8, device, hop, group) {
        (0, Some(device), ..) => {
            let family = if value & 4 == 0 { Family::Ipv4 } else { Family::Ipv6 };
            state.nexthops.insert(NexthopId(u16::from(which % 4)), Nexthop { family, device, via: None });
        }
        (1, _, Some(hop), _) => {
            let members = [(hop, 1 + u16::from(value % 3))].into_iter().collect();
            state.groups.insert(GroupId(u16::from(which % 3)), Group::new(members).unwrap());
        }
        (2, _, Some(hop), _) => drop(state.routes.insert(key, Route::to(Target::Nexthop(hop)))),
        (3, _, _, Some(group)) => drop(state.routes.insert(key, Route::to(Target::Group(group)))),
        (4, Some(device), ..) => {
            state.routes.insert(key, Route::to(Target::Device { device: device.clone(), via: None }));
            state.addresses.insert(Address { device, net: IpNet::new(v4(9, which), 32).unwrap() });
        }
        (5, Some(device), ..) => {
            let mac = Mac::local([which; 5]);
            state.neighbours.insert(NeighbourKey { device: device.clone(), address: v4(8, which % 3) }, mac);
            state.forwarding.insert(ForwardingKey { device, mac: Mac::local([which % 3; 5]) }, v4(7, value));
        }
        (6, ..) => drop(state.rules.insert(Rule::unless_marked(Family::Ipv4, u32::from(which % 3), 0xff))),
        _ => drop(state.routes.insert(RouteKey::blackhole(key.destination), Route::BLACKHOLE)),
    }
}

fn normalized(state: &State) -> State {
    State { sets: state.sets.normalized(), ..state.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn applying_the_difference_gives_the_wanted_state_and_no_step_is_one_the_kernel_refuses(
        observed in states(), wanted in states()
    ) {
        let mut state = normalized(&observed);
        for change in difference(&wanted, &observed) {
            step(&mut state, &change);
        }
        prop_assert_eq!(&state, &normalized(&wanted));
        prop_assert_eq!(difference(&wanted, &state), Vec::new());
    }

    #[test]
    fn every_route_that_stays_wanted_is_there_at_every_step(observed in states(), wanted in states()) {
        // A link or next hop that must be made anew takes its routes along; that is not what is asked here.
        let wanted = State { links: observed.links.clone(), nexthops: observed.nexthops.clone(), ..wanted };
        let leans = |route: &Route| match &route.target {
            Target::Nexthop(id) => wanted.nexthops.contains_key(id),
            Target::Group(id) => wanted.groups.contains_key(id),
            Target::Device { device, .. } => wanted.links.contains_key(device),
            Target::Blackhole => true,
        };
        let groups = wanted.groups.iter()
            .filter(|(_, group)| group.members().keys().all(|id| wanted.nexthops.contains_key(id)))
            .map(|(id, group)| (*id, group.clone())).collect();
        let routes = wanted.routes.iter().filter(|(_, route)| leans(route)).map(|(key, route)| (*key, route.clone()));
        let mut wanted = State { routes: routes.collect(), groups, ..wanted.clone() };
        let groups = &wanted.groups;
        wanted.routes.retain(|_, route| !matches!(&route.target, Target::Group(id) if !groups.contains_key(id)));
        wanted.addresses.retain(|address| observed.links.contains_key(&address.device));
        wanted.neighbours.retain(|key, _| observed.links.contains_key(&key.device));
        wanted.forwarding.retain(|key, _| observed.links.contains_key(&key.device));
        let kept: Vec<RouteKey> =
            wanted.routes.keys().filter(|key| observed.routes.contains_key(*key)).copied().collect();
        let mut state = normalized(&observed);
        for change in difference(&wanted, &observed) {
            step(&mut state, &change);
            for key in &kept {
                prop_assert!(state.routes.contains_key(key), "{:?} was gone after {:?}", key, change);
            }
        }
    }
}

/// Both sides without what is the same in both; prefix sets whole, as the crate asks.
fn touched(after: &State, before: &State) -> (State, State) {
    let (mut a, mut b) = (after.clone(), before.clone());
    fn maps<K: Ord + Clone, V: PartialEq + Clone>(a: &mut BTreeMap<K, V>, b: &mut BTreeMap<K, V>) {
        let same: Vec<K> =
            a.iter().filter(|(key, value)| b.get(*key) == Some(*value)).map(|(k, _)| k.clone()).collect();
        same.iter().for_each(|key| {
            a.remove(key);
            b.remove(key);
        });
    }
    fn sets<T: Ord + Clone>(a: &mut BTreeSet<T>, b: &mut BTreeSet<T>) {
        for same in a.intersection(b).cloned().collect::<Vec<_>>() {
            a.remove(&same);
            b.remove(&same);
        }
    }
    maps(&mut a.links, &mut b.links);
    sets(&mut a.addresses, &mut b.addresses);
    maps(&mut a.neighbours, &mut b.neighbours);
    maps(&mut a.forwarding, &mut b.forwarding);
    maps(&mut a.nexthops, &mut b.nexthops);
    maps(&mut a.groups, &mut b.groups);
    maps(&mut a.routes, &mut b.routes);
    sets(&mut a.rules, &mut b.rules);
    maps(&mut a.settings, &mut b.settings);
    maps(&mut a.services, &mut b.services);
    sets(&mut a.sets.exported, &mut b.sets.exported);
    sets(&mut a.sets.echo, &mut b.sets.echo);
    (a.table, b.table) = (None, None);
    (a, b)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_partial_difference_does_what_a_whole_one_would_do(before in states(), after in states()) {
        // What cannot be changed in place needs whole states: links and families stay.
        let links = before.links.clone();
        let mut after = State { table: before.table.clone(), links, ..after };
        after.nexthops.clone_from(&before.nexthops);
        if after.table.is_none() {
            (after.sets, after.services) = Default::default();
        }
        let links = &before.links;
        after.addresses.retain(|address| links.contains_key(&address.device));
        after.neighbours.retain(|key, _| links.contains_key(&key.device));
        after.forwarding.retain(|key, _| links.contains_key(&key.device));
        let nexthops = &before.nexthops;
        after.groups.retain(|_, group| group.members().keys().all(|id| nexthops.contains_key(id)));
        let groups = after.groups.clone();
        after.routes.retain(|_, route| match &route.target {
            Target::Nexthop(id) => nexthops.contains_key(id),
            Target::Group(id) => groups.contains_key(id),
            Target::Device { device, .. } => links.contains_key(device),
            Target::Blackhole => true,
        });
        let (wanted, observed) = touched(&after, &before);
        let mut state = normalized(&before);
        for change in difference(&wanted, &observed) {
            step(&mut state, &change);
        }
        prop_assert_eq!(state, normalized(&after));
    }
}

#[test]
fn one_changed_service_among_ten_thousand_is_one_change() {
    let service = |last: u8| Service::new(vec![Backend { address: v4(1, last), port: 8080 }], Affinity::None).unwrap();
    let mut observed = State { table: Some(Ruleset::default().table()), ..State::default() };
    for number in 0..10_000u16 {
        let [a, b] = number.to_be_bytes();
        observed.services.insert(Frontend { address: v4(a, b), protocol: Protocol::Tcp, port: 80 }, service(1));
    }
    let mut wanted = observed.clone();
    wanted.services.insert(Frontend { address: v4(3, 4), protocol: Protocol::Tcp, port: 80 }, service(2));
    assert_eq!(difference(&wanted, &observed).len(), 1);
}

#[test]
fn udp_flows_are_forgotten_when_an_endpoint_leaves_and_when_the_first_one_comes() {
    let frontend = Frontend { address: v4(200, 1), protocol: Protocol::Udp, port: 53 };
    let backend = |last| Backend { address: v4(1, last), port: 5353 };
    let with = |ends: &[u8]| {
        let service = Service::new(ends.iter().map(|last| backend(*last)).collect(), Affinity::None).unwrap();
        State { services: [(frontend, service)].into(), ..State::default() }
    };
    let forgotten = |wanted: &State, observed: &State| -> Vec<Backend> {
        let changes = difference(wanted, observed);
        changes
            .iter()
            .filter_map(|change| match change {
                Change::ForgetFlows { backend, .. } => Some(*backend),
                _ => None,
            })
            .collect()
    };
    let itself = Backend { address: frontend.address, port: frontend.port };
    assert_eq!(forgotten(&with(&[1]), &State::default()), [itself]);
    assert_eq!(forgotten(&with(&[1]), &with(&[])), [itself]);
    assert_eq!(forgotten(&with(&[1, 2]), &with(&[1])), []);
    assert_eq!(forgotten(&with(&[2, 2]), &with(&[1, 2])), [backend(1)]);
    assert_eq!(forgotten(&State::default(), &with(&[1])), [backend(1)]);
}

#[test]
fn a_table_of_another_shape_is_made_anew_and_filled_again() {
    let wanted = State {
        table: Some(Ruleset::default().table()),
        sets: kernel_core::Sets { nodes: [v4(0, 1)].into(), ..Default::default() },
        ..State::default()
    };
    let mut observed = wanted.clone();
    observed.table.as_mut().unwrap().sets.get_mut("nodes4").unwrap().key = 8;
    let changes = difference(&wanted, &observed);
    assert_eq!(changes[0], Change::RemoveTable);
    changes.iter().for_each(|change| step(&mut observed, change));
    assert_eq!(observed, wanted);
}

#[test]
fn filters_stand_before_the_host_forwards_and_rules_come_last() {
    let wanted = State {
        table: Some(Ruleset::default().table()),
        settings: [(Setting::ForwardIpv4, 1)].into(),
        rules: [Rule::unless_marked(Family::Ipv4, 1, 1)].into(),
        routes: [(RouteKey::blackhole("10.0.0.0/8".parse().unwrap()), Route::BLACKHOLE)].into(),
        ..State::default()
    };
    let changes = difference(&wanted, &State::default());
    assert!(matches!(changes[0], Change::SetTable(_)), "{changes:?}");
    assert!(matches!(changes.last(), Some(Change::AddRule(_))), "{changes:?}");
}

#[test]
fn a_setting_of_a_device_of_ours_follows_the_device() {
    let name = name(1);
    let vxlan = Vxlan { vni: 1, port: 4801, local: v4(0, 1), mac: Mac::local([1; 5]), mtu: 1450 };
    let wanted = State {
        links: [(name.clone(), vxlan)].into(),
        settings: [(Setting::ReversePath(name), 2)].into(),
        ..State::default()
    };
    let changes = difference(&wanted, &State::default());
    assert!(matches!(changes[..], [Change::AddLink(..), Change::SetSetting(..)]), "{changes:?}");
}
