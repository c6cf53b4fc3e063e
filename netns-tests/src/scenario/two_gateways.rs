//! Clusters with two gateways each, joined, and flows that are spread over all of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::ClusterPlan;
use crate::deployment::{Deployment, Part};
use crate::manifest::{self, Service};
use crate::node::Node;
use crate::pod::Pod;
use crate::scenario::three_clusters::{PATIENCE, ThreeClusters};
use crate::traffic::pulse::{Beats, Pulse};
use crate::traffic::stream::{Download, Flow};
use crate::world::World;

/// Flows that are opened before it is asked whether every gateway carries some, and how many more after a no.
const FLOWS: usize = 4;
/// Sixteen downloads and as many pulses leave one of four lanes out once in ten thousand times.
const MOST_FLOWS: usize = 16;
/// Flows are carried where more than these is sent over at least [`WINDOW`], in bytes a second: one pulse or the
/// acknowledgements of one download, beside each lane's probes of two gateways and its answers to theirs.
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
}

impl TwoGateways {
    /// Where the server streams.
    pub const STREAM: u16 = 9_000;
    /// Where it echoes datagrams.
    pub const ECHO: u16 = 9_007;

    /// Makes the clusters, starts everything with so many lanes a gateway, joins them and exports `shop/feed`.
    pub fn joined(world: &World, lanes: u8) -> Result<Self> {
        let plan = ClusterPlan { gateways: 2, ..ClusterPlan::default() };
        let (amber, birch) = (world.cluster_with("amber", plan)?, world.cluster_with("birch", plan)?);
        let (client, server) = (amber.worker()?.pod("client")?, birch.worker()?.pod("feed-1")?);
        server.serve_stream(Self::STREAM)?;
        server.serve_udp_echo(Self::ECHO)?;
        let prepare = |cluster| {
            Deployment::prepare_with(cluster, &manifest::LocalCluster { lanes, ..manifest::LocalCluster::of(cluster) })
        };
        let clusters = Self { amber: prepare(&amber)?, birch: prepare(&birch)?, client, server };
        let both = [&clusters.amber, &clusters.birch];
        Deployment::start_all(&both)?;
        Deployment::introduce(&both)?;
        clusters.amber.apply("shop.yaml", &manifest::namespace("shop"))?;
        clusters.export_feed()?;
        clusters.wait_until_all_are_used()?;
        Ok(clusters)
    }

    /// The first two of three clusters, where the first has two gateways: a server in birch is made to stream and echo.
    pub fn among(three: &ThreeClusters) -> Result<Self> {
        let server = three.servers.first().context("no server in birch")?.clone();
        server.serve_stream(Self::STREAM)?;
        server.serve_udp_echo(Self::ECHO)?;
        let (amber, birch) = (three.amber.clone(), three.birch.clone());
        let clusters = Self { amber, birch, client: three.client.clone(), server };
        clusters.export_feed()?;
        clusters.wait_until_all_are_used()?;
        Ok(clusters)
    }

    fn export_feed(&self) -> Result<()> {
        let feed = Service { ports: Vec::new(), ..Service::http("shop", "feed") }
            .with_port("stream", "TCP", Self::STREAM, Self::STREAM)
            .with_port("echo", "UDP", Self::ECHO, Self::ECHO);
        self.birch.apply("feed.yaml", &feed.manifest(&[&self.server]))
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

    /// Opens flows until every gateway that runs, and every lane somewhere, carries some of them.
    pub fn flows(&self) -> Result<Flows<'_>> {
        let mut flows = Flows { clusters: self, downloads: Vec::new(), pulses: Vec::new() };
        flows.open_more()?;
        flows.spread()?;
        Ok(flows)
    }

    /// Every gateway, and every lane somewhere. Not every lane of every gateway: all hosts share one kernel, which hashes a
    /// flow once, so that what the first host gives to one gateway the second gives to one lane.
    fn wait_until_carried(&self, limit: Duration) -> Result<()> {
        let running = self.running_gateways();
        let before = running.iter().map(|(one, node)| sent_by_lane(one, node)).collect::<Result<Vec<_>>>()?;
        let begun = Instant::now();
        self.amber.eventually(limit, "every gateway and every lane carries flows", || {
            let mut links: BTreeMap<String, (f64, f64)> = BTreeMap::new();
            for ((one, node), before) in running.iter().zip(&before) {
                for (lane, sent) in sent_by_lane(one, node)? {
                    let more = sent - before.get(&lane).copied().unwrap_or(0.0);
                    for place in [node.name().to_owned(), format!("lane {lane} in {}", one.cluster().name())] {
                        let (bytes, probes) = links.entry(place).or_default();
                        (*bytes, *probes) = (*bytes + more, *probes + PROBES_OF_A_LANE);
                    }
                }
            }
            let seconds = begun.elapsed().as_secs_f64();
            for (place, (bytes, probes)) in links {
                let rate = bytes / seconds;
                ensure!(begun.elapsed() > WINDOW && rate > ONE_FLOW + probes, "{place}: {rate:.0} bytes a second");
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

/// Bytes that each lane of a gateway has sent.
fn sent_by_lane(deployment: &Deployment, gateway: &Node) -> Result<BTreeMap<u64, f64>> {
    let status = deployment.ask(gateway, Part::Gateway, "status")?;
    let paths = status["peers"].as_array().context("a status without peers")?;
    let sessions = paths.iter().filter_map(|path| path["sessions"].as_array()).flatten();
    let mut sent = BTreeMap::new();
    for session in sessions {
        let (lane, bytes) = (session["lane"].as_u64(), session["sentBytes"].as_f64());
        *sent.entry(lane.context("a session without a lane")?).or_default() += bytes.unwrap_or_default();
    }
    Ok(sent)
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
    /// Opens more flows until every gateway that runs, and every lane somewhere, carries some of them.
    pub fn spread(&mut self) -> Result<()> {
        while self.clusters.wait_until_carried(CARRIED_WITHIN).is_err() {
            if self.downloads.len() >= MOST_FLOWS {
                return self.clusters.wait_until_carried(PATIENCE);
            }
            self.open_more()?;
        }
        Ok(())
    }

    fn open_more(&mut self) -> Result<()> {
        for _ in 0..FLOWS / 2 {
            for target in self.clusters.targets(TwoGateways::STREAM) {
                let open = || Download::start(&self.clusters.client, target, Duration::from_millis(500));
                self.downloads.push(self.clusters.amber.eventually(PATIENCE, "a download begins", open)?);
            }
            for target in self.clusters.targets(TwoGateways::ECHO) {
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
