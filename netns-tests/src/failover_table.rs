//! `make bench-failover`: every way to lose a gateway or a cluster, many times, as tables.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::ClusterPlan;
use crate::cluster_table::{self, ClusterEvent};
use crate::evidence;
use crate::scenario::Times;
use crate::scenario::failover::{self, Event, Failover, SILENT_FOR};
use crate::scenario::three_clusters::ThreeClusters;
use crate::scenario::two_gateways::TwoGateways;
use crate::world::World;

/// Measures each event whose name has `only` in it so often, and prints the tables. Exits with a failure when a promise was not kept.
pub fn run(runs: usize, only: &str) -> ExitCode {
    let world = match World::create() {
        Ok(world) => world,
        Err(error) => {
            eprintln!("bench-failover: {error:#}\n  `make doctor` says what this machine lacks");
            return ExitCode::FAILURE;
        }
    };
    match measure(&world, runs, only) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("\n! marks a promise that was not kept: is this machine busy?");
            ExitCode::FAILURE
        }
        Err(error) => {
            evidence::print(&world.hosts());
            eprintln!("\n✗ {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(world: &World, runs: usize, only: &str) -> Result<bool> {
    ensure!(runs > 0, "nothing is measured by no runs");
    let of_gateways: Vec<Event> = Event::ALL.into_iter().filter(|event| event.name().contains(only)).collect();
    let of_clusters: Vec<ClusterEvent> =
        ClusterEvent::ALL.into_iter().filter(|event| event.name().contains(only)).collect();
    ensure!(
        !of_gateways.is_empty() || !of_clusters.is_empty(),
        "no event is called '{only}': without --only all of them are measured and named"
    );
    let two = ClusterPlan { gateways: 2, ..ClusterPlan::default() };
    println!("Two clusters with two gateways each, and a third; {runs} runs of each event; all times in milliseconds.");
    let clusters = ThreeClusters::start_as(world, [two, two, ClusterPlan::default()])?;
    clusters.introduce()?;
    clusters.export_web()?;
    let mut kept = true;
    if !of_gateways.is_empty() {
        kept &= lose_gateways(&TwoGateways::among(&clusters)?, runs, &of_gateways)?;
    }
    if !of_clusters.is_empty() {
        kept &= cluster_table::lose_clusters(world, &clusters, runs, &of_clusters)?;
    }
    Ok(kept)
}

fn lose_gateways(clusters: &TwoGateways, runs: usize, events: &[Event]) -> Result<bool> {
    let mut flows = clusters.flows()?;
    println!("Silence is that of the download that was silent longest; lost are datagrams, of all that were sent.\n");
    println!(
        "  {:<34} {:>11} {:>8} {:>14} {:>14} {:>8} {:>12}",
        "event", "silence p50", "worst", "lost p50/worst", "back: silence", "lost", "used after"
    );
    let mut kept = true;
    for event in events {
        let measured =
            (0..runs).map(|_| failover::measure_on(&mut flows, clusters, *event)).collect::<Result<Vec<Failover>>>()?;
        kept &= print(*event, &measured);
    }
    Ok(kept)
}

/// One line of the table; false when a promise was not kept.
fn print(event: Event, measured: &[Failover]) -> bool {
    let times = |of: fn(&Failover) -> Duration| Times::of(measured.iter().map(of).collect());
    let (gone, back) = (times(|one| one.gone.longest_silence), times(|one| one.back.longest_silence));
    let mut lost: Vec<u64> = measured.iter().map(|one| one.gone.lost).collect();
    lost.sort_unstable();
    let (lost_half, lost_most) = (lost.get(lost.len() / 2).copied(), lost.last().copied());
    let lost_back: u64 = measured.iter().map(|one| one.back.lost).sum();
    let used = times(|one| one.used_after);
    let broken = measured.iter().any(|one| !one.gone.ended.is_empty() || !one.back.ended.is_empty());
    let lossless = !event.is_graceful() || lost_most == Some(0);
    let kept = !broken && lossless && lost_back == 0 && gone.worst() < SILENT_FOR && back.worst() < SILENT_FOR;
    println!(
        "{} {:<34} {:>11} {:>8} {:>14} {:>14} {:>8} {:>12}{}",
        if kept { "✓" } else { "!" },
        event.name(),
        gone.percentile(50).as_millis(),
        gone.worst().as_millis(),
        format!("{}/{}", lost_half.unwrap_or(0), lost_most.unwrap_or(0)),
        format!("{}/{}", back.percentile(50).as_millis(), back.worst().as_millis()),
        lost_back,
        format!("{}/{}", used.percentile(50).as_millis(), used.worst().as_millis()),
        if broken { "  connections broke" } else { "" }
    );
    kept
}
