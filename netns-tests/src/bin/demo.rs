//! `make demo`: the main job, shown. With `--hold`, the clusters stay up.

use std::process::ExitCode;

use netns_tests::{demo, world};

fn main() -> ExitCode {
    let hold = std::env::args().skip(1).any(|argument| argument == "--hold");
    world::inside(|| demo::run(hold)).unwrap_or_else(|error| {
        eprintln!("demo: {error:#}");
        ExitCode::FAILURE
    })
}
