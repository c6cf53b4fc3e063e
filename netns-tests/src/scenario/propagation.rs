//! How long a changed endpoint in one cluster takes to be seen in another: in a DNS answer, and by a new connection.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hickory_proto::rr::RecordType;

use crate::manifest::Service;
use crate::pod::Pod;
use crate::scenario::Times;
use crate::scenario::promise::Promise;
use crate::scenario::three_clusters::{PATIENCE, ThreeClusters};
use crate::traffic::dns::{Transport, addresses, ask};
use crate::traffic::http;

/// The promise: p99 of 200 changes.
pub const CHANGES: usize = 200;
pub const P99: Duration = Duration::from_millis(100);

/// Between two looks: a small part of what is measured, and it leaves the two cores to those who are measured.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What was measured, a time for each change.
pub struct Propagation {
    /// From the renamed manifest in birch to the changed A answer in amber.
    pub name: Times,
    /// From the same moment to the first connection in amber that the new endpoint answered.
    pub connection: Times,
}

impl Propagation {
    /// The times that are promised.
    pub fn promises(&self) -> Vec<Promise> {
        let of = |what, times: &Times| Promise { what, limit: P99, measured: times.percentile(99) };
        vec![
            of("a changed endpoint in a DNS answer, p99", &self.name),
            of("a new connection to a changed endpoint, p99", &self.connection),
        ]
    }
}

/// Two services in birch, one of them headless, whose one endpoint goes to and fro between two pods.
pub struct Ticking<'a> {
    clusters: &'a ThreeClusters,
    pods: [Pod; 2],
    /// The name server of amber.
    server: SocketAddr,
    /// The service's address in amber.
    target: SocketAddr,
}

impl<'a> Ticking<'a> {
    /// Exports the services and waits until amber knows them.
    pub fn prepare(clusters: &'a ThreeClusters) -> Result<Self> {
        let worker = clusters.birch.cluster().worker()?;
        let pods = [worker.pod("tick-1")?, worker.pod("tick-2")?];
        for pod in &pods {
            pod.serve_http()?;
        }
        publish(clusters, &pods[0])?;
        let addresses = clusters.amber.clusterset_addresses("shop", "tick", PATIENCE)?;
        let address = addresses.into_iter().find(IpAddr::is_ipv4).context("tick has no IPv4 address")?;
        let ticking = Self { clusters, pods, server: clusters.amber.dns()?[0], target: SocketAddr::new(address, 80) };
        ticking.settle()?;
        Ok(ticking)
    }

    /// The endpoint goes to the first pod, and everybody knows.
    fn settle(&self) -> Result<()> {
        publish(self.clusters, &self.pods[0])?;
        let client = &self.clusters.client;
        client.run(|| wait_for_connection(self.target, &self.pods[0], PATIENCE))??;
        client.run(|| wait_for_name(self.server, &self.pods[0], PATIENCE))?
    }

    /// Changes the endpoint so many times, and waits in amber for each change: every one is an endpoint removed and
    /// another added.
    pub fn measure(&self, changes: usize) -> Result<Propagation> {
        self.settle()?;
        let client = &self.clusters.client;
        let (mut names, mut connections) = (Vec::new(), Vec::new());
        for change in 1..=changes {
            let pod = &self.pods[change % 2];
            let start = Instant::now();
            publish(self.clusters, pod)?;
            let (name, connection) = std::thread::scope(|scope| {
                let name =
                    scope.spawn(|| client.run(|| wait_for_name(self.server, pod, PATIENCE).map(|()| start.elapsed())));
                let connection =
                    client.run(|| wait_for_connection(self.target, pod, PATIENCE).map(|()| start.elapsed()));
                (name.join(), connection)
            });
            names.push(name.map_err(|_| anyhow::anyhow!("asking for a name panicked"))???);
            connections.push(connection??);
        }
        Ok(Propagation { name: Times::of(names), connection: Times::of(connections) })
    }
}

fn publish(clusters: &ThreeClusters, pod: &Pod) -> Result<()> {
    let with_address = Service::http("shop", "tick").manifest(&[pod]);
    let headless = Service::http("shop", "tick-headless").headless().manifest(&[pod]);
    clusters.birch.apply("tick.yaml", &format!("{with_address}---\n{headless}"))
}

/// In the network namespace of the calling thread, as the next one.
fn wait_for_name(server: SocketAddr, pod: &Pod, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let [wanted, _] = pod.addresses().both();
    loop {
        let name = "tick-headless.shop.svc.clusterset.local.";
        let found =
            ask(server, name, RecordType::A, Transport::Udp, Duration::from_secs(1)).map(|answer| addresses(&answer));
        if found.as_ref().is_ok_and(|found| *found == [wanted]) {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
        ensure!(Instant::now() < deadline, "{name} does not become {wanted}: {found:?}");
    }
}

fn wait_for_connection(target: SocketAddr, pod: &Pod, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let answer = http::ask(target, Duration::from_millis(500));
        if answer.as_ref().is_ok_and(|answer| answer.pod == pod.pod_name()) {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
        ensure!(Instant::now() < deadline, "no connection to {target} reaches {}: {answer:?}", pod.pod_name());
    }
}
