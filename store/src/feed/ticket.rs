//! [`Ticket`]: a controller's word that it had an agent's token reviewed.
//!
//! An agent's ServiceAccount token is reviewed by the API server each time it dials. While that one is away, an agent
//! that begins anew shows the ticket of its last admission instead, to this controller or to another replica: they share
//! the secret that it is made with. It is good for one agent with one key, for a while. Pure: the time is an argument.

use std::time::Duration;

use api::keys::IdentityKey;
use api::time::WallTime;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::Mac;
use serde::{Deserialize, Serialize};

use super::{Agent, Enrolment};

/// Longer than an API server is away while somebody works on it. A node that was taken out of the cluster has no way in
/// a day later, whatever becomes of the API server.
const VALIDITY: Duration = Duration::from_secs(24 * 3_600);

/// Says what the proof means, so that it means nothing elsewhere.
const CONTEXT: &[u8] = b"tombolo feed ticket v1\0";

/// What an agent keeps on its disk, and shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ticket {
    /// Until when it is good.
    until: WallTime,
    /// In base64.
    proof: String,
}

impl std::fmt::Debug for Ticket {
    /// Without the proof.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket(until {:?})", self.until)
    }
}

impl Ticket {
    /// For an agent that was let in now.
    pub(crate) fn issue(secret: &Enrolment, agent: &Agent, key: IdentityKey, now: WallTime) -> Self {
        let millis = u64::try_from(VALIDITY.as_millis()).unwrap_or(u64::MAX);
        let until = WallTime::from_millis(now.as_millis().saturating_add(millis));
        let proof = STANDARD.encode(mac(secret, agent, key, until).finalize().into_bytes());
        Self { until, proof }
    }

    /// Whether a controller of this cluster issued it to this agent, and not too long ago.
    pub(crate) fn is_valid(&self, secret: &Enrolment, agent: &Agent, key: IdentityKey, now: WallTime) -> bool {
        let proof = STANDARD.decode(&self.proof).unwrap_or_default();
        now < self.until && mac(secret, agent, key, self.until).verify_slice(&proof).is_ok()
    }
}

fn mac(secret: &Enrolment, agent: &Agent, key: IdentityKey, until: WallTime) -> impl Mac {
    // Everything before the name has a fixed length or ends by itself, so no two agents give the same bytes.
    secret
        .keyed()
        .chain_update(CONTEXT)
        .chain_update(key.0)
        .chain_update(until.as_millis().to_be_bytes())
        .chain_update(agent.role.as_str())
        .chain_update([0])
        .chain_update(&agent.name)
}

#[cfg(test)]
mod tests {
    use super::super::Role;
    use super::*;

    fn agent(role: Role, name: &str) -> Agent {
        Agent { role, name: name.into(), addresses: vec![], pod_prefixes: vec![] }
    }

    #[test]
    fn a_ticket_is_good_for_one_agent_with_one_key_for_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let secret = |name: &str| Enrolment::load_or_create(folder.path().join(name), IdentityKey([1; 32])).unwrap();
        let (ours, others) = (secret("ours"), secret("others"));
        let (key, begin) = (IdentityKey([2; 32]), WallTime::from_millis(1_000));
        let node = agent(Role::Node, "worker");
        let ticket = Ticket::issue(&ours, &node, key, begin);
        let kept: Ticket = serde_json::from_slice(&serde_json::to_vec(&ticket).unwrap()).unwrap();
        let later = |hours: u64| WallTime::from_millis(1_000 + hours * 3_600_000);
        assert!(kept.is_valid(&ours, &node, key, begin) && kept.is_valid(&ours, &node, key, later(23)));
        assert!(!kept.is_valid(&ours, &node, key, later(24)));
        // The cluster's identity may be another by then.
        assert!(kept.is_valid(&ours.with(IdentityKey([9; 32])), &node, key, begin));
        assert!(!kept.is_valid(&others, &node, key, begin));
        assert!(!kept.is_valid(&ours, &node, IdentityKey([3; 32]), begin));
        for other in [agent(Role::Gateway, "worker"), agent(Role::Node, "other")] {
            assert!(!kept.is_valid(&ours, &other, key, begin), "{other:?}");
        }
        let longer = Ticket { until: later(100), ..kept.clone() };
        assert!(!longer.is_valid(&ours, &node, key, begin));
        assert!(!Ticket { proof: "no base64".into(), ..kept }.is_valid(&ours, &node, key, begin));
    }
}
