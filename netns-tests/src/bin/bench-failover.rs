//! `make bench-failover`: how long flows are silent when a gateway is lost, as distributions. `--runs N` says how many.

use std::process::ExitCode;

use netns_tests::{failover_table, world};

/// Enough for a worst case that means something.
const RUNS: usize = 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runs = arguments.iter().skip_while(|argument| *argument != "--runs").nth(1);
    let runs = match runs.map(|text| text.parse()) {
        None => RUNS,
        Some(Ok(runs)) => runs,
        Some(Err(error)) => {
            eprintln!("bench-failover: --runs takes a number: {error}");
            return ExitCode::FAILURE;
        }
    };
    world::inside(|| failover_table::run(runs)).unwrap_or_else(|error| {
        eprintln!("bench-failover: {error:#}");
        ExitCode::FAILURE
    })
}
