//! [`Delays`]: from a change in another cluster to the writes that follow from it here.
//!
//! Clocks of clusters differ, so no time of day is compared. The exporter says for how long it had known of the change
//! when it sent it; the rest is measured here. The way between them is in neither: half of a path's round trip.

use std::collections::BTreeMap;
use std::time::Duration;

use api::ClusterId;
use api::time::Instant;
use controller_core::advertisement::ServiceName;

/// Services waited for at once; the delays of what comes on top of them are not measured.
const MOST: usize = 10_000;

/// A change that waited longer, in whatever state of the exporter, counts as having waited so long.
const LONGEST: Duration = Duration::from_secs(24 * 3_600);

#[derive(Debug, Clone)]
struct Waiting {
    peer: ClusterId,
    heard: Instant,
    /// For how long its cluster had known of it then.
    age: Duration,
}

/// The oldest change of each service that is not written yet.
#[derive(Debug, Default)]
pub(crate) struct Delays {
    heard: BTreeMap<ServiceName, Waiting>,
    being_written: BTreeMap<ServiceName, Waiting>,
}

impl Delays {
    /// A peer told of a change that it had known for `age`.
    pub(crate) fn heard(&mut self, peer: &ClusterId, service: &ServiceName, age: Duration, now: Instant) {
        if self.heard.len() < MOST && !self.heard.contains_key(service) {
            let waiting = Waiting { peer: peer.clone(), heard: now, age: age.min(LONGEST) };
            self.heard.insert(service.clone(), waiting);
        }
    }

    /// Writes for a service begin: they carry all that was heard of it.
    pub(crate) fn writing(&mut self, service: &ServiceName) {
        if let Some(waiting) = self.heard.remove(service) {
            self.being_written.entry(service.clone()).or_insert(waiting);
        }
    }

    /// They ended. Whose change it was and how long it took, when it is in force now.
    pub(crate) fn written(
        &mut self,
        service: &ServiceName,
        in_force: bool,
        now: Instant,
    ) -> Option<(ClusterId, Duration)> {
        let waiting = self.being_written.remove(service)?;
        if !in_force {
            // Tried again later, the delay goes on.
            self.heard.insert(service.clone(), waiting);
            return None;
        }
        Some((waiting.peer, waiting.age + now.since(waiting.heard)))
    }

    /// Forgets services for which nothing is to be written: the change meant nothing here.
    pub(crate) fn keep(&mut self, is_due: impl Fn(&ServiceName) -> bool) {
        self.heard.retain(|service, _| is_due(service));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn a_delay_is_what_the_exporter_took_and_what_this_side_took_and_no_clock_is_compared() {
        let (birch, web) = (ClusterId::new("birch").unwrap(), ServiceName::new("shop", "web"));
        let mut delays = Delays::default();
        delays.heard(&birch, &web, Duration::from_millis(30), at(10));
        // A later change waits with the first.
        delays.heard(&birch, &web, Duration::ZERO, at(15));
        delays.writing(&web);
        assert_eq!(delays.written(&web, true, at(50)), Some((birch, Duration::from_millis(70))));
        assert_eq!(delays.written(&web, true, at(60)), None, "once");
    }

    #[test]
    fn a_write_that_failed_goes_on_counting_and_a_change_without_writes_is_forgotten() {
        let (birch, web) = (ClusterId::new("birch").unwrap(), ServiceName::new("shop", "web"));
        let mut delays = Delays::default();
        delays.heard(&birch, &web, Duration::ZERO, at(0));
        delays.writing(&web);
        assert_eq!(delays.written(&web, false, at(10)), None);
        delays.keep(|_| true);
        delays.writing(&web);
        assert_eq!(delays.written(&web, true, at(1_000)), Some((birch.clone(), Duration::from_secs(1))));
        delays.heard(&birch, &web, Duration::from_secs(u64::MAX), at(0));
        delays.keep(|_| false);
        delays.writing(&web);
        assert_eq!(delays.written(&web, true, at(10)), None);
    }
}
