//! How long a changed endpoint in one cluster takes to be seen in another: in a DNS answer, and by a new connection.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hickory_proto::rr::{RData, RecordType};

use crate::manifest::Service;
use crate::pod::Pod;
use crate::scenario::Times;
use crate::scenario::three_clusters::{PATIENCE, ThreeClusters};
use crate::traffic::dns::{Transport, query};
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

/// Changes the one endpoint of two services in birch, to and fro between two pods, and waits in amber for each change:
/// every one is an endpoint removed and another added.
pub fn measure(clusters: &ThreeClusters, changes: usize) -> Result<Propagation> {
    let worker = clusters.birch.cluster().worker()?;
    let pods = [worker.pod("tick-1")?, worker.pod("tick-2")?];
    for pod in &pods {
        pod.serve_http()?;
    }
    let publish = |pod: &Pod| {
        let with_address = Service::http("shop", "tick").manifest(&[pod]);
        let headless = Service::http("shop", "tick-headless").headless().manifest(&[pod]);
        clusters.birch.apply("tick.yaml", &format!("{with_address}---\n{headless}"))
    };
    publish(&pods[0])?;
    let addresses = clusters.amber.clusterset_addresses("shop", "tick", PATIENCE)?;
    let address = addresses.into_iter().find(IpAddr::is_ipv4).context("tick has no IPv4 address")?;
    let target = SocketAddr::new(address, 80);
    wait_for_connection(&clusters.client, target, &pods[0], PATIENCE)?;
    let server = clusters.amber.dns()?[0];
    wait_for_name(&clusters.client, server, &pods[0], PATIENCE)?;

    let (mut names, mut connections) = (Vec::new(), Vec::new());
    for change in 1..=changes {
        let pod = &pods[change % 2];
        let start = Instant::now();
        publish(pod)?;
        let (name, connection) = std::thread::scope(|scope| {
            let name = scope.spawn(|| wait_for_name(&clusters.client, server, pod, PATIENCE).map(|()| start.elapsed()));
            let connection = wait_for_connection(&clusters.client, target, pod, PATIENCE).map(|()| start.elapsed());
            (name.join(), connection)
        });
        names.push(name.map_err(|_| anyhow::anyhow!("asking for a name panicked"))??);
        connections.push(connection?);
    }
    Ok(Propagation { name: Times::of(names), connection: Times::of(connections) })
}

fn wait_for_name(client: &Pod, server: SocketAddr, pod: &Pod, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let wanted = pod.addresses().v4;
    loop {
        let name = "tick-headless.shop.svc.clusterset.local.";
        let found = query(client, server, name, RecordType::A, Transport::Udp, Duration::from_secs(1)).map(|answer| {
            let addresses = answer.answers.iter().filter_map(|record| match &record.data {
                RData::A(address) => Some(address.0),
                _ => None,
            });
            addresses.collect::<Vec<_>>()
        });
        if found.as_ref().is_ok_and(|found| *found == [wanted]) {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
        ensure!(Instant::now() < deadline, "{name} does not become {wanted}: {found:?}");
    }
}

fn wait_for_connection(client: &Pod, target: SocketAddr, pod: &Pod, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let answer = http::get(client, target, Duration::from_millis(500));
        if answer.as_ref().is_ok_and(|answer| answer.pod == pod.pod_name()) {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
        ensure!(Instant::now() < deadline, "no connection to {target} reaches {}: {answer:?}", pod.pod_name());
    }
}
