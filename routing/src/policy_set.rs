//! [`PolicySet`]: every RoutingPolicy and ClusterRoutingPolicy, and which of them speaks for a port.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use api::kubernetes::ObjectMeta;
use api::routing_policy::{RoutingRules, TargetRef};
use api::{ClusterRoutingPolicy, Kind, RoutingPolicy, Violation};
use serde::Serialize;

/// Which object decided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "from", rename_all = "camelCase")]
pub enum Source {
    /// The overrides of a ClusterRoutingPolicy.
    Override { name: String, generation: i64 },
    /// A RoutingPolicy of the service's namespace.
    Policy { namespace: String, name: String, generation: i64 },
    /// The defaults of a ClusterRoutingPolicy.
    Default { name: String, generation: i64 },
    /// No policy speaks: the local cluster while it can serve, else all others by their ready endpoints.
    LocalFirst,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Override { name, generation } => {
                write!(f, "overrides of ClusterRoutingPolicy {name}, generation {generation}")
            }
            Self::Policy { namespace, name, generation } => {
                write!(f, "RoutingPolicy {namespace}/{name}, generation {generation}")
            }
            Self::Default { name, generation } => {
                write!(f, "defaults of ClusterRoutingPolicy {name}, generation {generation}")
            }
            Self::LocalFirst => f.write_str("no policy: local first"),
        }
    }
}

/// The services whose decision a change of a policy may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affected {
    /// Services, as namespace and name.
    Services(BTreeSet<(String, String)>),
    /// Every service of these namespaces.
    Namespaces(BTreeSet<String>),
    All,
}

impl Affected {
    pub fn contains(&self, namespace: &str, service: &str) -> bool {
        match self {
            Self::Services(services) => {
                services.iter().any(|(at, name)| at.as_str() == namespace && name.as_str() == service)
            }
            Self::Namespaces(namespaces) => namespaces.contains(namespace),
            Self::All => true,
        }
    }
}

/// What [`PolicySet::policy_for`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen<'a> {
    pub source: Source,
    /// None: local first.
    pub rules: Option<&'a RoutingRules>,
}

/// Older first, then by name: who was there first is not overruled by a newcomer. An object without a creation time
/// comes last.
type Seniority = (bool, i64, String);

/// Namespace, service, port (none: all of them).
type Place = (String, String, Option<String>);

/// All policies, indexed by what they speak for. Cheap to clone: the objects are shared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicySet {
    namespaced: BTreeMap<(String, String), Arc<RoutingPolicy>>,
    cluster_wide: BTreeMap<Seniority, Arc<ClusterRoutingPolicy>>,
    /// The policies that name a place, the oldest first.
    by_target: BTreeMap<Place, BTreeMap<Seniority, Arc<RoutingPolicy>>>,
    refused: BTreeMap<(String, String), Vec<Violation>>,
}

impl PolicySet {
    /// Adds a policy or replaces it. One that breaks a rule is not in force; [`PolicySet::refused`] says why.
    pub fn apply(&mut self, policy: &RoutingPolicy) -> Affected {
        let (namespace, name) = names(&policy.metadata);
        let mut affected = self.remove(&namespace, &name);
        let key = (namespace.clone(), name);
        let violations = policy.violations();
        if !violations.is_empty() {
            self.refused.insert(key, violations);
            return Affected::Services(affected);
        }
        let policy = Arc::new(policy.clone());
        for target in &policy.spec.target_refs {
            let place = (namespace.clone(), target.name.clone(), target.port.clone());
            self.by_target.entry(place).or_default().insert(seniority(&policy.metadata), policy.clone());
            affected.insert((namespace.clone(), target.name.clone()));
        }
        self.namespaced.insert(key, policy);
        Affected::Services(affected)
    }

    /// Takes a policy away; nothing happens when it is not there.
    pub fn delete(&mut self, namespace: &str, name: &str) -> Affected {
        Affected::Services(self.remove(namespace, name))
    }

    fn remove(&mut self, namespace: &str, name: &str) -> BTreeSet<(String, String)> {
        let key = (namespace.to_string(), name.to_string());
        self.refused.remove(&key);
        let Some(old) = self.namespaced.remove(&key) else { return BTreeSet::new() };
        let mut affected = BTreeSet::new();
        for target in &old.spec.target_refs {
            let place = (namespace.to_string(), target.name.clone(), target.port.clone());
            if let Some(speakers) = self.by_target.get_mut(&place) {
                speakers.remove(&seniority(&old.metadata));
                if speakers.is_empty() {
                    self.by_target.remove(&place);
                }
            }
            affected.insert((namespace.to_string(), target.name.clone()));
        }
        affected
    }

    /// Adds a cluster-wide policy or replaces it.
    pub fn apply_cluster_wide(&mut self, policy: &ClusterRoutingPolicy) -> Affected {
        let (_, name) = names(&policy.metadata);
        let before = self.delete_cluster_wide(&name);
        let violations = policy.violations();
        if !violations.is_empty() {
            self.refused.insert((String::new(), name), violations);
            return before;
        }
        let after = namespaces_of(policy);
        self.cluster_wide.insert(seniority(&policy.metadata), Arc::new(policy.clone()));
        match (before, after) {
            (Affected::Namespaces(mut before), Affected::Namespaces(after)) => {
                before.extend(after);
                Affected::Namespaces(before)
            }
            _ => Affected::All,
        }
    }

    /// Takes a cluster-wide policy away; nothing happens when it is not there.
    pub fn delete_cluster_wide(&mut self, name: &str) -> Affected {
        self.refused.remove(&(String::new(), name.to_string()));
        let place = self.cluster_wide.keys().find(|(_, _, known)| known == name).cloned();
        match place.and_then(|place| self.cluster_wide.remove(&place)) {
            Some(old) => namespaces_of(&old),
            None => Affected::Namespaces(BTreeSet::new()),
        }
    }

    /// The policy that speaks for one port (by name; empty for a port without one).
    ///
    /// Overrides, then the namespace's policy, then defaults. Among RoutingPolicies one that names the port comes before
    /// one that names the whole service; among equals the oldest speaks.
    pub fn policy_for(&self, namespace: &str, service: &str, port: &str) -> Chosen<'_> {
        let cluster_wide = || {
            self.cluster_wide.values().filter(|policy| {
                let namespaces = &policy.spec.namespaces;
                namespaces.is_empty() || namespaces.iter().any(|one| one == namespace)
            })
        };
        for policy in cluster_wide() {
            if let Some(rules) = &policy.spec.overrides {
                let (name, generation) = (names(&policy.metadata).1, generation(&policy.metadata));
                return Chosen { source: Source::Override { name, generation }, rules: Some(rules) };
            }
        }
        if let Some(policy) = self.speaker(namespace, service, Some(port)).or(self.speaker(namespace, service, None)) {
            let (namespace, name) = names(&policy.metadata);
            let source = Source::Policy { namespace, name, generation: generation(&policy.metadata) };
            return Chosen { source, rules: Some(&policy.spec.rules) };
        }
        for policy in cluster_wide() {
            if let Some(rules) = &policy.spec.defaults {
                let (name, generation) = (names(&policy.metadata).1, generation(&policy.metadata));
                return Chosen { source: Source::Default { name, generation }, rules: Some(rules) };
            }
        }
        Chosen { source: Source::LocalFirst, rules: None }
    }

    fn speaker(&self, namespace: &str, service: &str, port: Option<&str>) -> Option<&RoutingPolicy> {
        let place = (namespace.to_string(), service.to_string(), port.map(ToString::to_string));
        self.by_target.get(&place)?.values().next().map(AsRef::as_ref)
    }

    /// The targets of a policy for which an older one speaks, with the name of that one: the `Conflicted` of its status.
    pub fn conflicts(&self, namespace: &str, name: &str) -> Vec<(TargetRef, String)> {
        let Some(policy) = self.namespaced.get(&(namespace.to_string(), name.to_string())) else { return Vec::new() };
        let mine = seniority(&policy.metadata);
        let older = |target: &TargetRef| {
            let place = (namespace.to_string(), target.name.clone(), target.port.clone());
            let first = self.by_target.get(&place)?.keys().next()?;
            (*first != mine).then(|| (target.clone(), first.2.clone()))
        };
        policy.spec.target_refs.iter().filter_map(older).collect()
    }

    /// Policies that break a rule, with every rule broken, by namespace (empty for cluster-wide ones) and name.
    pub fn refused(&self) -> &BTreeMap<(String, String), Vec<Violation>> {
        &self.refused
    }
}

fn namespaces_of(policy: &ClusterRoutingPolicy) -> Affected {
    if policy.spec.namespaces.is_empty() {
        Affected::All
    } else {
        Affected::Namespaces(policy.spec.namespaces.iter().cloned().collect())
    }
}

fn names(meta: &ObjectMeta) -> (String, String) {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn generation(meta: &ObjectMeta) -> i64 {
    meta.generation.unwrap_or_default()
}

fn seniority(meta: &ObjectMeta) -> Seniority {
    let created = meta.creation_timestamp.as_ref().map(|time| time.0.as_second());
    (created.is_none(), created.unwrap_or_default(), meta.name.clone().unwrap_or_default())
}
