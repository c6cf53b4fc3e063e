//! [`Decision`]: who answers now, with what share, and for everybody else why not.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use api::ClusterId;
use api::time::Instant;
use serde::Serialize;

use crate::Source;

/// The answer to one [`Question`](crate::Question).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Who serves. Empty: nobody does, and connections are to be refused at once.
    pub shares: Vec<Share>,
    /// One for each cluster that is known or has endpoints, in the order of their ids.
    pub verdicts: Vec<Verdict>,
    /// Which object decided.
    pub policy: Source,
    /// Whether DNS answers for headless services follow this policy as well.
    pub headless: bool,
    /// To be given back with the next question about the same port.
    #[serde(skip)]
    pub memory: Memory,
    /// Whether round-trip times alone can change it: ask again once in a while.
    #[serde(skip)]
    pub follows_round_trips: bool,
    /// Ask again at this time, though nothing else changed.
    #[serde(skip)]
    pub ask_again: Option<Instant>,
}

impl Decision {
    /// Nobody answers.
    pub fn is_unserved(&self) -> bool {
        self.shares.is_empty()
    }

    /// The part of new connections a cluster gets, 0 to 100.
    pub fn percent(&self, cluster: &ClusterId) -> f64 {
        let total: u64 = self.shares.iter().map(|share| share.weight).sum();
        let weight = self.shares.iter().find(|share| share.cluster == *cluster).map_or(0, |share| share.weight);
        // Weights are below 2^32, which a f64 holds exactly.
        if total == 0 { 0.0 } else { weight as f64 * 100.0 / total as f64 }
    }
}

/// One cluster's part of the traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Share {
    pub cluster: ClusterId,
    /// In proportion to the weights of the other shares; above zero, and below 2^32 for all together.
    pub weight: u64,
}

/// What was decided about one cluster, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub cluster: ClusterId,
    /// The tier that selects it, from 1; none when no tier does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<usize>,
    /// Its weight inside the tier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u64>,
    pub standing: Standing,
    pub reason: Reason,
    pub ready: u32,
    pub total: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Standing {
    /// Gets traffic.
    Used,
    /// Could serve, and would if those before it could not.
    Standby,
    /// Cannot or may not serve.
    Excluded,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident),+ $(,)?) => {
        /// Why a cluster is in its standing. The names are words for people and for machines alike.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub enum Reason { $($(#[$doc])* $variant),+ }

        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant)),+ }
            }
        }
    };
}

reasons!(
    /// Used: its tier serves and it can.
    Serving,
    /// Used: a tier before its own is too small.
    Spill,
    /// Used: this part was started a moment ago and has not heard of it yet.
    NotMeasuredYet,
    /// It came back a moment ago: used where nobody else can serve, left out elsewhere.
    Proving,
    /// All gateways of it that can be reached are going away: used where nobody else can serve, left out elsewhere.
    GatewaysDraining,
    /// Standby: a tier before its own serves.
    HigherTierServes,
    /// Standby: another cluster of its tier is nearer.
    Farther,
    /// No tier of the policy selects it.
    NotInPolicy,
    /// The policy gives it the weight 0.
    WeightZero,
    /// It has no endpoint for this port.
    NoEndpoints,
    /// It has endpoints for this port, none of them ready.
    NoReadyEndpoints,
    /// It was reachable and has been silent for too long.
    SilentPeer,
    /// It was never reached since the gateways started.
    NeverConnected,
    /// No gateway of this cluster tells anything about it.
    NoGatewayAnswers,
    /// Drained here, by the operator.
    Drained,
    /// Blocked here, by the operator.
    Blocked,
    /// It says of itself that it is draining.
    Draining,
    /// It says of itself that it left the clusterset.
    Left,
    /// There is no ClusterPeer for it.
    NotAPeer,
);

impl Reason {
    /// Whether a cluster in this standing is used only where nobody else can serve.
    pub const fn is_last_resort(self) -> bool {
        matches!(self, Self::Proving | Self::GatewaysDraining)
    }
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What must be remembered between two questions about one port, so that `Nearest` does not swing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Whom each `Nearest` tier used last, by the tier's index from 0.
    pub nearest: BTreeMap<usize, ClusterId>,
}
