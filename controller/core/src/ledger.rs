//! [`Ledger`]: this cluster's advertisement with its recent history, from which every peer is served.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use api::time::Instant;

use crate::advertisement::{Advertisement, ContentHash, ItemChange};
use crate::remote::Token;

/// Changes kept for resuming: a minute of the busiest cluster we promise to carry (200 changes a second).
pub const HISTORY: usize = 12_000;

/// Changes that were made together, and the hash of everything after them.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub changes: Vec<ItemChange>,
    pub hash: ContentHash,
    /// When this cluster came to know of them.
    pub known: Instant,
}

/// What a peer needs to come up to date.
#[derive(Clone, Debug)]
pub enum Resumption {
    /// The batches since its token, oldest first; none when it is up to date.
    Deltas(Vec<Arc<Batch>>),
    /// Everything, for its token is unknown here.
    Snapshot(Arc<Advertisement>),
}

#[derive(Debug)]
pub struct Ledger {
    epoch: String,
    current: Advertisement,
    history: VecDeque<Arc<Batch>>,
    /// Changes in the history, which is what bounds it.
    kept: usize,
    /// The number of the first batch in the history.
    first: u64,
    /// The content before that batch.
    base: ContentHash,
    /// After which batch the content had a hash; the last one, where it came back.
    after: BTreeMap<ContentHash, u64>,
}

impl Ledger {
    pub fn new(epoch: String) -> Self {
        let current = Advertisement::default();
        // Before batch 1 there is nothing: a peer that holds nothing of this epoch resumes there.
        let after = [(current.hash(), 0)].into();
        Self { epoch, base: current.hash(), current, history: VecDeque::new(), kept: 0, first: 1, after }
    }

    pub fn epoch(&self) -> &str {
        &self.epoch
    }
    pub fn token(&self) -> Token {
        Token { epoch: self.epoch.clone(), hash: self.current.hash() }
    }
    pub fn current(&self) -> &Advertisement {
        &self.current
    }

    /// How many batches there were.
    pub fn revision(&self) -> u64 {
        self.first + self.history.len() as u64 - 1
    }

    /// After how many batches the content had this hash; none where nobody knows any more.
    pub fn revision_of(&self, hash: &ContentHash) -> Option<u64> {
        self.after.get(hash).copied()
    }

    /// Takes changes in; the batch to tell every peer, `None` when nothing changed.
    pub fn record(&mut self, changes: Vec<ItemChange>, now: Instant) -> Option<Arc<Batch>> {
        let changes: Vec<ItemChange> = changes.into_iter().filter(|change| self.current.apply(change)).collect();
        if changes.is_empty() {
            return None;
        }
        let batch = Arc::new(Batch { changes, hash: self.current.hash(), known: now });
        self.kept += batch.changes.len();
        self.history.push_back(batch.clone());
        self.after.insert(batch.hash, self.first + self.history.len() as u64 - 1);
        while self.kept > HISTORY {
            let Some(oldest) = self.history.pop_front() else { break };
            self.kept -= oldest.changes.len();
            // From before the oldest kept batch nobody can resume.
            if self.after.get(&self.base).is_some_and(|number| *number < self.first) {
                self.after.remove(&self.base);
            }
            self.base = oldest.hash;
            self.first += 1;
        }
        Some(batch)
    }

    /// What brings the holder of `token` up to date.
    pub fn resume(&self, token: Option<&Token>) -> Resumption {
        let number = token
            .filter(|token| token.epoch == self.epoch)
            .and_then(|token| self.after.get(&token.hash))
            .filter(|number| **number + 1 >= self.first);
        match number {
            Some(number) => {
                let skip = usize::try_from(number + 1 - self.first).unwrap_or(usize::MAX);
                Resumption::Deltas(self.history.iter().skip(skip).cloned().collect())
            }
            None => Resumption::Snapshot(Arc::new(self.current.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advertisement::{ItemKey, ServiceName};
    use crate::testing::service;

    const T0: Instant = Instant::from_millis(0);

    fn put(n: usize) -> Vec<ItemChange> {
        vec![ItemChange { key: ItemKey::service(ServiceName::new("shop", &format!("s{n}"))), item: Some(service(1)) }]
    }

    #[test]
    fn a_known_token_gets_only_what_came_after_it() {
        let mut ledger = Ledger::new("e".into());
        ledger.record(put(1), T0);
        let token = ledger.token();
        ledger.record(put(2), T0);
        assert_eq!((ledger.revision_of(&token.hash), ledger.revision()), (Some(1), 2));
        assert!(matches!(ledger.resume(Some(&token)), Resumption::Deltas(batches) if batches.len() == 1));
        assert!(matches!(ledger.resume(Some(&ledger.token())), Resumption::Deltas(batches) if batches.is_empty()));
    }

    #[test]
    fn a_token_of_another_epoch_or_of_other_content_gets_a_snapshot() {
        let mut ledger = Ledger::new("e".into());
        ledger.record(put(1), T0);
        let other = Token { epoch: "other".into(), ..ledger.token() };
        assert!(matches!(ledger.resume(Some(&other)), Resumption::Snapshot(_)));
        assert!(matches!(ledger.resume(None), Resumption::Snapshot(_)));
    }

    #[test]
    fn the_history_is_bounded_and_what_fell_out_gets_a_snapshot() {
        let mut ledger = Ledger::new("e".into());
        ledger.record(put(0), T0);
        let token = ledger.token();
        for n in 1..=HISTORY + 1 {
            ledger.record(put(n), T0);
        }
        assert_eq!(ledger.history.len(), HISTORY);
        assert!(ledger.after.len() <= HISTORY + 1);
        assert!(matches!(ledger.resume(Some(&token)), Resumption::Snapshot(_)));
    }
}
