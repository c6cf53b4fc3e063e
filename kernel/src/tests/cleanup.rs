//! Cleanup takes away what is ours, and nothing else.

use std::process::Command;
use std::time::{Duration, Instant};

use kernel_core::{
    Change, DeviceName, Family, Frontend, Mac, Nexthop, NexthopId, Protocol, Route, RouteKey, Rule, Ruleset, Selector,
    Setting, State, Target, Vxlan, difference,
};

use super::sandbox::{Host, Pod, sandboxed, setting};
use super::sets::service;
use super::{bring, open, record, route_by, with_table};
use crate::Kernel;
use crate::message::{Message, flag};

/// Duplicate address detection is off in these namespaces, so only the kernel's own thread has to come to it.
const SETTLED_LIMIT: Duration = Duration::from_secs(10);

fn some_of_ours() -> State {
    let device: DeviceName = "tombolo".parse().unwrap();
    let mut state = with_table(&Ruleset::default());
    let local = "10.1.1.1".parse().unwrap();
    let link = Vxlan { vni: 7, port: 4_801, local, mac: Mac::local([1; 5]), mtu: 1_400 };
    state.links.insert(device.clone(), link);
    state.nexthops.insert(NexthopId(0), Nexthop { family: Family::Ipv4, device, via: None });
    state.routes.extend([route_by("10.2.0.0/16", Target::Nexthop(NexthopId(0)))]);
    state.routes.insert(RouteKey::blackhole("10.2.0.0/16".parse().unwrap()), Route::BLACKHOLE);
    state.routes.insert(RouteKey::blackhole("fd00:2::/32".parse().unwrap()), Route::BLACKHOLE);
    state.rules.insert(Rule { family: Family::Ipv6, priority: 300, selector: Selector::Everything });
    state.settings = [(Setting::ForwardIpv4, 1), (Setting::ForwardIpv6, 1)].into();
    let web = Frontend { address: "241.0.0.1".parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
    state.services.insert(web, service(&[("10.1.1.2", 80)], kernel_core::Affinity::None));
    state
}

/// Things of others that resemble ours: a VXLAN link, a next hop, a route in our table, a rule, a table.
fn things_of_others(kernel: &mut Kernel) {
    let mut host = Host::new();
    let mut link = Message::new(16, flag::CREATE, &[0; 16]);
    link.put_text(3, "flannel.1").nest(18, |info| {
        info.put(1, b"vxlan").nest(2, |data| {
            data.put_u32(1, 1).put(15, &8_472u16.to_be_bytes());
        });
    });
    host.request(link);
    host.up("flannel.1");
    let index = host.index("flannel.1");
    let mut nexthop = Message::new(104, flag::CREATE, &[2, 0, 3, 0, 0, 0, 0, 0]);
    nexthop.put_u32(1, 0x746d_0009).put_u32(5, index);
    host.request(nexthop);
    let mut route = Message::new(24, flag::CREATE, &[2, 16, 0, 0, 252, 3, 253, 1, 0, 0, 0, 0]);
    route.put(1, &[10, 77, 0, 0]).put_u32(15, kernel_core::TABLE).put_u32(4, index);
    host.request(route);
    let mut rule = Message::new(32, flag::CREATE, &[2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    rule.put_u32(6, 301).put_u32(15, kernel_core::TABLE).put_u8(21, 3);
    host.request(rule);
    let mut table = Message::new(10 << 8, flag::CREATE, &[2, 0, 0, 0]);
    table.put_text(1, "tombolo");
    let mut other = Message::new(10 << 8, flag::CREATE, &[1, 0, 0, 0]);
    other.put_text(1, "tombolo2");
    kernel.tamper(vec![table, other]);
}

/// Everything `ip` and the kernel's own lists say, or none where there is no `ip`.
fn evidence() -> Vec<String> {
    // An address that a device gives itself is tentative for a moment, and then has a route.
    let given_up = Instant::now() + SETTLED_LIMIT;
    while lists(&[&["-o", "-6", "addr", "show", "tentative"]]).iter().any(|list| !list.is_empty()) {
        assert!(Instant::now() < given_up, "an address is still tentative after {SETTLED_LIMIT:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    lists(&[
        &["-o", "-d", "link"],
        &["-o", "addr"],
        &["-4", "rule"],
        &["-6", "rule"],
        &["-4", "route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
        &["nexthop"],
    ])
}

fn lists(wanted: &[&[&str]]) -> Vec<String> {
    wanted
        .iter()
        .filter_map(|list| Command::new("ip").args(*list).output().ok())
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .collect()
}

sandboxed! {
    fn cleanup_leaves_nothing_of_ours_and_all_of_others() {
        let _pod = Pod::new(1, 1);
        let (mut kernel, folder) = open();
        things_of_others(&mut kernel);
        let before = evidence();
        bring(&mut kernel, &some_of_ours());
        assert_eq!(setting("net/ipv4/ip_forward"), "1");
        drop(kernel);
        let mut kernel = Kernel::open(&record(&folder)).unwrap();
        let outcome = kernel.cleanup().unwrap();
        assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
        assert_eq!(kernel.observe().unwrap(), State::default());
        assert_eq!(setting("net/ipv4/ip_forward"), "0");
        assert_eq!(evidence(), before);
        assert!(kernel.foreign_tables() == ["ip tombolo", "inet tombolo2"], "{:?}", kernel.foreign_tables());
        let again = kernel.cleanup().unwrap();
        assert_eq!((again.applied, again.failures.len()), (0, 0), "a second cleanup finds nothing to do");
    }
}

sandboxed! {
    fn things_of_others_are_neither_observed_nor_changed() {
        let _pod = Pod::new(1, 1);
        let (mut kernel, _folder) = open();
        things_of_others(&mut kernel);
        assert_eq!(kernel.observe().unwrap(), State::default());
        let before = evidence();
        let changes = difference(&some_of_ours(), &kernel.observe().unwrap());
        assert!(!changes.iter().any(|change| matches!(change, Change::RemoveTable | Change::RemoveRule(_))));
        bring(&mut kernel, &some_of_ours());
        bring(&mut kernel, &State::default());
        assert_eq!(evidence(), before);
    }
}
