//! Which policy speaks.

mod world;

use api::ClusterRoutingPolicy;
use routing::{Affected, PolicySet, Source};
use world::*;

fn with(name: &str, second: i64, change: impl FnOnce(&mut ClusterRoutingPolicy)) -> ClusterRoutingPolicy {
    let mut policy = cluster_wide(name, second);
    change(&mut policy);
    policy
}

fn speaker(policies: &PolicySet, port: &str) -> String {
    match policies.policy_for("shop", "web", port).source {
        Source::Override { name, .. } | Source::Policy { name, .. } | Source::Default { name, .. } => name,
        Source::LocalFirst => "none".into(),
    }
}

#[test]
fn overrides_come_before_the_namespaces_policy_and_that_before_defaults() {
    let some = || rules(vec![tier(vec![local()])]);
    let mut policies = PolicySet::default();
    assert_eq!(speaker(&policies, "http"), "none");
    policies.apply_cluster_wide(&with("floor", 1, |policy| policy.spec.defaults = Some(some())));
    assert_eq!(speaker(&policies, "http"), "floor");
    policies.apply(&policy("own", 9, vec![target("web", None)], some().tiers));
    assert_eq!(speaker(&policies, "http"), "own");
    let emergency = with("emergency", 10, |policy| {
        policy.spec.overrides = Some(some());
        policy.spec.namespaces = vec!["shop".into()];
    });
    let affected = policies.apply_cluster_wide(&emergency);
    assert!(affected.contains("shop", "web") && !affected.contains("pay", "api"));
    assert_eq!(speaker(&policies, "http"), "emergency");
    assert_eq!(policies.policy_for("pay", "api", "").source, Source::Default { name: "floor".into(), generation: 4 });
    policies.delete_cluster_wide("emergency");
    assert_eq!(speaker(&policies, "http"), "own");
}

#[test]
fn the_oldest_of_two_policies_for_one_target_wins_and_the_other_is_told() {
    let tiers = || vec![tier(vec![local()])];
    let mut policies = PolicySet::default();
    policies.apply(&policy("b-newer", 5, vec![target("web", None)], tiers()));
    policies.apply(&policy("c-older", 2, vec![target("web", None)], tiers()));
    policies.apply(&policy("a-as-old", 2, vec![target("web", None), target("img", None)], tiers()));
    assert_eq!(speaker(&policies, "http"), "a-as-old");
    assert_eq!(policies.conflicts("shop", "b-newer"), [(target("web", None), "a-as-old".to_string())]);
    assert_eq!(policies.conflicts("shop", "a-as-old"), []);
    policies.delete("shop", "a-as-old");
    assert_eq!(speaker(&policies, "http"), "c-older");
}

#[test]
fn a_policy_that_names_the_port_comes_before_one_for_the_whole_service() {
    let tiers = || vec![tier(vec![local()])];
    let mut policies = PolicySet::default();
    policies.apply(&policy("whole", 1, vec![target("web", None)], tiers()));
    policies.apply(&policy("port", 5, vec![target("web", Some("admin"))], tiers()));
    assert_eq!((speaker(&policies, "http").as_str(), speaker(&policies, "admin").as_str()), ("whole", "port"));
}

#[test]
fn a_policy_that_breaks_a_rule_is_not_in_force_and_the_reason_is_kept() {
    let mut policies = PolicySet::default();
    policies.apply(&policy("own", 1, vec![target("web", None)], vec![tier(vec![local()])]));
    policies.apply(&policy("own", 1, vec![target("web", None)], vec![]));
    assert_eq!(speaker(&policies, "http"), "none");
    assert_eq!(policies.refused()[&("shop".into(), "own".into())][0].path, "spec.tiers");
}

#[test]
fn a_change_names_the_services_of_the_old_and_the_new_version() {
    let tiers = || vec![tier(vec![local()])];
    let mut policies = PolicySet::default();
    policies.apply(&policy("own", 1, vec![target("web", None)], tiers()));
    let affected = policies.apply(&policy("own", 1, vec![target("img", None)], tiers()));
    let names = ["img", "web"].map(|name| ("shop".to_string(), name.to_string()));
    assert_eq!(affected, Affected::Services(names.into()));
}
