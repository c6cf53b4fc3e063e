//! [`Tenures`]: since when each slot's Lease is as it is, by this controller's own clock. Pure: the time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::permission::is_slot_lease;
use crate::backend::ObjectKey;
use crate::folder::metadata_text;

/// What was seen of the slots' Leases. Only these are kept, so there are never more than slots.
#[derive(Debug, Default)]
pub(crate) struct Tenures {
    seen: BTreeMap<ObjectKey, (String, Instant)>,
}

impl Tenures {
    /// Takes a Lease as it is now, and says for how long it has been seen so. One that was not seen before is new:
    /// a controller that has just started lets every holder keep its slot for one more duration.
    pub(crate) fn see(&mut self, key: &ObjectKey, lease: &Value, now: Instant) -> Duration {
        if !is_slot_lease(key) {
            return Duration::ZERO;
        }
        let version = metadata_text(lease, "resourceVersion");
        match self.seen.get(key) {
            Some((known, since)) if known == version => now.saturating_duration_since(*since),
            _ => {
                self.seen.insert(key.clone(), (version.to_owned(), now));
                Duration::ZERO
            }
        }
    }

    /// The Lease is gone.
    pub(crate) fn forget(&mut self, key: &ObjectKey) {
        self.seen.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lease_is_counted_from_when_this_version_was_seen_first() {
        let (mut tenures, start) = (Tenures::default(), Instant::now());
        let key = ObjectKey::new(Some("tombolo-system"), "gateway-slot-0");
        let lease = |version: &str| json!({"metadata": {"resourceVersion": version}});
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(tenures.see(&key, &lease("1"), start), Duration::ZERO);
        assert_eq!(tenures.see(&key, &lease("1"), later(9)), Duration::from_secs(9));
        assert_eq!(tenures.see(&key, &lease("2"), later(10)), Duration::ZERO);
        assert_eq!(tenures.see(&key, &lease("2"), later(11)), Duration::from_secs(1));
        tenures.forget(&key);
        assert_eq!(tenures.see(&key, &lease("2"), later(12)), Duration::ZERO);
    }
}
