//! [`ShareChange`]: a service's traffic goes to other clusters than before, and why.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use api::ClusterId;
use routing::{Decision, Share, Source, Standing};

use crate::input::Key;

/// What is remembered of a decision to tell the next one from it: who serves, and which object said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    shares: Vec<Share>,
    policy: Source,
}

/// One port of a service, before and after.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShareChange {
    /// `shop/web`, and the port's name where it has one.
    pub service: String,
    /// `70% birch, 30% cedar`, or `nobody`.
    pub before: String,
    pub after: String,
    /// `birch SilentPeer`, the policy that speaks now, or `Endpoints`.
    pub reason: String,
    /// Clusters that were lost or won: what happened to them caused this.
    pub clusters: Vec<ClusterId>,
}

impl Decided {
    pub fn of(decision: &Decision) -> Self {
        Self { shares: decision.shares.clone(), policy: decision.policy.clone() }
    }

    /// What changed from this decision to the next one; none where nobody would see a difference.
    pub fn change(&self, key: &Key, port: &str, next: &Decision) -> Option<ShareChange> {
        let (before, after) = (words(&self.shares), words(&next.shares));
        if before == after {
            return None;
        }
        let used = |shares: &[Share], id: &ClusterId| shares.iter().any(|share| share.cluster == *id);
        let moved = |id: &ClusterId| used(&self.shares, id) != used(&next.shares, id);
        let moved: Vec<_> = next.verdicts.iter().filter(|verdict| moved(&verdict.cluster)).collect();
        // A cluster that cannot serve says more than those that take its place.
        let lost: Vec<_> = moved.iter().filter(|verdict| verdict.standing == Standing::Excluded).copied().collect();
        let telling = if lost.is_empty() { &moved } else { &lost };
        let reason = if next.policy != self.policy {
            next.policy.to_string()
        } else if telling.is_empty() {
            "Endpoints".to_string()
        } else {
            let words = telling.iter().map(|verdict| format!("{} {}", verdict.cluster, verdict.reason));
            words.collect::<Vec<_>>().join(", ")
        };
        let (namespace, name) = key;
        let port = if port.is_empty() { String::new() } else { format!(" {port}") };
        let clusters = moved.iter().map(|verdict| verdict.cluster.clone()).collect();
        Some(ShareChange { service: format!("{namespace}/{name}{port}"), before, after, reason, clusters })
    }
}

fn words(shares: &[Share]) -> String {
    let total: u64 = shares.iter().map(|share| share.weight).sum();
    if total == 0 {
        return "nobody".to_string();
    }
    // Weights are below 2^32, which a f64 holds exactly.
    let percent = |share: &Share| share.weight as f64 * 100.0 / total as f64;
    let words = shares.iter().map(|share| format!("{:.0}% {}", percent(share), share.cluster));
    words.collect::<Vec<_>>().join(", ")
}
