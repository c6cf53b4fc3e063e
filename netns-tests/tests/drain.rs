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
    /// Clusters and pods that answered since it was asked last.
    by: BTreeSet<(String, String)>,
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
                            seen.by.insert((answer.cluster, answer.pod));
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
        self.wait_until(deployment, clusters, |(cluster, _)| cluster.clone())
    }

    /// Waits until these pods and no others answer, each as `cluster/pod`.
    fn wait_until_answered_by_pods(&self, deployment: &Deployment, pods: &[&str]) -> Result<()> {
        self.wait_until(deployment, pods, |(cluster, pod)| format!("{cluster}/{pod}"))
    }

    fn wait_until(
        &self,
        deployment: &Deployment,
        wanted: &[&str],
        name: fn(&(String, String)) -> String,
    ) -> Result<()> {
        deployment.eventually(PATIENCE, &format!("only {wanted:?} answer"), || {
            std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner).by);
            // Fifty answers leave one of two clusters that share them out once in ten million times.
            let enough = self.answered() + 50;
            let deadline = Instant::now() + PATIENCE;
            while self.answered() < enough {
                ensure!(Instant::now() < deadline, "no answers");
                std::thread::sleep(Duration::from_millis(5));
            }
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let by: BTreeSet<String> = seen.by.iter().map(name).collect();
            ensure!(by.iter().map(String::as_str).eq(wanted.iter().copied()), "{by:?} answer");
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

/// Kills the cluster's controller and starts it again.
fn kill_controller(deployment: &Deployment) -> Result<()> {
    let host = deployment.cluster().gateway()?;
    deployment.process(Part::Controller, host)?.kill()?;
    deployment.start_part(Part::Controller, host)?;
    deployment.wait_until_ready(PATIENCE)
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
        amber.types_until(PATIENCE, "explain service shop/only", GOOD, &["100% birch"])?;
        for command in ["peers drain birch", "peers drain birch --dry-run"] {
            let printed = amber.types(command, REFUSED)?;
            let lines = ["✗ shop/only http  100% birch → nobody", "33% birch, 67% cedar → 100% cedar", "--force"];
            ensure!(lines.iter().all(|line| printed.contains(line)), "{printed}");
        }
        clusters.birch.remove("only.yaml")?;
        amber.types_until(PATIENCE, "peers drain birch --dry-run", GOOD, &["nothing was changed"])?;
        amber.types("peers drain pine", FOUND_BAD)?;
        amber.types("peers drain a/b", USAGE)?;
        amber.types_until(PATIENCE, "peers", GOOD, &["birch  Active"])?;
        asker.wait_until_answered_by(amber, &["birch", "cedar"])?;

        // It is in force within the time, and what is left by then is named.
        let printed = amber.types("peers drain birch --wait --timeout 5s", FOUND_BAD)?;
        ensure!(printed.contains("peer birch: Active → Drained"), "{printed}");
        let left = format!("{}  ", amber.cluster().worker()?.node_name());
        let texts = [left.as_str(), "with birch", "still left: ", "the order stands"];
        ensure!(texts.iter().all(|text| printed.contains(text)), "{printed}");
        asker.wait_until_answered_by(amber, &["cedar"])?;
        all_go_on(&downloads)?;
        let worker = amber.cluster().worker()?;
        ensure!(open_flows(amber, worker, "birch")?.0 > 0, "the downloads from birch are not counted");
        amber.types_until(
            PATIENCE,
            "status",
            GOOD,
            &["! birch: Drained for", "undo: tombolo peers drain birch --undo"],
        )?;
        amber.types_until(PATIENCE, "explain service shop/web", GOOD, &["100% cedar", "Drained"])?;
        let again: serde_json::Value = serde_json::from_str(&amber.types("peers drain birch -o json", GOOD)?)?;
        let order: OrderReport = serde_json::from_value(again["order"].clone())?;
        ensure!(!order.changed && order.after == "Drained", "{order:?}");

        // The order outlives the controller.
        kill_controller(amber)?;
        amber.types_until(PATIENCE, "peers", GOOD, &["birch  Drained"])?;
        asker.wait_until_answered_by(amber, &["cedar"])?;

        let printed = amber.types("peers drain birch --undo --wait", GOOD)?;
        ensure!(printed.contains("peer birch: Drained → Active") && printed.contains("used again"), "{printed}");
        asker.wait_until_answered_by(amber, &["birch", "cedar"])?;
        all_go_on(&downloads)?;
        asker.stop()?;
        ensure!(std::fs::read(amber.manifests().join("peer-birch.yaml"))? == manifest, "the manifest was written");
        amber.types_until(PATIENCE, "events", GOOD, &["peer birch", "Active → Drained", "Drained → Active"])
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
        birch.types_until(PATIENCE, "drain --dry-run", REFUSED, &["✗ shop/only http  100% birch → nobody"])?;
        birch.remove("only.yaml")?;
        birch.types_until(
            PATIENCE,
            "drain --dry-run",
            GOOD,
            &["33% birch, 67% cedar → 100% cedar", "nothing was changed"],
        )?;

        let downloads = downloads(&clusters, target)?;
        let asker = Asker::start(&clusters.client, target, PATIENCE);
        asker.wait_until_answered_by(amber, &["birch", "cedar"])?;
        let printed = birch.types("drain", GOOD)?;
        // What was said to be done is on disk.
        kill_controller(birch)?;
        ensure!(printed.contains("cluster: Active → Draining"), "{printed}");
        let printed = birch.types("drain --wait --timeout 20s", FOUND_BAD)?;
        let left = format!("{}  ", birch.cluster().worker()?.node_name());
        let texts = ["cluster: Draining already", "taken by amber, cedar", &left, "with amber", "still left: "];
        ensure!(texts.iter().all(|text| printed.contains(text)), "{printed}");
        asker.wait_until_answered_by(amber, &["cedar"])?;
        all_go_on(&downloads)?;
        ensure!(open_flows(birch, birch.cluster().worker()?, "amber")?.1 > 0, "the downloads are not counted in birch");
        birch.types_until(PATIENCE, "status", GOOD, &["! this cluster: Draining for", "undo: tombolo drain --undo"])?;
        amber.types_until(PATIENCE, "status", GOOD, &["! birch: Draining for", "by its own word"])?;
        amber.types_until(PATIENCE, "peers", GOOD, &["birch  Draining"])?;
        // A member that is away is named, and not waited for; with the last download nothing is left.
        all_go_on(&downloads)?;
        drop(downloads);
        asker.stop()?;
        clusters.cedar.cluster().cut_off()?;
        birch.eventually(2 * PATIENCE, "birch knows that cedar is away", || {
            let peers: Vec<PeerSync> = serde_json::from_str(&birch.types("peers -o json", GOOD)?)?;
            ensure!(peers.iter().any(|peer| peer.peer == "cedar" && !peer.told), "{peers:?}");
            Ok(())
        })?;
        // With cedar away nobody is left for what birch exports, and it is drained all the same.
        let printed = birch.types("drain --wait --force", GOOD)?;
        ensure!(printed.contains("taken by amber\n") && printed.contains("away: cedar"), "{printed}");
        ensure!(printed.contains("no established one is left"), "{printed}");
        clusters.cedar.cluster().reconnect()?;

        birch.types("drain --undo --wait", GOOD)?;
        clusters.wait_for_answers_from(target, &["birch", "cedar"])
    });
}

#[test]
fn the_endpoints_on_a_drained_node_get_no_new_connections_and_keep_their_old_ones() {
    world_test(|world| {
        let clusters = joined(world)?;
        let (amber, birch, cedar) = (&clusters.amber, &clusters.birch, &clusters.cedar);
        let [target, _] = clusters.web()?;
        let worker = cedar.cluster().worker()?;
        let drain = format!("drain node {}", worker.node_name());
        let mut downloads = downloads(&clusters, target)?;
        while open_flows(cedar, worker, "amber")?.1 == 0 {
            ensure!(downloads.len() < MOST_DOWNLOADS, "no download from {}", worker.name());
            downloads.push(Download::start(&clusters.client, SocketAddr::new(target.ip(), STREAM), PATIENCE)?);
        }
        let asker = Asker::start(&clusters.client, target, PATIENCE);
        asker.wait_until_answered_by_pods(amber, &["birch/web-1", "cedar/web-1", "cedar/web-2"])?;

        // What would leave a service with nobody is not done.
        let here = birch.cluster().worker()?.node_name();
        birch.apply("shop-here.yaml", &manifest::namespace("shop"))?;
        birch.apply("only.yaml", &Service::http("shop", "only").manifest(&[&clusters.servers[0]]))?;
        let lines = ["✗ shop/only http  1 of 1 endpoints leave  100% birch → nobody", "--force"];
        birch.types_until(PATIENCE, &format!("drain node {here} --dry-run"), REFUSED, &lines)?;
        birch.types(&format!("drain node {here}"), REFUSED)?;
        birch.types("drain node nowhere", FOUND_BAD)?;
        birch.remove("only.yaml")?;
        let lines = ["✓ shop/web http  1 of 2 endpoints leave", "nothing was changed"];
        cedar.types_until(PATIENCE, &format!("{drain} --dry-run"), GOOD, &lines)?;

        let printed = cedar.types(&drain, GOOD)?;
        kill_controller(cedar)?;
        ensure!(printed.contains(&format!("node {}: Active → Draining", worker.node_name())), "{printed}");
        asker.wait_until_answered_by_pods(amber, &["birch/web-1", "cedar/web-2"])?;
        // The cluster's own clients leave it as well.
        cedar.types_until(PATIENCE, "explain service shop/web", GOOD, &["1/2"])?;
        all_go_on(&downloads)?;
        let note = format!("! node {}: Draining for", worker.node_name());
        cedar.types_until(PATIENCE, "status", GOOD, &[&note, &format!("undo: tombolo {drain} --undo")])?;
        let printed = cedar.types(&format!("{drain} --wait --timeout 20s"), FOUND_BAD)?;
        let left = format!("{}  ", worker.node_name());
        let texts = ["taken by amber, birch", &left, "with amber", "still left: "];
        ensure!(texts.iter().all(|text| printed.contains(text)), "{printed}");
        all_go_on(&downloads)?;
        drop(downloads);
        let printed = cedar.types(&format!("{drain} --wait"), GOOD)?;
        ensure!(printed.contains("no established one is left"), "{printed}");

        cedar.types(&format!("{drain} --undo --wait"), GOOD)?;
        asker.wait_until_answered_by_pods(amber, &["birch/web-1", "cedar/web-1", "cedar/web-2"])?;
        // A node with a gateway on it says that the gateway stays.
        let gateway = cedar.cluster().gateway()?.node_name();
        let lines = ["! gateway 0 is on", "tombolo drain gateway 0"];
        cedar.types_until(PATIENCE, &format!("drain node {gateway} --dry-run"), GOOD, &lines)?;
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
        let printed = amber.types("peers block birch --wait", REFUSED)?;
        let reason = ["every connection with birch ends at once", "--yes does it anyway"];
        ensure!(reason.iter().all(|text| printed.contains(text)), "{printed}");
        amber.types_until(PATIENCE, "peers", GOOD, &["birch  Active"])?;
        let begun = Instant::now();
        let printed = amber.types("peers block birch --wait --yes", GOOD)?;
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
                let peers: Vec<PeerSync> = serde_json::from_str(&amber.types("peers -o json", GOOD)?)?;
                let birch = peers.iter().find(|peer| peer.peer == "birch").context("birch is no peer")?;
                ensure!(birch.used == "Blocked" && !birch.synced && birch.services_in == 0, "{birch:?}");
                let printed = amber.types("explain dns web.shop.svc.clusterset.local", GOOD)?;
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
            let refused: Vec<RefusalReport> = serde_json::from_str(&amber.types("refusals -o json", GOOD)?)?;
            let named = refused.iter().any(|refused| refused.reason == "BlockedPeer" && refused.count > 0);
            ensure!(named, "{refused:?}");
            Ok(())
        })?;
        amber.types_until(PATIENCE, "peers drain birch", REFUSED, &["tombolo peers block birch --undo"])?;
        amber.types("peers block birch --undo --wait", GOOD)?;
        asker.wait_until_answered_by(amber, &["birch", "cedar"])?;

        // A block that is laid over a drain leaves it standing.
        amber.types("peers drain birch", GOOD)?;
        amber.types("peers block birch --wait --yes", GOOD)?;
        let printed = amber.types("peers block birch --undo --wait", GOOD)?;
        ensure!(printed.contains("peer birch: Blocked → Drained"), "{printed}");
        amber.wait_until_connected("birch", PATIENCE)?;
        amber.types_until(PATIENCE, "status", GOOD, &["! birch: Drained for"])?;
        asker.wait_until_answered_by(amber, &["cedar"])?;
        amber.types("peers drain birch --undo --wait", GOOD)?;
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
        amber.types("drain gateway 7", REFUSED)?;
        let printed = amber.types("drain gateway 0 --wait", GOOD)?;
        ensure!(printed.contains("gateway 0: Active → Draining"), "{printed}");
        amber.types_until(PATIENCE, "status", GOOD, &["! gateway 0 at", "Draining, by order"])?;
        for node in amber.cluster().nodes() {
            amber.eventually(PATIENCE, &format!("{} sends nothing by gateway 0", node.name()), || {
                let routes = amber.ask(node, Part::Node, "routes?peer=birch")?;
                let hops = routes.as_array().context("no routes")?.iter().filter_map(|route| route["hops"].as_array());
                let used: BTreeSet<_> = hops.flatten().map(|hop| hop["gateway"].as_u64()).collect();
                ensure!(used == [Some(1)].into(), "{routes}");
                Ok(())
            })?;
        }
        let last = amber.types("drain gateway 1", REFUSED)?;
        ensure!(last.contains("no other gateway of this cluster could carry what gateway 1 carries"), "{last}");
        flows.wait_until_all_go_on()?;
        amber.types("drain gateway 0 --undo --wait", GOOD)?;
        flows.spread()?;
        let seen = flows.stop();
        ensure!(seen.ended.is_empty() && seen.lost == 0, "{seen:?}");
        Ok(())
    });
}
