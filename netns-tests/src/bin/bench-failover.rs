//! `make bench-failover`: what clients notice when a gateway or a cluster is lost, as distributions. `--runs N` says how
//! many, `--only TEXT` measures the events whose names have that in them.

use std::process::ExitCode;

use netns_tests::{failover_table, world};

/// Enough for a worst case that means something.
const RUNS: usize = 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| arguments.iter().skip_while(|argument| *argument != flag).nth(1);
    let only = value("--only").cloned().unwrap_or_default();
    let runs = match value("--runs").map(|text| text.parse()) {
        None => RUNS,
        Some(Ok(runs)) => runs,
        Some(Err(error)) => {
            eprintln!("bench-failover: --runs takes a number: {error}");
            return ExitCode::FAILURE;
        }
    };
    world::inside(|| failover_table::run(runs, &only)).unwrap_or_else(|error| {
        eprintln!("bench-failover: {error:#}");
        ExitCode::FAILURE
    })
}
