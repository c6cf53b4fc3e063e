//! A schedule lived through, and what was wrong with it; and the shortest schedule that still goes wrong.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::attempt::Tally;
use crate::happening::Happening;
use crate::schedule::Schedule;
use crate::world::{MS, SECOND, START, World};

/// Stories tried at most to find a shorter one.
const TRIES: usize = 80;

/// A story that went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    pub schedule: Schedule,
    /// What was expected and what was seen.
    pub wrong: Vec<String>,
    /// Everything that was told meanwhile.
    pub story: String,
    /// When it was noticed, milliseconds from the first happening.
    pub at: u64,
}

/// Lives through a schedule.
///
/// # Errors
/// The first thing that was wrong.
pub fn live(schedule: &Schedule) -> Result<Tally, Box<Failure>> {
    let mut world = World::new(schedule);
    let lived = catch_unwind(AssertUnwindSafe(|| world.live(schedule)));
    let wrong = match lived {
        Ok(Ok(())) => return Ok(world.attempts.tally),
        Ok(Err(wrong)) => wrong,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            vec![format!("a part panicked: {}", text.unwrap_or_default())]
        }
    };
    let at = world.now.saturating_sub(START + world.began) / MS;
    for line in world.paths() {
        world.tell(line);
    }
    Err(Box::new(Failure { schedule: schedule.clone(), wrong, story: world.story, at }))
}

impl World {
    fn live(&mut self, schedule: &Schedule) -> Result<(), Vec<String>> {
        self.sabotage = schedule.sabotage;
        let settle = schedule.settle() * MS;
        self.put_services();
        self.run_until(self.now + 2 * SECOND);
        self.introduce();
        self.truth.introduced(self.now);
        self.run_until(self.now + settle / 2);
        self.sound()?;
        self.began = self.now - START;
        let began = self.now;
        self.knocks_at = self.now;
        for (at, happening) in &schedule.happenings {
            self.run_until(began + at * MS);
            self.sound()?;
            self.apply(happening);
            if *happening == Happening::Calm {
                self.run_until(self.now + settle);
                self.sound()?;
                let wrong = self.judge_calm();
                self.sound()?;
                if !wrong.is_empty() {
                    return Err(wrong);
                }
            }
        }
        Ok(())
    }

    fn sound(&self) -> Result<(), Vec<String>> {
        if self.violations.is_empty() { Ok(()) } else { Err(self.violations.iter().take(5).cloned().collect()) }
    }
}

impl Failure {
    /// The same failure, or another, with as little happening as possible.
    pub fn shrink(self) -> Self {
        let mut shortest = self;
        // What happens after it was noticed has nothing to do with it; the calm before it has.
        let at = shortest.at;
        let mut cut = shortest.schedule.clone();
        cut.happenings.retain(|(when, _)| *when <= at);
        let mut tries = 0;
        let attempt = |schedule: Schedule, shortest: &mut Self| match live(&schedule) {
            Err(failure) => {
                *shortest = *failure;
                true
            }
            Ok(_) => false,
        };
        attempt(cut, &mut shortest);
        let mut piece = shortest.schedule.happenings.len() / 2;
        while piece > 0 && tries < TRIES {
            let mut from = 0;
            while from < shortest.schedule.happenings.len() && tries < TRIES {
                let mut fewer = shortest.schedule.clone();
                let to = (from + piece).min(fewer.happenings.len());
                fewer.happenings.drain(from..to);
                tries += 1;
                if !attempt(fewer, &mut shortest) {
                    from += piece;
                }
            }
            piece /= 2;
        }
        shortest
    }

    /// For people: what happened, what was expected, what was seen.
    pub fn describe(&self, with_story: bool) -> String {
        let mut text = String::new();
        let clusters: Vec<String> = self
            .schedule
            .clusters
            .iter()
            .enumerate()
            .map(|(place, shape)| format!("{} with {shape}", crate::site::NAMES[place]))
            .collect();
        let hub = self.schedule.hub.map(|hub| format!("; {} is the hub of the others", crate::site::NAMES[hub]));
        let _ = writeln!(text, "seed {}; {}{}", self.schedule.seed, clusters.join(", "), hub.unwrap_or_default());
        for (at, happening) in &self.schedule.happenings {
            let _ = writeln!(text, "{:>9.3} s  {happening}", *at as f64 / 1000.0);
        }
        let _ = writeln!(text, "{:>9.3} s  and then:", self.at as f64 / 1000.0);
        for wrong in &self.wrong {
            let _ = writeln!(text, "    {wrong}");
        }
        if with_story {
            let _ = writeln!(text, "everything that was told:\n{}", self.story);
        }
        text
    }
}
