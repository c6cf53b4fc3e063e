//! [`Agreement`]: which keys both ends are known to have.
//!
//! An end that answered an initiation has keys, but the initiation may have been an old one sent again, or the answer
//! may be lost. Only the first data under the new keys shows that the other end has them too (WireGuard whitepaper,
//! 5.1). boringtun keeps its keys in a ring of eight and does not tell which of them were shown to work.

use std::time::Duration;

use api::time::Instant;

/// Keys older than this are gone (REJECT_AFTER_TIME, WireGuard whitepaper, 6.1).
const REJECT_AFTER: Duration = Duration::from_secs(180);

/// As many pairs of keys as boringtun keeps: a ninth replaces the first.
const RING: usize = 8;

/// A pair of keys by our index, and when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Keys {
    index: u32,
    made: Instant,
}

/// What is known of the keys of one link.
#[derive(Clone, Debug, Default)]
pub(crate) struct Agreement {
    /// Those packets are sealed with.
    in_use: Option<Keys>,
    /// Made by answering, by place in the ring.
    answered: [Option<Keys>; RING],
}

impl Agreement {
    /// An initiation was answered: keys with our `index` exist, and whether the other end has them is open.
    pub(crate) fn answered(&mut self, index: u32, now: Instant) {
        let place = place(index);
        // The new keys lie where those in use were.
        self.in_use = self.in_use.filter(|keys| self::place(keys.index) != place);
        self.answered[place] = Some(Keys { index, made: now });
    }

    /// A response to our initiation was taken: its sender has the keys.
    pub(crate) fn agreed(&mut self, index: u32, now: Instant) {
        self.answered[place(index)] = None;
        self.in_use = Some(Keys { index, made: now });
    }

    /// Data for our `index` was authentic.
    pub(crate) fn heard(&mut self, index: u32) {
        let Some(keys) = self.answered[place(index)].filter(|keys| keys.index == index) else { return };
        self.answered[place(index)] = None;
        // Late data under older keys does not bring those back.
        if self.in_use.is_none_or(|current| current.made <= keys.made) {
            self.in_use = Some(keys);
        }
    }

    /// Whether there are keys that both ends have and that are young enough.
    pub(crate) fn holds(&self, now: Instant) -> bool {
        self.in_use.is_some_and(|keys| now.since(keys.made) < REJECT_AFTER)
    }

    /// When the keys in use were made.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.in_use.map(|keys| keys.made)
    }
}

fn place(index: u32) -> usize {
    index as usize % RING
}

/// The index, little-endian, at byte `at` of a WireGuard message; 0 where the message is too short to have one.
pub(crate) fn index_at(message: &[u8], at: usize) -> u32 {
    message.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1_000)
    }

    #[test]
    fn keys_made_by_answering_are_used_after_the_first_data_and_for_three_minutes() {
        let mut agreement = Agreement::default();
        agreement.answered(0x101, at(1));
        assert!(!agreement.holds(at(2)) && agreement.since().is_none());
        agreement.heard(0x102);
        assert!(!agreement.holds(at(2)), "data for other keys proves nothing about these");
        agreement.heard(0x101);
        assert!(agreement.holds(at(180)) && !agreement.holds(at(181)));
        assert_eq!(agreement.since(), Some(at(1)));
    }

    #[test]
    fn an_answer_that_nobody_follows_up_does_not_make_older_keys_younger() {
        let mut agreement = Agreement::default();
        agreement.agreed(0x101, at(1));
        agreement.answered(0x102, at(100));
        assert_eq!(agreement.since(), Some(at(1)));
        assert!(!agreement.holds(at(181)));
        agreement.heard(0x102);
        assert!(agreement.holds(at(181)));
    }

    #[test]
    fn keys_that_a_later_answer_replaced_are_not_used() {
        let mut agreement = Agreement::default();
        agreement.agreed(0x101, at(1));
        (2..=9).for_each(|number| agreement.answered(0x100 + number, at(u64::from(number))));
        assert!(!agreement.holds(at(10)));
    }

    #[test]
    fn late_data_under_older_keys_does_not_bring_them_back() {
        let mut agreement = Agreement::default();
        agreement.answered(0x101, at(1));
        agreement.agreed(0x102, at(2));
        agreement.heard(0x101);
        assert_eq!(agreement.since(), Some(at(2)));
    }
}
