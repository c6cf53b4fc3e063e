//! [`Pace`]: how often a gateway probes its links and calls its peers, by how many it has of them.
//!
//! A gateway with thousands of links must not spend its host on asking whether they live. Up to [`FULL_PACE_LINKS`] each
//! is probed every 100 ms; beyond, all of them together get what that many had, and what died is noticed later.

use core::time::Duration;

/// Between probes of a link while all is well, at the full pace.
pub const PROBE_EVERY: Duration = Duration::from_millis(100);

/// The shortest silence that means anything, on paths of up to 100 ms, at the full pace.
pub const SILENCE: Duration = Duration::from_millis(400);

/// Links that are probed at the full pace: a hundred clusters with two gateways of two lanes each. `make bench-links`
/// measures what they cost: about a seventh of a core.
pub const FULL_PACE_LINKS: usize = 400;

/// Handshakes are asked for at most this often for one link.
pub const INITIATE_EVERY: Duration = Duration::from_secs(1);

/// Handshakes asked for in a second, for all links together: each of the links at the full pace may have one. Where a host
/// cannot keep up with more, each answer comes after the next call, which makes it worthless, and none is ever agreed.
const INITIATIONS_A_SECOND: usize = 400;

/// What holds for every link of one gateway at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between probes while all is well.
    pub probe_every: Duration,
    /// How long nothing must be heard of a near peer until its path is out of use.
    pub silence: Duration,
    pub(crate) initiate_every: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self::of(0, 0)
    }
}

impl Pace {
    /// The pace of a gateway with so many links, so many of which wait for a handshake.
    pub fn of(links: usize, waiting: usize) -> Self {
        let probe_every = share(PROBE_EVERY, links, FULL_PACE_LINKS);
        Self {
            probe_every,
            silence: SILENCE + probe_every.saturating_sub(PROBE_EVERY),
            initiate_every: share(INITIATE_EVERY, waiting, INITIATIONS_A_SECOND),
        }
    }

    /// Whether this gateway has more links than it probes as often as it should.
    pub fn is_slowed(&self) -> bool {
        self.probe_every > PROBE_EVERY
    }
}

/// `every`, or longer in proportion where there are more than `full`.
fn share(every: Duration, count: usize, full: usize) -> Duration {
    let count = u32::try_from(count.max(full)).unwrap_or(u32::MAX);
    every.saturating_mul(count) / u32::try_from(full).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_to_four_hundred_links_are_probed_ten_times_a_second_and_out_after_400_ms() {
        for links in [0, 1, 399, 400] {
            let pace = Pace::of(links, 0);
            assert_eq!((pace.probe_every, pace.silence), (PROBE_EVERY, SILENCE));
            assert!(!pace.is_slowed());
        }
    }

    #[test]
    fn more_links_share_what_four_hundred_have_and_their_silence_lasts_as_much_longer() {
        let pace = Pace::of(1_200, 0);
        assert_eq!((pace.probe_every, pace.silence), (Duration::from_millis(300), Duration::from_millis(600)));
        assert!(pace.is_slowed());
        assert!(Pace::of(usize::MAX, usize::MAX).probe_every > PROBE_EVERY, "any number has a pace");
    }

    #[test]
    fn calls_slow_down_only_where_many_wait_for_an_answer() {
        assert_eq!(Pace::of(5_000, 400).initiate_every, INITIATE_EVERY);
        assert_eq!(Pace::of(5_000, 1_600).initiate_every, 4 * INITIATE_EVERY);
    }
}
