//! Says what this machine allows: `make doctor`. With `--for-tests`, only what is missing, and builds what tests need that
//! is not Rust, so that no test waits for it.

use std::process::ExitCode;

use kubernetes::Programs;
use netns_tests::doctor::{Lines, run};
use netns_tests::sandbox::is_inside;

fn main() -> ExitCode {
    let for_tests = std::env::args().skip(1).any(|argument| argument == "--for-tests");
    let lines = if for_tests { Lines::Missing } else { Lines::All };
    let code = run(lines).and_then(|code| {
        // The second run of this program, in its sandbox, has no network to build from.
        if for_tests && code == ExitCode::SUCCESS && !is_inside() {
            Programs::find_or_build()?;
        }
        Ok(code)
    });
    code.unwrap_or_else(|error| {
        eprintln!("doctor: {error:#}");
        ExitCode::FAILURE
    })
}
