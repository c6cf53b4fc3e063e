//! Who is let in as an agent: those who have the enrolment file's secret, and those whose token the API server knows.

use std::time::{Duration, SystemTime};

use api::keys::IdentityKey;
use api::names;
use api::time::WallTime;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::time::timeout;

use super::Agent;
use super::message::Claim;
use super::server::{Refusal, Server};
use super::ticket::Ticket;
use crate::Error;
use crate::backend::TokenOwner;

/// How long a review may take. An agent waits for its welcome twice as long.
const REVIEW_LIMIT: Duration = Duration::from_millis(1_500);

impl Server {
    /// Checks what an agent shows. One that came by a token gets a ticket for the next time.
    pub(super) async fn admit(
        &self,
        agent: &Agent,
        key: IdentityKey,
        exporter: &[u8; 32],
        claim: Claim,
    ) -> Result<Option<Ticket>, Refusal> {
        let (token, ticket) = match claim {
            Claim::Proof(proof) => {
                let proof = STANDARD.decode(proof).map_err(|error| Refusal::BadGreeting(error.to_string()))?;
                return match self.own().check(agent, key, exporter, &proof) {
                    true => Ok(None),
                    false => Err(Refusal::NotEnrolled(agent.described())),
                };
            }
            Claim::Token { token, ticket } => (token, ticket),
        };
        let refused = |why: String| Refusal::TokenRefused { agent: agent.described(), why };
        let reviewed = timeout(REVIEW_LIMIT, self.store().review_token(token.text()));
        let reviewed = reviewed
            .await
            .unwrap_or_else(|_| Err(Error::Unavailable(format!("no answer from the API server in {REVIEW_LIMIT:?}"))));
        let now = wall();
        match reviewed {
            Ok(owner) => belongs(&owner, agent).map_err(refused)?,
            Err(Error::Unavailable(why)) => {
                if !ticket.is_some_and(|ticket| ticket.is_valid(&self.own().enrolment, agent, key, now)) {
                    return Err(Refusal::NotReviewed { agent: agent.described(), why });
                }
                tracing::info!(
                    agent = agent.described(),
                    why,
                    "let in by its ticket: its token cannot be reviewed now"
                );
                // Renewed by a review alone: the API server has the last word on who belongs to the cluster.
                return Ok(None);
            }
            Err(error) => return Err(refused(error.to_string())),
        }
        Ok(Some(Ticket::issue(&self.own().enrolment, agent, key, now)))
    }
}

fn wall() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    WallTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Whether a token is that of this agent: of its part's ServiceAccount, on its node.
fn belongs(owner: &TokenOwner, agent: &Agent) -> Result<(), String> {
    let account = format!("{}{}", names::SERVICE_ACCOUNTS, agent.role.as_str().to_ascii_lowercase());
    let (namespace, name) = (&owner.namespace, &owner.service_account);
    if namespace != names::SYSTEM_NAMESPACE || *name != account {
        return Err(format!("it is that of {namespace}/{name}, not of {}/{account}", names::SYSTEM_NAMESPACE));
    }
    match &owner.node {
        Some(node) if *node == agent.name => Ok(()),
        Some(node) => {
            Err(format!("its pod is on node {node}, and the agent calls itself '{}'", agent.name.escape_debug()))
        }
        None => {
            Err("it names no node: bind it to the pod (a projected volume does), on Kubernetes 1.32 or newer".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Role;
    use super::*;

    #[test]
    fn a_token_lets_in_the_part_and_the_node_it_is_of_and_no_other() {
        let owner = |namespace: &str, account: &str, node: Option<&str>| TokenOwner {
            namespace: namespace.into(),
            service_account: account.into(),
            node: node.map(Into::into),
        };
        let agent = Agent { role: Role::Node, name: "worker".into(), addresses: vec![], pod_prefixes: vec![] };
        assert_eq!(belongs(&owner("tombolo-system", "tombolo-node", Some("worker")), &agent), Ok(()));
        for (other, why) in [
            (owner("shop", "tombolo-node", Some("worker")), "shop/tombolo-node"),
            (owner("tombolo-system", "tombolo-gateway", Some("worker")), "tombolo-gateway, not of"),
            (owner("tombolo-system", "default", Some("worker")), "default, not of"),
            (owner("tombolo-system", "tombolo-node", Some("other")), "on node other"),
            (owner("tombolo-system", "tombolo-node", None), "names no node"),
        ] {
            assert!(belongs(&other, &agent).unwrap_err().contains(why), "{other:?}");
        }
    }
}
