//! Connections to clusterset addresses, through pods' real sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use kernel_core::{
    Affinity, Backend, Change, Frontend, HostClients, Protocol, Refusal, Ruleset, Service, Sets, Setting, State,
    Targets, difference,
};

use super::sandbox::{Host, Pod, sandboxed};
use super::{apply, bring, open, route_by, with_table};
use crate::Kernel;

/// More than any answer on one machine takes; passing does not depend on it.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) const VIP4: &str = "241.0.0.1";
pub(super) const VIP6: &str = "fd41::1";

pub(super) fn vip(ipv4: bool) -> IpAddr {
    if ipv4 { VIP4 } else { VIP6 }.parse().unwrap()
}

/// A TCP and a UDP server on that port, in both families: says its name and who is asking.
pub(super) fn serve(pod: &Pod, port: u16, name: &'static str) {
    let addresses = [pod.address(true), pod.address(false)];
    pod.run(move || {
        for address in addresses {
            let listener = TcpListener::bind((address, port)).unwrap();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let client = stream.peer_addr().unwrap().ip();
                    let _client_may_be_gone = write!(stream, "{name} {client}");
                }
            });
            let socket = UdpSocket::bind((address, port)).unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, client)) = socket.recv_from(&mut buffer) {
                    let answer = format!("{name} {}", client.ip());
                    let _client_may_be_gone = socket.send_to(answer.as_bytes(), client);
                }
            });
        }
    });
}

/// Asks in the namespace of the calling thread; the answer, or why there is none.
pub(super) fn ask(to: SocketAddr, protocol: Protocol) -> Result<String, ErrorKind> {
    let mut answer = String::new();
    let result = match protocol {
        Protocol::Udp => (|| {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(LIMIT))?;
            socket.connect(to)?;
            socket.send(b"who")?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer)?;
            answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
            Ok(())
        })(),
        _ => (|| {
            let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.read_to_string(&mut answer).map(drop)
        })(),
    };
    result.map(|()| answer).map_err(|error: std::io::Error| error.kind())
}

pub(super) fn ask_from(pod: &Pod, to: SocketAddr, protocol: Protocol) -> Result<String, ErrorKind> {
    pod.run(move || ask(to, protocol))
}

fn who(answer: &Result<String, ErrorKind>) -> &str {
    answer.as_ref().map_or("nobody", |text| text.split(' ').next().unwrap_or_default())
}

/// A host that forwards, with the clusterset ranges and services of one frontend in both families and protocols.
pub(super) fn wanted(ruleset: &Ruleset, slots: &[(&Pod, u16)], affinity: Affinity) -> State {
    let mut state = with_table(ruleset);
    state.settings = [(Setting::ForwardIpv4, 1), (Setting::ForwardIpv6, 1)].into();
    state.sets.clusterset = ["241.0.0.0/8".parse().unwrap(), "fd41::/64".parse().unwrap()].into();
    for ipv4 in [true, false] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let backend = |(pod, port): &(&Pod, u16)| Backend { address: pod.address(ipv4), port: *port };
            let service = Service::new(slots.iter().map(backend).collect(), affinity).unwrap();
            state.services.insert(Frontend { address: vip(ipv4), protocol, port: 80 }, service);
        }
    }
    state
}

fn each(test: impl Fn(bool, Protocol)) {
    for ipv4 in [true, false] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            test(ipv4, protocol);
        }
    }
}

sandboxed! {
    fn connections_are_spread_as_the_slots_are() {
        let (client, one, two) = (Pod::new(1, 1), Pod::new(1, 2), Pod::new(1, 3));
        serve(&one, 8080, "one");
        serve(&two, 8081, "two");
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &wanted(&Ruleset::default(), &[(&one, 8080), (&two, 8081), (&one, 8080), (&one, 8080)], Affinity::None));
        each(|ipv4, protocol| {
            let mut shares: BTreeMap<String, u32> = BTreeMap::new();
            for _ in 0..200 {
                let answer = ask_from(&client, (vip(ipv4), 80).into(), protocol);
                *shares.entry(who(&answer).to_owned()).or_default() += 1;
            }
            // 150 and 50 are expected; a fair draw of 200 leaves these bounds less often than once in 10^9 runs.
            let (one, two) = (shares.get("one").copied().unwrap_or(0), shares.get("two").copied().unwrap_or(0));
            assert!(one + two == 200 && (112..=188).contains(&one), "{protocol:?} {ipv4} {shares:?}");
        });
        assert!(kernel.counters().unwrap().values().all(|counter| counter.packets == 0));
    }
}

sandboxed! {
    fn a_client_with_affinity_stays_where_it_is() {
        let (one, two) = (Pod::new(1, 2), Pod::new(1, 3));
        let clients: Vec<Pod> = (10..26).map(|number| Pod::new(1, number)).collect();
        serve(&one, 8080, "one");
        serve(&two, 8080, "two");
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &wanted(&Ruleset::default(), &[(&one, 8080), (&two, 8080)], Affinity::ClientAddress));
        let mut seen = BTreeSet::new();
        for client in &clients {
            let first = ask_from(client, (vip(true), 80).into(), Protocol::Tcp);
            for _ in 0..5 {
                assert_eq!(ask_from(client, (vip(true), 80).into(), Protocol::Tcp), first);
            }
            seen.insert(who(&first).to_owned());
        }
        assert_eq!(seen.len(), 2, "sixteen clients all went to one of two");
    }
}

sandboxed! {
    fn a_pod_that_is_given_itself_is_answered() {
        let pod = Pod::new(1, 1);
        serve(&pod, 8080, "self");
        let (mut kernel, _folder) = open();
        let mut state = wanted(&Ruleset::default(), &[(&pod, 8080)], Affinity::None);
        state.sets.hairpin = [pod.address(true), pod.address(false)].into();
        bring(&mut kernel, &state);
        each(|ipv4, protocol| {
            assert_eq!(who(&ask_from(&pod, (vip(ipv4), 80).into(), protocol)), "self", "{protocol:?} {ipv4}");
        });
    }
}

sandboxed! {
    fn what_no_service_or_no_endpoint_answers_is_refused_at_once_and_counted() {
        let client = Pod::new(1, 1);
        let (mut kernel, _folder) = open();
        let mut host = Host::new();
        host.route("241.0.0.0".parse().unwrap(), 8, client.address(true));
        host.route("fd41::".parse().unwrap(), 64, client.address(false));
        bring(&mut kernel, &wanted(&Ruleset::default(), &[], Affinity::None));
        each(|ipv4, protocol| {
            for port in [80, 81] {
                let to = (vip(ipv4), port).into();
                assert_eq!(ask_from(&client, to, protocol), Err(ErrorKind::ConnectionRefused), "{to} {protocol:?}");
                // A datagram of the host itself is refused in the call that sends it.
                let refused = if protocol == Protocol::Udp { ErrorKind::PermissionDenied } else { ErrorKind::ConnectionRefused };
                assert_eq!(ask(to, protocol), Err(refused), "from the host {to} {protocol:?}");
            }
        });
        let counters = kernel.counters().unwrap();
        assert!(counters[&Refusal::NoEndpoint].packets >= 8, "{counters:?}");
        assert!(counters[&Refusal::NoService].packets >= 8, "{counters:?}");
        assert_eq!(counters[&Refusal::Untranslated].packets, 0);
    }
}

sandboxed! {
    fn the_host_itself_reaches_services_with_its_infrastructure_address() {
        let remote = Pod::new(2, 1);
        serve(&remote, 8080, "remote");
        let (mut kernel, _folder) = open();
        let host_clients = HostClients { ipv4: "10.1.250.1".parse().ok(), ipv6: "fd00:1:250::1".parse().ok() };
        let mut state = wanted(&Ruleset { host_clients, ..Ruleset::default() }, &[(&remote, 8080)], Affinity::None);
        state.sets.remote = ["10.2.0.0/16".parse().unwrap(), "fd00:2::/32".parse().unwrap()].into();
        let lo = kernel_core::DeviceName::loopback();
        for net in ["10.1.250.1/32", "fd00:1:250::1/128"] {
            state.addresses.insert(kernel_core::Address { device: lo.clone(), net: net.parse().unwrap() });
        }
        for net in ["241.0.0.0/8", "fd41::/64"] {
            let target = kernel_core::Target::Device { device: remote.device.parse().unwrap(), via: None };
            let (key, route) = route_by(net, target);
            state.routes.insert(key, route);
        }
        for family in [kernel_core::Family::Ipv4, kernel_core::Family::Ipv6] {
            state.rules.insert(kernel_core::Rule::unless_marked(family, 1, 1));
        }
        bring(&mut kernel, &state);
        each(|ipv4, protocol| {
            let source = if ipv4 { "10.1.250.1" } else { "fd00:1:250::1" };
            let answer = ask((vip(ipv4), 80).into(), protocol);
            assert_eq!(answer, Ok(format!("remote {source}")), "{protocol:?}");
        });
    }
}

sandboxed! {
    fn a_udp_flow_leaves_an_endpoint_that_left() {
        let (client, one, two) = (Pod::new(1, 1), Pod::new(1, 2), Pod::new(1, 3));
        serve(&one, 8080, "one");
        serve(&two, 8080, "two");
        let (mut kernel, _folder) = open();
        let before = wanted(&Ruleset::default(), &[(&one, 8080)], Affinity::None);
        let after = wanted(&Ruleset::default(), &[(&two, 8080)], Affinity::None);
        bring(&mut kernel, &before);
        let ask_by_one_socket = || ask_from_one_port(&client);
        assert_eq!(who(&ask_by_one_socket()), "one");
        let changes = difference(&after, &before);
        assert!(changes.iter().any(|change| matches!(change, Change::ForgetFlows { .. })));
        apply(&mut kernel, &changes);
        assert_eq!(who(&ask_by_one_socket()), "two");
    }
}

sandboxed! {
    fn sources_survive_a_masquerade_rule_between_members_only() {
        let (local, remote, stranger) = (Pod::new(1, 1), Pod::new(2, 1), Pod::new(3, 1));
        serve(&remote, 8080, "remote");
        serve(&stranger, 8080, "stranger");
        serve(&local, 8080, "local");
        let (mut kernel, _folder) = open();
        masquerade_everything(&mut kernel);
        let mut state = wanted(&Ruleset::default(), &[(&remote, 8080)], Affinity::None);
        state.sets = Sets {
            local: ["10.1.0.0/16".parse().unwrap(), "fd00:1::/32".parse().unwrap()].into(),
            remote: ["10.2.0.0/16".parse().unwrap(), "fd00:2::/32".parse().unwrap()].into(),
            ..state.sets
        };
        state.table = Some(Ruleset { reachability: kernel_core::PodReachability::Open, ..Ruleset::default() }.table());
        bring(&mut kernel, &state);
        each(|ipv4, protocol| {
            let (own, other) = (local.address(ipv4), remote.address(ipv4));
            let answer = ask_from(&local, (vip(ipv4), 80).into(), protocol);
            assert_eq!(answer, Ok(format!("remote {own}")), "out, {protocol:?}");
            let answer = ask_from(&remote, (own, 8080).into(), protocol);
            assert_eq!(answer, Ok(format!("local {other}")), "in, {protocol:?}");
            let masqueraded = ask_from(&local, (stranger.address(ipv4), 8080).into(), protocol).unwrap();
            assert!(!masqueraded.contains(&own.to_string()), "others keep their masquerade: {masqueraded}");
        });
    }
}

/// Asks by UDP from the same port each time, so that all is one flow to the host.
fn ask_from_one_port(client: &Pod) -> Result<String, ErrorKind> {
    client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:5000").unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.connect((VIP4, 80)).unwrap();
        socket.send(b"who").unwrap();
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).map_err(|error| error.kind())?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
}

sandboxed! {
    fn a_udp_client_that_began_before_its_service_reaches_it() {
        let (client, one) = (Pod::new(1, 1), Pod::new(1, 2));
        serve(&one, 8080, "one");
        let (mut kernel, _folder) = open();
        // Tracked, and led to where nobody answers.
        let mut early = wanted(&Ruleset::default(), &[], Affinity::None);
        early.services.clear();
        early.sets.clusterset.clear();
        bring(&mut kernel, &early);
        Host::new().route("241.0.0.0".parse().unwrap(), 8, one.address(true));
        client.run(|| UdpSocket::bind("0.0.0.0:5000").unwrap().send_to(b"who", (VIP4, 80)).unwrap());
        let end = Instant::now() + LIMIT;
        while !kernel.tracked_sources().contains(&client.address(true)) {
            assert!(Instant::now() < end, "the datagram never came to the host");
            thread::sleep(Duration::from_millis(5));
        }
        bring(&mut kernel, &wanted(&Ruleset::default(), &[(&one, 8080)], Affinity::None));
        assert_eq!(who(&ask_from_one_port(&client)), "one");
    }
}

/// What a CNI does, in a table of its own at priority srcnat.
fn masquerade_everything(kernel: &mut Kernel) {
    use crate::message::{Message, flag};
    let message = |kind: u16, flags: u16| {
        let mut message = Message::new(10 << 8 | kind, flags, &[1, 0, 0, 0]);
        message.put_text(1, "cni");
        message
    };
    let mut chain = message(3, flag::CREATE);
    chain.put_text(3, "masquerade");
    chain.nest(4, |hook| {
        hook.put_be32(1, 4).put_be32(2, 100);
    });
    chain.put_text(7, "nat");
    let mut rule = message(6, flag::CREATE | flag::APPEND);
    rule.put_text(2, "masquerade").nest(4, |list| {
        crate::table::expression::put(list, &[kernel_core::table::Expression::Masquerade]);
    });
    kernel.tamper(vec![message(0, flag::CREATE), chain, rule]);
}

sandboxed! {
    fn every_connection_is_counted_once_for_the_cluster_it_is_given_to_whatever_becomes_of_slots_and_rules() {
        let (client, near, far) = (Pod::new(1, 1), Pod::new(1, 2), Pod::new(2, 1));
        serve(&near, 8080, "near");
        serve(&far, 8080, "far");
        let (mut kernel, _folder) = open();
        let targets = |peers: &[&str]| {
            let prefixes: BTreeSet<ipnet::IpNet> = ["10.2.0.0/16", "fd00:2::/32"].map(|net| net.parse().unwrap()).into();
            let remote = peers.iter().map(|peer| ((*peer).to_owned(), prefixes.clone())).collect();
            Ruleset { targets: Some(Targets { local: "amber".into(), remote }), ..Ruleset::default() }
        };
        let counts = |kernel: &mut Kernel| {
            let of = |connections: &BTreeMap<String, u64>, cluster| connections.get(cluster).copied();
            let connections = kernel.counted().unwrap().connections;
            (of(&connections, "amber"), of(&connections, "birch"))
        };
        bring(&mut kernel, &wanted(&targets(&["birch"]), &[(&far, 8080)], Affinity::None));
        // Straight to the endpoint is no choice of ours.
        assert!(ask_from(&client, (far.address(true), 8080).into(), Protocol::Tcp).is_ok());
        each(|ipv4, protocol| {
            for _ in 0..3 {
                assert_eq!(who(&ask_from(&client, (vip(ipv4), 80).into(), protocol)), "far");
            }
        });
        assert_eq!(counts(&mut kernel), (Some(0), Some(12)));
        bring(&mut kernel, &wanted(&targets(&["birch"]), &[(&near, 8080), (&near, 8080)], Affinity::None));
        each(|ipv4, protocol| assert_eq!(who(&ask_from(&client, (vip(ipv4), 80).into(), protocol)), "near"));
        assert_eq!(counts(&mut kernel), (Some(4), Some(12)));
        // Other rules leave the counts; so does another owner, who finds them.
        let open_to_all = Ruleset { reachability: kernel_core::PodReachability::Open, ..targets(&["birch", "cedar"]) };
        bring(&mut kernel, &wanted(&open_to_all, &[], Affinity::None));
        let (mut kernel, _folder) = open();
        assert_eq!(ask_from(&client, (vip(true), 80).into(), Protocol::Tcp), Err(ErrorKind::ConnectionRefused));
        assert_eq!(counts(&mut kernel), (Some(4), Some(12)), "what is refused is not counted");
        // The host itself as client and as endpoint.
        let mut host = Host::new();
        host.route("241.0.0.0".parse().unwrap(), 8, client.address(true));
        let _listening = TcpListener::bind("0.0.0.0:8080").unwrap();
        let here = Backend { address: listener_address(&client), port: 8080 };
        let mut state = wanted(&targets(&["birch"]), &[], Affinity::None);
        let frontend = Frontend { address: vip(true), protocol: Protocol::Tcp, port: 80 };
        state.services.insert(frontend, Service::new(vec![here], Affinity::None).unwrap());
        bring(&mut kernel, &state);
        let connect = || TcpStream::connect_timeout(&(vip(true), 80).into(), LIMIT).map(drop);
        connect().unwrap();
        client.run(connect).unwrap();
        assert_eq!(counts(&mut kernel), (Some(6), Some(12)));
        bring(&mut kernel, &wanted(&targets(&[]), &[(&near, 8080)], Affinity::None));
        assert_eq!(counts(&mut kernel), (Some(6), None));
    }
}

/// The address that the host has on a pod's device.
fn listener_address(pod: &Pod) -> IpAddr {
    let text = pod.address(true).to_string();
    let (net, _) = text.rsplit_once('.').unwrap();
    format!("{net}.1").parse().unwrap()
}
