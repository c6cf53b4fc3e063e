//! `RoutingPolicy` and `ClusterRoutingPolicy`: which cluster answers for a service.
//!
//! Evaluated in the importing cluster: overrides of ClusterRoutingPolicies, then the namespace's RoutingPolicy, then
//! defaults of ClusterRoutingPolicies, then local first. The `routing` crate says what each field does.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ClusterId, Kind, Scope, Violation};

/// For ServiceImports of its own namespace; written by the service's owner.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "tombolo.dev",
    version = "v1alpha1",
    kind = "RoutingPolicy",
    plural = "routingpolicies",
    crates(std = "core"),
    category = "tombolo",
    namespaced,
    status = "RoutingPolicyStatus",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoutingPolicySpec {
    /// The ServiceImports this policy is for.
    #[schemars(length(min = 1, max = 64))]
    pub target_refs: Vec<TargetRef>,
    #[serde(flatten)]
    pub rules: RoutingRules,
}

/// For every service it selects; written by the platform's operator.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "tombolo.dev",
    version = "v1alpha1",
    kind = "ClusterRoutingPolicy",
    plural = "clusterroutingpolicies",
    crates(std = "core"),
    category = "tombolo",
    status = "RoutingPolicyStatus",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterRoutingPolicySpec {
    /// Only services of these namespaces; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 63)))]
    pub namespaces: Vec<String>,
    /// Used where no RoutingPolicy speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<RoutingRules>,
    /// Used whatever a RoutingPolicy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overrides: Option<RoutingRules>,
}

/// A ServiceImport in the policy's namespace, and optionally one of its ports.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    #[schemars(length(max = 63))]
    pub name: String,
    /// The port's name; absent: every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub port: Option<String>,
}

/// Tiers in order: the first one that can serve does.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoutingRules {
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub tiers: Vec<Tier>,
    /// Whether DNS answers for headless services follow this policy too (decision 6).
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub headless: bool,
}

/// One tier: clusters that share the traffic.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tier {
    #[schemars(length(min = 1, max = 64))]
    pub clusters: Vec<ClusterChoice>,
    /// How the traffic is shared inside the tier.
    #[serde(default)]
    pub share: Share,
    /// Use the next tier as well when fewer endpoints than this are ready in this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spill_below: Option<SpillBelow>,
}

/// Which clusters, and with what weight. Exactly one of `cluster`, `local` and `matchLabels` is set.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterChoice {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
    /// This cluster itself, whatever its name.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub local: bool,
    /// Every cluster whose record has all these labels; `{}` is every cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// 0 to 1000; each selected cluster gets it. A cluster selected twice keeps the first.
    #[serde(default = "default_weight")]
    #[schemars(range(max = 1000))]
    pub weight: u16,
}

fn default_weight() -> u16 {
    100
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Share {
    /// By the weights of the clusters, whatever their number of endpoints.
    #[default]
    Weighted,
    /// All to the cluster with the lowest measured round-trip time, with hysteresis; the local cluster is nearest.
    Nearest,
}

/// When a tier is too small to serve alone. One of both is set.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpillBelow {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<u32>,
    /// Of the tier's endpoints, ready or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub percent: Option<u8>,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoutingPolicyStatus {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::kind::conditions_schema")]
    pub conditions: Vec<Condition>,
}

impl RoutingRules {
    /// Every rule broken, with paths below `at`.
    pub fn violations(&self, at: &str) -> Vec<Violation> {
        let mut found = Vec::new();
        if self.tiers.is_empty() {
            found.push(Violation::new(format!("{at}.tiers"), "name at least one tier"));
        }
        for (t, tier) in self.tiers.iter().enumerate() {
            let tier_path = format!("{at}.tiers[{t}]");
            if tier.clusters.is_empty() {
                found.push(Violation::new(
                    format!("{tier_path}.clusters"),
                    "name at least one cluster, or 'matchLabels: {}' for all",
                ));
            }
            for (c, choice) in tier.clusters.iter().enumerate() {
                let path = format!("{tier_path}.clusters[{c}]");
                let said = usize::from(choice.cluster.is_some())
                    + usize::from(choice.local)
                    + usize::from(choice.match_labels.is_some());
                if said != 1 {
                    found.push(Violation::new(path.clone(), "set exactly one of cluster, local and matchLabels"));
                }
                if choice.weight > 1000 {
                    found.push(Violation::new(format!("{path}.weight"), "must be 0 to 1000"));
                }
            }
            if tier.spill_below.is_some_and(|spill| spill.ready.is_some() == spill.percent.is_some()) {
                found.push(Violation::new(format!("{tier_path}.spillBelow"), "set exactly one of ready and percent"));
            }
            if tier.spill_below.and_then(|spill| spill.percent).is_some_and(|percent| percent > 100) {
                found.push(Violation::new(format!("{tier_path}.spillBelow.percent"), "must be 0 to 100"));
            }
        }
        found
    }
}

impl Kind for RoutingPolicy {
    const SCOPE: Scope = Scope::Namespaced;

    fn violations(&self) -> Vec<Violation> {
        let mut found = self.spec.rules.violations("spec");
        if self.spec.target_refs.is_empty() {
            found.push(Violation::new("spec.targetRefs", "name at least one ServiceImport".to_string()));
        }
        found
    }
}

impl Kind for ClusterRoutingPolicy {
    const SCOPE: Scope = Scope::Cluster;

    fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for (rules, at) in [(&self.spec.defaults, "spec.defaults"), (&self.spec.overrides, "spec.overrides")] {
            found.extend(rules.iter().flat_map(|rules| rules.violations(at)));
        }
        if self.spec.defaults.is_none() && self.spec.overrides.is_none() {
            found.push(Violation::new("spec", "set defaults, overrides or both: this policy says nothing"));
        }
        found
    }
}
