//! Links, addresses, neighbours, next hops, routes, rules, settings.

use std::time::Duration;

use kernel_core::route::METRIC;
use kernel_core::setting::LOOSE;
use kernel_core::{
    Address, Change, Family, ForwardingKey, Group, GroupId, Mac, NeighbourKey, Nexthop, NexthopId, Route, RouteKey,
    Rule, Selector, Setting, State, TABLE, Target, Vxlan, difference,
};
use nix::errno::Errno;

use super::sandbox::{Host, Pod, sandboxed, setting};
use super::{bring, open, record, route_by};
use crate::{DeviceEvent, DeviceWatch, Error, Hop, Kernel, Path};

fn name(text: &str) -> kernel_core::DeviceName {
    text.parse().unwrap()
}

fn vxlan(local: &str) -> Vxlan {
    Vxlan { vni: 7_946, port: 4_801, local: local.parse().unwrap(), mac: Mac::local([1, 2, 3, 4, 5]), mtu: 1_400 }
}

/// One of everything, on a host with the devices of two pods.
fn everything() -> State {
    let (tombolo, six) = (name("tombolo0"), name("tombolo6"));
    let mut state = State::default();
    state.links.insert(tombolo.clone(), vxlan("10.1.1.1"));
    state.links.insert(six.clone(), Vxlan { vni: 7_947, ..vxlan("fd00:1:1::1") });
    for net in ["10.200.0.1/32", "fd00:200::1/128"] {
        state.addresses.insert(Address { device: tombolo.clone(), net: net.parse().unwrap() });
        let net = net.replace("200", "201").parse().unwrap();
        state.addresses.insert(Address { device: name("lo"), net });
    }
    let mac = Mac::local([9, 9, 9, 9, 9]);
    for address in ["10.200.0.2", "fd00:200::2"] {
        state.neighbours.insert(NeighbourKey { device: tombolo.clone(), address: address.parse().unwrap() }, mac);
    }
    state.forwarding.insert(ForwardingKey { device: tombolo.clone(), mac }, "10.1.2.2".parse().unwrap());
    state.forwarding.insert(ForwardingKey { device: six, mac }, "fd00:1:2::2".parse().unwrap());
    for (id, family, via) in [(0, Family::Ipv4, "10.200.0.2"), (1, Family::Ipv6, "fd00:200::2")] {
        let nexthop = Nexthop { family, device: tombolo.clone(), via: Some(via.parse().unwrap()) };
        state.nexthops.insert(NexthopId(id), nexthop);
        let nexthop = Nexthop { family, device: name("pod1-1"), via: None };
        state.nexthops.insert(NexthopId(id + 2), nexthop);
        let members = [(NexthopId(id), 3), (NexthopId(id + 2), 256)].into();
        state.groups.insert(GroupId(id), Group::new(members).unwrap());
    }
    for (number, net) in ["10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16", "10.5.0.0/16"].into_iter().enumerate() {
        for (family, net) in [(0, net.to_owned()), (1, net.replace("10.", "fd00:").replace(".0.0/16", "::/32"))] {
            let target = match number {
                0 => Target::Group(GroupId(family)),
                1 => Target::Nexthop(NexthopId(family)),
                2 => Target::Device { device: name("pod1-2"), via: None },
                _ if family == 0 => Target::Device { device: name("pod1-2"), via: Some("10.77.0.1".parse().unwrap()) },
                _ => Target::Device { device: name("pod1-2"), via: Some("fd77::1".parse().unwrap()) },
            };
            let (key, mut route) = route_by(&net, target);
            route.mtu = (number % 2 == 0).then_some(1_370);
            let source = if family == 0 { "10.201.0.1" } else { "fd00:201::1" };
            route.source = (number == 0).then(|| source.parse().unwrap());
            state.routes.insert(key, route);
            state.routes.insert(RouteKey::blackhole(key.destination), Route::BLACKHOLE);
        }
    }
    for family in [Family::Ipv4, Family::Ipv6] {
        state.rules.insert(Rule::unless_marked(family, 0x7400, 0xff00));
        state.rules.insert(Rule { family, priority: 299, selector: Selector::From(name("pod1-1")) });
        state.rules.insert(Rule { family, priority: 511, selector: Selector::Everything });
    }
    state.settings = [
        (Setting::ForwardIpv4, 1),
        (Setting::ForwardIpv6, 1),
        (Setting::SpreadIpv4, 1),
        (Setting::SpreadIpv6, 1),
        (Setting::ReversePath(name("pod1-1")), LOOSE),
    ]
    .into();
    state
}

sandboxed! {
    fn everything_applied_is_observed_back_equal_and_all_of_it_can_be_removed() {
        let _pods = (Pod::new(1, 1), Pod::new(1, 2));
        let (mut kernel, folder) = open();
        let before = kernel.observe().unwrap();
        assert_eq!(before, State::default(), "a new namespace has nothing of ours");
        bring(&mut kernel, &everything());
        assert_eq!(kernel.observe().unwrap(), everything());
        let mut again = Kernel::open(&record(&folder)).unwrap();
        assert_eq!(difference(&everything(), &again.observe().unwrap()), Vec::new(), "a new process finds it all");
        bring(&mut again, &State::default());
        assert_eq!(again.observe().unwrap(), State::default());
    }
}

sandboxed! {
    fn what_is_changed_in_place_keeps_what_leans_on_it() {
        let _pods = (Pod::new(1, 1), Pod::new(1, 2));
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &everything());
        let mut wanted = everything();
        wanted.links.get_mut(&name("tombolo0")).unwrap().mtu = 1_300;
        wanted.nexthops.get_mut(&NexthopId(0)).unwrap().via = Some("10.200.0.3".parse().unwrap());
        wanted.groups.insert(GroupId(0), Group::equal([NexthopId(2)]).unwrap());
        wanted.routes.values_mut().for_each(|route| route.mtu = route.mtu.map(|_| 1_290));
        let mac = Mac::local([8, 8, 8, 8, 8]);
        wanted.neighbours.values_mut().for_each(|value| *value = mac);
        wanted.forwarding.values_mut().next().map(|remote| *remote = "10.1.2.9".parse().unwrap()).unwrap();
        bring(&mut kernel, &wanted);
        assert_eq!(kernel.observe().unwrap(), wanted);
    }
}

sandboxed! {
    fn a_link_that_must_be_made_anew_gets_back_all_that_was_on_it() {
        let _pods = (Pod::new(1, 1), Pod::new(1, 2));
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &everything());
        let mut wanted = everything();
        wanted.links.get_mut(&name("tombolo0")).unwrap().vni = 99;
        bring(&mut kernel, &wanted);
        assert_eq!(kernel.observe().unwrap(), wanted);
    }
}

sandboxed! {
    fn a_link_somebody_took_down_or_away_is_put_right() {
        let _pods = (Pod::new(1, 1), Pod::new(1, 2));
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &everything());
        Host::new().remove_device("tombolo0");
        bring(&mut kernel, &everything());
        let mut down = [0; 16];
        let mut host = Host::new();
        down[4..8].copy_from_slice(&host.index("tombolo0").to_ne_bytes());
        down[12..16].copy_from_slice(&1u32.to_ne_bytes());
        host.request(crate::message::Message::new(19, 0, &down));
        bring(&mut kernel, &everything());
    }
}

sandboxed! {
    fn a_change_that_is_refused_is_named_and_the_others_go_on() {
        let _pods = (Pod::new(1, 1), Pod::new(1, 2));
        let (mut kernel, _folder) = open();
        let wanted = Nexthop { family: Family::Ipv4, device: name("nowhere"), via: None };
        let good = Rule::unless_marked(Family::Ipv4, 1, 1);
        let late = Rule { priority: 600, ..good.clone() };
        let missing = route_by("10.9.0.0/16", Target::Nexthop(NexthopId(9)));
        let outcome = kernel.apply(&[
            Change::SetNexthop(NexthopId(1), wanted),
            Change::AddRule(late),
            Change::SetRoute(missing.0, missing.1),
            Change::AddRule(good.clone()),
        ]);
        assert_eq!((outcome.applied, outcome.failures.len()), (1, 3));
        assert!(matches!(&outcome.failures[0].error, Error::NoDevice { device, .. } if device == "nowhere"));
        assert!(outcome.failures[1].error.to_string().contains("priority"), "{}", outcome.failures[1].error);
        assert!(outcome.failures[2].error.to_string().contains("10.9.0.0/16"), "{}", outcome.failures[2].error);
        assert_eq!(outcome.failures[2].error.errno(), Some(Errno::EINVAL));
        assert_eq!(kernel.observe().unwrap().rules, [good].into());
    }
}

sandboxed! {
    fn the_old_value_of_a_setting_is_restored_also_by_the_next_process() {
        let (mut kernel, folder) = open();
        let before = setting("net/ipv4/ip_forward");
        assert_eq!(before, "0");
        let settings = [(Setting::ForwardIpv4, 1)].into();
        bring(&mut kernel, &State { settings, ..State::default() });
        assert_eq!(setting("net/ipv4/ip_forward"), "1");
        drop(kernel);
        let mut next = Kernel::open(&record(&folder)).unwrap();
        bring(&mut next, &State::default());
        assert_eq!(setting("net/ipv4/ip_forward"), "0");
    }
}

sandboxed! {
    fn a_device_that_comes_and_goes_is_reported() {
        let mut watch = DeviceWatch::open().unwrap();
        let limit = Duration::from_secs(10);
        let _pod = Pod::new(1, 7);
        let mut saw = |wanted: &dyn Fn(&DeviceEvent) -> bool| {
            while let Some(event) = watch.next(limit).unwrap() {
                if wanted(&event) {
                    return true;
                }
            }
            false
        };
        assert!(saw(&|event| matches!(event, DeviceEvent::Present(device) if device.name == name("pod1-7") && device.up)));
        Host::new().remove_device("pod1-7");
        assert!(saw(&|event| *event == DeviceEvent::Gone(name("pod1-7"))));
    }
}

sandboxed! {
    without privilege fn without_privilege_every_change_is_refused_and_says_which_is_missing() {
        let (mut kernel, _folder) = open();
        let changes = [
            Change::SetTable(kernel_core::Ruleset::default().table()),
            Change::AddElement(kernel_core::Element::Node("192.0.2.1".parse().unwrap())),
            Change::AddLink(name("tombolo9"), vxlan("192.0.2.1")),
            Change::AddRule(Rule::unless_marked(Family::Ipv4, 1, 1)),
            Change::SetRoute(RouteKey::blackhole("192.0.2.0/24".parse().unwrap()), Route::BLACKHOLE),
        ];
        let outcome = kernel.apply(&changes);
        assert_eq!((outcome.applied, outcome.failures.len()), (0, changes.len()));
        for failure in outcome.failures {
            assert!(failure.error.to_string().contains("CAP_NET_ADMIN"), "{}", failure.error);
        }
    }
}

sandboxed! {
    fn a_tunnel_device_that_goes_leaves_the_blackhole_between_its_packets_and_the_default_route() {
        let (tunnel, internet) = (Pod::new(1, 1), Pod::new(1, 2));
        let mut host = Host::new();
        host.route("0.0.0.0".parse().unwrap(), 0, internet.ipv4.into());
        host.route("::".parse().unwrap(), 0, internet.ipv6.into());
        let (mut kernel, _folder) = open();
        let mut wanted = State::default();
        let families = [(Family::Ipv4, "10.2.0.0/16"), (Family::Ipv6, "fd00:2::/32")];
        for (id, (family, net)) in families.into_iter().enumerate() {
            let id = u16::try_from(id).unwrap();
            let lane = Nexthop { family, device: name(&tunnel.device), via: None };
            wanted.nexthops.insert(NexthopId(id), lane);
            wanted.groups.insert(GroupId(id), Group::equal([NexthopId(id)]).unwrap());
            let (key, route) = route_by(net, Target::Group(GroupId(id)));
            wanted.routes.insert(key, route);
            wanted.routes.insert(RouteKey::blackhole(key.destination), Route::BLACKHOLE);
            wanted.rules.insert(Rule::unless_marked(family, 1, 1));
        }
        bring(&mut kernel, &wanted);
        let send = |to: &str| {
            let any = if to.contains('[') { "[::]:0" } else { "0.0.0.0:0" };
            std::net::UdpSocket::bind(any).unwrap().send_to(b"secret", to).map_err(|error| error.kind())
        };
        let to = ["10.2.0.1:9", "[fd00:2::1]:9"];
        assert!(to.iter().all(|to| send(to).is_ok()));
        host.remove_device(&tunnel.device);
        for to in to {
            assert_eq!(send(to), Err(std::io::ErrorKind::InvalidInput), "it left by the default route");
        }
        let left = kernel.observe().unwrap();
        assert_eq!((left.nexthops.len(), left.groups.len()), (0, 0));
        assert!(left.routes.len() == 2 && left.routes.values().all(|route| *route == Route::BLACKHOLE));
    }
}

sandboxed! {
    fn the_kernel_says_hop_by_hop_which_way_a_packet_takes() {
        let _pods = (Pod::new(1, 1), Pod::new(1, 2));
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &everything());
        let mut path = |to: &str| kernel.path(to.parse().unwrap()).unwrap();
        for (to, node, via) in [("10.2.9.9", Some("10.1.2.2"), "10.200.0.2"), ("fd00:2::9", Some("10.1.2.2"), "fd00:200::2")] {
            let Path::Routed(routed) = path(to) else { panic!("{to}: {:?}", path(to)) };
            assert_eq!((routed.table, routed.metric, routed.mtu), (TABLE, METRIC, Some(1_370)), "{to}");
            let by_vxlan = Hop {
                device: "tombolo0".into(),
                via: via.parse().ok(),
                node: node.map(|node| node.parse().unwrap()),
                by_vxlan: true,
            };
            let direct = Hop { device: "pod1-1".into(), ..Hop::default() };
            assert_eq!(routed.hops, [by_vxlan, direct], "{to}");
        }
        let Path::Routed(routed) = path("10.4.0.1") else { panic!("{:?}", path("10.4.0.1")) };
        assert_eq!(routed.hops[0].device, "pod1-2");
        assert_eq!(path("198.51.100.1"), Path::NoRoute);
        assert_eq!(path("2001:db8::1"), Path::NoRoute);
        let mut wanted = everything();
        wanted.routes.retain(|_, route| route.target == Target::Blackhole);
        bring(&mut kernel, &wanted);
        for to in ["10.2.9.9", "fd00:2::9"] {
            assert_eq!(kernel.path(to.parse().unwrap()).unwrap(), Path::Dropped, "{to}");
        }
    }
}
