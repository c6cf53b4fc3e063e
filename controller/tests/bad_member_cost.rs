//! What a member that holds a valid identity and floods costs the cluster that listens: measured, and bounded.
//!
//! One test in a process of its own, because it reads the memory and the processor time of the whole process: the
//! cluster under attack, an honest one, and the liar itself. So the true cost is less.

mod clusters;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use api::member_record::SignedRecord;
use clusters::besieged::{Besieged, PLAUSIBLE, honest, named, service, slice, slice_of};
use clusters::eventually;
use clusters::liar::{Words, answer, framed, snapshot};
use controller_core::advertisement::ItemChange;
use controller_core::message::{MAX_FRAME, Message};

/// How long each attack goes on, at least.
const SIEGE: Duration = Duration::from_secs(3);
/// Of 300 services each: three times what a peer may name.
const PAGES: usize = 100;
/// Twice 10,000 services of some kilobytes each, with what it takes to read and to judge them.
const MOST_KILOBYTES: u64 = 256 * 1024;
/// Of one core, with the liar's own part: a peer may not keep a core busy.
const MOST_PROCESSOR: f64 = 1.0;

/// A name, and what is said on each connection after the answer, again and again.
type Attack = (&'static str, Vec<Vec<u8>>, Repeat);

#[derive(Clone, Copy, PartialEq)]
enum Repeat {
    Once,
    ForEver,
}

/// The attack of this number; none after the last.
fn attack(number: usize, record: &SignedRecord) -> Option<Attack> {
    let added = |number: usize| {
        let key = named("shop", &format!("service-{number}"));
        ItemChange { key, item: Some(service(PLAUSIBLE).into()) }
    };
    let page_of = |number| (number * 300..number * 300 + 300).map(added).collect();
    let page = |items| Message::Page { items, last: None }.to_frame().unwrap();
    let delta = |changes| Message::Delta { changes, hash: None, age: 0 }.to_frame().unwrap();
    let flip = |turn: usize| {
        let item = slice(if turn.is_multiple_of(2) { &["10.2.0.1"] } else { &["10.2.0.2"] });
        ItemChange { key: slice_of("web"), item: Some(item.into()) }
    };
    let attack = match number {
        0 => ("services without end in a snapshot", (0..PAGES).map(page_of).map(page).collect(), Repeat::Once),
        1 => {
            let changes = (0..PAGES).map(page_of).map(delta);
            ("services without end in changes", std::iter::once(snapshot(&[])).chain(changes).collect(), Repeat::Once)
        }
        2 => {
            let changes = delta((0..200).map(flip).collect());
            ("an endpoint that changes without end", vec![snapshot(&honest()), changes], Repeat::ForEver)
        }
        3 => {
            let records = Message::Records { records: vec![record.clone(); 64] }.to_frame().unwrap();
            ("records without end", vec![snapshot(&honest()), records], Repeat::ForEver)
        }
        4 => {
            let item = "a".repeat(MAX_FRAME - 64);
            let giant = framed(format!(r#"{{"say":"page","items":["{item}"]}}"#).as_bytes());
            ("the largest message, which means nothing", vec![giant], Repeat::ForEver)
        }
        5 => {
            let deep = framed(format!(r#"{{"say":"page","items":{}"#, "[".repeat(MAX_FRAME - 64)).as_bytes());
            ("the largest message, nested", vec![deep], Repeat::ForEver)
        }
        _ => return None,
    };
    Some(attack)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_costs_its_victim_bounded_memory_and_no_core_and_nobody_else_waits() {
    println!("{:<44} {:>10} {:>10} {:>14}", "attack", "memory kB", "of a core", "conversations");
    for number in 0.. {
        let made = Arc::new(OnceLock::new());
        let kept = Arc::clone(&made);
        // The words are made once: what the liar spends on them is none of its victim's cost.
        let script = move |_: usize, record: &SignedRecord| -> Words {
            let words = kept.get_or_init(|| attack(number, record)).clone();
            let Some((_, frames, repeat)) = words else { return Box::new(std::iter::empty()) };
            let again = frames.last().cloned().filter(|_| repeat == Repeat::ForEver);
            let words = std::iter::once(answer(record, "one")).chain(frames);
            Box::new(words.chain(again.into_iter().cycle()))
        };
        let besieged = Besieged::with(script).await;
        let begun = || async { made.get().cloned() };
        let Some((name, ..)) = eventually("the attack begins", begun, || serde_json::json!(number)).await else {
            break;
        };
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let (memory, processor, started) = (peak_kilobytes(), processor_time(), Instant::now());
        while started.elapsed() < SIEGE {
            besieged.the_honest_one_is_heard().await;
        }
        let share = (processor_time() - processor).as_secs_f64() / started.elapsed().as_secs_f64();
        let grown = peak_kilobytes().saturating_sub(memory);
        println!("{name:<44} {grown:>10} {share:>10.2} {:>14}", besieged.liar.conversations());
        besieged.end().await;
        assert!(grown < MOST_KILOBYTES, "{name}: {grown} kB more");
        assert!(share < MOST_PROCESSOR, "{name}: {share:.2} of a core");
    }
}

/// The most memory this process held since it was last asked to forget.
fn peak_kilobytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What this process used of any core (proc(5): utime and stime in ticks of 10 ms).
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    let ticks: Vec<u64> = fields.split(' ').filter_map(|field| field.parse().ok()).collect();
    Duration::from_millis((ticks[10] + ticks[11]) * 10)
}
