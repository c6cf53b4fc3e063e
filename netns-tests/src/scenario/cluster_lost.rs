//! A cluster dies at once with all its parts; new connections go elsewhere; it comes back and is used again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::scenario::promise::Promise;
use crate::scenario::three_clusters::{PATIENCE, ThreeClusters};
use crate::traffic::http;

/// The promise for new connections after a cluster was lost.
pub const ELSEWHERE_WITHIN: Duration = Duration::from_secs(2);
/// So many answers in a row without a failure mean that the lost cluster is routed around.
const IN_A_ROW: usize = 50;

/// What was measured.
pub struct ClusterLost {
    /// From the kill to the first of fifty connections in a row that another cluster answered.
    pub elsewhere_after: Duration,
    /// Connections that failed before that.
    pub failed: usize,
    /// From the start of its parts to the first connection that the cluster answered again.
    pub back_after: Duration,
}

impl ClusterLost {
    /// The time that is promised.
    pub fn promises(&self) -> Vec<Promise> {
        let what = "new connections elsewhere after a cluster was lost";
        vec![Promise { what, limit: ELSEWHERE_WITHIN, measured: self.elsewhere_after }]
    }
}

/// Kills birch; a client in amber keeps connecting to `target`, which birch and cedar serve.
pub fn measure(clusters: &ThreeClusters, target: SocketAddr) -> Result<ClusterLost> {
    let attempt = Duration::from_millis(250);
    let killed = Instant::now();
    clusters.birch.kill_everything()?;
    let (mut good, mut failed, mut first_good) = (0, 0, killed);
    while good < IN_A_ROW {
        let started = Instant::now();
        ensure!(started - killed < PATIENCE, "connections still fail {PATIENCE:?} after birch was killed");
        match http::get(&clusters.client, target, attempt) {
            Ok(answer) => {
                // Its pods live on: a connection made before the gateway was gone may still be answered.
                if answer.cluster == "birch" {
                    good = 0;
                    continue;
                }
                if good == 0 {
                    first_good = started;
                }
                good += 1;
            }
            Err(_) => {
                failed += 1;
                good = 0;
            }
        }
    }
    let elsewhere_after = first_good - killed;

    let started = Instant::now();
    clusters.birch.start_everything().context("starting birch again")?;
    let back_after = loop {
        ensure!(started.elapsed() < PATIENCE, "birch does not answer again {PATIENCE:?} after its start");
        if http::get(&clusters.client, target, attempt).is_ok_and(|answer| answer.cluster == "birch") {
            break started.elapsed();
        }
    };
    Ok(ClusterLost { elsewhere_after, failed, back_after })
}
