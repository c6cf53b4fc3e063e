//! Transitions, for `tombolo events`: what changed its state here, and why, on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use api::report::EventReport;
use api::time::WallTime;
use node_core::ShareChange;
use store::journal::{Config, Journal, Transition, events_since};

/// Entries of one answer: more than anybody reads.
const MOST: usize = 10_000;
/// Entries about shares of one moment, so that the death of a cluster with ten thousand services leaves the journal its
/// older entries.
const MOST_SHARES: usize = 100;

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

    /// Notes the state of a subject; nothing when it was in that state already. The number of the entry, if there is
    /// one.
    pub(crate) fn note(&mut self, subject: &str, state: &str, reason: &str) -> Option<u64> {
        let before = self.states.get(subject);
        if before.is_some_and(|(known, why)| known == state && why == reason) {
            return None;
        }
        let before = before.map(|(known, _)| known.clone()).unwrap_or_default();
        tracing::info!(subject, before, after = state, reason, "transition");
        self.states.insert(subject.to_owned(), (state.to_owned(), reason.to_owned()));
        let (subject, after, reason) = (subject.to_owned(), state.to_owned(), reason.to_owned());
        self.record(Transition { subject, before, after, reason, cause: None })
    }

    /// Notes that traffic of services goes elsewhere. `causes` are the entries about clusters that were made just
    /// before. When a cluster dies, thousands may change at once: those beyond the first are one entry.
    pub(crate) fn note_shares(&mut self, changes: &BTreeSet<ShareChange>, causes: &BTreeMap<String, u64>) {
        for change in changes.iter().take(MOST_SHARES) {
            tracing::debug!(service = change.service, before = change.before, after = change.after, "shares");
            self.record(Transition {
                subject: format!("share {}", change.service),
                before: change.before.clone(),
                after: change.after.clone(),
                reason: change.reason.clone(),
                cause: change.clusters.iter().find_map(|cluster| causes.get(cluster.as_str())).copied(),
            });
        }
        let rest = changes.len().saturating_sub(MOST_SHARES);
        if let Some(last) = changes.last().filter(|_| rest > 0) {
            let subject = format!("share of {rest} more services");
            let (after, reason) = ("changed".to_owned(), last.reason.clone());
            self.record(Transition { subject, after, reason, ..Transition::default() });
        }
    }

    fn record(&mut self, transition: Transition) -> Option<u64> {
        match self.journal.record(clock::wall(), transition) {
            Ok(number) => {
                self.refused = false;
                Some(number)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.refused, true) {
                    tracing::warn!(%error, "events are in the log only");
                }
                None
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

    #[test]
    fn a_share_names_its_cause_and_ten_thousand_at_once_leave_room_for_what_was_before() {
        let state = tempfile::tempdir().unwrap();
        let mut history = History::open(state.path()).unwrap();
        let cause = history.note("path birch", "Down", "SilentPeer").unwrap();
        let change = |number: usize| ShareChange {
            service: format!("shop/web-{number:05}"),
            before: "100% birch".into(),
            after: "nobody".into(),
            reason: "birch SilentPeer".into(),
            clusters: vec![api::ClusterId::new("birch").unwrap()],
        };
        history.note_shares(&(0..10_000).map(change).collect(), &BTreeMap::from([("birch".into(), cause)]));
        let events = events(state.path(), WallTime::default()).unwrap();
        assert_eq!(events.len(), MOST_SHARES + 2);
        let first = &events[1];
        assert_eq!((first.subject.as_str(), first.cause), ("share shop/web-00000", Some(cause)));
        assert_eq!((first.before.as_str(), first.after.as_str()), ("100% birch", "nobody"));
        assert_eq!(events.last().unwrap().subject, "share of 9900 more services");
    }
}
