//! Who answers, as promises.

mod world;

use std::time::Duration;

use api::cluster_peer::PeerState;
use api::health::{ClusterHealth, PathReason};
use api::member_record::MemberState;
use api::routing_policy::{Share, SpillBelow, Tier};
use api::time::Instant;
use routing::{Reason, Standing, Strangers};
use world::*;

fn pairs(list: &[(&str, u64)]) -> Vec<(String, u64)> {
    list.iter().map(|(name, weight)| (name.to_string(), *weight)).collect()
}

#[test]
fn without_a_policy_the_local_cluster_serves_alone() {
    let mut world = World::new();
    assert_eq!(world.shares(), pairs(&[("amber", 1)]));
    assert_eq!(world.reason("birch"), Reason::HigherTierServes);
}

#[test]
fn without_a_policy_and_without_ready_local_endpoints_all_healthy_clusters_serve_by_their_endpoints() {
    let mut world = World::new();
    world.ready("amber", 0, 2).ready("birch", 3, 3).ready("cedar", 1, 4);
    world.remote("elm").health = down();
    assert_eq!(world.shares(), pairs(&[("birch", 3), ("cedar", 1)]));
    assert_eq!(world.reason("amber"), Reason::NoReadyEndpoints);
    assert_eq!(world.reason("elm"), Reason::SilentPeer);
}

#[test]
fn the_first_tier_that_can_serve_does_and_weights_hold_inside_it() {
    let mut world = World::new();
    world.policy(vec![tier(vec![named("birch", 70), named("cedar", 30)]), tier(vec![named("elm", 100)])]);
    assert_eq!(world.shares(), pairs(&[("birch", 7), ("cedar", 3)]));
    assert_eq!(world.reason("elm"), Reason::HigherTierServes);
    assert_eq!(world.reason("amber"), Reason::NotInPolicy);
    world.remote("birch").health = down();
    assert_eq!(world.shares(), pairs(&[("cedar", 1)]));
    world.remote("cedar").peer = PeerState::Drained;
    assert_eq!(world.shares(), pairs(&[("elm", 1)]));
    assert_eq!(world.reason("cedar"), Reason::Drained);
}

#[test]
fn when_every_tier_is_exhausted_nobody_serves_though_others_could() {
    let mut world = World::new();
    world.policy(vec![tier(vec![named("birch", 100)])]);
    world.remote("birch").member = Some(MemberState::Draining);
    let decision = world.decide();
    assert!(decision.is_unserved());
    assert_eq!(world.reason("birch"), Reason::Draining);
    assert_eq!(world.reason("cedar"), Reason::NotInPolicy);
}

#[test]
fn weight_zero_gets_nothing_also_when_it_is_alone() {
    let mut world = World::new();
    world.policy(vec![tier(vec![named("birch", 0)])]);
    assert!(world.decide().is_unserved());
    assert_eq!(world.reason("birch"), Reason::WeightZero);
}

#[test]
fn a_cluster_selected_twice_keeps_its_first_tier_and_weight() {
    let mut world = World::new();
    world.policy(vec![tier(vec![named("birch", 10), labelled(&[("region", "eu")], 90)]), tier(vec![labelled(&[], 5)])]);
    assert_eq!(world.shares(), pairs(&[("birch", 1), ("cedar", 9)]));
    let verdicts = world.decide().verdicts;
    assert_eq!(verdicts.iter().map(|verdict| verdict.tier).collect::<Vec<_>>(), [Some(2), Some(1), Some(1), Some(2)]);
}

#[test]
fn unknown_is_not_healthy_but_for_a_moment_after_the_start() {
    let mut world = World::new();
    world.policy(vec![tier(vec![named("birch", 100)])]);
    world.remote("birch").health = None;
    world.now = Instant::from_millis(500);
    let decision = world.decide();
    assert_eq!(world.shares(), pairs(&[("birch", 1)]));
    assert_eq!(world.reason("birch"), Reason::NotMeasuredYet);
    world.now = decision.ask_again.unwrap();
    assert!(world.decide().is_unserved());
    assert_eq!(world.reason("birch"), Reason::NoGatewayAnswers);
}

#[test]
fn a_cluster_measured_down_is_not_used_in_the_first_moment_either() {
    let mut world = World::new();
    world.ready("amber", 0, 0);
    world.remote("birch").health = down();
    world.now = Instant::from_millis(100);
    assert_eq!(world.reason("birch"), Reason::SilentPeer);
}

#[test]
fn a_cluster_that_came_back_is_used_before_it_has_proved_itself_only_where_nobody_else_can_serve() {
    let mut world = World::new();
    world.policy(vec![tier(vec![named("birch", 100)]), tier(vec![named("cedar", 100)])]);
    let proven = world.now + Duration::from_secs(1);
    let proving = up(12).map(|health| ClusterHealth { proving_until: Some(proven), ..health });
    world.remote("birch").health = proving.clone();
    assert_eq!(world.shares(), pairs(&[("cedar", 1)]));
    assert_eq!(world.reason("birch"), Reason::Proving);
    assert_eq!(world.decide().ask_again, Some(proven));
    // Whom the policy gives nothing is no alternative, and neither is one that proves itself too.
    world.remote("cedar").health = proving;
    assert_eq!(world.shares(), pairs(&[("birch", 1)]));
    world.policy(vec![tier(vec![named("birch", 100), named("elm", 0)])]);
    assert_eq!(world.shares(), pairs(&[("birch", 1)]));
    assert_eq!(world.reason("birch"), Reason::Proving);
    world.policy(vec![tier(vec![named("birch", 70), named("elm", 30)])]);
    assert_eq!(world.shares(), pairs(&[("elm", 1)]));
    world.now = proven;
    assert_eq!(world.shares(), pairs(&[("birch", 7), ("elm", 3)]));
    assert_eq!(world.reason("birch"), Reason::Serving);
}

#[test]
fn a_cluster_whose_last_gateway_is_going_away_is_used_only_where_nobody_else_can_serve() {
    let mut world = World::new();
    world.policy(vec![tier(vec![named("birch", 100)]), tier(vec![named("cedar", 100)])]);
    let leaving = up(12).map(|health| ClusterHealth { reason: PathReason::PeerDraining, ..health });
    world.remote("birch").health = leaving;
    assert_eq!(world.shares(), pairs(&[("cedar", 1)]));
    assert_eq!(world.reason("birch"), Reason::GatewaysDraining);
    let birch = "birch".parse().unwrap();
    assert!(world.clusters.lets_finish(&birch, world.now), "what is open there goes on");
    world.remote("cedar").health = down();
    assert_eq!(world.shares(), pairs(&[("birch", 1)]));
    // By its own word the whole cluster is going away: that is no matter of gateways.
    world.remote("birch").member = Some(MemberState::Draining);
    assert!(world.decide().is_unserved());
}

#[test]
fn endpoints_of_a_cluster_that_is_no_peer_count_only_where_strangers_are_trusted() {
    let mut world = World::new();
    world.clusters.remote.clear();
    world.ready("amber", 0, 0);
    assert!(world.decide().is_unserved());
    assert_eq!(world.reason("birch"), Reason::NotAPeer);
    world.clusters.strangers = Strangers::Trusted;
    assert_eq!(world.shares().len(), 3);
}

fn nearest() -> Vec<Tier> {
    vec![Tier { share: Share::Nearest, ..tier(vec![named("birch", 100), named("cedar", 100), named("elm", 100)]) }]
}

#[test]
fn nearest_gives_all_to_the_lowest_round_trip_time() {
    let mut world = World::new();
    world.policy(nearest());
    assert_eq!(world.shares(), pairs(&[("birch", 1)]));
    assert_eq!(world.reason("cedar"), Reason::Farther);
    world.remote("birch").health = down();
    assert_eq!(world.shares(), pairs(&[("cedar", 1)]));
}

#[test]
fn nearest_stays_until_another_is_better_by_a_fifth_and_by_a_millisecond() {
    let mut world = World::new();
    world.policy(nearest());
    assert_eq!(world.shares(), pairs(&[("birch", 1)]));
    world.remote("cedar").health = up(11);
    assert_eq!(world.shares(), pairs(&[("birch", 1)]));
    world.remote("cedar").health = up(9);
    assert_eq!(world.shares(), pairs(&[("cedar", 1)]));
    world.remote("birch").health = up(8);
    assert_eq!(world.shares(), pairs(&[("cedar", 1)]));
    // Below a millisecond a fifth is noise.
    for (cluster, micros) in [("birch", 300), ("cedar", 1200)] {
        world.remote(cluster).health.as_mut().unwrap().round_trip = Some(Duration::from_micros(micros));
    }
    assert_eq!(world.shares(), pairs(&[("cedar", 1)]));
}

#[test]
fn the_local_cluster_is_nearest_without_hysteresis() {
    let mut world = World::new();
    let all = tier(vec![labelled(&[], 100)]);
    world.policy(vec![Tier { share: Share::Nearest, ..all }]);
    world.ready("amber", 0, 2);
    assert_eq!(world.shares(), pairs(&[("birch", 1)]));
    world.remote("birch").health.as_mut().unwrap().round_trip = Some(Duration::from_micros(10));
    world.ready("amber", 1, 2);
    assert_eq!(world.shares(), pairs(&[("amber", 1)]));
}

fn spilling(spill: SpillBelow) -> Vec<Tier> {
    vec![Tier { spill_below: Some(spill), ..tier(vec![local()]) }, tier(vec![named("birch", 100)])]
}

#[test]
fn a_tier_with_too_few_ready_endpoints_gives_the_missing_part_to_the_next() {
    let mut world = World::new();
    world.policy(spilling(SpillBelow { ready: Some(4), percent: None }));
    world.ready("amber", 3, 4);
    assert_eq!(world.shares(), pairs(&[("amber", 3), ("birch", 1)]));
    assert_eq!(world.reason("birch"), Reason::Spill);
    world.ready("amber", 4, 4);
    assert_eq!(world.shares(), pairs(&[("amber", 1)]));
    world.ready("amber", 0, 4);
    assert_eq!(world.shares(), pairs(&[("birch", 1)]));
}

#[test]
fn a_percentage_is_of_all_the_tiers_endpoints_rounded_up() {
    let mut world = World::new();
    world.policy(spilling(SpillBelow { ready: None, percent: Some(50) }));
    world.ready("amber", 3, 5);
    assert_eq!(world.shares(), pairs(&[("amber", 1)]));
    world.ready("amber", 2, 5);
    assert_eq!(world.shares(), pairs(&[("amber", 2), ("birch", 1)]));
}

#[test]
fn what_nobody_after_can_take_comes_back() {
    let mut world = World::new();
    world.policy(spilling(SpillBelow { ready: Some(10), percent: None }));
    world.remote("birch").health = down();
    assert_eq!(world.shares(), pairs(&[("amber", 1)]));
}

#[test]
fn every_known_cluster_has_a_verdict_and_the_decision_reads_as_json() {
    let mut world = World::new();
    world.endpoints.remove(&id("elm"));
    let decision = world.decide();
    let standings: Vec<Standing> = decision.verdicts.iter().map(|verdict| verdict.standing).collect();
    assert_eq!(standings, [Standing::Used, Standing::Standby, Standing::Standby, Standing::Excluded]);
    let json = serde_json::to_value(&decision).unwrap();
    assert_eq!(json["verdicts"][3]["reason"], "NoEndpoints");
    assert_eq!(json["policy"]["from"], "localFirst");
}
