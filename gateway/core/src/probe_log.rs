//! [`ProbeLog`]: the last probes of a link: which were answered, and how fast.

use core::time::Duration;

use api::time::Instant;

/// Probes remembered: 6.4 s of them at the usual pace, enough to tell one loss in a hundred from none within a minute.
const WINDOW: usize = 64;

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
    last: Option<Duration>,
}

impl Default for ProbeLog {
    fn default() -> Self {
        Self { sent: [None; WINDOW], next: 0, lost: 0, answered: None, smoothed: None, last: None }
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
        self.smoothed = Some(self.smoothed.map_or(round_trip, |smoothed| (smoothed * 7 + round_trip) / 8));
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

    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
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
    }
}
