//! Clusters with two gateways each, joined, and flows that are spread over all of them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::ClusterPlan;
use crate::deployment::{Deployment, Part};
use crate::manifest::{self, Service};
use crate::node::Node;
use crate::pod::Pod;
use crate::scenario::three_clusters::PATIENCE;
use crate::traffic::pulse::{Beats, Pulse};
use crate::traffic::stream::{Download, Flow};
use crate::world::World;

/// Where the server streams, and where it echoes.
const STREAM: u16 = 9_000;
const ECHO: u16 = 9_007;
/// Flows that are opened before it is asked whether every gateway carries some, and how many more after a no.
const FLOWS: usize = 4;
/// Sixteen flows that all miss one of two gateways come once in 65,536 times.
const MOST_FLOWS: usize = 16;
/// A gateway carries flows when it sends more than this over at least [`WINDOW`], in bytes a second: the acknowledgements
/// of one download, beside the probes and their answers of each lane with two gateways.
const ONE_FLOW: f64 = 2_000.0;
const PROBES_OF_A_LANE: f64 = 4_000.0;
const WINDOW: Duration = Duration::from_millis(300);
const CARRIED_WITHIN: Duration = Duration::from_secs(1);

/// Two clusters with two gateways each, a client in the first and a server in the second.
pub struct TwoGateways {
    pub amber: Deployment,
    pub birch: Deployment,
    /// On amber's worker.
    pub client: Pod,
    /// On birch's worker: streams and echoes.
    pub server: Pod,
    lanes: u8,
}

impl TwoGateways {
    /// Makes the clusters, starts everything with so many lanes a gateway, joins them and exports `shop/feed`.
    pub fn joined(world: &World, lanes: u8) -> Result<Self> {
        let plan = ClusterPlan { gateways: 2, ..ClusterPlan::default() };
        let (amber, birch) = (world.cluster_with("amber", plan)?, world.cluster_with("birch", plan)?);
        let (client, server) = (amber.worker()?.pod("client")?, birch.worker()?.pod("feed-1")?);
        server.serve_stream(STREAM)?;
        server.serve_udp_echo(ECHO)?;
        let prepare = |cluster| {
            Deployment::prepare_with(cluster, &manifest::LocalCluster { lanes, ..manifest::LocalCluster::of(cluster) })
        };
        let clusters = Self { amber: prepare(&amber)?, birch: prepare(&birch)?, client, server, lanes };
        let both = [&clusters.amber, &clusters.birch];
        std::thread::scope(|scope| {
            let starts = both.map(|deployment| scope.spawn(move || deployment.start_everything()));
            for start in starts {
                start.join().map_err(|_| anyhow::anyhow!("starting a cluster panicked"))??;
            }
            anyhow::Ok(())
        })?;
        Deployment::introduce(&both)?;
        clusters.amber.apply("shop.yaml", &manifest::namespace("shop"))?;
        let feed = Service { ports: Vec::new(), ..Service::http("shop", "feed") }
            .with_port("stream", "TCP", STREAM, STREAM)
            .with_port("echo", "UDP", ECHO, ECHO);
        clusters.birch.apply("feed.yaml", &feed.manifest(&[&clusters.server]))?;
        clusters.wait_until_all_are_used()?;
        Ok(clusters)
    }

    pub fn both(&self) -> [&Deployment; 2] {
        [&self.amber, &self.birch]
    }

    /// Waits until every gateway reaches the other cluster and has proved it, and every node knows.
    pub fn wait_until_all_are_used(&self) -> Result<()> {
        for (one, other) in [(&self.amber, "birch"), (&self.birch, "amber")] {
            for gateway in one.cluster().gateways() {
                one.eventually(PATIENCE, &format!("{} reaches {other}", gateway.name()), || {
                    let path = path_to(one, gateway, other)?;
                    let sessions = path["sessions"].as_array().map(Vec::as_slice).unwrap_or_default();
                    let agreed = sessions.iter().filter(|session| session["handshakeAge"].is_number()).count();
                    ensure!(!sessions.is_empty() && agreed == sessions.len(), "{agreed} sessions: {path}");
                    let (state, age) = (&path["reachability"], path["age"].as_f64().unwrap_or_default());
                    ensure!(state == "Up" && age > PROVEN.as_secs_f64(), "it is {state} for {age} s");
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Where the server streams and echoes: in both families, by its own address, which its export admits.
    pub fn targets(&self, port: u16) -> [SocketAddr; 2] {
        self.server.addresses().with_port(port)
    }

    /// Opens flows until every gateway of both clusters that runs carries some of them.
    pub fn flows(&self) -> Result<Flows<'_>> {
        let mut flows = Flows { clusters: self, downloads: Vec::new(), pulses: Vec::new() };
        while flows.downloads.len() < MOST_FLOWS {
            flows.open_more()?;
            if self.wait_until_carried(CARRIED_WITHIN).is_ok() {
                return Ok(flows);
            }
        }
        self.wait_until_all_carry()?;
        Ok(flows)
    }

    /// Waits until every gateway that runs carries some of the flows that are open.
    pub fn wait_until_all_carry(&self) -> Result<()> {
        self.wait_until_carried(PATIENCE)
    }

    fn wait_until_carried(&self, limit: Duration) -> Result<()> {
        let by = self.running_gateways();
        let sent =
            |(one, node): &(&Deployment, &Node)| one.metric(node, Part::Gateway, "tombolo_gateway_tx_bytes_total", &[]);
        let before = by.iter().map(sent).collect::<Result<Vec<_>>>()?;
        let carried = ONE_FLOW + PROBES_OF_A_LANE * f64::from(self.lanes);
        let begun = Instant::now();
        self.amber.eventually(limit, "every gateway carries flows", || {
            for (gateway, before) in by.iter().zip(&before) {
                let rate = (sent(gateway)? - before) / begun.elapsed().as_secs_f64();
                ensure!(
                    begun.elapsed() > WINDOW && rate > carried,
                    "{} sends {rate:.0} bytes a second",
                    gateway.1.name()
                );
            }
            Ok(())
        })
    }

    fn running_gateways(&self) -> Vec<(&Deployment, &Node)> {
        let all = self.both().into_iter().flat_map(|one| one.cluster().gateways().iter().map(move |node| (one, node)));
        all.filter(|(one, node)| one.process(Part::Gateway, node).is_ok_and(|process| process.is_running())).collect()
    }
}

/// How long a path must be up before it is used beside others, and a moment for nodes to hear of it.
const PROVEN: Duration = Duration::from_millis(1_300);

/// What a gateway says of its way to a peer.
pub fn path_to(deployment: &Deployment, gateway: &Node, peer: &str) -> Result<serde_json::Value> {
    let status = deployment.ask(gateway, Part::Gateway, "status")?;
    let paths = status["peers"].as_array().context("a status without peers")?;
    paths.iter().find(|path| path["peer"] == peer).cloned().with_context(|| format!("{peer} is no peer yet"))
}

/// Downloads and pulses from amber to birch.
pub struct Flows<'a> {
    clusters: &'a TwoGateways,
    downloads: Vec<Download>,
    pulses: Vec<Pulse>,
}

/// What all flows together were like.
#[derive(Clone, Debug)]
pub struct Seen {
    pub flows: usize,
    /// Of the download that was silent longest.
    pub longest_silence: Duration,
    /// Why connections ended, for those that did.
    pub ended: Vec<String>,
    /// Datagrams, of all pulses.
    pub sent: u64,
    pub lost: u64,
}

impl Flows<'_> {
    fn open_more(&mut self) -> Result<()> {
        for _ in 0..FLOWS / 2 {
            for target in self.clusters.targets(STREAM) {
                let open = || Download::start(&self.clusters.client, target, Duration::from_millis(500));
                self.downloads.push(self.clusters.amber.eventually(PATIENCE, "a download begins", open)?);
            }
            for target in self.clusters.targets(ECHO) {
                self.pulses.push(Pulse::start(&self.clusters.client, target)?);
            }
        }
        self.downloads.iter().try_for_each(|download| download.wait_for_more(PATIENCE))
    }

    /// Forgets silences and losses so far, so that what comes stands alone.
    pub fn start_measuring(&mut self) -> Result<()> {
        for pulse in &mut self.pulses {
            *pulse = Pulse::start(&self.clusters.client, pulse.target())?;
        }
        self.downloads.iter().for_each(Download::start_measuring);
        Ok(())
    }

    /// Waits until every download has got something after this moment.
    pub fn wait_until_all_go_on(&self) -> Result<()> {
        self.downloads.iter().try_for_each(|download| download.wait_for_more(PATIENCE))
    }

    /// What all flows were like since [`Self::start_measuring`]; the pulses begin anew.
    pub fn measured(&mut self) -> Result<Seen> {
        let targets: Vec<SocketAddr> = self.pulses.iter().map(Pulse::target).collect();
        let begin = |target: &SocketAddr| Pulse::start(&self.clusters.client, *target);
        let next = targets.iter().map(begin).collect::<Result<Vec<_>>>()?;
        let pulses = std::mem::replace(&mut self.pulses, next);
        Ok(Self { clusters: self.clusters, downloads: Vec::new(), pulses }.seen(&self.downloads))
    }

    /// Ends all flows and says what they were like.
    pub fn stop(mut self) -> Seen {
        let downloads = std::mem::take(&mut self.downloads);
        self.seen(&downloads)
    }

    fn seen(self, downloads: &[Download]) -> Seen {
        let flows: Vec<Flow> = downloads.iter().map(Download::so_far).collect();
        let beats: Vec<Beats> = self.pulses.into_iter().map(Pulse::stop).collect();
        Seen {
            flows: flows.len(),
            longest_silence: flows.iter().map(|flow| flow.longest_silence).max().unwrap_or_default(),
            ended: flows.into_iter().filter_map(|flow| flow.ended).collect(),
            sent: beats.iter().map(|beats| beats.sent).sum(),
            lost: beats.iter().map(Beats::lost).sum(),
        }
    }
}
