//! Closed until exported: what another cluster may not reach, and when it may.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::deployment::Part;
use crate::manifest::Service;
use crate::pod::Pod;
use crate::scenario::three_clusters::{PATIENCE, ThreeClusters};
use crate::traffic::{http, icmp, udp};

/// The promise for an export.
pub const ADMITTED_WITHIN: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_millis(300);
const UDP_PORT: u16 = 7777;

/// What was measured.
pub struct Closed {
    /// Refusals named `Unexported` that TCP, UDP and ICMP echo caused.
    pub refused: f64,
    /// From the export's manifest to the first answer.
    pub admitted_after: Duration,
    /// From its removal to the first refusal.
    pub closed_after: Duration,
}

/// A pod in birch that nobody exported, then exported, then not.
pub fn measure(clusters: &ThreeClusters) -> Result<Closed> {
    let pod = clusters.birch.cluster().worker()?.pod("private")?;
    pod.serve_http()?;
    pod.serve_udp_echo(UDP_PORT)?;
    let service = Service::http("shop", "private").with_port("echo", "UDP", UDP_PORT, UDP_PORT);
    clusters.birch.apply("private.yaml", &service.clone().unexported().manifest(&[&pod]))?;

    let before = refusals(clusters)?;
    for address in pod.addresses().both() {
        ensure!(!reaches_by_tcp(clusters, &pod, address), "TCP reaches {address}, which is not exported");
        let echoes = udp::echo(&clusters.client, SocketAddr::new(address, UDP_PORT), 1, 16, SILENCE)?;
        ensure!(echoes.answered == 0, "UDP reaches {address}, which is not exported");
        let echo = icmp::ping_once(&clusters.client, address, SILENCE)?;
        ensure!(echo.is_none(), "an ICMP echo reaches {address}, which is not exported");
    }
    let refused = clusters.birch.eventually(PATIENCE, "six refusals are counted", || {
        let refused = refusals(clusters)? - before;
        ensure!(refused >= 6.0, "only {refused} refusals are counted");
        Ok(refused)
    })?;

    let address = pod.addresses().both()[0];
    let exported = Instant::now();
    clusters.birch.apply("private.yaml", &service.manifest(&[&pod]))?;
    clusters.birch.eventually(PATIENCE, "the export admits", || {
        ensure!(reaches_by_tcp(clusters, &pod, address), "TCP does not reach {address}");
        Ok(())
    })?;
    let admitted_after = exported.elapsed();

    let withdrawn = Instant::now();
    clusters.birch.apply("private.yaml", &service.unexported().manifest(&[&pod]))?;
    clusters.birch.eventually(PATIENCE, "the removal closes", || {
        ensure!(!reaches_by_tcp(clusters, &pod, address), "TCP still reaches {address}");
        Ok(())
    })?;
    Ok(Closed { refused, admitted_after, closed_after: withdrawn.elapsed().saturating_sub(SILENCE) })
}

fn reaches_by_tcp(clusters: &ThreeClusters, pod: &Pod, address: std::net::IpAddr) -> bool {
    http::get(&clusters.client, SocketAddr::new(address, 80), SILENCE).is_ok_and(|answer| answer.pod == pod.pod_name())
}

/// `Unexported` as counted by birch's gateway and nodes together.
fn refusals(clusters: &ThreeClusters) -> Result<f64> {
    let birch = &clusters.birch;
    let reason = ["reason=\"Unexported\""];
    let mut total = birch.metric(birch.cluster().gateway()?, Part::Gateway, "tombolo_refusals_total", &reason)?;
    for node in birch.cluster().nodes() {
        total += birch.metric(node, Part::Node, "tombolo_refusals_total", &reason)?;
    }
    Ok(total)
}
