//! [`ProbeLog`]: the last probes of a link: which were answered, and how fast.

use core::time::Duration;

use api::time::Instant;

/// Probes remembered: 6.4 s of them at the usual pace, enough to tell one loss in a hundred from none within a minute.
const WINDOW: usize = 64;

/// How many answers [`ProbeLog::distance`] remembers, about: 13 s of them at the usual pace. `nearest` of a routing policy
/// moves traffic when one cluster seems nearer than another by a fifth. Where each way takes up to 200 ms longer by chance,
/// one round trip is off by 82 ms (a standard deviation) of 240, an average over eight by 21, and two such averages differ
/// by a fifth every few seconds; over 128, by 5 ms, and they never do.
const FAR_BACK: u32 = 128;
/// How many answers [`ProbeLog::smoothed`] remembers, as SRTT of RFC 6298: a path that becomes slow is waited for at once.
const SHORTLY_BACK: u32 = 8;

/// How many answers [`ProbeLog::deviation`] remembers, as RTTVAR of RFC 6298.
const DEVIATIONS: u32 = 4;

#[derive(Clone, Copy, Debug)]
struct Sent {
    sequence: u64,
    at: Instant,
    answered: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct ProbeLog {
    /// By sequence modulo the window.
    sent: [Option<Sent>; WINDOW],
    next: u64,
    /// Probes that left the window without an answer.
    lost: u64,
    /// The highest sequence that was answered: older ones without an answer are lost, not late.
    answered: Option<u64>,
    smoothed: Option<Duration>,
    deviation: Duration,
    distance: Option<Duration>,
    answers: u32,
    last: Option<Duration>,
}

impl Default for ProbeLog {
    fn default() -> Self {
        Self {
            sent: [None; WINDOW],
            next: 0,
            lost: 0,
            answered: None,
            smoothed: None,
            deviation: Duration::ZERO,
            distance: None,
            answers: 0,
            last: None,
        }
    }
}

impl ProbeLog {
    /// Notes a new probe and gives its sequence number.
    pub(crate) fn send(&mut self, now: Instant) -> u64 {
        let sequence = self.next;
        self.next += 1;
        let before = self.sent[slot(sequence)].replace(Sent { sequence, at: now, answered: false });
        self.lost += u64::from(before.is_some_and(|before| !before.answered));
        sequence
    }

    /// Takes an answer. False when no such probe is waiting for one: a duplicate, or made up.
    pub(crate) fn answer(&mut self, sequence: u64, held: Duration, at: Instant) -> bool {
        let Some(sent) = &mut self.sent[slot(sequence)] else { return false };
        if sent.sequence != sequence || sent.answered {
            return false;
        }
        sent.answered = true;
        let total = at.since(sent.at);
        // A peer that claims to have held it longer than it was away is not believed.
        let round_trip = total.checked_sub(held).unwrap_or(total);
        self.answered = self.answered.max(Some(sequence));
        self.last = Some(round_trip);
        self.answers = (self.answers + 1).min(FAR_BACK);
        if let Some(smoothed) = self.smoothed {
            self.deviation = average(Some(self.deviation), smoothed.abs_diff(round_trip), DEVIATIONS);
        }
        self.smoothed = Some(average(self.smoothed, round_trip, SHORTLY_BACK.min(self.answers)));
        self.distance = Some(average(self.distance, round_trip, self.answers));
        true
    }

    /// When the oldest probe was sent that may still be answered: later than every answered one.
    pub(crate) fn oldest_unanswered(&self) -> Option<Instant> {
        let first = self.answered.map_or(0, |sequence| sequence + 1).max(self.next.saturating_sub(WINDOW as u64));
        self.sent[slot(first)].filter(|sent| sent.sequence == first && first < self.next).map(|sent| sent.at)
    }

    pub(crate) fn last_sent(&self) -> Option<Instant> {
        let last = self.next.checked_sub(1)?;
        self.sent[slot(last)].map(|sent| sent.at)
    }

    /// Probes ever sent.
    pub(crate) fn sent(&self) -> u64 {
        self.next
    }

    /// Probes that were never answered; one is known to be lost when it leaves the window.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// What an answer takes these moments.
    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// By how much answers differ from [`Self::smoothed`] these moments (RTTVAR of RFC 6298, section 2).
    pub(crate) fn deviation(&self) -> Duration {
        self.deviation
    }

    /// What an answer takes on the whole, for comparing one way with another.
    pub(crate) fn distance(&self) -> Option<Duration> {
        self.distance
    }

    pub(crate) fn last(&self) -> Option<Duration> {
        self.last
    }

    /// Of the probes that had `patience` to be answered, how many of a thousand were not.
    pub(crate) fn loss_permille(&self, now: Instant, patience: Duration) -> u16 {
        let settled = self.sent.iter().flatten().filter(|sent| sent.answered || now.since(sent.at) >= patience);
        let (all, lost) = settled.fold((0u32, 0u32), |(all, lost), sent| (all + 1, lost + u32::from(!sent.answered)));
        (lost * 1000).checked_div(all).unwrap_or(0) as u16
    }
}

/// The average with one more, which weighs one in `many`.
fn average(before: Option<Duration>, new: Duration, many: u32) -> Duration {
    (before.unwrap_or_default() * (many - 1) + new) / many
}

const fn slot(sequence: u64) -> usize {
    (sequence % WINDOW as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn an_answer_counts_once_and_only_for_a_probe_that_was_sent() {
        let mut log = ProbeLog::default();
        let sequence = log.send(at(0));
        assert!(!log.answer(sequence + 1, Duration::ZERO, at(1)));
        assert!(log.answer(sequence, Duration::from_millis(4), at(10)));
        assert!(!log.answer(sequence, Duration::ZERO, at(11)), "a duplicate");
        assert_eq!(log.last(), Some(Duration::from_millis(6)), "what the other end held is not distance");
        assert!(!log.answer(sequence.wrapping_sub(64), Duration::ZERO, at(12)));
    }

    #[test]
    fn an_answer_to_a_later_probe_makes_the_earlier_one_lost_and_not_late() {
        let mut log = ProbeLog::default();
        let first = log.send(at(0));
        let second = log.send(at(100));
        assert_eq!(log.oldest_unanswered(), Some(at(0)));
        assert!(log.answer(second, Duration::ZERO, at(110)));
        assert_eq!(log.oldest_unanswered(), None);
        assert_eq!(log.loss_permille(at(200), Duration::from_millis(80)), 500);
        assert!(log.answer(first, Duration::ZERO, at(210)), "late, but not lost after all");
        assert_eq!(log.loss_permille(at(300), Duration::from_millis(80)), 0);
    }

    #[test]
    fn old_probes_leave_the_window() {
        let mut log = ProbeLog::default();
        for number in 0..200 {
            let sequence = log.send(at(number * 100));
            if number >= 100 {
                assert!(log.answer(sequence, Duration::ZERO, at(number * 100 + 5)));
            }
        }
        assert_eq!(log.loss_permille(at(30_000), Duration::from_millis(80)), 0);
        assert_eq!((log.sent(), log.lost()), (200, 100));
        assert_eq!(log.smoothed(), Some(Duration::from_millis(5)));
        assert_eq!(log.distance(), Some(Duration::from_millis(5)));
    }

    #[test]
    fn a_path_that_becomes_slow_is_known_at_once_and_one_slow_answer_does_not_move_the_distance() {
        let mut log = ProbeLog::default();
        let mut answered_after = |number: u64, millis: u64| {
            let sequence = log.send(at(number * 1000));
            assert!(log.answer(sequence, Duration::ZERO, at(number * 1000 + millis)));
            (log.smoothed().unwrap(), log.distance().unwrap())
        };
        for number in 0..200 {
            answered_after(number, 10);
        }
        let (smoothed, distance) = answered_after(200, 210);
        assert!(smoothed >= Duration::from_millis(35), "{smoothed:?}");
        assert!(distance <= Duration::from_millis(12), "{distance:?}");
        let (_, distance) = (201..700).map(|number| answered_after(number, 210)).last().unwrap();
        assert!(distance > Duration::from_millis(200), "and it follows in the end: {distance:?}");
    }
}
