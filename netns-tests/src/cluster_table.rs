//! The part of `make bench-failover` in which whole clusters are lost: how soon clients are with others, and how soon a
//! cluster that is back is used again, and for good.

use std::time::Duration;

use anyhow::Result;

use crate::scenario::Times;
use crate::scenario::cluster_lost::{Back, ELSEWHERE_WITHIN, Lost, PROVEN_FOR, ServedTwice, USED_AGAIN_WITHIN};
use crate::scenario::three_clusters::ThreeClusters;
use crate::world::World;

/// What is lost each way between the two clusters while one comes back over a bad link.
const LOSS_PERCENT: f64 = 5.0;
/// How long a cluster that came back is watched there: a hundred times what a path is judged by.
const WATCHED: Duration = Duration::from_secs(10);

/// What happens to a whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterEvent {
    /// SIGKILL of all its parts.
    Lost,
    /// Their start.
    Back,
    /// The same where the way there loses packets.
    BackOverLoss,
}

impl ClusterEvent {
    pub const ALL: [Self; 3] = [Self::Lost, Self::Back, Self::BackOverLoss];

    /// What the table calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lost => "cluster lost",
            Self::Back => "cluster back",
            Self::BackOverLoss => "cluster back over a lossy link",
        }
    }
}

/// Loses birch so often and prints a line for each event. False when a promise was not kept.
pub(crate) fn lose_clusters(
    world: &World,
    clusters: &ThreeClusters,
    runs: usize,
    events: &[ClusterEvent],
) -> Result<bool> {
    let [web, _] = clusters.web()?;
    let served = ServedTwice::prepare(clusters, web)?;
    let has = |event| events.contains(&event);
    let mut kept = true;
    if has(ClusterEvent::Lost) || has(ClusterEvent::Back) {
        let runs = (0..runs).map(|_| Ok((served.lose()?, served.bring_back(Duration::ZERO)?)));
        let (lost, back): (Vec<Lost>, Vec<Back>) = runs.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        if has(ClusterEvent::Lost) {
            kept &= print_lost(&lost);
        }
        if has(ClusterEvent::Back) {
            kept &= print_back(ClusterEvent::Back, &back);
        }
    }
    if has(ClusterEvent::BackOverLoss) {
        let runs = (0..runs).map(|_| lose_and_bring_back_over_loss(world, clusters, &served));
        kept &= print_back(ClusterEvent::BackOverLoss, &runs.collect::<Result<Vec<_>>>()?);
    }
    Ok(kept)
}

fn lose_and_bring_back_over_loss(world: &World, clusters: &ThreeClusters, served: &ServedTwice<'_>) -> Result<Back> {
    served.lose()?;
    let (amber, birch) = (clusters.amber.cluster(), clusters.birch.cluster());
    world.lose(amber, birch, LOSS_PERCENT)?;
    world.lose(birch, amber, LOSS_PERCENT)?;
    let back = served.bring_back(WATCHED);
    world.mend(amber, birch)?;
    back
}

fn times<T>(measured: &[T], of: fn(&T) -> Duration) -> Times {
    Times::of(measured.iter().map(of).collect())
}

/// `p50/worst`, in milliseconds.
fn told(times: &Times) -> String {
    format!("{}/{}", times.percentile(50).as_millis(), times.worst().as_millis())
}

fn print_lost(measured: &[Lost]) -> bool {
    let connections = times(measured, |one| one.elsewhere_after);
    let names = times(measured, |one| one.names_after);
    let kept = connections.worst() < ELSEWHERE_WITHIN && names.worst() < ELSEWHERE_WITHIN;
    println!(
        "{} {:<34} elsewhere p50/worst: new connections {}, headless names {}",
        if kept { "✓" } else { "!" },
        ClusterEvent::Lost.name(),
        told(&connections),
        told(&names)
    );
    kept
}

fn print_back(event: ClusterEvent, measured: &[Back]) -> bool {
    let used = times(measured, |one| one.used_after);
    let proven = measured.iter().map(|one| one.proven_for).min().unwrap_or_default();
    let changes: usize = measured.iter().map(|one| one.changes_of_mind).sum();
    // What a bad link costs its handshakes is the link's: there the promise is that a cluster which is used stays so.
    let in_time = event == ClusterEvent::BackOverLoss || used.worst() < USED_AGAIN_WITHIN;
    let kept = in_time && proven >= PROVEN_FOR && changes == 0;
    println!(
        "{} {:<34} used again p50/worst {}, proven before for {} at least, taken out again {changes} times",
        if kept { "✓" } else { "!" },
        event.name(),
        told(&used),
        proven.as_millis()
    );
    for one in measured.iter().filter(|one| one.proven_for < PROVEN_FOR || one.changes_of_mind > 0) {
        println!("    used without proof, or taken out again:\n      {}", one.story.join("\n      "));
    }
    kept
}
