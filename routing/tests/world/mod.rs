//! A small world to ask questions about: clusters `amber` (local), `birch`, `cedar`, `elm`.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of it")]

use std::collections::BTreeMap;
use std::time::Duration;

use api::ClusterId;
use api::health::{ClusterHealth, PathReason, Reachability};
use api::kubernetes::{ObjectMeta, Time};
use api::routing_policy::{ClusterChoice, RoutingPolicySpec, RoutingRules, Share, TargetRef, Tier};
use api::time::Instant;
use api::{ClusterRoutingPolicy, RoutingPolicy};
use routing::{
    Cluster, Clusters, Decision, EndpointCount, EndpointCounts, Memory, PolicySet, Question, Reason, decide,
};

#[derive(Debug)]
pub struct World {
    pub clusters: Clusters,
    pub policies: PolicySet,
    pub endpoints: EndpointCounts,
    pub memory: Memory,
    pub now: Instant,
}

pub fn id(name: &str) -> ClusterId {
    ClusterId::new(name).unwrap()
}

pub fn up(milliseconds: u64) -> Option<ClusterHealth> {
    Some(ClusterHealth {
        reachability: Reachability::Up,
        reason: PathReason::Answering,
        since: Instant::from_millis(0),
        proving_until: None,
        round_trip: Some(Duration::from_millis(milliseconds)),
    })
}

pub fn down() -> Option<ClusterHealth> {
    Some(ClusterHealth {
        reachability: Reachability::Down,
        reason: PathReason::SilentPeer,
        since: Instant::from_millis(0),
        proving_until: None,
        round_trip: None,
    })
}

impl World {
    /// All four clusters are up and have two ready endpoints. A minute has passed since the start.
    pub fn new() -> Self {
        let mut clusters = Clusters::new(id("amber"), Instant::from_millis(0));
        for (name, distance, region) in [("birch", 12, "eu"), ("cedar", 41, "eu"), ("elm", 80, "us")] {
            let labels = BTreeMap::from([("region".to_string(), region.to_string())]);
            clusters.remote.insert(id(name), Cluster { labels, health: up(distance), ..Cluster::default() });
        }
        let names = ["amber", "birch", "cedar", "elm"];
        let endpoints = names.map(|name| (id(name), EndpointCount { ready: 2, total: 2 })).into();
        Self {
            clusters,
            policies: PolicySet::default(),
            endpoints,
            memory: Memory::default(),
            now: Instant::from_millis(60_000),
        }
    }

    pub fn ready(&mut self, cluster: &str, ready: u32, total: u32) -> &mut Self {
        self.endpoints.insert(id(cluster), EndpointCount { ready, total });
        self
    }

    pub fn remote(&mut self, cluster: &str) -> &mut Cluster {
        self.clusters.remote.get_mut(&id(cluster)).unwrap()
    }

    pub fn policy(&mut self, tiers: Vec<Tier>) -> &mut Self {
        self.policies.apply(&policy("web", 1, vec![target("web", None)], tiers));
        self
    }

    pub fn decide(&mut self) -> Decision {
        let decision = decide(&Question {
            namespace: "shop",
            service: "web",
            port: "http",
            clusters: &self.clusters,
            policies: &self.policies,
            endpoints: &self.endpoints,
            memory: &self.memory,
            now: self.now,
        });
        self.memory = decision.memory.clone();
        decision
    }

    /// Cluster and weight of all that serve.
    pub fn shares(&mut self) -> Vec<(String, u64)> {
        self.decide().shares.into_iter().map(|share| (share.cluster.to_string(), share.weight)).collect()
    }

    pub fn reason(&mut self, cluster: &str) -> Reason {
        self.decide().verdicts.into_iter().find(|verdict| verdict.cluster == id(cluster)).unwrap().reason
    }
}

pub fn target(name: &str, port: Option<&str>) -> TargetRef {
    TargetRef { name: name.into(), port: port.map(Into::into) }
}

pub fn local() -> ClusterChoice {
    ClusterChoice { local: true, ..named("x", 100) }.without_name()
}

pub fn named(name: &str, weight: u16) -> ClusterChoice {
    ClusterChoice { cluster: Some(id(name)), local: false, match_labels: None, weight }
}

pub fn labelled(labels: &[(&str, &str)], weight: u16) -> ClusterChoice {
    let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    ClusterChoice { match_labels: Some(labels), weight, ..named("x", 0) }.without_name()
}

trait WithoutName {
    fn without_name(self) -> Self;
}

impl WithoutName for ClusterChoice {
    fn without_name(mut self) -> Self {
        self.cluster = None;
        self
    }
}

pub fn tier(clusters: Vec<ClusterChoice>) -> Tier {
    Tier { clusters, share: Share::Weighted, spill_below: None }
}

pub fn rules(tiers: Vec<Tier>) -> RoutingRules {
    RoutingRules { tiers, headless: false }
}

fn created(name: &str, second: i64) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        generation: Some(4),
        creation_timestamp: Some(Time(jiff::Timestamp::from_second(second).unwrap())),
        ..ObjectMeta::default()
    }
}

pub fn policy(name: &str, second: i64, target_refs: Vec<TargetRef>, tiers: Vec<Tier>) -> RoutingPolicy {
    let mut policy = RoutingPolicy::new(name, RoutingPolicySpec { target_refs, rules: rules(tiers) });
    policy.metadata = ObjectMeta { namespace: Some("shop".into()), ..created(name, second) };
    policy
}

pub fn cluster_wide(name: &str, second: i64) -> ClusterRoutingPolicy {
    let mut policy = ClusterRoutingPolicy::new(name, Default::default());
    policy.metadata = created(name, second);
    policy
}
