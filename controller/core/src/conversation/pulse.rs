//! [`Pulse`]: when an end of the conversation spoke and heard last.

use core::time::Duration;

use api::time::Instant;

use super::Ended;

/// An end that has nothing to say says so as often.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// An end that heard nothing for so long may try another way to the peer: two heartbeats are missing, each of them half
/// a second late as may be.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(3);

/// An end that heard nothing for so long ends the conversation: eight heartbeats, so that one lost path change of a
/// gateway does not.
pub const SILENT_AFTER: Duration = Duration::from_secs(8);

/// An end looks at its clock twice a second. Where it did not for longer than this, it was held up itself, and what the
/// peer said meanwhile may lie unread: that time says nothing about the peer.
const HELD_UP_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Pulse {
    spoke: Instant,
    heard: Instant,
    looked: Instant,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self { spoke: now, heard: now, looked: now }
    }

    pub(super) fn speaks(&mut self, now: Instant) {
        self.spoke = now;
    }

    pub(super) fn hears(&mut self, now: Instant) {
        self.heard = now;
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        now.since(self.spoke) >= HEARTBEAT
    }

    pub(super) fn is_overdue(&mut self, now: Instant) -> bool {
        self.silence(now) >= OVERDUE_AFTER
    }

    pub(super) fn check(&mut self, now: Instant) -> Result<(), Ended> {
        if self.silence(now) >= SILENT_AFTER { Err(Ended::Silent) } else { Ok(()) }
    }

    /// How long this end listened and heard nothing.
    fn silence(&mut self, now: Instant) -> Duration {
        let held_up = now.since(self.looked);
        if held_up > HELD_UP_AFTER {
            self.heard = (self.heard + held_up).min(now);
        }
        self.looked = self.looked.max(now);
        now.since(self.heard)
    }
}
