//! `make soak`, its part with real packets. `SECONDS` says how long (60), `FIRST` is the seed (1000), `CONNECTIONS` (1000),
//! `DATAGRAMS` (10000) and DNS `QUERIES` (200) are sent a second.

use std::process::ExitCode;
use std::time::Duration;

use netns_tests::soak::{self, Plan};
use netns_tests::traffic::load::Rates;
use netns_tests::world;

fn main() -> ExitCode {
    let number = |name: &str, usual: u32| match std::env::var(name).ok().filter(|text| !text.is_empty()) {
        None => Ok(usual),
        Some(text) => text.parse().map_err(|error| format!("{name} is '{text}', and has to be a number: {error}")),
    };
    let plan = || -> Result<Plan, String> {
        Ok(Plan {
            lasts: Duration::from_secs(number("SECONDS", 60)?.into()),
            seed: number("FIRST", 1000)?.into(),
            rates: Rates {
                connections: number("CONNECTIONS", 1000)?,
                datagrams: number("DATAGRAMS", 10_000)?,
                queries: number("QUERIES", 200)?,
            },
        })
    };
    let plan = match plan() {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("soak: {error}");
            return ExitCode::FAILURE;
        }
    };
    world::inside(|| soak::run(plan)).unwrap_or_else(|error| {
        eprintln!("soak: {error:#}");
        ExitCode::FAILURE
    })
}
