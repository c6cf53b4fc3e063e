//! Clusters taken out of service and back: new connections go elsewhere without one failing, established ones go on; and
//! one that is cut off is gone at once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use api::report::{FlowReport, OrderReport, PeerSync, RefusalReport};
use netns_tests::deployment::{Deployment, Part};
use netns_tests::manifest::{self, Service};
use netns_tests::scenario::three_clusters::{PATIENCE, ThreeClusters};
use netns_tests::scenario::two_gateways::TwoGateways;
use netns_tests::traffic::http;
use netns_tests::traffic::stream::Download;
use netns_tests::{Node, Pod, World, world_test};

const GOOD: i32 = 0;
const FOUND_BAD: i32 = 1;
const USAGE: i32 = 2;
const REFUSED: i32 = 4;

/// Where the servers stream.
const STREAM: u16 = 9_000;
/// Downloads that are opened at most until every cluster serves one: half the chance of a miss with each.
const MOST_DOWNLOADS: usize = 40;
/// The promise for a peer that is cut off.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(5);

/// Types a command at the cluster's gateway host; errors when it ends otherwise than with `code`. What it printed.
fn types(deployment: &Deployment, command: &str, code: i32) -> Result<String> {
    let arguments: Vec<&str> = command.split(' ').collect();
    let output = deployment.tombolo(deployment.cluster().gateway()?, &arguments)?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(code), "tombolo {command}: {}, not {code}:\n{text}", output.status);
    Ok(text)
}

fn waits_for(deployment: &Deployment, command: &str, code: i32, texts: &[&str]) -> Result<()> {
    deployment.eventually(PATIENCE, &format!("tombolo {command} says {texts:?}"), || {
        let printed = types(deployment, command, code)?;
        ensure!(texts.iter().all(|text| printed.contains(text)), "tombolo {command}:\n{printed}");
        Ok(())
    })
}

/// Three clusters; birch and cedar export a page and a stream under one name.
fn joined(world: &World) -> Result<ThreeClusters> {
    let clusters = ThreeClusters::start(world)?;
    clusters.introduce()?;
    clusters.amber.apply("shop.yaml", &manifest::namespace("shop"))?;
    let web = Service::http("shop", "web").with_port("stream", "TCP", STREAM, STREAM);
    for deployment in [&clusters.birch, &clusters.cedar] {
        let name = deployment.cluster().name();
        let of_it: Vec<&Pod> = clusters.servers.iter().filter(|pod| pod.node().cluster_name() == name).collect();
        of_it.iter().try_for_each(|pod| pod.serve_stream(STREAM).map(drop))?;
        deployment.apply("web.yaml", &web.manifest(&of_it))?;
    }
    for target in clusters.web()? {
        clusters.wait_for_answers_from(target, &["birch", "cedar"])?;
    }
    Ok(clusters)
}

/// Connections open between this node, with its pods, and a peer: outward and inward.
fn open_flows(deployment: &Deployment, node: &Node, peer: &str) -> Result<(u64, u64)> {
    let all: Vec<FlowReport> = serde_json::from_value(deployment.ask(node, Part::Node, "flows")?)?;
    let flows = all.into_iter().find(|flows| flows.peer == peer).context("no such peer")?;
    Ok((flows.outward, flows.inward))
}

/// Downloads from the client until birch and cedar serve at least one each.
fn downloads(clusters: &ThreeClusters, target: SocketAddr) -> Result<Vec<Download>> {
    let worker = clusters.amber.cluster().worker()?;
    let target = SocketAddr::new(target.ip(), STREAM);
    let mut downloads = Vec::new();
    while downloads.len() < MOST_DOWNLOADS {
        downloads.push(Download::start(&clusters.client, target, PATIENCE)?);
        let served = |peer| anyhow::Ok(open_flows(&clusters.amber, worker, peer)?.0 > 0);
        if served("birch")? && served("cedar")? {
            return Ok(downloads);
        }
    }
    anyhow::bail!("{MOST_DOWNLOADS} downloads went to one cluster")
}

/// Asks without a pause, each time over a new connection, until stopped.
struct Asker {
    seen: Arc<Mutex<Asked>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Asked {
    answered: usize,
    /// Who answered since it was asked last.
    by: BTreeSet<String>,
    failed: Vec<String>,
}

impl Asker {
    /// `limit` is for each answer: one that is under way when its server is cut off never comes.
    fn start(client: &Pod, target: SocketAddr, limit: Duration) -> Self {
        let (seen, stop) = (Arc::new(Mutex::new(Asked::default())), Arc::new(AtomicBool::new(false)));
        let (shared, stopped, client) = (seen.clone(), stop.clone(), client.clone());
        let thread = std::thread::spawn(move || {
            client.run(|| {
                while !stopped.load(Ordering::Relaxed) {
                    let answer = http::ask(target, limit);
                    let mut seen = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    match answer {
                        Ok(answer) => {
                            seen.answered += 1;
                            seen.by.insert(answer.cluster);
                        }
                        Err(error) => seen.failed.push(format!("{error:#}")),
                    }
                }
            })
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// Waits until these clusters and no others answer.
    fn wait_until_answered_by(&self, deployment: &Deployment, clusters: &[&str]) -> Result<()> {
        deployment.eventually(PATIENCE, &format!("only {clusters:?} answer"), || {
            std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner).by);
            // Fifty answers leave one of two clusters that share them out once in ten million times.
            let enough = self.answered() + 50;
            let deadline = Instant::now() + PATIENCE;
            while self.answered() < enough {
                ensure!(Instant::now() < deadline, "no answers");
                std::thread::sleep(Duration::from_millis(5));
            }
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(seen.by.iter().map(String::as_str).eq(clusters.iter().copied()), "{:?} answer", seen.by);
            Ok(())
        })
    }

    fn answered(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).answered
    }

    /// Ends it; errors when one request failed.
    fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow::anyhow!("asking panicked"))??;
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(
            seen.failed.is_empty(),
            "{} of {} requests failed: {:?}",
            seen.failed.len(),
            seen.answered,
            seen.failed
        );
        Ok(())
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn all_go_on(downloads: &[Download]) -> Result<()> {
    downloads.iter().try_for_each(|download| download.wait_for_more(PATIENCE))
}

#[test]
fn a_drained_peer_gets_no_new_connections_and_keeps_its_old_ones_until_it_is_used_again() {
    world_test(|world| {
        let clusters = joined(world)?;
        let amber = &clusters.amber;
        let [target, _] = clusters.web()?;
        let manifest = std::fs::read(amber.manifests().join("peer-birch.yaml"))?;
        let downloads = downloads(&clusters, target)?;
        let asker = Asker::start(&clusters.client, target, PATIENCE);

        // What would leave a service with nobody is not done.
        let only = Service::http("shop", "only");
        clusters.birch.apply("only.yaml", &only.manifest(&[&clusters.servers[0]]))?;
        waits_for(amber, "explain service shop/only", GOOD, &["100% birch"])?;
        for command in ["peers drain birch", "peers drain birch --dry-run"] {
            let printed = types(amber, command, REFUSED)?;
            let lines = ["✗ shop/only http  100% birch → nobody", "33% birch, 67% cedar → 100% cedar", "--force"];
            ensure!(lines.iter().all(|line| printed.contains(line)), "{printed}");
        }
        clusters.birch.remove("only.yaml")?;
        waits_for(amber, "peers drain birch --dry-run", GOOD, &["nothing was changed"])?;
        types(amber, "peers drain pine", FOUND_BAD)?;
        types(amber, "peers drain a/b", USAGE)?;
        waits_for(amber, "peers", GOOD, &["birch  Active"])?;
        asker.wait_until_answered_by(amber, &["birch", "cedar"])?;

        let printed = types(amber, "peers drain birch --wait", GOOD)?;
        ensure!(printed.contains("peer birch: Active → Drained"), "{printed}");
        asker.wait_until_answered_by(amber, &["cedar"])?;
        all_go_on(&downloads)?;
        let worker = amber.cluster().worker()?;
        ensure!(open_flows(amber, worker, "birch")?.0 > 0, "the downloads from birch are not counted");
        waits_for(amber, "status", GOOD, &["! birch: Drained for", "undo: tombolo peers drain birch --undo"])?;
        waits_for(amber, "explain service shop/web", GOOD, &["100% cedar", "Drained"])?;
        let again: serde_json::Value = serde_json::from_str(&types(amber, "peers drain birch -o json", GOOD)?)?;
        let order: OrderReport = serde_json::from_value(again["order"].clone())?;
        ensure!(!order.changed && order.after == "Drained", "{order:?}");

        // The order outlives the controller.
        let controller = amber.cluster().nodes().first().context("a first node")?.clone();
        amber.process(Part::Controller, &controller)?.kill()?;
        amber.start_part(Part::Controller, &controller)?;
        amber.wait_until_ready(PATIENCE)?;
        waits_for(amber, "peers", GOOD, &["birch  Drained"])?;
        asker.wait_until_answered_by(amber, &["cedar"])?;

        let printed = types(amber, "peers drain birch --undo --wait", GOOD)?;
        ensure!(printed.contains("peer birch: Drained → Active") && printed.contains("used again"), "{printed}");
        asker.wait_until_answered_by(amber, &["birch", "cedar"])?;
        all_go_on(&downloads)?;
        asker.stop()?;
        ensure!(std::fs::read(amber.manifests().join("peer-birch.yaml"))? == manifest, "the manifest was written");
        waits_for(amber, "events", GOOD, &["peer birch", "Active → Drained", "Drained → Active"])
    });
}

#[test]
fn a_draining_cluster_is_left_by_all_members_and_keeps_its_old_connections_until_it_is_back() {
    world_test(|world| {
        let clusters = joined(world)?;
        let (amber, birch) = (&clusters.amber, &clusters.birch);
        let [target, _] = clusters.web()?;
        // What birch alone exports would have nobody.
        birch.apply("shop-here.yaml", &manifest::namespace("shop"))?;
        birch.apply("only.yaml", &Service::http("shop", "only").manifest(&[&clusters.servers[0]]))?;
        waits_for(birch, "drain --dry-run", REFUSED, &["✗ shop/only http  100% birch → nobody"])?;
        birch.remove("only.yaml")?;
        waits_for(birch, "drain --dry-run", GOOD, &["33% birch, 67% cedar → 100% cedar", "nothing was changed"])?;

        let downloads = downloads(&clusters, target)?;
        let asker = Asker::start(&clusters.client, target, PATIENCE);
        asker.wait_until_answered_by(amber, &["birch", "cedar"])?;
        let printed = types(birch, "drain --wait", GOOD)?;
        ensure!(printed.contains("cluster: Active → Draining"), "{printed}");
        asker.wait_until_answered_by(amber, &["cedar"])?;
        all_go_on(&downloads)?;
        ensure!(open_flows(birch, birch.cluster().worker()?, "amber")?.1 > 0, "the downloads are not counted in birch");
        waits_for(birch, "status", GOOD, &["! this cluster: Draining for", "undo: tombolo drain --undo"])?;
        waits_for(amber, "status", GOOD, &["! birch: Draining for", "by its own word"])?;
        waits_for(amber, "peers", GOOD, &["birch  Draining"])?;

        types(birch, "drain --undo --wait", GOOD)?;
        asker.wait_until_answered_by(amber, &["birch", "cedar"])?;
        all_go_on(&downloads)?;
        asker.stop()
    });
}

#[test]
fn a_blocked_peer_is_cut_off_within_five_seconds_everywhere_and_comes_back() {
    world_test(|world| {
        let clusters = joined(world)?;
        let amber = &clusters.amber;
        let [target, _] = clusters.web()?;
        let worker = amber.cluster().worker()?;
        let asker = Asker::start(&clusters.client, target, Duration::from_millis(500));
        let begun = Instant::now();
        let printed = types(amber, "peers block birch --wait", GOOD)?;
        ensure!(printed.contains("peer birch: Active → Blocked") && printed.contains("birch is cut off"), "{printed}");
        amber.eventually(
            PATIENCE,
            "no node has a way to birch, no controller talks to it, no name leads there",
            || {
                for node in amber.cluster().nodes() {
                    let routes = amber.ask(node, Part::Node, "routes?peer=birch")?;
                    let routes = routes.as_array().context("no routes")?;
                    let closed = routes.iter().all(|route| route["reason"] == "Blackhole");
                    ensure!(!routes.is_empty() && closed, "{}: {routes:?}", node.name());
                }
                let peers: Vec<PeerSync> = serde_json::from_str(&types(amber, "peers -o json", GOOD)?)?;
                let birch = peers.iter().find(|peer| peer.peer == "birch").context("birch is no peer")?;
                ensure!(birch.used == "Blocked" && !birch.synced && birch.services_in == 0, "{birch:?}");
                let printed = types(amber, "explain dns web.shop.svc.clusterset.local", GOOD)?;
                ensure!(!printed.contains("birch"), "{printed}");
                ensure!(amber.tombolo(worker, &["ping", "birch"])?.status.code() != Some(GOOD), "birch answers");
                amber.wait_for_shares(worker, "shop/web", &[("cedar", 1)], Duration::ZERO)
            },
        )?;
        let took = begun.elapsed();
        println!("birch was cut off after {took:?}");
        ensure!(took < CUT_OFF_WITHIN, "birch was cut off after {took:?}");
        asker.wait_until_answered_by(amber, &["cedar"])?;
        // Its gateway knocks on, and is refused by name.
        amber.eventually(2 * PATIENCE, "what birch sends is refused by name", || {
            let refused: Vec<RefusalReport> = serde_json::from_str(&types(amber, "refusals -o json", GOOD)?)?;
            let named = refused.iter().any(|refused| refused.reason == "BlockedPeer" && refused.count > 0);
            ensure!(named, "{refused:?}");
            Ok(())
        })?;
        waits_for(amber, "peers drain birch", REFUSED, &["tombolo peers block birch --undo"])?;
        types(amber, "peers block birch --undo --wait", GOOD)?;
        asker.wait_until_answered_by(amber, &["birch", "cedar"])
    });
}

#[test]
fn a_drained_gateway_carries_nothing_and_nothing_is_lost_until_it_carries_again() {
    world_test(|world| {
        let clusters = TwoGateways::joined(world, 1)?;
        let amber = &clusters.amber;
        let mut flows = clusters.flows()?;
        flows.start_measuring()?;
        flows.wait_until_all_go_on()?;
        types(amber, "drain gateway 7", REFUSED)?;
        let printed = types(amber, "drain gateway 0 --wait", GOOD)?;
        ensure!(printed.contains("gateway 0: Active → Draining"), "{printed}");
        waits_for(amber, "status", GOOD, &["! gateway 0 at", "Draining, by order"])?;
        for node in amber.cluster().nodes() {
            amber.eventually(PATIENCE, &format!("{} sends nothing by gateway 0", node.name()), || {
                let routes = amber.ask(node, Part::Node, "routes?peer=birch")?;
                let hops = routes.as_array().context("no routes")?.iter().filter_map(|route| route["hops"].as_array());
                let used: BTreeSet<_> = hops.flatten().map(|hop| hop["gateway"].as_u64()).collect();
                ensure!(used == [Some(1)].into(), "{routes}");
                Ok(())
            })?;
        }
        let last = types(amber, "drain gateway 1", REFUSED)?;
        ensure!(last.contains("no other gateway of this cluster could carry what gateway 1 carries"), "{last}");
        flows.wait_until_all_go_on()?;
        types(amber, "drain gateway 0 --undo --wait", GOOD)?;
        flows.spread()?;
        let seen = flows.stop();
        ensure!(seen.ended.is_empty() && seen.lost == 0, "{seen:?}");
        Ok(())
    });
}
