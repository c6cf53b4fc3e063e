//! Many made-up stories: whatever happens, in whatever order, the promises hold.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::world::{CEDAR, Weather, World, pod};

/// Enough to meet every pair of things that can happen next to each other; a few seconds of real time.
const SEEDS: u64 = 36;
const ACTS: u64 = 6;
/// After all is well again: a handshake a second over the endpoints a link may know, and once more for a lost one.
const RECOVERY: Duration = Duration::from_secs(6);

#[test]
fn whatever_happens_paths_recover_and_nobody_is_given_what_is_not_theirs() {
    let seeds = seeds();
    let failures: Vec<(u64, String)> =
        seeds.clone().filter_map(|seed| run(seed).err().map(|reason| (seed, reason))).collect();
    let failed: Vec<u64> = failures.iter().map(|(seed, _)| *seed).collect();
    assert!(failures.is_empty(), "seeds {failed:?} of {seeds:?} failed; the first:\n{}", failures[0].1);
}

/// `TOMBOLO_SEEDS=100..400` runs others than usual, `17..18` one alone.
fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("TOMBOLO_SEEDS") else { return 0..SEEDS };
    let (first, end) = text.split_once("..").expect("TOMBOLO_SEEDS is a range such as 100..400");
    let number = |text: &str| text.parse().expect("TOMBOLO_SEEDS is a range such as 100..400");
    number(first)..number(end)
}

fn run(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed);
    let result = catch_unwind(AssertUnwindSafe(|| live(&mut world)));
    let wrong = match result {
        Ok(Ok(())) if world.violations.is_empty() => return Ok(()),
        Ok(Ok(())) => world.violations.join("\n"),
        Ok(Err(reason)) => reason,
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "it panicked".into()),
    };
    Err(format!("seed {seed}: {wrong}\n{}", world.describe()))
}

fn live(world: &mut World) -> Result<(), String> {
    world.chat();
    for _ in 0..ACTS {
        let acts = 1 + world.random.below(3);
        for _ in 0..acts {
            act(world);
            let pause = world.random.below(1500);
            world.run(Duration::from_millis(pause));
        }
        world.heal();
        if world.run_until(RECOVERY, World::all_up).is_none() {
            return Err(format!("not all paths are up {} s after the last trouble", RECOVERY.as_secs()));
        }
        quiet(world)?;
    }
    Ok(())
}

/// While nothing happens no path changes, and packets arrive.
fn quiet(world: &mut World) -> Result<(), String> {
    // A handshake that began in trouble may still end and move an endpoint.
    world.run(Duration::from_millis(1500));
    let before: usize = (0..3).map(|cluster| world.times_down(cluster)).sum();
    let from = world.random.below(3) as usize;
    let to = (from + 1) % 3;
    let ipv6 = world.random.permille(500);
    let number = world.send(from, to, ipv6);
    world.run(Duration::from_millis(1000));
    let after: usize = (0..3).map(|cluster| world.times_down(cluster)).sum();
    if before != after {
        return Err("a path went down while nothing was wrong".into());
    }
    if !world.has_arrived(number) {
        return Err(format!("packet {number} was lost while nothing was wrong"));
    }
    Ok(())
}

fn act(world: &mut World) {
    let who = world.random.below(3) as usize;
    let other = (who + 1 + world.random.below(2) as usize) % 3;
    match world.random.below(9) {
        0 => {
            world.block(who, other);
            world.block(other, who);
        }
        1 => world.block(who, other),
        2 => world.restart(who),
        3 => world.rebind(),
        4 => {
            let seconds = 1 + world.random.below(600);
            world.jump(who, Duration::from_secs(seconds));
        }
        5 => {
            let loss = world.random.below(300);
            world.tell(format!("{loss} of 1000 packets are lost, others come late, twice and out of order"));
            let (delay, jitter) = (Duration::from_millis(30), Duration::from_millis(60));
            world.weather = Weather { loss_permille: loss, duplicate_permille: 100, delay, jitter };
        }
        6 => world.disturb(),
        7 => {
            let ipv6 = world.random.permille(500);
            let third = 3 - who - other;
            world.cheat(who, pod(third, ipv6), other);
        }
        _ => {
            // Everything at once on the side that is hard to find again.
            world.rebind();
            world.restart(CEDAR);
        }
    }
}
