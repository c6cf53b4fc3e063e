//! `make bench-failover`: every way to lose a gateway, many times, as a table.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::evidence;
use crate::scenario::Times;
use crate::scenario::failover::{self, Event, Failover, SILENT_FOR};
use crate::scenario::two_gateways::TwoGateways;
use crate::world::World;

/// Measures each event whose name has `only` in it so often, and prints the table. Exits with a failure when a promise was not kept.
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
    let events: Vec<Event> = Event::ALL.into_iter().filter(|event| event.name().contains(only)).collect();
    ensure!(!events.is_empty(), "no event is called '{only}': without --only all of them are measured and named");
    let clusters = TwoGateways::joined(world, 1)?;
    let mut flows = clusters.flows()?;
    println!("Two clusters with two gateways each; {} runs of each event; all times in milliseconds.", runs);
    println!("Silence is that of the download that was silent longest; lost are datagrams, of all that were sent.\n");
    println!(
        "  {:<34} {:>11} {:>8} {:>14} {:>14} {:>8} {:>12}",
        "event", "silence p50", "worst", "lost p50/worst", "back: silence", "lost", "used after"
    );
    let mut kept = true;
    for event in events {
        let measured =
            (0..runs).map(|_| failover::measure_on(&mut flows, &clusters, event)).collect::<Result<Vec<Failover>>>()?;
        kept &= print(event, &measured);
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
