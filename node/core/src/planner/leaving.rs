//! [`Leaving`]: endpoints that left an exported service, admitted for a moment longer.
//!
//! Other clusters learn of a change a little later than this node. A new connection they open in between, to the
//! endpoint they still know, must find it open: a refused first packet costs its client a second of waiting.
//! A service that is no longer exported closes at once.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use api::time::Instant;

use super::Piece;
use crate::input::Key;

/// A change is known everywhere within a tenth of a second; this leaves room for a conversation that has to begin anew.
pub(crate) const LINGER: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Leaving {
    by_service: BTreeMap<Key, BTreeMap<Piece, Instant>>,
}

impl Leaving {
    /// What of `before` is no more in `after` and still admitted. Call it for exported services only.
    pub(super) fn keep(
        &mut self,
        service: &Key,
        before: &BTreeSet<Piece>,
        after: &BTreeSet<Piece>,
        now: Instant,
    ) -> Vec<Piece> {
        let mut known = self.by_service.remove(service).unwrap_or_default();
        known.retain(|piece, _| !after.contains(piece));
        for piece in before.difference(after) {
            known.entry(piece.clone()).or_insert(now + LINGER);
        }
        known.retain(|_, until| now < *until);
        let kept = known.keys().cloned().collect();
        if !known.is_empty() {
            self.by_service.insert(service.clone(), known);
        }
        kept
    }

    pub(super) fn forget(&mut self, service: &Key) {
        self.by_service.remove(service);
    }

    /// Services with something whose time is over.
    pub(super) fn due(&self, now: Instant) -> Vec<Key> {
        let over = |pieces: &BTreeMap<Piece, Instant>| pieces.values().any(|until| *until <= now);
        self.by_service.iter().filter(|(_, pieces)| over(pieces)).map(|(key, _)| key.clone()).collect()
    }

    /// When the next time is over.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_service.values().flat_map(BTreeMap::values).min().copied()
    }
}
