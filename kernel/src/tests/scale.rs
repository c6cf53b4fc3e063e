//! Ten thousand services of ten endpoints, in a user namespace, where the socket's buffer cannot be forced.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kernel_core::{Affinity, Backend, Change, Frontend, Protocol, Ruleset, Service, State, difference};

use super::sandbox::sandboxed;
use super::{apply, bring, differs_in_nothing, open, with_table};

const SERVICES: u16 = 10_000;
const ENDPOINTS: u8 = 10;

fn addresses(ipv4: bool, number: u16, last: u8) -> IpAddr {
    let [a, b] = number.to_be_bytes();
    if ipv4 {
        Ipv4Addr::new(241, a, b, last).into()
    } else {
        Ipv6Addr::new(0xfd41, 0, 0, 0, 0, 0, number, last.into()).into()
    }
}

fn service(ipv4: bool, number: u16, endpoints: u8) -> Service {
    let backend = |last| Backend { address: addresses(ipv4, number, last), port: 8080 };
    Service::new((1..=endpoints).map(backend).collect(), Affinity::None).unwrap()
}

fn frontend(ipv4: bool, number: u16) -> Frontend {
    Frontend { address: addresses(ipv4, number, 0), protocol: Protocol::Tcp, port: 80 }
}

sandboxed! {
    fn ten_thousand_services_load_and_one_change_is_the_size_of_the_change() {
        let (mut kernel, _folder) = open();
        let mut wanted = with_table(&Ruleset::default());
        for number in 0..SERVICES {
            // Every tenth is IPv6: the longest elements are in the same load.
            let ipv4 = number % 10 != 0;
            wanted.services.insert(frontend(ipv4, number), service(ipv4, number, ENDPOINTS));
        }
        bring(&mut kernel, &wanted);

        let key = frontend(true, 4_321);
        let partial = |endpoints| State {
            services: [(key, service(true, 4_321, endpoints))].into(),
            ..State::default()
        };
        let changes = difference(&partial(ENDPOINTS - 1), &partial(ENDPOINTS));
        assert!(matches!(changes[..], [Change::SetService { .. }]));
        let before = kernel.sent_bytes();
        apply(&mut kernel, &changes);
        // A verdict out and in, a slot out, a slot chain that may be new: not a list of a hundred thousand.
        let sent = kernel.sent_bytes() - before;
        assert!(sent < 4_096, "{sent} bytes for one endpoint");
        wanted.services.insert(key, service(true, 4_321, ENDPOINTS - 1));
        differs_in_nothing(&wanted, &kernel.observe().unwrap());
    }
}
