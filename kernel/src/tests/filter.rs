//! Closed until exported, and who may speak to whom, through pods' real sockets.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use kernel_core::{
    Affinity, Exported, PodReachability, Protocol, Refusal, Route, Rule, Ruleset, Setting, State, Target, difference,
};
use nix::sys::socket::{getsockopt, sockopt};

use super::path_mtu::path_mtu;
use super::sandbox::{Host, Pod, sandboxed};
use super::translate::{ask, ask_from, serve, vip, wanted};
use super::{apply, bring, open, route_by, with_table};
use crate::{Kernel, RefusalLog, Refused};

const LIMIT: Duration = Duration::from_secs(10);

/// A cluster `10.1`, another `10.2`, and a host between them that forwards.
fn joined(ruleset: &Ruleset) -> State {
    let mut state = with_table(ruleset);
    state.settings = [(Setting::ForwardIpv4, 1), (Setting::ForwardIpv6, 1)].into();
    state.sets.local = ["10.1.0.0/16".parse().unwrap(), "fd00:1::/32".parse().unwrap()].into();
    state.sets.remote = ["10.2.0.0/16".parse().unwrap(), "fd00:2::/32".parse().unwrap()].into();
    state
}

/// Waits until a refusal was counted so often. A packet is counted after the call that sent it, so a test waits.
fn counted(kernel: &mut Kernel, refusal: Refusal, packets: u64) {
    let end = Instant::now() + LIMIT;
    loop {
        let counters = kernel.counters().unwrap();
        if counters[&refusal].packets >= packets {
            return;
        }
        assert!(Instant::now() < end, "{refusal:?} was counted {} times: {counters:?}", counters[&refusal].packets);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends the first packet of a flow and does not wait for an answer.
fn knock(pod: &Pod, to: SocketAddr, protocol: Protocol) {
    pod.run(move || {
        if protocol == Protocol::Udp {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            socket.send_to(b"knock", to).unwrap();
        } else {
            let error = TcpStream::connect_timeout(&to, Duration::from_millis(50)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "a refused flow is dropped, not answered");
        }
    });
}

/// One echo request; no privilege is needed inside, where the test is root.
fn ping(pod: &Pod, to: IpAddr) {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
    };
    use std::os::fd::AsRawFd;
    pod.run(move || {
        let (family, protocol, kind) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
        };
        let socket = socket(family, SockType::Raw, SockFlag::empty(), protocol).unwrap();
        // The sum of an IPv6 echo is the kernel's work; that of this IPv4 one is written here.
        let sum = if to.is_ipv4() { (!0x0800u16).to_be_bytes() } else { [0, 0] };
        let echo = [kind, 0, sum[0], sum[1], 0, 0, 0, 0];
        sendto(socket.as_raw_fd(), &echo, &SockaddrStorage::from(SocketAddr::new(to, 0)), MsgFlags::empty()).unwrap();
    });
}

sandboxed! {
    fn another_cluster_reaches_only_what_is_exported() {
        let (local, remote) = (Pod::new(1, 1), Pod::new(2, 1));
        serve(&local, 80, "local");
        serve(&remote, 80, "remote");
        let (mut kernel, _folder) = open();
        let closed = joined(&Ruleset::default());
        bring(&mut kernel, &closed);
        let flows = [(true, Protocol::Tcp), (true, Protocol::Udp), (false, Protocol::Tcp), (false, Protocol::Udp)];
        for (number, (ipv4, protocol)) in flows.into_iter().enumerate() {
            knock(&remote, (local.address(ipv4), 80).into(), protocol);
            let refusal = if protocol == Protocol::Tcp { Refusal::UnexportedTcp } else { Refusal::UnexportedUdp };
            counted(&mut kernel, refusal, number as u64 / 2 + 1);
            ping(&remote, local.address(ipv4));
            let answer = ask_from(&local, (remote.address(ipv4), 80).into(), protocol);
            assert!(answer.is_ok(), "the way out is open: {answer:?}");
        }
        counted(&mut kernel, Refusal::UnexportedEcho, 4);

        let mut exported = closed.clone();
        for (ipv4, protocol) in flows {
            exported.sets.exported.insert(Exported { address: local.address(ipv4), protocol, port: 80 });
            exported.sets.echo.insert(local.address(ipv4));
        }
        apply(&mut kernel, &difference(&exported, &closed));
        for (ipv4, protocol) in flows {
            let answer = ask_from(&remote, (local.address(ipv4), 80).into(), protocol);
            assert!(answer.is_ok(), "exported: {answer:?}");
            ping(&remote, local.address(ipv4));
        }
        counted(&mut kernel, Refusal::UnexportedEcho, 4);
        knock(&remote, (local.address(true), 81).into(), Protocol::Udp);
        counted(&mut kernel, Refusal::UnexportedUdp, 3);

        apply(&mut kernel, &difference(&closed, &exported));
        let before = kernel.counters().unwrap()[&Refusal::UnexportedTcp].packets;
        knock(&remote, (local.address(true), 80).into(), Protocol::Tcp);
        counted(&mut kernel, Refusal::UnexportedTcp, before + 1);
    }
}

sandboxed! {
    fn the_host_itself_is_as_closed_as_its_pods() {
        let remote = Pod::new(2, 1);
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &joined(&Ruleset::default()));
        let host: IpAddr = "10.2.1.1".parse().unwrap();
        let listener = TcpListener::bind((host, 80)).unwrap();
        knock(&remote, listener.local_addr().unwrap(), Protocol::Tcp);
        counted(&mut kernel, Refusal::UnexportedTcp, 1);
    }
}

sandboxed! {
    fn open_reachability_lifts_the_filter() {
        let (local, remote) = (Pod::new(1, 1), Pod::new(2, 1));
        serve(&local, 80, "local");
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &joined(&Ruleset { reachability: PodReachability::Open, ..Ruleset::default() }));
        assert!(ask_from(&remote, (local.address(true), 80).into(), Protocol::Tcp).is_ok());
    }
}

sandboxed! {
    fn a_tunnel_brings_nothing_from_strangers_and_nothing_to_clusterset_addresses() {
        let (local, remote, stranger) = (Pod::new(1, 1), Pod::new(2, 1), Pod::new(3, 1));
        serve(&local, 80, "local");
        let (mut kernel, _folder) = open();
        let mut state = joined(&Ruleset { reachability: PodReachability::Open, ..Ruleset::default() });
        state.sets.tunnels = [remote.device.parse().unwrap(), stranger.device.parse().unwrap()].into();
        let services = wanted(&Ruleset::default(), &[(&local, 80)], Affinity::None);
        state.services = services.services;
        state.sets.clusterset = services.sets.clusterset;
        bring(&mut kernel, &state);
        knock(&stranger, (local.address(true), 80).into(), Protocol::Tcp);
        knock(&stranger, (local.address(false), 80).into(), Protocol::Udp);
        counted(&mut kernel, Refusal::ForeignSource, 2);
        assert!(ask_from(&remote, (local.address(true), 80).into(), Protocol::Tcp).is_ok());
        // Out of a tunnel everything is translated already.
        Host::new().route("241.0.0.0".parse().unwrap(), 8, local.address(true));
        let answer = ask_from(&remote, (vip(true), 80).into(), Protocol::Tcp);
        assert_eq!(answer, Err(ErrorKind::ConnectionRefused));
        counted(&mut kernel, Refusal::Untranslated, 1);
    }
}

sandboxed! {
    fn only_member_nodes_reach_the_vxlan_port() {
        const PORT: u16 = 4_801;
        let (node, stranger, pod, other) = (Pod::new(9, 1), Pod::new(9, 2), Pod::new(1, 1), Pod::new(9, 3));
        let (mut kernel, _folder) = open();
        let mut state = joined(&Ruleset { vxlan_port: Some(PORT), ..Ruleset::default() });
        state.sets.nodes = [node.address(true), node.address(false), other.address(true), other.address(false)].into();
        bring(&mut kernel, &state);
        // A pod that took a node's address for its own.
        let forged = node.ipv4;
        stranger.run(move || Host::new().address("lo", forged.into(), 32));
        let mut refused = 0;
        for ipv4 in [true, false] {
            let any: IpAddr = if ipv4 { "0.0.0.0" } else { "::" }.parse().unwrap();
            let socket = UdpSocket::bind((any, PORT)).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            let gateway = |pod: &Pod| -> IpAddr {
                let text = pod.address(ipv4).to_string();
                format!("{}1", &text[..text.len() - 1]).parse().unwrap()
            };
            knock(&stranger, (gateway(&stranger), PORT).into(), Protocol::Udp);
            knock(&pod, (gateway(&pod), PORT).into(), Protocol::Udp);
            // Through this host to another node.
            knock(&pod, (other.address(ipv4), PORT).into(), Protocol::Udp);
            refused += 3;
            if ipv4 {
                let to = (gateway(&stranger), PORT);
                stranger.run(move || UdpSocket::bind((forged, 0)).unwrap().send_to(b"forged", to).map(drop)).unwrap();
                refused += 1;
            }
            counted(&mut kernel, Refusal::VxlanStranger, refused);
            knock(&node, (gateway(&node), PORT).into(), Protocol::Udp);
            let mut buffer = [0; 16];
            let (_, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(from.ip(), node.address(ipv4), "the first datagram to arrive is the member's");
        }
        assert_eq!(kernel.counters().unwrap()[&Refusal::VxlanStranger].packets, refused);
    }
}

sandboxed! {
    fn segments_are_as_small_as_the_way_to_the_peer_both_ways() {
        let (local, remote) = (Pod::new(1, 1), Pod::new(2, 1));
        let (mut kernel, _folder) = open();
        let mut state = joined(&Ruleset { reachability: PodReachability::Open, ..Ruleset::default() });
        for (ipv4, net) in [(true, "10.2.0.0/16"), (false, "fd00:2::/32")] {
            let target = Target::Device { device: remote.device.parse().unwrap(), via: None };
            let (key, route) = route_by(net, target);
            state.routes.insert(key, Route { mtu: Some(1_300), ..route });
            let family = kernel_core::Family::of(local.address(ipv4));
            state.rules.insert(Rule::unless_marked(family, 1, 1));
        }
        bring(&mut kernel, &state);
        for (ipv4, overhead) in [(true, 40), (false, 60)] {
            for (client, server) in [(&local, &remote), (&remote, &local)] {
                let address = server.address(ipv4);
                let listener = server.run(move || TcpListener::bind((address, 0)).unwrap());
                let to = listener.local_addr().unwrap();
                let ours = client.run(move || TcpStream::connect_timeout(&to, LIMIT).unwrap());
                let (theirs, _) = listener.accept().unwrap();
                for stream in [ours, theirs] {
                    let size = getsockopt(&stream, sockopt::TcpMaxSeg).unwrap();
                    assert!(size <= 1_300 - overhead, "{size} in segments to {to}");
                }
            }
        }
    }
}

sandboxed! {
    fn the_client_is_told_the_path_mtu_of_what_it_sent_to_a_clusterset_address() {
        let (local, remote) = (Pod::new(1, 1), Pod::new(2, 1));
        serve(&remote, 80, "remote");
        let (mut kernel, _folder) = open();
        let mut state = wanted(&Ruleset::default(), &[(&remote, 80)], Affinity::None);
        for (family, net) in [(kernel_core::Family::Ipv4, "10.2.0.0/16"), (kernel_core::Family::Ipv6, "fd00:2::/32")] {
            let target = Target::Device { device: remote.device.parse().unwrap(), via: None };
            let (key, route) = route_by(net, target);
            state.routes.insert(key, Route { mtu: Some(1_370), ..route });
            state.rules.insert(Rule::unless_marked(family, 1, 1));
        }
        bring(&mut kernel, &state);
        for ipv4 in [true, false] {
            let told = local.run(move || {
                let socket = UdpSocket::bind(if ipv4 { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
                socket.connect((vip(ipv4), 80)).unwrap();
                let end = Instant::now() + LIMIT;
                // The answer to the first says how large the next may be.
                loop {
                    let sent = socket.send(&[0; 1_400]);
                    let mtu = path_mtu(&socket).unwrap();
                    if sent.is_err() || mtu < 1_500 {
                        return mtu;
                    }
                    assert!(Instant::now() < end, "nobody told the client");
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            assert_eq!(told, 1_370, "IPv4: {ipv4}");
        }
    }
}

sandboxed! {
    fn a_gateway_host_tracks_only_flows_of_its_own() {
        let (elsewhere, here, remote) = (Pod::new(1, 1), Pod::new(1, 2), Pod::new(2, 1));
        serve(&remote, 80, "remote");
        let (mut kernel, _folder) = open();
        let mut state = joined(&Ruleset { transit: true, ..Ruleset::default() });
        state.sets.here = ["10.1.2.0/24".parse().unwrap(), "fd00:1:2::/64".parse().unwrap()].into();
        bring(&mut kernel, &state);
        for ipv4 in [true, false] {
            let to = (remote.address(ipv4), 80).into();
            assert!(ask_from(&elsewhere, to, Protocol::Tcp).is_ok());
            assert!(ask_from(&here, to, Protocol::Tcp).is_ok());
        }
        let sources = kernel.tracked_sources();
        for ipv4 in [true, false] {
            assert!(sources.contains(&here.address(ipv4)), "{sources:?}");
            assert!(!sources.contains(&elsewhere.address(ipv4)), "{sources:?}");
        }
    }
}

sandboxed! {
    fn refused_packets_are_logged_with_reason_and_flow() {
        let (local, remote) = (Pod::new(1, 1), Pod::new(2, 1));
        let (mut kernel, _folder) = open();
        bring(&mut kernel, &joined(&Ruleset { log_group: Some(7), ..Ruleset::default() }));
        let mut log = RefusalLog::open(7).unwrap();
        assert_eq!(log.next(Duration::ZERO).unwrap(), None);
        for ipv4 in [true, false] {
            knock(&remote, (local.address(ipv4), 8_080).into(), Protocol::Udp);
            let Some(Refused::Packet { reason, flow, device }) = log.next(LIMIT).unwrap() else {
                panic!("nothing was logged");
            };
            assert_eq!(reason, Refusal::UnexportedUdp);
            assert_eq!((flow.source, flow.destination), (remote.address(ipv4), local.address(ipv4)));
            assert_eq!((flow.protocol, flow.ports.unwrap().1), (17, 8_080));
            assert_eq!(device, Some(Host::new().index(&remote.device)));
        }
        assert!(RefusalLog::open(7).is_err(), "one reader a group");
    }
}

sandboxed! {
    fn without_a_table_nothing_is_refused() {
        let (mut kernel, _folder) = open();
        assert!(kernel.counters().unwrap().is_empty());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(ask(to, Protocol::Tcp), Err(ErrorKind::ConnectionRefused));
    }
}
