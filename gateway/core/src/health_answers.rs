//! [`HealthAnswers`]: who of our own cluster may ask for health, and what it is answered.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use api::health::HealthReport;
use api::health::message::{InvalidMessage, MasterKey, UnverifiedRequest};
use api::time::Instant;

use crate::refusal::Refusal;
use crate::refusal_log::RefusalLog;

/// Requests of one agent within a second that are answered: five times what an agent makes, so that one that went mad
/// takes nothing from the others.
const REQUESTS_A_SECOND: u32 = 50;
/// An agent that did not ask for this long has gone: nobody waits for its acknowledgement.
const FORGET_AFTER: Duration = Duration::from_secs(5);

/// Owned by the control thread.
#[derive(Debug, Default)]
pub struct HealthAnswers {
    /// The key in use, and the one before while agents still have it.
    keys: Vec<MasterKey>,
    agents: BTreeMap<String, Agent>,
    refusals: RefusalLog,
}

#[derive(Clone, Copy, Debug)]
struct Agent {
    last: Instant,
    saw_draining: bool,
    second: Instant,
    in_second: u32,
}

impl HealthAnswers {
    /// Takes the master keys that count from now on.
    pub fn set_keys(&mut self, keys: Vec<MasterKey>) {
        self.keys = keys;
    }

    /// The datagrams to send back to `from`: one a page. Strangers get none.
    pub fn answer(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        report: impl FnOnce() -> HealthReport,
        now: Instant,
    ) -> Vec<Vec<u8>> {
        self.try_answer(datagram, report, now).unwrap_or_else(|refusal| {
            self.refusals.record(refusal, None, Some(from), None, now);
            Vec::new()
        })
    }

    /// Whether every agent that asked lately knows that this gateway is going away.
    pub fn drain_is_acknowledged(&self, now: Instant) -> bool {
        self.agents.values().filter(|agent| now.since(agent.last) < FORGET_AFTER).all(|agent| agent.saw_draining)
    }

    /// The agents that asked lately, and when last.
    pub fn agents(&self, now: Instant) -> impl Iterator<Item = (&str, Instant)> {
        let lately = move |agent: &&Agent| now.since(agent.last) < FORGET_AFTER;
        self.agents.iter().filter(move |(_, agent)| lately(agent)).map(|(name, agent)| (name.as_str(), agent.last))
    }

    /// What was refused here.
    pub fn refusals(&self) -> &RefusalLog {
        &self.refusals
    }

    fn try_answer(
        &mut self,
        datagram: &[u8],
        report: impl FnOnce() -> HealthReport,
        now: Instant,
    ) -> Result<Vec<Vec<u8>>, Refusal> {
        let unverified = UnverifiedRequest::decode(datagram).map_err(refusal)?;
        let master = self.keys.iter().find(|key| key.id == unverified.key_id).ok_or(Refusal::UnknownHealthKey)?;
        let key = master.agent_key(unverified.agent);
        let request = unverified.verify(&key).map_err(refusal)?;
        // Only those who proved their name are remembered, so strangers cannot fill the memory.
        if !self.agents.contains_key(&request.agent) {
            self.agents.retain(|_, agent| now.since(agent.last) < FORGET_AFTER);
        }
        let new = Agent { last: now, saw_draining: false, second: now, in_second: 0 };
        let agent = self.agents.entry(request.agent.to_string()).or_insert(new);
        agent.last = now;
        agent.saw_draining = request.saw_draining;
        if now.since(agent.second) >= Duration::from_secs(1) {
            agent.second = now;
            agent.in_second = 0;
        }
        agent.in_second += 1;
        if agent.in_second > REQUESTS_A_SECOND {
            return Err(Refusal::HealthAskedTooOften);
        }
        Ok(report().encode(&request.nonce, &key))
    }
}

fn refusal(invalid: InvalidMessage) -> Refusal {
    match invalid {
        InvalidMessage::Unreadable => Refusal::MalformedHealthRequest,
        InvalidMessage::UnknownKey(_) => Refusal::UnknownHealthKey,
        InvalidMessage::Forged | InvalidMessage::WrongNonce => Refusal::ForgedHealthRequest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::health::message::{HealthRequest, ReplyPage};

    const NOW: Instant = Instant::from_millis(1000);

    fn master(id: u32) -> MasterKey {
        MasterKey { id, secret: [id as u8; 32] }
    }

    fn request(agent: &str, saw_draining: bool, key: u32) -> Vec<u8> {
        HealthRequest { agent: agent.into(), nonce: [3; 16], saw_draining }.encode(&master(key).agent_key(agent))
    }

    fn report() -> HealthReport {
        HealthReport { slot: 1, draining: false, peers: Vec::new() }
    }

    fn answers() -> HealthAnswers {
        let mut answers = HealthAnswers::default();
        answers.set_keys([master(2), master(1)].into());
        answers
    }

    fn from() -> SocketAddr {
        "192.0.2.1:5000".parse().unwrap()
    }

    #[test]
    fn agents_are_answered_with_the_key_they_have_while_keys_rotate() {
        let mut answers = answers();
        for key in [1, 2] {
            let reply = answers.answer(&request("node-1", false, key), from(), report, NOW);
            let page = ReplyPage::decode(&reply[0], &master(key).agent_key("node-1"), &[3; 16]).unwrap();
            assert_eq!(page.slot, 1);
        }
    }

    #[test]
    fn strangers_are_not_answered_and_are_counted_by_name() {
        let mut answers = answers();
        assert!(answers.answer(&request("node-1", false, 9), from(), report, NOW).is_empty());
        assert!(answers.answer(b"hello", from(), report, NOW).is_empty());
        let mut forged = request("node-1", false, 1);
        *forged.last_mut().unwrap() ^= 1;
        assert!(answers.answer(&forged, from(), report, NOW).is_empty());
        for reason in [Refusal::UnknownHealthKey, Refusal::MalformedHealthRequest, Refusal::ForgedHealthRequest] {
            assert_eq!(answers.refusals().count(reason), 1, "{reason}");
        }
        assert_eq!(answers.agents(NOW).count(), 0);
    }

    #[test]
    fn one_agent_that_asks_without_end_is_slowed_and_others_are_not() {
        let mut answers = answers();
        let answered = (0..200).filter(|_| !answers.answer(&request("mad", false, 1), from(), report, NOW).is_empty());
        assert_eq!(answered.count(), REQUESTS_A_SECOND as usize);
        assert!(!answers.answer(&request("node-1", false, 1), from(), report, NOW).is_empty());
        let later = NOW + Duration::from_secs(1);
        assert!(!answers.answer(&request("mad", false, 1), from(), report, later).is_empty());
    }

    #[test]
    fn a_drain_is_acknowledged_when_every_agent_that_still_asks_has_seen_it() {
        let mut answers = answers();
        answers.answer(&request("node-1", true, 1), from(), report, NOW);
        answers.answer(&request("node-2", false, 1), from(), report, NOW);
        assert!(!answers.drain_is_acknowledged(NOW));
        answers.answer(&request("node-1", true, 1), from(), report, NOW + FORGET_AFTER);
        assert!(answers.drain_is_acknowledged(NOW + FORGET_AFTER), "node-2 has gone");
    }
}
