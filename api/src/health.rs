//! What a gateway tells the nodes and DNS servers of its own cluster about every peer, in the replies to their probes
//! (DESIGN, decision 8). Nodes and DNS evaluate routing policy on these reports directly, with no API server between.

pub mod message;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ClusterId;
use crate::time::Instant;

/// Whether packets reach a peer. Unknown is not down, and it is never healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reachability {
    /// Nothing was measured yet.
    Unknown,
    Up,
    Down,
}

/// Why a path is in its state: a metric label and a word for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PathReason {
    /// Probes are answered.
    Answering,
    /// No session was ever established since this gateway started.
    NoHandshakeYet,
    /// No authenticated packet for longer than the limit.
    SilentPeer,
    /// The peer is heard and says that it does not hear us.
    PeerDoesNotHearUs,
    /// The peer's record says it is draining.
    PeerDraining,
    /// The operator drained or blocked the peer here.
    DrainedHere,
}

/// One gateway's measured view of one peer cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHealth {
    pub cluster: ClusterId,
    pub reachability: Reachability,
    pub reason: PathReason,
    /// Time in this state.
    pub age: Duration,
    /// Smoothed round-trip time between the gateways; none before the first answer.
    pub round_trip: Option<Duration>,
    /// Lost probes of the last window, in thousandths.
    pub loss_permille: u16,
    /// Largest inner packet that reaches the peer, in bytes.
    pub mtu: u16,
    /// The lanes of the gateway by which packets reach the peer: bit i for lane i. A firewall may let one port through and
    /// not the next.
    pub lanes: u16,
}

/// Everything one gateway says at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// The slot of the gateway that speaks.
    pub slot: u16,
    /// The gateway is going away: use another one for new and old flows.
    pub draining: bool,
    pub peers: Vec<PeerHealth>,
}

/// What one cluster's gateways together say of a peer, as routing policy uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterHealth {
    pub reachability: Reachability,
    pub reason: PathReason,
    /// When this state began, on the reader's clock.
    pub since: Instant,
    /// Until when a peer that fell silent and is heard again has to prove itself; none for one that did not.
    pub proving_until: Option<Instant>,
    pub round_trip: Option<Duration>,
}

/// Between two questions of one agent to one gateway that answers.
pub const ASK_EVERY: Duration = Duration::from_millis(100);

/// Agents that may ask at that pace: at a hundred peers 500 of them take a gateway about a fourteenth of a core
/// (`make bench-links`).
pub const FULL_PACE_AGENTS: usize = 1_000;

/// Between two questions of one agent where so many ask: all together never ask more often than [`FULL_PACE_AGENTS`] do.
pub fn ask_every(agents: usize) -> Duration {
    let agents = u32::try_from(agents.max(FULL_PACE_AGENTS)).unwrap_or(u32::MAX);
    ASK_EVERY.saturating_mul(agents) / FULL_PACE_AGENTS as u32
}

/// The health of every cluster this one knows, the local one left out: it needs no tunnel.
pub type ClusterHealths = BTreeMap<ClusterId, ClusterHealth>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_agents_ask_ten_times_a_second_and_more_share_what_those_had() {
        for agents in [0, 1, 1_000] {
            assert_eq!(ask_every(agents), ASK_EVERY);
        }
        assert_eq!(ask_every(2_500), Duration::from_millis(250));
    }
}
