//! Transitions, for `tombolo events`: what changed its state here, and why, on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::report::EventReport;
use api::time::WallTime;
use store::journal::{Config, Journal, Transition, events_since};

/// Entries of one answer: more than anybody reads.
const MOST: usize = 10_000;

/// The journal, and the present state of each subject.
pub(crate) struct History {
    journal: Journal,
    states: BTreeMap<String, (String, String)>,
    /// The disk refuses: said once, until it takes an entry again.
    refused: bool,
}

/// The journal's folder in the agent's state.
pub(crate) fn folder(state: &Path) -> PathBuf {
    state.join("journal")
}

impl History {
    pub(crate) fn open(state: &Path) -> Result<Self, store::Error> {
        let journal = Journal::open(Config::new(folder(state)))?;
        Ok(Self { journal, states: BTreeMap::new(), refused: false })
    }

    /// Notes the state of a subject; nothing when it was in that state already.
    pub(crate) fn note(&mut self, subject: &str, state: &str, reason: &str) {
        let before = self.states.get(subject);
        if before.is_some_and(|(known, why)| known == state && why == reason) {
            return;
        }
        let before = before.map(|(known, _)| known.clone()).unwrap_or_default();
        tracing::info!(subject, before, after = state, reason, "transition");
        self.states.insert(subject.to_owned(), (state.to_owned(), reason.to_owned()));
        let (subject, after, reason) = (subject.to_owned(), state.to_owned(), reason.to_owned());
        let transition = Transition { subject, before, after, reason, cause: None };
        match self.journal.record(clock::wall(), transition) {
            Ok(_) => self.refused = false,
            Err(error) => {
                if !std::mem::replace(&mut self.refused, true) {
                    tracing::warn!(%error, "events are in the log only");
                }
            }
        }
    }

    /// Notes that subjects of a kind are there no more.
    pub(crate) fn forget_unless(&mut self, prefix: &str, keep: impl Fn(&str) -> bool) {
        let gone = |subject: &&String| subject.strip_prefix(prefix).is_some_and(|rest| !keep(rest));
        let gone: Vec<String> = self.states.keys().filter(gone).cloned().collect();
        for subject in gone {
            self.note(&subject, "gone", "Removed");
            self.states.remove(&subject);
        }
    }
}

/// What was noted since then, oldest first.
pub(crate) fn events(state: &Path, since: WallTime) -> Result<Vec<EventReport>, store::Error> {
    events_since(&folder(state), since, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_goes_on_is_noted_once_and_what_was_noted_outlives_the_agent() {
        let state = tempfile::tempdir().unwrap();
        let mut history = History::open(state.path()).unwrap();
        for _ in 0..3 {
            history.note("path birch", "Up", "Answering");
        }
        history.note("path birch", "Down", "SilentPeer");
        history.forget_unless("path ", |_| false);
        drop(history);
        let events = events(state.path(), WallTime::default()).unwrap();
        let seen: Vec<_> = events.iter().map(|event| (event.before.as_str(), event.after.as_str())).collect();
        assert_eq!(seen, [("", "Up"), ("Up", "Down"), ("Down", "gone")]);
    }
}
