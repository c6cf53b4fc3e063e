//! What passes between clusters beside small TCP exchanges: datagrams, large payloads, narrow and wide paths, names.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use hickory_proto::rr::{RData, RecordType};
use netns_tests::deployment::Deployment;
use netns_tests::manifest::{self, LocalCluster, Service};
use netns_tests::pod::Pod;
use netns_tests::scenario::three_clusters::PATIENCE;
use netns_tests::traffic::{dns, http, sctp, udp};
use netns_tests::{Cluster, Host, World, world_test};
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt};

/// For one answer, on a machine that other tests share.
const LIMIT: Duration = Duration::from_secs(5);
/// For an answer that may not come, and is asked for again.
const SOON: Duration = Duration::from_millis(200);
const MEGABYTE: usize = 1 << 20;
/// The tunnel's usual MTU: IPv6 and WireGuard headers around it make 1500.
const TUNNEL_MTU: i32 = 1420;

/// Two clusters joined, with a client in amber and two servers in birch: on the worker and on the gateway node.
struct Pair {
    amber: Deployment,
    birch: Deployment,
    client: Pod,
    servers: Vec<Pod>,
}

impl Pair {
    fn joined(world: &World) -> Result<Self> {
        Self::joined_with(world, |_| Ok(()), |local| local)
    }

    /// `underlay` changes a cluster's links before Tombolo comes, `local` its manifest.
    fn joined_with(
        world: &World,
        underlay: impl Fn(&Cluster) -> Result<()>,
        local: impl Fn(String) -> String,
    ) -> Result<Self> {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        let client = amber.worker()?.pod("client")?;
        let servers = vec![birch.worker()?.pod("web-1")?, birch.gateway()?.pod("web-2")?];
        for server in &servers {
            server.serve_http()?;
        }
        let prepare = |cluster: &Cluster| -> Result<Deployment> {
            underlay(cluster)?;
            let deployment = Deployment::prepare(cluster)?;
            deployment.apply("local.yaml", &local(LocalCluster::of(cluster).to_string()))?;
            Ok(deployment)
        };
        let pair = Self { amber: prepare(&amber)?, birch: prepare(&birch)?, client, servers };
        let both = [&pair.amber, &pair.birch];
        Deployment::start_all(&both)?;
        Deployment::introduce(&both)?;
        pair.amber.wait_until_connected("birch", PATIENCE)?;
        pair.birch.wait_until_connected("amber", PATIENCE)?;
        pair.amber.apply("shop.yaml", &manifest::namespace("shop"))?;
        Ok(pair)
    }

    /// Exports a service from birch with these pods behind it; gives its addresses in amber.
    fn export(&self, service: &Service, pods: &[&Pod]) -> Result<Vec<IpAddr>> {
        self.birch.apply(&format!("{}.yaml", service.name), &service.manifest(pods))?;
        self.amber.clusterset_addresses(&service.namespace, &service.name, PATIENCE)
    }
}

/// `shop/<name>` with one port.
fn service(name: &str, protocol: &'static str, port: u16, target: u16) -> Service {
    Service { ports: vec![("main".into(), protocol, port, target)], ..Service::http("shop", name) }
}

/// One datagram of `size` bytes is answered, sooner or later.
fn echoes(pair: &Pair, host: &Host, target: SocketAddr, size: usize) -> Result<()> {
    pair.amber.eventually(PATIENCE, &format!("{target} echoes {size} bytes to {}", host.name()), || {
        let echoes = udp::echo(host, target, 1, size, SOON)?;
        ensure!(echoes.answered == 1, "{echoes:?}");
        Ok(())
    })
}

#[test]
fn datagrams_reach_a_clusterset_address_in_both_families_from_pods_and_hosts_on_another_port_than_the_pods() {
    world_test(|world| {
        let pair = Pair::joined(world)?;
        let servers: Vec<&Pod> = pair.servers.iter().collect();
        for server in &servers {
            server.serve_udp_echo(7777)?;
        }
        // Two ports, both other than the pods' own.
        let echo = service("echo", "UDP", 53, 7777).with_port("http", "TCP", 8080, 80);
        let second = pair.amber.cluster().gateway()?.pod("client-2")?;
        for address in pair.export(&echo, &servers)? {
            let nodes = pair.amber.cluster().nodes();
            for host in [&*pair.client, &*second, &*nodes[0], &*nodes[1]] {
                echoes(&pair, host, SocketAddr::new(address, 53), 64)?;
                http::get_within(host, SocketAddr::new(address, 8080), PATIENCE)?;
                // In pieces: more than any MTU on the way.
                echoes(&pair, host, SocketAddr::new(address, 53), 4000)?;
            }
            // The pods' own ports are not the service's.
            ensure!(http::get(&pair.client, SocketAddr::new(address, 80), LIMIT).is_err(), "{address} answers on 80");
        }
        Ok(())
    });
}

#[test]
fn a_flow_of_datagrams_moves_when_its_endpoint_leaves() {
    world_test(|world| {
        let pair = Pair::joined(world)?;
        let [first, second] = [&pair.servers[0], &pair.servers[1]];
        let first_server = first.serve_udp_echo(7777)?;
        second.serve_udp_echo(7777)?;
        let echo = service("echo", "UDP", 7777, 7777);
        let addresses = pair.export(&echo, &[first])?;
        let mut flows = Vec::new();
        for address in addresses {
            let any: SocketAddr = if address.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
            let flow = pair.client.run(|| UdpSocket::bind(any))??;
            flow.connect(SocketAddr::new(address, 7777))?;
            flow.set_read_timeout(Some(SOON))?;
            answered(&pair, &flow, "before")?;
            flows.push(flow);
        }
        // The first falls silent: it neither answers nor refuses, so that nothing but a move helps.
        first_server.signal(Signal::SIGSTOP)?;
        pair.birch.apply("echo.yaml", &echo.manifest(&[second]))?;
        for flow in &flows {
            answered(&pair, flow, "after")?;
        }
        Ok(())
    });
}

/// Sends over one flow, from one port, until an answer comes.
fn answered(pair: &Pair, flow: &UdpSocket, text: &str) -> Result<()> {
    pair.amber.eventually(PATIENCE, &format!("the flow is answered {text}"), || {
        flow.send(text.as_bytes())?;
        let mut buffer = [0; 64];
        let length = flow.recv(&mut buffer)?;
        // A late answer to an earlier question is not this one's.
        ensure!(buffer.get(..length) == Some(text.as_bytes()), "an answer from before");
        Ok(())
    })
}

#[test]
fn with_client_address_affinity_every_client_keeps_its_endpoint_and_clients_differ() {
    world_test(|world| {
        let pair = Pair::joined(world)?;
        let servers: Vec<&Pod> = pair.servers.iter().collect();
        let web = Service::http("shop", "web");
        let sticky = web.manifest(&servers).replacen("spec:\n", "spec:\n  sessionAffinity: ClientIP\n", 1);
        pair.birch.apply("web.yaml", &sticky)?;
        let mut clients = vec![pair.client.clone()];
        for number in 2..=8 {
            clients.push(pair.amber.cluster().worker()?.pod(&format!("client-{number}"))?);
        }
        for address in pair.amber.clusterset_addresses("shop", "web", PATIENCE)? {
            let target = SocketAddr::new(address, 80);
            http::get_within(&pair.client, target, PATIENCE)?;
            let mut chosen = BTreeSet::new();
            for client in &clients {
                let tally = http::get_many(client, target, 30, LIMIT)?;
                ensure!(tally.failed == 0, "{:?}", tally.failures);
                ensure!(tally.pods.len() == 1, "{} was answered by {:?}", client.name(), tally.pods);
                chosen.extend(tally.pods.into_keys());
            }
            ensure!(chosen.len() == 2, "eight clients are answered by {chosen:?} alone");
        }
        Ok(())
    });
}

/// Different at every place, so that lost, doubled and exchanged parts are seen.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32).map(|place| (place.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// In a pod: takes a megabyte from each of `count` clients, one after the other, and gives it back.
fn exchange_server(pod: &Pod, port: u16, count: usize) -> Result<JoinHandle<Result<()>>> {
    let listener = pod.run(|| TcpListener::bind(("::", port)))??;
    Ok(std::thread::spawn(move || {
        for _ in 0..count {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let mut taken = vec![0; MEGABYTE];
            stream.read_exact(&mut taken).context("the server reads")?;
            stream.write_all(&taken).context("the server writes")?;
        }
        Ok(())
    }))
}

/// A megabyte there and a megabyte back, in both families, in TCP segments of this size: what both
/// hosts' links allow is clamped to what fits the tunnel.
fn megabytes_pass(pair: &Pair, segment: std::ops::Range<u32>) -> Result<()> {
    const PORT: u16 = 9000;
    let addresses = pair.export(&service("bulk", "TCP", 90, PORT), &[&pair.servers[0]])?;
    let server = exchange_server(&pair.servers[0], PORT, addresses.len())?;
    let sent = pattern(MEGABYTE);
    for address in addresses {
        let target = SocketAddr::new(address, 90);
        let mut stream = pair.amber.eventually(PATIENCE, &format!("{target} accepts"), || {
            Ok(pair.client.run(|| TcpStream::connect_timeout(&target, LIMIT))??)
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&sent).with_context(|| format!("sending to {target}"))?;
        let mut got = vec![0; MEGABYTE];
        stream.read_exact(&mut got).with_context(|| format!("receiving from {target}"))?;
        ensure!(got == sent, "{target} gave something else back");
        let used = getsockopt(&stream, sockopt::TcpMaxSeg)?;
        ensure!(segment.contains(&used), "segments to {target} have {used} bytes, {segment:?} expected");
    }
    server.join().map_err(|_| anyhow!("the server panicked"))?
}

#[test]
fn a_megabyte_passes_both_ways_where_the_path_is_as_narrow_as_ipv6_allows() {
    world_test(|world| {
        let pair = Pair::joined_with(world, |cluster| cluster.set_internet_mtu(1280), |local| local)?;
        megabytes_pass(&pair, 1200..1381)?;
        pair.servers[0].serve_udp_echo(7777)?;
        for address in pair.export(&service("echo", "UDP", 7777, 7777), &[&pair.servers[0]])? {
            // As large as a packet may be on every path, and larger.
            for size in [1232, 1400, 4000] {
                echoes(&pair, &pair.client, SocketAddr::new(address, 7777), size)?;
            }
        }
        Ok(())
    });
}

/// Every link of the cluster carries 9000 bytes.
fn make_jumbo(cluster: &Cluster) -> Result<()> {
    const JUMBO: u32 = 9000;
    cluster.set_internet_mtu(JUMBO)?;
    for node in cluster.nodes() {
        node.underlay().set_mtu(JUMBO)?;
        node.router_port().set_mtu(JUMBO)?;
    }
    Ok(())
}

/// The pod's own link as well, both ends.
fn make_pod_jumbo(pod: &Pod, number: usize) -> Result<()> {
    pod.port().set_mtu(9000)?;
    let node_end = format!("pod{number}");
    pod.node().links("widening a pod's link", async |links| links.set_link_mtu(&node_end, 9000).await)
}

#[test]
fn a_megabyte_passes_both_ways_from_pods_with_jumbo_frames_through_a_wide_tunnel() {
    world_test(|world| {
        let wide = |local: String| local.replacen("  gateways:\n", "  gateways:\n    mtu: 8800\n", 1);
        let pair = Pair::joined_with(world, make_jumbo, wide)?;
        [&pair.client, &pair.servers[0]].into_iter().try_for_each(|pod| make_pod_jumbo(pod, 0))?;
        megabytes_pass(&pair, 8000..8761)
    });
}

#[test]
fn a_pod_that_sends_too_much_at_once_is_told_what_fits_in_both_families() {
    world_test(|world| {
        let pair = Pair::joined(world)?;
        pair.servers[0].serve_udp_echo(7777)?;
        for address in pair.export(&service("echo", "UDP", 7777, 7777), &[&pair.servers[0]])? {
            for target in [address, pair.servers[0].addresses().both()[usize::from(address.is_ipv6())]] {
                let target = SocketAddr::new(target, 7777);
                let any: SocketAddr = if address.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
                let socket = pair.client.run(|| UdpSocket::bind(any))??;
                socket.connect(target)?;
                socket.set_read_timeout(Some(SOON))?;
                // Fits the pod's own link and not the tunnel; the kernel forbids fragments until it is told.
                let datagram = pattern(if address.is_ipv4() { 1500 - 28 } else { 1500 - 48 });
                let mut buffer = vec![0; 2048];
                pair.amber.eventually(PATIENCE, &format!("{target} echoes a full packet"), || {
                    socket.send(&datagram)?;
                    let length = socket.recv(&mut buffer)?;
                    ensure!(buffer[..length] == datagram[..], "something else came back");
                    Ok(())
                })?;
                if address.is_ipv4() {
                    let told = getsockopt(&socket, sockopt::IpMtu)?;
                    ensure!((1280..=TUNNEL_MTU).contains(&told), "{target}: the kernel was told {told}");
                }
            }
        }
        Ok(())
    });
}

#[test]
fn an_sctp_association_begins_at_an_exported_port_of_a_clusterset_address_and_at_no_other() {
    world_test(|world| {
        let pair = Pair::joined(world)?;
        let server = &pair.servers[0];
        // Another port than the pod's own, so that the checksum changes on the way.
        let addresses = pair.export(&service("signalling", "SCTP", 36_412, 2_905), &[server])?;
        let sources = AtomicU16::new(40_000);
        let begins = |target: SocketAddr| -> Result<()> {
            let source = sources.fetch_add(1, Ordering::Relaxed);
            std::thread::scope(|scope| {
                let answering = scope.spawn(|| sctp::answer_once(server, target.is_ipv4(), 2_905, SOON));
                let begun = sctp::begins(&pair.client, target, source, SOON)?;
                let from = answering.join().map_err(|_| anyhow!("the server panicked"))??;
                ensure!(
                    from.is_none_or(|from| pair.client.addresses().both().contains(&from)),
                    "{target}: the server saw {from:?}"
                );
                ensure!(begun, "no INIT ACK");
                Ok(())
            })
        };
        for address in addresses {
            let own = server.addresses().both()[usize::from(address.is_ipv6())];
            for target in [SocketAddr::new(address, 36_412), SocketAddr::new(own, 2_905)] {
                pair.amber.eventually(PATIENCE, &format!("an association with {target} begins"), || begins(target))?;
            }
        }
        let closed = &pair.servers[1];
        for own in closed.addresses().both() {
            let target = SocketAddr::new(own, 2_905);
            let reached = std::thread::scope(|scope| {
                let answering = scope.spawn(|| sctp::answer_once(closed, own.is_ipv4(), 2_905, SOON));
                ensure!(!sctp::begins(&pair.client, target, 50_000, SOON)?, "{target} answers");
                answering.join().map_err(|_| anyhow!("the server panicked"))?
            })?;
            ensure!(reached.is_none(), "an INIT reached {target}, which nobody exports");
        }
        Ok(())
    });
}

#[test]
fn a_headless_service_names_every_endpoint_and_its_ports_and_each_answers_by_its_own_address() {
    world_test(|world| {
        let pair = Pair::joined(world)?;
        let servers: Vec<&Pod> = pair.servers.iter().collect();
        let database = Service::http("shop", "database").headless();
        pair.birch.apply("database.yaml", &database.manifest(&servers))?;
        let ask = |name: &str, kind| -> Result<Vec<RData>> {
            let [server, _] = pair.amber.dns()?;
            let answer = dns::query(&pair.client, server, name, kind, dns::Transport::UdpWithEdns, LIMIT)?;
            ensure!(!answer.answers.is_empty(), "{name} {kind}: {}", answer.metadata.response_code);
            Ok(answer.answers.into_iter().map(|record| record.data).collect())
        };
        let base = "database.shop.svc.clusterset.local.";
        pair.amber.eventually(PATIENCE, "both endpoints are answered", || {
            ensure!(ask(base, RecordType::A)?.len() == 2 && ask(base, RecordType::AAAA)?.len() == 2);
            Ok(())
        })?;
        let mut hosts = BTreeSet::new();
        for server in servers {
            let name = format!("{}.birch.{base}", server.pod_name());
            let [v4, v6] = server.addresses().both();
            for (kind, own) in [(RecordType::A, v4), (RecordType::AAAA, v6)] {
                let address = match ask(&name, kind)?.as_slice() {
                    [RData::A(address)] => IpAddr::V4(address.0),
                    [RData::AAAA(address)] => IpAddr::V6(address.0),
                    other => return Err(anyhow!("{name} {kind}: {other:?}")),
                };
                ensure!(address == own, "{name} is {address}, the pod has {own}");
                let answer = http::get_within(&pair.client, SocketAddr::new(address, 80), PATIENCE)?;
                ensure!(answer.pod == server.pod_name(), "{address} is answered by {}", answer.pod);
                ensure!(pair.client.addresses().both().contains(&answer.client), "seen as {}", answer.client);
            }
            hosts.insert(name);
        }
        let services = ask(&format!("_http._tcp.{base}"), RecordType::SRV)?;
        let targets: BTreeSet<String> = services
            .iter()
            .map(|data| match data {
                RData::SRV(service) if service.port == 80 => Ok(service.target.to_string()),
                other => Err(anyhow!("{other:?}")),
            })
            .collect::<Result<_>>()?;
        ensure!(targets == hosts, "SRV names {targets:?}, the endpoints are {hosts:?}");
        Ok(())
    });
}
