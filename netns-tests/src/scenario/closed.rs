//! Closed until exported: what another cluster may not reach, and when it may.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::deployment::Part;
use crate::manifest::Service;
use crate::pod::Pod;
use crate::scenario::promise::Promise;
use crate::scenario::three_clusters::{PATIENCE, ThreeClusters};
use crate::traffic::{http, icmp, udp};

/// The promise for an export.
pub const ADMITTED_WITHIN: Duration = Duration::from_secs(1);
/// What is not answered for so long is refused.
const SILENCE: Duration = Duration::from_millis(300);
/// One try while an export is awaited: the first packet that is refused costs its connection a second, so a new one is
/// made soon. Many times what an answer takes.
const ATTEMPT: Duration = Duration::from_millis(100);
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

impl Closed {
    /// The time that is promised.
    pub fn promises(&self) -> Vec<Promise> {
        vec![Promise { what: "an export admits", limit: ADMITTED_WITHIN, measured: self.admitted_after }]
    }
}

/// A pod in birch that nobody exports.
pub struct Private<'a> {
    clusters: &'a ThreeClusters,
    pod: Pod,
    service: Service,
}

impl<'a> Private<'a> {
    pub fn prepare(clusters: &'a ThreeClusters) -> Result<Self> {
        let pod = clusters.birch.cluster().worker()?.pod("private")?;
        pod.serve_http()?;
        pod.serve_udp_echo(UDP_PORT)?;
        let service = Service::http("shop", "private").with_port("echo", "UDP", UDP_PORT, UDP_PORT);
        let private = Self { clusters, pod, service };
        private.publish(&private.service.clone().unexported())?;
        Ok(private)
    }

    fn publish(&self, service: &Service) -> Result<()> {
        self.clusters.birch.apply("private.yaml", &service.manifest(&[&self.pod]))
    }

    /// Tries what is closed, exports the pod, and withdraws it again.
    pub fn measure(&self) -> Result<Closed> {
        let clusters = self.clusters;
        let before = refusals(clusters)?;
        for address in self.pod.addresses().both() {
            let target = SocketAddr::new(address, 80);
            ensure!(!self.answers(target, SILENCE), "TCP reaches {address}, which is not exported");
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

        let target = SocketAddr::new(self.pod.addresses().both()[0], 80);
        let exported = Instant::now();
        self.publish(&self.service)?;
        clusters.birch.eventually(PATIENCE, "the export admits", || {
            ensure!(self.answers(target, ATTEMPT), "TCP does not reach {target}");
            Ok(())
        })?;
        let admitted_after = exported.elapsed();

        let withdrawn = Instant::now();
        self.publish(&self.service.clone().unexported())?;
        clusters.birch.eventually(PATIENCE, "the removal closes", || {
            ensure!(!self.answers(target, SILENCE), "TCP still reaches {target}");
            Ok(())
        })?;
        Ok(Closed { refused, admitted_after, closed_after: withdrawn.elapsed().saturating_sub(SILENCE) })
    }

    fn answers(&self, target: SocketAddr, limit: Duration) -> bool {
        http::get(&self.clusters.client, target, limit).is_ok_and(|answer| answer.pod == self.pod.pod_name())
    }
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
