//! Transitions, for `tombolo events`: what changed its state here, and why.

use std::collections::{BTreeMap, VecDeque};

use api::report::EventReport;

use crate::clock;

/// Enough for a day of a troubled path, little enough to forget nothing else.
const KEPT: usize = 1_000;

/// The last transitions, and the present state of each subject.
#[derive(Default)]
pub(crate) struct History {
    entries: VecDeque<EventReport>,
    states: BTreeMap<String, (String, String)>,
    next: u64,
}

impl History {
    /// Notes the state of a subject; nothing when it was in that state already.
    pub(crate) fn note(&mut self, subject: &str, state: &str, reason: &str) {
        let before = self.states.get(subject);
        if before.is_some_and(|(known, why)| known == state && why == reason) {
            return;
        }
        let before = before.map(|(known, _)| known.clone()).unwrap_or_default();
        tracing::info!(subject, before, after = state, reason, "transition");
        self.states.insert(subject.to_owned(), (state.to_owned(), reason.to_owned()));
        self.next += 1;
        self.entries.push_back(EventReport {
            sequence: self.next,
            at: clock::wall_milliseconds(),
            subject: subject.to_owned(),
            before,
            after: state.to_owned(),
            reason: reason.to_owned(),
            cause: None,
        });
        while self.entries.len() > KEPT {
            self.entries.pop_front();
        }
    }

    /// Notes that a subject is there no more.
    pub(crate) fn forget_unless(&mut self, prefix: &str, keep: impl Fn(&str) -> bool) {
        let gone = |subject: &&String| subject.strip_prefix(prefix).is_some_and(|rest| !keep(rest));
        let gone: Vec<String> = self.states.keys().filter(gone).cloned().collect();
        for subject in gone {
            self.note(&subject, "gone", "Removed");
            self.states.remove(&subject);
        }
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &EventReport> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_goes_on_is_noted_once_and_old_entries_give_way() {
        let mut history = History::default();
        for _ in 0..3 {
            history.note("path birch", "Up", "Answering");
        }
        assert_eq!(history.entries().count(), 1);
        for number in 0..2 * KEPT {
            history.note("path birch", ["Down", "Up"][number % 2], "SilentPeer");
        }
        assert_eq!(history.entries().count(), KEPT);
        assert_eq!(history.entries().last().unwrap().sequence, 2 * KEPT as u64 + 1);
    }
}
