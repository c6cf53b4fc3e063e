//! The size of packets that reach another cluster is measured, follows the path without any ICMP, and stands on the nodes'
//! routes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::deployment::{Deployment, Part};
use netns_tests::manifest::{self, LocalCluster, Service};
use netns_tests::scenario::three_clusters::PATIENCE;
use netns_tests::traffic::stream::Download;
use netns_tests::traffic::udp;
use netns_tests::{Cluster, Pod, World, world_test};
use serde_json::Value;

/// What is configured: more than an outer packet of 9000 bytes holds after 80 bytes of headers.
const CONFIGURED: u32 = 8_960;
const JUMBO: u32 = 9_000;
/// The least that IPv6 packets may be (RFC 8200, section 5), and so every tunnel.
const LEAST: u32 = 1_280;
/// A size is asked again each second, taken back after five lost probes 200 ms apart, and searched for in a few seconds.
const SMALLER_WITHIN: Duration = Duration::from_secs(15);
/// The raise timer besides.
const LARGER_WITHIN: Duration = Duration::from_secs(30);
/// So much in full segments is hundreds of them.
const MUCH: u64 = 1 << 20;
const BULK: u16 = 9000;
const ECHO: u16 = 9001;

/// By which family gateways reach each other.
#[derive(Clone, Copy, PartialEq)]
enum Outside {
    Ipv4,
    Ipv6,
}

impl Outside {
    /// IP, UDP, and WireGuard's header and tag.
    fn headers(self) -> u32 {
        match self {
            Self::Ipv4 => 20 + 8 + 32,
            Self::Ipv6 => 40 + 8 + 32,
        }
    }
}

struct Joined {
    both: [Deployment; 2],
    client: Pod,
    outside: Outside,
}

/// Every link of the cluster carries 9000 bytes.
fn prepare(cluster: &Cluster, outside: Outside) -> Result<Deployment> {
    cluster.set_internet_mtu(JUMBO)?;
    for node in cluster.nodes() {
        node.underlay().set_mtu(JUMBO)?;
        node.router_port().set_mtu(JUMBO)?;
    }
    let own = cluster.gateway()?.addresses();
    let dialled = if outside == Outside::Ipv4 { own.v4.to_string() } else { own.v6.to_string() };
    let local = LocalCluster { external_addresses: vec![dialled], ..LocalCluster::of(cluster) };
    let deployment = Deployment::prepare_with(cluster, &local)?;
    let wide = format!("  gateways:\n    mtu: {CONFIGURED}\n");
    deployment.apply("local.yaml", &local.to_string().replacen("  gateways:\n", &wide, 1))?;
    Ok(deployment)
}

impl Joined {
    /// amber exports what birch's client asks for.
    fn new(world: &World, outside: Outside) -> Result<Self> {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        let (server, client) = (amber.worker()?.pod("server")?, birch.worker()?.pod("client")?);
        for pod in [&server, &client] {
            pod.set_mtu(JUMBO)?;
        }
        server.serve_bulk(BULK)?;
        server.serve_udp_echo(ECHO)?;
        let both = [prepare(&amber, outside)?, prepare(&birch, outside)?];
        Deployment::start_all(&both.each_ref())?;
        Deployment::introduce(&both.each_ref())?;
        both[0].wait_until_connected("birch", PATIENCE)?;
        both[1].wait_until_connected("amber", PATIENCE)?;
        for deployment in &both {
            deployment.apply("shop.yaml", &manifest::namespace("shop"))?;
        }
        let service =
            Service::http("shop", "bulk").with_port("bulk", "TCP", BULK, BULK).with_port("echo", "UDP", ECHO, ECHO);
        both[0].apply("bulk.yaml", &service.manifest(&[&server]))?;
        Ok(Self { both, client, outside })
    }

    /// Waits until an outer packet of `outer` bytes is what gateways and nodes of both clusters reckon with.
    fn settles(&self, outer: u32, limit: Duration) -> Result<()> {
        for (deployment, peer) in self.both.iter().zip(["birch", "amber"]) {
            let what = format!("packets from {} to {peer} fit {outer} bytes", deployment.cluster().name());
            deployment.eventually(limit, &what, || {
                let wanted = (outer - self.outside.headers()).clamp(LEAST, CONFIGURED);
                let path = path(deployment, peer)?;
                let endpoint = path["sessions"][0]["endpoint"].as_str().context("no endpoint")?;
                let is_ipv4 = endpoint.parse::<SocketAddr>()?.is_ipv4();
                ensure!(is_ipv4 == (self.outside == Outside::Ipv4), "the path leads to {endpoint}");
                let told = (&path["mtu"], &path["sessions"][0]["mtu"]);
                ensure!(told == (&wanted.into(), &wanted.into()), "the gateway tells {told:?}, {wanted} fit");
                ensure!(path["mtuAge"].is_number(), "no age: {path}");
                let worker = deployment.cluster().worker()?;
                let routes = deployment.ask(worker, Part::Node, &format!("routes?peer={peer}"))?;
                let routes = routes.as_array().context("no routes")?.clone();
                // The way to the gateway's host takes headers of VXLAN from the node's own 9000 bytes.
                let fits = |mtu: &Value| [70, 50].iter().any(|vxlan| *mtu == wanted.min(JUMBO - vxlan));
                ensure!(
                    !routes.is_empty() && routes.iter().all(|route| fits(&route["mtu"])),
                    "the routes are {routes:?}, {wanted} fit"
                );
                let gateway = deployment.cluster().gateway()?;
                let metric = deployment.metric(gateway, Part::Gateway, "tombolo_path_mtu_bytes", &[peer])?;
                ensure!(metric == f64::from(wanted), "the metric is {metric}");
                Ok(())
            })?;
            // The TunnelGateway's status, as everybody who follows these objects has it.
            let wanted = (outer - self.outside.headers()).clamp(LEAST, CONFIGURED);
            let stored = format!(r#""cluster":"{peer}","mtu":{wanted},"#);
            deployment.wait_until_kept(deployment.cluster().worker()?, Part::Node, &stored, SMALLER_WITHIN)?;
        }
        Ok(())
    }

    /// A download by each family inside.
    fn downloads(&self) -> Result<Vec<Download>> {
        let mut downloads = Vec::new();
        for address in self.both[1].clusterset_addresses("shop", "bulk", PATIENCE)? {
            let target = SocketAddr::new(address, BULK);
            // The name server and the client's node hear of the service apart from each other.
            let download = self.both[1].eventually(PATIENCE, &format!("{target} takes connections"), || {
                Download::start(&self.client, target, PATIENCE)
            })?;
            download.wait_for(MUCH, PATIENCE)?;
            downloads.push(download);
        }
        ensure!(downloads.len() == 2, "the service has {} addresses", downloads.len());
        Ok(downloads)
    }

    /// Datagrams of the largest size that passes whole, and of one that the client must cut, come back by both families.
    fn echoes(&self, outer: u32) -> Result<()> {
        let inner = (outer - self.outside.headers()).clamp(LEAST, CONFIGURED);
        for address in self.both[1].clusterset_addresses("shop", "bulk", PATIENCE)? {
            let headers = if address.is_ipv4() { 28 } else { 48 };
            for size in [inner - headers, 16_000] {
                // The first of a size may be what teaches a sender the size of the path, on either end.
                let echoes = udp::echo(&self.client, SocketAddr::new(address, ECHO), 6, size as usize, PATIENCE / 10)?;
                ensure!(echoes.answered >= 3, "{size} bytes to {address}: {echoes:?}");
            }
        }
        Ok(())
    }

    fn set_internet_mtu(&self, bytes: u32) -> Result<()> {
        self.both[1].cluster().set_internet_mtu(bytes)
    }

    /// What the gateway's status complains of, on both sides.
    fn complaints(&self) -> Result<[Vec<String>; 2]> {
        let ask = |deployment: &Deployment| -> Result<Vec<String>> {
            let status = deployment.ask(deployment.cluster().gateway()?, Part::Gateway, "status")?;
            Ok(status["problems"].as_array().into_iter().flatten().map(ToString::to_string).collect())
        };
        Ok([ask(&self.both[0])?, ask(&self.both[1])?])
    }
}

/// What a gateway says of its path to a peer.
fn path(deployment: &Deployment, peer: &str) -> Result<Value> {
    let status = deployment.ask(deployment.cluster().gateway()?, Part::Gateway, "status")?;
    let paths = status["peers"].as_array().context("a status without peers")?;
    Ok(paths.iter().find(|path| path["peer"] == peer).context("no path")?.clone())
}

fn follows(world: &World, outside: Outside) -> Result<()> {
    let joined = Joined::new(world, outside)?;
    for deployment in &joined.both {
        deployment.cluster().lose_icmp_from_internet()?;
    }
    joined.settles(JUMBO, SMALLER_WITHIN)?;
    let downloads = joined.downloads()?;
    joined.echoes(JUMBO)?;
    for (outer, limit) in [(1_500, SMALLER_WITHIN), (1_380, SMALLER_WITHIN), (JUMBO, LARGER_WITHIN)] {
        joined.set_internet_mtu(outer)?;
        joined.settles(outer, limit)?;
        for download in &downloads {
            download.wait_for(MUCH, PATIENCE)?;
        }
        joined.echoes(outer)?;
    }
    for download in downloads {
        let flow = download.stop();
        ensure!(flow.ended.is_none(), "{flow:?}");
    }
    ensure!(joined.complaints()? == [Vec::<String>::new(), Vec::new()], "{:?}", joined.complaints()?);
    Ok(())
}

#[test]
fn a_path_over_ipv4_that_shrinks_in_silence_and_widens_again_is_followed_and_a_download_over_it_goes_on() {
    world_test(|world| follows(world, Outside::Ipv4));
}

#[test]
fn a_path_over_ipv6_that_shrinks_in_silence_and_widens_again_is_followed_and_a_download_over_it_goes_on() {
    world_test(|world| follows(world, Outside::Ipv6));
}

/// Nothing inside may be smaller than 1280 bytes, so outside there are fragments: made by routers over IPv4, and by the
/// gateway over IPv6, where no router may. Nobody is told that they are needed.
fn is_cut(world: &World, outside: Outside) -> Result<()> {
    let joined = Joined::new(world, outside)?;
    joined.settles(JUMBO, SMALLER_WITHIN)?;
    for deployment in &joined.both {
        deployment.cluster().lose_icmp_from_internet()?;
    }
    let downloads = joined.downloads()?;
    joined.set_internet_mtu(LEAST)?;
    joined.settles(LEAST, SMALLER_WITHIN)?;
    for (deployment, peer) in joined.both.iter().zip(["birch", "amber"]) {
        let named = format!("{peer}: not even 1280 bytes pass whole");
        deployment.eventually(SMALLER_WITHIN, "the status says so", || {
            let complaints = joined.complaints()?.concat();
            ensure!(complaints.iter().any(|complaint| complaint.contains(&named)), "{complaints:?}");
            Ok(())
        })?;
        let shown = deployment.tombolo(deployment.cluster().gateway()?, &["status"])?;
        let shown = String::from_utf8(shown.stdout)?;
        ensure!(shown.contains(&named), "{shown}");
    }
    for download in downloads {
        download.wait_for(MUCH, PATIENCE)?;
        ensure!(download.stop().ended.is_none(), "a download ended");
    }
    joined.echoes(LEAST)
}

#[test]
fn over_ipv4_a_path_narrower_than_any_tunnel_may_be_carries_everything_in_fragments_and_status_says_so() {
    world_test(|world| is_cut(world, Outside::Ipv4));
}

#[test]
fn over_ipv6_a_path_narrower_than_any_tunnel_may_be_carries_everything_in_fragments_and_status_says_so() {
    world_test(|world| is_cut(world, Outside::Ipv6));
}
