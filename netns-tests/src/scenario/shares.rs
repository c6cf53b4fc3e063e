//! The shares of a routing policy, measured by real connections.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::manifest::weighted_policy;
use crate::scenario::three_clusters::{PATIENCE, ThreeClusters};
use crate::traffic::http::{Tally, get_many};

/// Weights for birch and cedar.
pub const WEIGHTS: [(&str, u16); 2] = [("birch", 70), ("cedar", 30)];
pub const CONNECTIONS: usize = 1_000;
/// The promise: shares within 5 points of the weights over 1,000 connections.
pub const POINTS: f64 = 0.05;

/// Puts the policy in force in amber and makes the connections from its client.
pub fn measure(clusters: &ThreeClusters, target: SocketAddr) -> Result<Tally> {
    clusters.amber.apply("web-policy.yaml", &weighted_policy("shop", "web", &WEIGHTS))?;
    let worker = clusters.amber.cluster().worker()?;
    clusters.amber.wait_for_shares(worker, "shop/web", &WEIGHTS, PATIENCE)?;
    get_many(&clusters.client, target, CONNECTIONS, Duration::from_secs(2))
}

/// Whether the connections were shared as the weights say.
pub fn check(tally: &Tally) -> Result<()> {
    ensure!(tally.failed == 0, "{} connections failed: {:?}", tally.failed, tally.failures);
    let total: u16 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    for (cluster, weight) in WEIGHTS {
        let wanted = f64::from(weight) / f64::from(total);
        let got = tally.share(cluster);
        ensure!(
            (got - wanted).abs() <= POINTS,
            "{cluster} got {got:.3} of the connections, its weight asks for {wanted:.3}"
        );
    }
    Ok(())
}
