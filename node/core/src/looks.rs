//! [`Looks`]: when everything in the kernel is looked at, and whether what was seen still holds.
//!
//! A look at ten thousand services takes long, and a failover must not wait for it. So it is taken beside the owner's
//! work, and what was seen counts only where the owner changed nothing meanwhile: a difference against a state that is
//! past would undo what was done since.

use core::time::Duration;

use api::time::Instant;

/// After so many looks in a row that did not hold, the owner looks itself: somebody else's changes must be found also
/// where ours never pause.
const MOST_PAST: u32 = 10;
/// Between looks that do not hold, longer each time: a calm moment may come.
const PAUSE: Duration = Duration::from_secs(1);
/// After a refusal of the kernel everything is looked at again: soon, then ever later while it refuses.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Looks {
    /// Between two looks when nothing asks for one.
    every: Duration,
    due: Instant,
    /// Changes of the kernel so far.
    changes: u64,
    under_way: bool,
    /// Looks in a row that did not hold.
    past: u32,
    retry: Duration,
}

/// How to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Beside the owner's work; the number comes back with what was seen.
    Beside(u64),
    /// Now, while everything else waits.
    Here,
}

impl Looks {
    /// The first look is due at once.
    pub fn new(every: Duration, now: Instant) -> Self {
        Self { every, due: now, changes: 0, under_way: false, past: 0, retry: FIRST_RETRY }
    }

    /// When a look is to begin; none while one is under way.
    pub fn next(&self) -> Option<Instant> {
        (!self.under_way).then_some(self.due)
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.next().is_some_and(|due| due <= now)
    }

    /// The owner changes something: what is being looked at is past.
    pub fn changed(&mut self) {
        self.changes += 1;
    }

    /// Begins the look that is due.
    pub fn begin(&mut self) -> Look {
        if self.past >= MOST_PAST {
            return Look::Here;
        }
        self.under_way = true;
        Look::Beside(self.changes)
    }

    /// A look that was begun with that number has come back. Whether what was seen still holds; otherwise another one is
    /// due.
    pub fn holds(&mut self, begun: u64, now: Instant) -> bool {
        self.under_way = false;
        let holds = begun == self.changes;
        self.past = if holds { 0 } else { self.past + 1 };
        if !holds {
            self.due = now + PAUSE * (self.past - 1);
        }
        holds
    }

    /// Everything was looked at, and is as it should be or was mended.
    pub fn done(&mut self, now: Instant) {
        self.past = 0;
        self.due = now + self.every;
        self.retry = FIRST_RETRY;
    }

    /// The kernel refused something: look again, later each time.
    pub fn failed(&mut self, now: Instant) {
        self.due = self.due.min(now + self.retry);
        if self.due <= now {
            self.due = now + self.retry;
        }
        self.retry = (self.retry * 2).min(LAST_RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(60);

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn begun(looks: &mut Looks) -> u64 {
        match looks.begin() {
            Look::Beside(number) => number,
            Look::Here => panic!("the owner is asked to look itself"),
        }
    }

    #[test]
    fn what_was_seen_before_a_change_or_during_it_never_counts() {
        let mut looks = Looks::new(EVERY, at(0));
        looks.changed();
        let number = begun(&mut looks);
        assert_eq!(looks.next(), None, "one at a time");
        looks.changed();
        assert!(!looks.holds(number, at(5)));
        assert!(looks.is_due(at(5)), "another one at once");
        let number = begun(&mut looks);
        assert!(looks.holds(number, at(9)));
        looks.done(at(9));
        assert_eq!(looks.next(), Some(at(9) + EVERY));
    }

    #[test]
    fn where_changes_never_pause_the_owner_looks_itself_in_the_end() {
        let mut looks = Looks::new(EVERY, at(0));
        for _ in 0..MOST_PAST {
            let number = begun(&mut looks);
            looks.changed();
            assert!(!looks.holds(number, at(1)));
        }
        assert_eq!(looks.begin(), Look::Here);
        looks.done(at(2));
        assert!(matches!(looks.begin(), Look::Beside(_)));
    }

    #[test]
    fn refusals_are_looked_into_ever_later_until_one_look_finds_all_well() {
        let mut looks = Looks::new(EVERY, at(0));
        looks.done(at(0));
        let mut waits = [0; 12].map(|_| {
            let now = looks.next().unwrap_or_default();
            looks.failed(now);
            looks.next().unwrap_or_default().since(now)
        });
        assert!(waits.is_sorted() && waits[11] == LAST_RETRY, "{waits:?}");
        looks.done(at(0));
        looks.failed(at(0));
        waits[0] = looks.next().unwrap_or_default().since(at(0));
        assert_eq!(waits[0], FIRST_RETRY);
    }
}
