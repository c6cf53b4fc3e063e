//! Many made-up stories: whatever happens, in whatever order, the promises hold.

use std::ops::Range;

use simulation::{Schedule, Tally, live};

/// Enough to meet most pairs of things that can happen next to each other: 1.5 s each on one core of 2026, unoptimised.
const SEEDS: u64 = 20;

#[test]
fn whatever_happens_no_promise_is_broken_and_every_cluster_comes_to_see_what_all_say() {
    let mut busy = Tally::default();
    for seed in seeds() {
        match live(&Schedule::new(seed)) {
            Ok(tally) => busy = busy + tally,
            Err(failure) => panic!("{}", failure.shrink().describe(true)),
        }
    }
    let Tally { remote, answered, unserved, refused, passed_on, late } = busy;
    assert!(
        answered * 2 > remote && unserved > 0 && refused > 0 && passed_on > 0 && late > 0,
        "hardly anything was tried: {busy:?}"
    );
}

/// `TOMBOLO_SEEDS=100..400` runs others than usual, `17..18` one alone.
fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("TOMBOLO_SEEDS") else { return 0..SEEDS };
    let (first, end) = text.split_once("..").expect("TOMBOLO_SEEDS is a range such as 100..400");
    let number = |text: &str| text.parse().expect("TOMBOLO_SEEDS is a range such as 100..400");
    number(first)..number(end)
}
