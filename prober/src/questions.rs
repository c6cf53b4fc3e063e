//! [`Questions`]: when a gateway is asked, and what it may still answer. It thinks: datagrams, nonces and the time in,
//! requests and reports out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use api::health::message::{AgentKey, HealthRequest, Nonce, ReplyPage, ReplyPages};
use api::health::{ASK_EVERY, HealthReport};
use api::time::Instant;

/// Between two questions while an answer is late: so the ten questions without which nobody is taken as silent
/// (`routing::gateway_reports::UNANSWERED`) fit into the time after which it is (`SILENCE`, 400 ms).
const FAST: Duration = Duration::from_millis(20);

/// An answer is late after this: more than a busy two-core machine makes a process wait, and after an interval of silence
/// there is still time for ten questions.
const LATE: Duration = Duration::from_millis(60);

/// After so many questions in vain there is no hurry any more: the verdict is in, and the gateway will be asked for as
/// long as it has its slot.
const HURRIED: usize = 20;

/// Questions to one gateway that may still be answered: an answer as late as the silence that ends a gateway's use is of
/// no use any more.
const OPEN: usize = HURRIED;

struct Question {
    nonce: Nonce,
    key: AgentKey,
    pages: ReplyPages,
    at: Instant,
}

/// What concerns one gateway.
#[derive(Default)]
struct Asking {
    /// The newest last.
    open: VecDeque<Question>,
    /// Questions since the last answer.
    in_vain: usize,
    /// When to ask if nothing is late; none for now.
    next: Option<Instant>,
}

impl Asking {
    fn due(&self) -> Instant {
        let Some(next) = self.next else { return Instant::default() };
        match (self.open.front(), self.open.back()) {
            (Some(first), Some(last)) if self.in_vain < HURRIED => next.min((first.at + LATE).max(last.at + FAST)),
            _ => next,
        }
    }
}

/// The latest questions to each gateway, by its slot.
pub(crate) struct Questions {
    agent: String,
    /// Between two questions to one gateway while it answers.
    every: Duration,
    gateways: BTreeMap<u16, Asking>,
}

impl Questions {
    pub(crate) fn new(agent: String) -> Self {
        Self { agent, every: ASK_EVERY, gateways: BTreeMap::new() }
    }

    /// Asks so often from now on; the next question of each gateway comes as it was set.
    pub(crate) fn set_pace(&mut self, every: Duration) {
        self.every = every;
    }

    /// Asks these gateways from now on, those that are new at once, and forgets all others.
    pub(crate) fn set_gateways(&mut self, slots: impl IntoIterator<Item = u16>) {
        let mut before = std::mem::take(&mut self.gateways);
        self.gateways = slots.into_iter().map(|slot| (slot, before.remove(&slot).unwrap_or_default())).collect();
    }

    /// Asks a gateway at once: there is something to tell it.
    pub(crate) fn hurry(&mut self, slot: u16) {
        if let Some(asking) = self.gateways.get_mut(&slot) {
            asking.next = None;
        }
    }

    /// The gateways to ask now. Each counts as asked, whether a question can be sent or not.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<u16> {
        let every = self.every;
        let due = self.gateways.iter_mut().filter(|(_, asking)| asking.due() <= now);
        due.map(|(slot, asking)| {
            asking.next = Some(now + every);
            *slot
        })
        .collect()
    }

    /// When somebody is due next.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.gateways.values().map(Asking::due).min()
    }

    /// The request to send to the gateway in `slot`. The nonce has never been used before.
    pub(crate) fn ask(&mut self, slot: u16, nonce: Nonce, key: &AgentKey, saw_draining: bool, now: Instant) -> Vec<u8> {
        if let Some(asking) = self.gateways.get_mut(&slot) {
            while asking.open.len() >= OPEN {
                asking.open.pop_front();
            }
            asking.open.push_back(Question { nonce, key: key.clone(), pages: ReplyPages::default(), at: now });
            asking.in_vain = asking.in_vain.saturating_add(1);
        }
        HealthRequest { agent: self.agent.clone(), nonce, saw_draining }.encode(key)
    }

    /// Takes a page from whoever proves to have been asked; the report when the page completes one.
    pub(crate) fn take(&mut self, datagram: &[u8]) -> Option<HealthReport> {
        for (slot, asking) in &mut self.gateways {
            // Most answers are to the newest question.
            for (place, question) in asking.open.iter_mut().enumerate().rev() {
                let page = ReplyPage::decode(datagram, &question.key, &question.nonce);
                let Some(page) = page.ok().filter(|page| page.slot == *slot) else { continue };
                let report = question.pages.add(page)?;
                // Answers to earlier questions would be older news, and this one counts once.
                asking.open.drain(..=place);
                asking.in_vain = asking.open.len();
                return Some(report);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use api::health::message::MasterKey;

    use super::*;

    const NONCES: [Nonce; 3] = [[1; 16], [2; 16], [3; 16]];

    const fn at(millis: u64) -> Instant {
        Instant::from_millis(1_000 + millis)
    }

    fn key() -> AgentKey {
        MasterKey { id: 3, secret: [9; 32] }.agent_key("worker")
    }

    fn report(slot: u16) -> HealthReport {
        HealthReport { slot, draining: false, peers: vec![] }
    }

    fn asked(slot: u16, nonces: &[Nonce]) -> Questions {
        let mut questions = Questions::new("worker".to_owned());
        questions.set_gateways([slot]);
        for nonce in nonces {
            questions.ask(slot, *nonce, &key(), false, at(0));
        }
        questions
    }

    fn answer(slot: u16, nonce: &Nonce, key: &AgentKey) -> Vec<u8> {
        report(slot).encode(nonce, key).remove(0)
    }

    #[test]
    fn an_answer_counts_once_and_an_older_one_after_it_not_at_all() {
        let mut questions = asked(0, &NONCES[..3]);
        let second = answer(0, &NONCES[1], &key());
        assert_eq!(questions.take(&second), Some(report(0)));
        assert_eq!(questions.take(&second), None, "the same again");
        assert_eq!(questions.take(&answer(0, &NONCES[0], &key())), None, "older");
        assert_eq!(questions.take(&answer(0, &NONCES[2], &key())), Some(report(0)), "newer");
    }

    #[test]
    fn a_forged_answer_another_slots_and_one_to_a_question_never_asked_are_none() {
        let mut questions = asked(0, &NONCES[..1]);
        let forged = MasterKey { id: 3, secret: [8; 32] }.agent_key("worker");
        assert_eq!(questions.take(&answer(0, &NONCES[0], &forged)), None);
        assert_eq!(questions.take(&answer(1, &NONCES[0], &key())), None);
        assert_eq!(questions.take(&answer(0, &[9; 16], &key())), None);
        assert_eq!(questions.take(&answer(0, &NONCES[0], &key())), Some(report(0)));
    }

    #[test]
    fn questions_too_old_and_questions_to_gateways_that_went_are_forgotten() {
        let nonces: Vec<Nonce> = (0..=OPEN).map(|number| [number as u8; 16]).collect();
        let mut questions = asked(0, &nonces);
        assert_eq!(questions.take(&answer(0, &nonces[0], &key())), None, "as many younger ones are open as may be");
        questions.set_gateways([1]);
        assert_eq!(questions.take(&answer(0, &nonces[OPEN], &key())), None, "no gateway any more");
    }

    /// When gateway 0 is asked within `end` milliseconds, if each question is answered as `answers` says.
    fn asked_at(end: u64, answers: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut questions = asked(0, &[]);
        let mut times = Vec::new();
        for time in 0..end {
            for slot in questions.due(at(time)) {
                let nonce = [times.len() as u8; 16];
                questions.ask(slot, nonce, &key(), false, at(time));
                times.push(time);
                if answers(time) {
                    questions.take(&answer(slot, &nonce, &key()));
                }
            }
            assert!(questions.next_due().is_some_and(|due| due > at(time)), "everybody due was asked");
        }
        times
    }

    #[test]
    fn a_gateway_that_answers_is_asked_ten_times_a_second() {
        assert_eq!(asked_at(1_000, |_| true).len(), 10);
    }

    #[test]
    fn ten_questions_are_in_vain_before_the_silence_is_over_and_then_the_hurry_ends() {
        let times = asked_at(3_000, |time| time < 500);
        // The last answer came at 400 ms: 400 ms later the gateway is out.
        let in_vain = times.iter().filter(|time| (401..800).contains(*time)).count();
        assert!((10..=OPEN).contains(&in_vain), "{times:?}");
        let later = times.iter().filter(|time| (2_000..3_000).contains(*time)).count();
        assert_eq!(later, 10, "{times:?}");
    }

    #[test]
    fn where_very_many_ask_each_asks_more_rarely_and_a_silent_gateway_still_as_often_as_it_takes() {
        let mut questions = asked(0, &[]);
        questions.set_pace(Duration::from_millis(300));
        let mut times = Vec::new();
        for time in 0..2_000 {
            for slot in questions.due(at(time)) {
                questions.ask(slot, [times.len() as u8; 16], &key(), false, at(time));
                times.push(time);
                if time < 1_000 {
                    questions.take(&answer(slot, &[times.len() as u8 - 1; 16], &key()));
                }
            }
        }
        assert_eq!(times.iter().filter(|time| **time < 1_000).count(), 4, "{times:?}");
        // The last answer came at 900 ms, the next question at 1,200: ten are in vain 300 ms later.
        assert!(times.iter().filter(|time| (1_000..1_500).contains(*time)).count() >= 10, "{times:?}");
    }

    #[test]
    fn one_question_in_vain_is_repeated_soon_and_then_the_pace_is_the_usual() {
        let times = asked_at(1_000, |time| time != 300);
        assert!(times.contains(&360) && times.len() <= 12, "{times:?}");
    }

    #[test]
    fn whoever_has_something_to_tell_asks_at_once() {
        let mut questions = asked(0, &[]);
        assert_eq!(questions.due(at(0)), [0]);
        assert!(questions.due(at(1)).is_empty());
        questions.hurry(0);
        assert_eq!(questions.due(at(1)), [0]);
    }
}
