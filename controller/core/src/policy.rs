//! The conditions of routing policies: in force, or decided by an older one.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use api::conditions::{ConditionType, Reason};
use api::kubernetes::ObjectMeta;
use api::{ClusterRoutingPolicy, Kind, RoutingPolicy};

use crate::condition::Wanted;

/// Older first; a policy without a time was not stored yet and is the newest. The name decides what time does not.
fn age(meta: &ObjectMeta) -> (bool, Option<jiff::Timestamp>, String) {
    let created = meta.creation_timestamp.as_ref().map(|time| time.0);
    (created.is_none(), created, meta.name.clone().unwrap_or_default())
}

fn named(meta: &ObjectMeta) -> String {
    meta.name.clone().unwrap_or_default()
}

fn accepted<K: Kind>(policy: &K) -> Option<Wanted> {
    let violations = policy.violations();
    if violations.is_empty() {
        return None;
    }
    let message = violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    Some(Wanted::new(ConditionType::Accepted, false, Reason::Invalid, message))
}

fn conflicted(losing: &[String]) -> Wanted {
    if losing.is_empty() {
        return Wanted::new(
            ConditionType::Conflicted,
            false,
            Reason::Accepted,
            "No other policy decides for its targets.",
        );
    }
    Wanted::new(
        ConditionType::Conflicted,
        true,
        Reason::Superseded,
        format!("The older policy decides: {}.", losing.join(", ")),
    )
}

/// The conditions of each policy of one namespace, by name. `has_import` tells whether a ServiceImport is there.
pub fn judge_namespace<'a>(
    policies: impl Iterator<Item = &'a RoutingPolicy>,
    has_import: impl Fn(&str) -> bool,
) -> BTreeMap<String, Vec<Wanted>> {
    let mut ordered: Vec<&RoutingPolicy> = policies.collect();
    ordered.sort_by_key(|policy| age(&policy.metadata));
    // Who decides for a service's port, and for all ports of it that no other policy names.
    let mut deciding: BTreeMap<(String, Option<String>), String> = BTreeMap::new();
    let mut verdicts = BTreeMap::new();
    for policy in ordered {
        let name = named(&policy.metadata);
        if let Some(refused) = accepted(policy) {
            verdicts.insert(name, vec![refused, conflicted(&[])]);
            continue;
        }
        let mut losing = Vec::new();
        for target in &policy.spec.target_refs {
            let key = (target.name.clone(), target.port.clone());
            let shown = match &target.port {
                Some(port) => format!("{} port {port}", target.name),
                None => target.name.clone(),
            };
            match deciding.get(&key) {
                Some(winner) if *winner != name => losing.push(format!("{winner} for {shown}")),
                _ => {
                    deciding.insert(key, name.clone());
                }
            }
        }
        let absent: Vec<&str> = policy
            .spec
            .target_refs
            .iter()
            .map(|target| target.name.as_str())
            .filter(|name| !has_import(name))
            .collect();
        let in_force = if absent.len() == policy.spec.target_refs.len() {
            let message =
                format!("There is no ServiceImport {} in this namespace: no cluster exports it.", absent.join(", "));
            Wanted::new(ConditionType::Accepted, false, Reason::NotTargeted, message)
        } else {
            Wanted::new(ConditionType::Accepted, true, Reason::Accepted, "The policy is in force.")
        };
        verdicts.insert(name, vec![in_force, conflicted(&losing)]);
    }
    verdicts
}

/// The conditions of each ClusterRoutingPolicy, by name. Two that both give defaults (or overrides) for one namespace
/// conflict, and the older one decides.
pub fn judge_cluster_policies<'a>(
    policies: impl Iterator<Item = &'a ClusterRoutingPolicy>,
) -> BTreeMap<String, Vec<Wanted>> {
    let mut ordered: Vec<&ClusterRoutingPolicy> = policies.collect();
    ordered.sort_by_key(|policy| age(&policy.metadata));
    let mut older: Vec<&ClusterRoutingPolicy> = Vec::new();
    let mut verdicts = BTreeMap::new();
    for policy in ordered {
        let name = named(&policy.metadata);
        if let Some(refused) = accepted(policy) {
            verdicts.insert(name, vec![refused, conflicted(&[])]);
            continue;
        }
        let shares = |other: &ClusterRoutingPolicy| {
            let (ours, theirs) = (&policy.spec.namespaces, &other.spec.namespaces);
            ours.is_empty() || theirs.is_empty() || ours.iter().any(|namespace| theirs.contains(namespace))
        };
        let mut losing = Vec::new();
        for other in older.iter().filter(|other| shares(other)) {
            for (what, both) in [
                ("defaults", policy.spec.defaults.is_some() && other.spec.defaults.is_some()),
                ("overrides", policy.spec.overrides.is_some() && other.spec.overrides.is_some()),
            ] {
                if both {
                    losing.push(format!("{} for {what}", named(&other.metadata)));
                }
            }
        }
        older.push(policy);
        let in_force = Wanted::new(ConditionType::Accepted, true, Reason::Accepted, "The policy is in force.");
        verdicts.insert(name, vec![in_force, conflicted(&losing)]);
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, created: &str, target: &str) -> RoutingPolicy {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "tombolo.dev/v1alpha1", "kind": "RoutingPolicy",
            "metadata": { "name": name, "namespace": "shop", "creationTimestamp": created },
            "spec": { "targetRefs": [{ "name": target }], "tiers": [{ "clusters": [{ "local": true }] }] }
        }))
        .unwrap()
    }

    fn said(verdicts: &BTreeMap<String, Vec<Wanted>>, name: &str) -> Vec<(&'static str, String)> {
        verdicts[name].iter().map(|wanted| (wanted.status.as_str(), wanted.reason.clone())).collect()
    }

    #[test]
    fn of_two_policies_for_one_service_the_older_decides_and_the_newer_is_told() {
        let policies = [policy("new", "2026-01-02T00:00:00Z", "web"), policy("old", "2026-01-01T00:00:00Z", "web")];
        let verdicts = judge_namespace(policies.iter(), |_| true);
        assert_eq!(said(&verdicts, "old"), [("True", "Accepted".into()), ("False", "Accepted".into())]);
        assert_eq!(said(&verdicts, "new"), [("True", "Accepted".into()), ("True", "Superseded".into())]);
        assert!(verdicts["new"][1].message.contains("old for web"));
    }

    #[test]
    fn a_policy_without_a_service_and_one_that_breaks_a_rule_say_so() {
        let mut broken = policy("broken", "2026-01-01T00:00:00Z", "web");
        broken.spec.rules.tiers.clear();
        let verdicts =
            judge_namespace([policy("idle", "2026-01-01T00:00:00Z", "nope"), broken].iter(), |name| name == "web");
        assert_eq!(said(&verdicts, "idle")[0], ("False", "NotTargeted".into()));
        assert_eq!(said(&verdicts, "broken")[0], ("False", "Invalid".into()));
    }

    #[test]
    fn cluster_policies_conflict_only_where_both_speak_of_the_same() {
        let cluster_policy = |name: &str, namespaces: &[&str], what: &str| -> ClusterRoutingPolicy {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "tombolo.dev/v1alpha1", "kind": "ClusterRoutingPolicy",
                "metadata": { "name": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
                "spec": { "namespaces": namespaces, what: { "tiers": [{ "clusters": [{ "local": true }] }] } }
            }))
            .unwrap()
        };
        let all = [
            cluster_policy("a", &["shop"], "defaults"),
            cluster_policy("b", &[], "defaults"),
            cluster_policy("c", &["shop"], "overrides"),
            cluster_policy("d", &["team"], "defaults"),
        ];
        let verdicts = judge_cluster_policies(all.iter());
        let superseded: Vec<&str> = verdicts
            .iter()
            .filter(|(_, wanted)| wanted[1].status.as_str() == "True")
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(superseded, ["b", "d"]);
    }
}
