//! Lives through one story after another for `SECONDS` (60), beginning with seed `FIRST` (1000), and stops at the first
//! that goes wrong, with the shortest form of it. `make soak` runs it.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use simulation::{Schedule, Tally, live};

fn main() -> ExitCode {
    let number = |name: &str, usual: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (seconds, first) = (number("SECONDS", 60), number("FIRST", 1000));
    let begun = Instant::now();
    let mut busy = Tally::default();
    let mut out = std::io::stdout();
    let mut seed = first;
    while begun.elapsed() < Duration::from_secs(seconds) {
        match live(&Schedule::new(seed)) {
            Ok(tally) => busy = busy + tally,
            Err(failure) => {
                let verbose = std::env::var_os("STORY").is_some();
                // Nobody reads any more: then nobody misses it.
                let _ = writeln!(out, "{}", failure.shrink().describe(verbose));
                let _ = writeln!(out, "again: SECONDS=1 FIRST={seed} make soak; STORY=1 tells everything");
                return ExitCode::FAILURE;
            }
        }
        seed += 1;
        if seed.is_multiple_of(50) {
            let _ = writeln!(out, "{} stories, all well; {busy:?}", seed - first);
        }
    }
    let _ = writeln!(out, "{} stories in {} s, all well; {busy:?}", seed - first, begun.elapsed().as_secs());
    ExitCode::SUCCESS
}
