//! Says what this machine allows: `make doctor`. With `--for-tests`, only what is missing.

use std::process::ExitCode;

use netns_tests::doctor::{Lines, run};

fn main() -> ExitCode {
    let for_tests = std::env::args().skip(1).any(|argument| argument == "--for-tests");
    run(if for_tests { Lines::Missing } else { Lines::All }).unwrap_or_else(|error| {
        eprintln!("doctor: {error:#}");
        ExitCode::FAILURE
    })
}
