//! [`Questions`]: what a gateway may still answer. It thinks: datagrams and nonces in, requests and reports out.

use std::collections::{BTreeMap, VecDeque};

use api::health::HealthReport;
use api::health::message::{AgentKey, HealthRequest, Nonce, ReplyPage, ReplyPages};

/// Questions to one gateway that may still be answered: an answer as late as the silence that ends a gateway's use
/// (four intervals) is of no use any more.
const OPEN: usize = 4;

struct Question {
    nonce: Nonce,
    key: AgentKey,
    pages: ReplyPages,
}

/// The latest questions to each gateway, by its slot, the newest last.
pub(crate) struct Questions {
    agent: String,
    open: BTreeMap<u16, VecDeque<Question>>,
}

impl Questions {
    pub(crate) fn new(agent: String) -> Self {
        Self { agent, open: BTreeMap::new() }
    }

    /// Forgets the questions to gateways that are none any more.
    pub(crate) fn retain(&mut self, is_gateway: impl Fn(u16) -> bool) {
        self.open.retain(|slot, _| is_gateway(*slot));
    }

    /// The request to send to the gateway in `slot`. The nonce has never been used before.
    pub(crate) fn ask(&mut self, slot: u16, nonce: Nonce, key: &AgentKey, saw_draining: bool) -> Vec<u8> {
        let open = self.open.entry(slot).or_default();
        while open.len() >= OPEN {
            open.pop_front();
        }
        open.push_back(Question { nonce, key: key.clone(), pages: ReplyPages::default() });
        HealthRequest { agent: self.agent.clone(), nonce, saw_draining }.encode(key)
    }

    /// Takes a page from whoever proves to have been asked; the report when the page completes one.
    pub(crate) fn take(&mut self, datagram: &[u8]) -> Option<HealthReport> {
        for (slot, questions) in &mut self.open {
            // Most answers are to the newest question.
            for (place, question) in questions.iter_mut().enumerate().rev() {
                let page = ReplyPage::decode(datagram, &question.key, &question.nonce);
                let Some(page) = page.ok().filter(|page| page.slot == *slot) else { continue };
                let report = question.pages.add(page)?;
                // Answers to earlier questions would be older news, and this one counts once.
                questions.drain(..=place);
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

    const NONCES: [Nonce; 6] = [[1; 16], [2; 16], [3; 16], [4; 16], [5; 16], [6; 16]];

    fn key() -> AgentKey {
        MasterKey { id: 3, secret: [9; 32] }.agent_key("worker")
    }

    fn report(slot: u16) -> HealthReport {
        HealthReport { slot, draining: false, peers: vec![] }
    }

    fn asked(slot: u16, nonces: &[Nonce]) -> Questions {
        let mut questions = Questions::new("worker".to_owned());
        for nonce in nonces {
            questions.ask(slot, *nonce, &key(), false);
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
        assert_eq!(questions.take(&answer(0, &NONCES[5], &key())), None);
        assert_eq!(questions.take(&answer(0, &NONCES[0], &key())), Some(report(0)));
    }

    #[test]
    fn questions_too_old_and_questions_to_gateways_that_went_are_forgotten() {
        let mut questions = asked(0, &NONCES);
        assert_eq!(questions.take(&answer(0, &NONCES[1], &key())), None, "four younger ones are open");
        questions.retain(|slot| slot != 0);
        assert_eq!(questions.take(&answer(0, &NONCES[5], &key())), None, "no gateway any more");
    }
}
