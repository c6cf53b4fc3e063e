//! Clusters with the same pod addresses: each sees the others under prefixes of its own choice, and everything works that
//! works between others.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use hickory_proto::rr::{RData, RecordType};
use ipnet::IpNet;
use netns_tests::cluster::ClusterPlan;
use netns_tests::deployment::{Deployment, Part};
use netns_tests::manifest::{self, LocalCluster, Service};
use netns_tests::pod::Pod;
use netns_tests::scenario::three_clusters::PATIENCE;
use netns_tests::traffic::stream::Download;
use netns_tests::traffic::{dns, http, icmp, udp};
use netns_tests::{Cluster, Host, World, world_test};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};

/// For one answer, on a machine that other tests share.
const LIMIT: Duration = Duration::from_secs(5);
/// For an answer that may not come, and is asked for again.
const SOON: Duration = Duration::from_millis(200);

/// A cluster with a pod on its worker that is client and server at once.
struct Side {
    deployment: Deployment,
    pod: Pod,
    /// What it sees overlapping prefixes as.
    translations: Vec<IpNet>,
}

impl Side {
    fn prepare(cluster: &Cluster) -> Result<Self> {
        let pod = cluster.worker()?.pod(&format!("{}-pod", cluster.name()))?;
        pod.serve_http()?;
        pod.serve_udp_echo(7777)?;
        pod.serve_stream(9000)?;
        let number = cluster.number();
        let pools = [format!("10.{}.0.0/14", 160 + 4 * number), format!("fda{number:x}::/16")];
        let local = LocalCluster { translation_prefixes: pools.to_vec(), ..LocalCluster::of(cluster) };
        let deployment = Deployment::prepare_with(cluster, &local)?;
        let translations = pools.iter().map(|pool| Ok(pool.parse()?)).collect::<Result<_>>()?;
        Ok(Self { deployment, pod, translations })
    }

    fn name(&self) -> &str {
        self.deployment.cluster().name()
    }

    fn translates(&self, address: IpAddr) -> bool {
        self.translations.iter().any(|range| range.contains(&address))
    }

    /// Exports a service that names this cluster, with its pod behind it.
    fn export(&self) -> Result<()> {
        let service = Service::http("shop", &format!("web-{}", self.name()))
            .with_port("echo", "UDP", 7777, 7777)
            .with_port("stream", "TCP", 9000, 9000);
        self.deployment.apply("shop.yaml", &manifest::namespace("shop"))?;
        self.deployment.apply("web.yaml", &service.manifest(&[&self.pod]))?;
        let headless = Service::http("shop", &format!("each-{}", self.name())).headless();
        let headless = headless.with_port("echo", "UDP", 7777, 7777);
        self.deployment.apply("each.yaml", &headless.manifest(&[&self.pod]))
    }

    /// The clusterset addresses of another side's service here.
    fn service_of(&self, other: &Self) -> Result<Vec<IpAddr>> {
        self.deployment.clusterset_addresses("shop", &format!("web-{}", other.name()), PATIENCE)
    }

    /// What the headless service of another side resolves to here, of one family.
    fn endpoint_of(&self, other: &Self, kind: RecordType) -> Result<IpAddr> {
        self.resolve(&format!("each-{}", other.name()), kind)
    }

    fn resolve(&self, service: &str, kind: RecordType) -> Result<IpAddr> {
        let name = format!("{service}.shop.svc.clusterset.local.");
        let [server, _] = self.deployment.dns()?;
        self.deployment.eventually(PATIENCE, &format!("{name} {kind} is answered"), || {
            let answer = dns::query(&self.pod, server, &name, kind, dns::Transport::Udp, LIMIT)?;
            match answer.answers.iter().map(|record| &record.data).collect::<Vec<_>>().as_slice() {
                [RData::A(address)] => Ok(address.0.into()),
                [RData::AAAA(address)] => Ok(address.0.into()),
                other => Err(anyhow!("{name} {kind}: {other:?}")),
            }
        })
    }
}

/// Amber and birch, whose pods have the same addresses, and cedar, whose pods have others; every one knows the others.
fn joined(world: &World) -> Result<[Side; 3]> {
    let amber = world.cluster("amber")?;
    let like_amber = ClusterPlan { pods_like: Some(amber.number()), ..ClusterPlan::default() };
    let birch = world.cluster_with("birch", like_amber)?;
    let clusters = [amber, birch, world.cluster("cedar")?];
    let sides = clusters.iter().map(Side::prepare).collect::<Result<Vec<_>>>()?;
    let sides: [Side; 3] = sides.try_into().map_err(|_| anyhow!("three clusters have three sides"))?;
    ensure!(sides[0].pod.addresses() == sides[1].pod.addresses(), "both pods have the same addresses");
    Deployment::start_all(&sides.each_ref().map(|side| &side.deployment))?;
    for one in &sides {
        let manifest = one.deployment.peer_manifest(PATIENCE)?.replacen("spec:\n", "spec:\n  allowOverlap: true\n", 1);
        for other in sides.iter().filter(|other| other.name() != one.name()) {
            other.deployment.apply(&format!("peer-{}.yaml", one.name()), &manifest)?;
        }
    }
    for one in &sides {
        for other in sides.iter().filter(|other| other.name() != one.name()) {
            one.deployment.wait_until_connected(other.name(), PATIENCE)?;
        }
        one.export()?;
    }
    Ok(sides)
}

/// One datagram of `size` bytes is answered, sooner or later.
fn echoes(side: &Side, host: &Host, target: SocketAddr, size: usize) -> Result<()> {
    side.deployment.eventually(PATIENCE, &format!("{target} echoes {size} bytes to {}", host.name()), || {
        let echoes = udp::echo(host, target, 1, size, SOON)?;
        ensure!(echoes.answered == 1, "{echoes:?}");
        Ok(())
    })
}

#[test]
fn clusters_with_equal_pod_addresses_and_a_third_reach_each_others_services_in_both_families() {
    world_test(|world| {
        let sides = joined(world)?;
        let [amber, birch, cedar] = &sides;
        for (client, server) in
            [(amber, birch), (birch, amber), (amber, cedar), (cedar, amber), (birch, cedar), (cedar, birch)]
        {
            let who = format!("{} to {}", client.name(), server.name());
            let mut targets = client.service_of(server)?;
            for kind in [RecordType::A, RecordType::AAAA] {
                let address = client.endpoint_of(server, kind)?;
                let is_own = server.pod.addresses().both().contains(&address);
                ensure!(client.translates(address) || is_own, "{who}: {address} leads nowhere");
                ensure!(!client.pod.addresses().both().contains(&address), "{who}: {address} is the client itself");
                icmp::ping(&client.pod, address)?;
                targets.push(address);
            }
            for target in targets {
                let answer = http::get_within(&client.pod, SocketAddr::new(target, 80), PATIENCE)?;
                ensure!(answer.pod == server.pod.pod_name(), "{who}: {target} is answered by {}", answer.pod);
                let is_own = client.pod.addresses().both().contains(&answer.client);
                ensure!(server.translates(answer.client) || is_own, "{who}: the client is seen as {}", answer.client);
                ensure!(
                    !server.pod.addresses().both().contains(&answer.client),
                    "{who}: the client is seen as the server itself"
                );
                echoes(client, &client.pod, SocketAddr::new(target, 7777), 64)?;
                // In pieces: more than any MTU on the way.
                echoes(client, &client.pod, SocketAddr::new(target, 7777), 4000)?;
            }
        }
        // Cedar, which overlaps neither, sees one of both as it is and the other translated.
        let seen: BTreeSet<bool> = [amber, birch]
            .map(|server| cedar.endpoint_of(server, RecordType::A).map(|address| cedar.translates(address)))
            .into_iter()
            .collect::<Result<_>>()?;
        ensure!(seen.len() == 2, "cedar translates exactly one of two equal prefixes");
        // What is not exported stays closed.
        let closed = amber.endpoint_of(birch, RecordType::A)?;
        ensure!(http::get(&amber.pod, SocketAddr::new(closed, 7778), SOON).is_err(), "{closed} is open");
        let peers = amber.deployment.tombolo(amber.deployment.cluster().gateway()?, &["peers"])?;
        let shown = String::from_utf8_lossy(&peers.stdout).into_owned();
        let real = birch.deployment.cluster().ranges().pods().v4;
        ensure!(peers.status.success() && shown.contains(&format!("(there {real})")), "{shown}");
        Ok(())
    });
}

#[test]
fn a_path_that_is_narrow_behind_the_other_gateway_is_told_to_the_sender_in_both_families() {
    world_test(|world| {
        let [amber, birch, _] = joined(world)?;
        // A second pod on a link that is narrower than the tunnel, so that a node of the other cluster has to say so.
        const NARROW: u32 = 1300;
        for side in [&amber, &birch] {
            let pod = side.pod.node().pod("narrow")?;
            pod.port().set_mtu(NARROW)?;
            pod.node().links("narrowing a pod's link", async |links| links.set_link_mtu("pod1", NARROW).await)?;
            pod.serve_udp_echo(7777)?;
            let service = Service::http("shop", &format!("narrow-{}", side.name())).headless();
            let service = service.with_port("echo", "UDP", 7777, 7777);
            side.deployment.apply("narrow.yaml", &service.manifest(&[&pod]))?;
        }
        for (client, server) in [(&amber, &birch), (&birch, &amber)] {
            for kind in [RecordType::A, RecordType::AAAA] {
                let address = client.resolve(&format!("narrow-{}", server.name()), kind)?;
                let target = SocketAddr::new(address, 7777);
                echoes(client, &client.pod, target, 64)?;
                let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
                let socket = client.pod.run(|| UdpSocket::bind(any))??;
                socket.connect(target)?;
                socket.set_read_timeout(Some(SOON))?;
                let mut buffer = vec![0; 2048];
                let mut exchange = |size: u32| -> std::io::Result<bool> {
                    let datagram = vec![0x5a; size as usize];
                    socket.send(&datagram)?;
                    let length = socket.recv(&mut buffer)?;
                    Ok(buffer[..length] == datagram[..])
                };
                // Fits the tunnel and not the link. The socket, which is connected, gets the error only if what it quotes
                // has the very addresses and ports of the socket.
                let large = NARROW + 52;
                client.deployment.eventually(PATIENCE, &format!("the sender to {target} is told"), || {
                    if target.is_ipv4() {
                        ensure!(exchange(large)?, "something else came back");
                        let told = getsockopt(&socket, sockopt::IpMtu)?;
                        ensure!(told == NARROW as i32, "the kernel was told {told}");
                        return Ok(());
                    }
                    // Pieces would not help here: the filters of the pod's bridge put them together, and nobody on an IPv6
                    // path may cut again.
                    match exchange(large) {
                        Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => Ok(()),
                        other => Err(anyhow!("not told: {other:?}")),
                    }
                })?;
                let fits = NARROW - if target.is_ipv4() { 28 } else { 48 };
                client.deployment.eventually(PATIENCE, &format!("{target} echoes what fits"), || {
                    ensure!(exchange(fits)?, "something else came back");
                    Ok(())
                })?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_gateway_that_was_killed_goes_on_with_the_flows_it_translated() {
    world_test(|world| {
        let [amber, birch, _] = joined(world)?;
        let mut downloads = Vec::new();
        for address in amber.service_of(&birch)? {
            let target = SocketAddr::new(address, 9000);
            http::get_within(&amber.pod, SocketAddr::new(address, 80), PATIENCE)?;
            let download = Download::start(&amber.pod, target, PATIENCE)?;
            download.wait_for_more(PATIENCE)?;
            downloads.push(download);
        }
        let before = [RecordType::A, RecordType::AAAA].map(|kind| amber.endpoint_of(&birch, kind));
        for side in [&amber, &birch] {
            let node = side.deployment.cluster().gateway()?;
            for part in [Part::Gateway, Part::Controller] {
                side.deployment.process(part, node)?.kill()?;
            }
            for part in [Part::Controller, Part::Gateway] {
                side.deployment.start_part(part, node)?;
            }
            side.deployment.wait_until_ready(PATIENCE)?;
            for download in &downloads {
                download.wait_for_more(PATIENCE)?;
            }
        }
        for (before, kind) in before.into_iter().zip([RecordType::A, RecordType::AAAA]) {
            let (before, after) = (before?, amber.endpoint_of(&birch, kind)?);
            ensure!(before == after, "birch's pod was {before} and is {after}");
        }
        for download in downloads {
            let flow = download.stop();
            ensure!(flow.ended.is_none(), "{flow:?}");
        }
        Ok(())
    });
}
