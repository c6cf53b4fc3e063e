//! A controller's feed: the same objects over mutual TLS, with the last state on the taker's own disk (decision 14).
//!
//! Agents (gateway, node, dns, the operator's tool) never open the folder of manifests or talk to the API server for
//! what they need: they take it from any controller of their cluster. A controller serves with [`Server`], an agent
//! asks with [`connect`], and gets a [`Store`](crate::Store) like any other.
//!
//! | module | holds |
//! |---|---|
//! | `enrolment` | the file that makes a host one of the cluster's, and the proof of having it |
//! | `credential`, `admission` | what an agent shows: that proof, or a ServiceAccount token; who is let in by it |
//! | `ticket` | for when no API server can review the token |
//! | `permission`, `tenure` | which role may do what: pure rules; since when each slot is held |
//! | `frame`, `message` | bytes ↔ messages; bounded, never a panic |
//! | `connection` | messages over a connection, with pings and limits |
//! | `server`, `session`, `requests` | a controller's end: who is let in; one agent's conversation; what it asks |
//! | `window` | the last changes of each kind, for all sessions |
//! | `authority` | which identity an agent takes for its controller's |
//! | `link`, `client`, `feeder`, `cache` | an agent's end: the dialling, the store, the task behind it, the disk |
//! | `memory`, `digest` | the objects of a kind, and what tells one state of them from another; both ends |
//!
//! **Coming back.** An agent says the [`digest`] of what it has of each kind, and is told what changed since, or, where
//! the controller does not know that state any more, everything.
//!
//! **How long anything takes.** Both ends say something every [`PING_INTERVAL`]; an end that hears nothing for
//! [`SILENCE_LIMIT`] hangs up. An agent dials again at once, then after longer and longer, up to two seconds.

mod admission;
mod authority;
pub(crate) mod cache;
mod client;
mod connection;
mod credential;
pub mod digest;
mod enrolment;
mod feeder;
pub mod frame;
mod link;
mod memory;
pub mod message;
mod permission;
mod requests;
mod server;
mod session;
mod tenure;
mod ticket;
mod window;

use std::net::IpAddr;
use std::time::Duration;

use api::Prefix;
use serde::{Deserialize, Serialize};

pub use client::{Config, connect};
pub use enrolment::Enrolment;
pub use permission::Denial;
pub use server::{AgentSeen, Refusal, Server};

/// The protocol's name in TLS (ALPN, RFC 7301).
pub const PROTOCOL: &[u8] = b"tombolo-feed/1";

/// How often each end says something.
pub const PING_INTERVAL: Duration = Duration::from_millis(400);
/// How long silence is borne: four pings and a bit, so that one lost packet's retransmission does not count as death.
pub const SILENCE_LIMIT: Duration = Duration::from_millis(1_800);
/// How long one message may wait for the other end to take it.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// What an agent is, and so what it may see and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    Gateway,
    Node,
    Dns,
    /// The operator's tool.
    Operator,
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "Gateway",
            Self::Node => "Node",
            Self::Dns => "Dns",
            Self::Operator => "Operator",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Who an agent says it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    pub role: Role,
    /// The name of its node.
    pub name: String,
    /// The node's addresses inside the cluster.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The prefixes of the node's pods.
    #[serde(default)]
    pub pod_prefixes: Vec<Prefix>,
}

impl Agent {
    /// For messages; the name is whatever it says.
    pub(crate) fn described(&self) -> String {
        format!("the {} agent of '{}'", self.role, self.name.escape_debug())
    }
}
