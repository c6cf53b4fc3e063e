//! `make demo`: the main job, shown. With `--hold`, the clusters stay up; with `--record FILE`, a picture is drawn.

use std::process::ExitCode;

use netns_tests::{demo, world};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let hold = arguments.iter().any(|argument| argument == "--hold");
    let record = arguments.iter().skip_while(|argument| *argument != "--record").nth(1).map(std::path::PathBuf::from);
    world::inside(|| demo::run(hold, record.as_deref())).unwrap_or_else(|error| {
        eprintln!("demo: {error:#}");
        ExitCode::FAILURE
    })
}
