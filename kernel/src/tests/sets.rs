//! The table, its sets and services, as they are and as they change.

use std::net::IpAddr;

use kernel_core::table::{Expression, Verdict};
use kernel_core::{
    Affinity, Backend, Change, Element, Exported, Frontend, HostClients, PodReachability, Protocol, Ruleset, Service,
    Sets, State, Targets, difference,
};

use super::sandbox::sandboxed;
use super::{apply, bring, open, with_table};
use crate::message::flag;
use crate::table::{kind, message};

pub(crate) fn service(ends: &[(&str, u16)], affinity: Affinity) -> Service {
    let backend = |(address, port): &(&str, u16)| Backend { address: address.parse().unwrap(), port: *port };
    Service::new(ends.iter().map(backend).collect(), affinity).unwrap()
}

pub(crate) fn frontend(address: &str, protocol: Protocol, port: u16) -> Frontend {
    Frontend { address: address.parse().unwrap(), protocol, port }
}

fn full() -> State {
    let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let mut state = with_table(&Ruleset {
        reachability: PodReachability::Closed,
        transit: true,
        vxlan_port: Some(4_801),
        host_clients: HostClients { ipv4: "10.1.250.1".parse().ok(), ipv6: "fd00:1:250::1".parse().ok() },
        log_group: Some(116),
        targets: Some(Targets {
            local: "amber".into(),
            remote: [("birch".into(), [net("10.2.0.0/16"), net("fd00:2::/32")].into())].into(),
        }),
    });
    state.sets = Sets {
        remote: [net("10.2.0.0/16"), net("10.2.7.0/24"), net("10.3.0.0/16"), net("fd00:2::/32"), net("fd00:3::/32")]
            .into(),
        local: [net("10.1.0.0/16"), net("fd00:1::/32"), net("255.255.0.0/16")].into(),
        clusterset: [net("241.0.0.0/8"), net("fd41::/64"), net("ffff::/16")].into(),
        here: [net("10.1.1.0/24"), net("10.1.1.9/32"), net("fd00:1:1::/64"), net("10.1.250.1/32")].into(),
        control: [net("fdcc::1/128")].into(),
        nodes: [address("172.31.1.1"), address("fdff::1")].into(),
        hairpin: [address("10.1.1.2"), address("fd00:1:1::2")].into(),
        exported: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .flat_map(|protocol| {
                ["10.1.1.2", "fd00:1:1::2"].map(|to| Exported { address: address(to), protocol, port: 80 })
            })
            .collect(),
        echo: [address("10.1.1.2"), address("fd00:1:1::2")].into(),
        tunnels: ["tun0".parse().unwrap(), "fifteen-letters".parse().unwrap()].into(),
    };
    state.services = [
        (frontend("241.0.0.1", Protocol::Tcp, 80), service(&[("10.1.1.2", 8080), ("10.2.1.2", 8081)], Affinity::None)),
        (frontend("241.0.0.1", Protocol::Udp, 53), service(&[("10.1.1.2", 53)], Affinity::ClientAddress)),
        (frontend("241.0.0.2", Protocol::Sctp, 9), service(&[("10.1.1.2", 9), ("10.1.1.2", 9)], Affinity::None)),
        (frontend("241.0.0.3", Protocol::Tcp, 80), service(&[], Affinity::None)),
        (
            frontend("fd41::1", Protocol::Tcp, 80),
            service(&[("fd00:1:1::2", 80), ("fd00:2:1::2", 80)], Affinity::ClientAddress),
        ),
    ]
    .into();
    state
}

sandboxed! {
    fn the_table_with_all_its_sets_is_observed_back_equal() {
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &full());
        let observed = kernel.observe().unwrap();
        assert_eq!(observed.sets, full().sets.normalized());
        assert_eq!(observed.services, full().services);
        assert_eq!(kernel.counters().unwrap().len(), kernel_core::Refusal::ALL.len());
        bring(&mut kernel, &State::default());
        assert_eq!(kernel.observe().unwrap(), State::default());
    }
}

sandboxed! {
    fn an_incremental_change_gives_what_a_whole_one_would_give() {
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &full());
        // What a change touches, before and after; nothing of the kernel is listed.
        let web = frontend("241.0.0.1", Protocol::Tcp, 80);
        let after = service(&[("10.1.1.2", 8080), ("10.3.1.2", 8081), ("10.2.1.2", 8081)], Affinity::None);
        let partial = |service: &Service, gone: Option<Exported>| State {
            services: [(web, service.clone())].into(),
            sets: Sets { exported: gone.into_iter().collect(), ..Sets::default() },
            ..State::default()
        };
        let gone = full().sets.exported.first().copied();
        let changes = difference(&partial(&after, None), &partial(&full().services[&web], gone));
        assert_eq!(changes.len(), 2, "{changes:?}");
        apply(&mut kernel, &changes);
        let mut wanted = full();
        wanted.services.insert(web, after);
        wanted.sets.exported.pop_first();
        assert_eq!(difference(&wanted, &kernel.observe().unwrap()), Vec::new());
    }
}

sandboxed! {
    fn rules_are_replaced_without_touching_elements() {
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &full());
        let mut wanted = full();
        wanted.table = Some(Ruleset { reachability: PodReachability::Open, ..Ruleset::default() }.table());
        let changes = difference(&wanted, &kernel.observe().unwrap());
        assert!(matches!(changes[..], [Change::SetTable(_)]), "{changes:?}");
        bring(&mut kernel, &wanted);
    }
}

sandboxed! {
    fn prefixes_are_replaced_by_others_that_overlap_them() {
        let (mut kernel, _folder) = open();
        let mut state = full();
        bring(&mut kernel, &state);
        for prefixes in [&["10.2.0.0/17", "10.2.128.0/18"][..], &["10.0.0.0/8"], &["0.0.0.0/0", "::/0"], &["10.2.0.0/16"]] {
            state.sets.remote = prefixes.iter().map(|text| text.parse().unwrap()).collect();
            bring(&mut kernel, &state);
        }
    }
}

sandboxed! {
    fn what_others_did_to_our_table_is_undone() {
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &full());
        // A rule of a stranger in a chain of ours, our rules of another taken away, a chain of a stranger, a slot taken away.
        let mut rule = message(kind::NEW_RULE, flag::CREATE | flag::APPEND);
        rule.put_text(2, "forward").nest(4, |list| {
            crate::table::expression::put(list, &[Expression::Verdict(Verdict::Accept)]);
        });
        let mut emptied = message(kind::DELETE_RULE, 0);
        emptied.put_text(2, "input");
        let mut chain = message(kind::NEW_CHAIN, flag::CREATE);
        chain.put_text(3, "stranger");
        kernel.tamper(vec![rule, emptied, chain]);
        assert!(matches!(difference(&full(), &kernel.observe().unwrap())[..], [Change::SetTable(_)]));
        bring(&mut kernel, &full());
        let web = frontend("241.0.0.1", Protocol::Tcp, 80);
        let mut key = crate::table::element::destination_key(web.address, web.protocol, web.port);
        key.extend_from_slice(&0u32.to_ne_bytes());
        kernel.tamper(vec![crate::table::element::change(false, "slots4", &[crate::table::element::Entry::key(key)])]);
        assert_eq!(difference(&full(), &kernel.observe().unwrap())[0], Change::RemoveTable);
        bring(&mut kernel, &full());
    }
}

sandboxed! {
    fn a_bad_element_among_good_ones_is_named_and_the_others_go_on() {
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &full());
        let inside = Element::Remote("10.2.9.0/24".parse().unwrap());
        let mixed = frontend("241.0.0.9", Protocol::Tcp, 80);
        let good = Element::Node("172.31.1.9".parse().unwrap());
        let outcome = kernel.apply(&[
            Change::RemoveElement(Element::Node("9.9.9.9".parse().unwrap())),
            Change::AddElement(inside),
            Change::SetService { frontend: mixed, before: None, after: Some(service(&[("fd00::1", 80)], Affinity::None)) },
            Change::AddElement(good.clone()),
        ]);
        let named: Vec<String> = outcome.failures.iter().map(|failure| failure.error.to_string()).collect();
        assert_eq!(named.len(), 3, "{named:?}");
        assert!(named[0].contains("9.9.9.9") && named[1].contains("10.2.9.0/24") && named[2].contains("241.0.0.9"), "{named:?}");
        let mut wanted = full();
        wanted.sets.insert(good);
        assert_eq!(difference(&wanted, &kernel.observe().unwrap()), Vec::new());
    }
}

sandboxed! {
    fn a_lookout_sees_from_another_thread_what_the_owner_made_and_what_strangers_took() {
        let (mut kernel, _folder) = open();
        let mut lookout = crate::Lookout::open().unwrap();
        bring(&mut kernel, &full());
        let settings = kernel.settings();
        let (seen, mut lookout) = std::thread::spawn(move || (lookout.look(settings), lookout)).join().unwrap();
        let seen = seen.unwrap();
        assert_eq!(seen.state, kernel.observe().unwrap());
        // Without the table its slot chains are gone, and the owner has to know.
        let (mut stranger, _other) = open();
        apply(&mut stranger, &[Change::RemoveTable]);
        let seen = lookout.look(kernel.settings()).unwrap();
        assert_eq!(seen.state.table, None);
        kernel.trust(&seen);
        apply(&mut kernel, &difference(&full(), &seen.state));
        assert_eq!(kernel.observe().unwrap().services, full().services);
    }
}
