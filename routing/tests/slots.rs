//! Shares as slots.

mod world;

use std::collections::BTreeMap;

use proptest::prelude::*;
use routing::slots::{client_slots, endpoint_weights, quotas, random_slots};
use routing::{Cluster, EndpointCount, Share, Standing, decide};
use world::*;

const MOST: usize = 256;

fn equal(count: u32) -> BTreeMap<u32, u64> {
    (0..count).map(|endpoint| (endpoint, 1)).collect()
}

#[test]
fn equal_endpoints_take_one_slot_each() {
    assert_eq!(random_slots(&quotas(&equal(10), MOST, 0), &[]), (0..10).collect::<Vec<_>>());
}

#[test]
fn weights_that_fit_are_exact() {
    let shares = [Share { cluster: id("birch"), weight: 7 }, Share { cluster: id("cedar"), weight: 3 }];
    let endpoints = BTreeMap::from([(id("birch"), vec!["b1", "b2"]), (id("cedar"), vec!["c1", "c2", "c3"])]);
    let weights = endpoint_weights(&shares, &endpoints);
    let slots = random_slots(&quotas(&weights, MOST, 0), &[]);
    assert_eq!(slots.len(), 20);
    assert_eq!(slots.iter().filter(|name| name.starts_with('b')).count(), 14);
}

#[test]
fn when_one_of_ten_leaves_one_other_moves_at_most() {
    let before = random_slots(&quotas(&equal(10), MOST, 0), &[]);
    let mut fewer = equal(10);
    fewer.remove(&3);
    let after = random_slots(&quotas(&fewer, MOST, 0), &before);
    assert_eq!(after.len(), 9);
    assert_eq!(after.iter().zip(&before).filter(|(a, b)| a != b).count(), 1);
}

#[test]
fn hosts_with_different_seeds_leave_out_different_endpoints_of_too_many() {
    let (one, other) = (quotas(&equal(1000), MOST, 1), quotas(&equal(1000), MOST, 2));
    assert_eq!((one.len(), other.len()), (MOST, MOST));
    assert_ne!(one, other);
}

#[test]
fn a_client_keeps_its_endpoint_when_another_leaves_but_for_few() {
    let before = client_slots(&equal(10), MOST);
    let mut fewer = equal(10);
    fewer.remove(&3);
    let after = client_slots(&fewer, MOST);
    let moved = before.iter().zip(&after).filter(|(b, a)| **b != 3 && b != a).count();
    // Without consistency nine tenths of 256 would move.
    assert!(moved < 40, "{moved} of 256 slots moved without need");
    assert!(!after.contains(&3));
}

fn weights() -> impl Strategy<Value = BTreeMap<u32, u64>> {
    proptest::collection::btree_map(0u32..500, 0u64..=100_000, 0..300)
}

proptest! {
    #[test]
    fn a_share_of_slots_is_within_one_slot_of_the_weight(weights in weights(), seed: u64) {
        let slots = random_slots(&quotas(&weights, MOST, seed), &[]);
        let whole: u64 = weights.values().sum();
        prop_assert!(slots.len() <= MOST);
        prop_assert_eq!(slots.is_empty(), whole == 0);
        for (endpoint, weight) in &weights {
            let got = slots.iter().filter(|slot| *slot == endpoint).count() as f64;
            let asked = *weight as f64 / whole.max(1) as f64 * slots.len() as f64;
            prop_assert!((got - asked).abs() < 1.0 + 1e-9, "{} asked {} got {}", endpoint, asked, got);
            prop_assert!(*weight > 0 || got == 0.0);
        }
    }

    #[test]
    fn a_clients_table_is_full_and_within_one_slot_of_the_weight(weights in weights()) {
        let slots = client_slots(&weights, MOST);
        let whole: u64 = weights.values().sum();
        prop_assert_eq!(slots.len(), if whole == 0 { 0 } else { MOST });
        for (endpoint, weight) in &weights {
            let got = slots.iter().filter(|slot| *slot == endpoint).count() as f64;
            let asked = *weight as f64 / whole.max(1) as f64 * MOST as f64;
            prop_assert!((got - asked).abs() < 1.0 + 1e-9 && (*weight > 0 || got == 0.0));
        }
    }

    #[test]
    fn an_endpoint_keeps_its_slots_as_far_as_its_quota_goes(before in weights(), after in weights(), seed: u64) {
        let before = random_slots(&quotas(&before, MOST, seed), &[]);
        let wanted = quotas(&after, MOST, seed);
        let slots = random_slots(&wanted, &before);
        for (endpoint, quota) in &wanted {
            prop_assert_eq!(slots.iter().filter(|slot| *slot == endpoint).count(), *quota);
            let had = before.iter().take(slots.len()).filter(|slot| *slot == endpoint).count();
            let kept = slots.iter().zip(&before).filter(|(a, b)| a == b && *a == endpoint).count();
            prop_assert!(kept >= had.min(*quota));
        }
    }
}

prop_compose! {
    fn any_world()(
        clusters in proptest::collection::vec((0u8..4, 0u8..3, 0u32..5, 0u32..5, 1u64..100), 0..6),
        tiers in proptest::collection::vec(
            (proptest::collection::vec((0usize..8, 0u16..=1000), 1..5), any::<bool>(), proptest::option::of(0u32..12)),
            0..5),
        now in 0u64..5_000,
    ) -> World {
        let mut world = World::new();
        world.clusters.remote.clear();
        world.endpoints.clear();
        world.now = api::time::Instant::from_millis(now);
        for (index, (health, peer, ready, more, distance)) in clusters.into_iter().enumerate() {
            let name = id(&format!("c{index}"));
            let health = [None, up(distance), up(distance), down()][usize::from(health)].clone();
            let peer = [api::cluster_peer::PeerState::Active, api::cluster_peer::PeerState::Active,
                api::cluster_peer::PeerState::Drained][usize::from(peer)];
            world.clusters.remote.insert(name.clone(), Cluster { health, peer, ..Cluster::default() });
            world.endpoints.insert(name, EndpointCount { ready, total: ready + more });
        }
        let tiers: Vec<_> = tiers.into_iter().map(|(clusters, nearest, spill)| {
            let choices = clusters.into_iter().map(|(index, weight)| match index {
                6 => local(),
                7 => labelled(&[], weight),
                _ => named(&format!("c{index}"), weight),
            }).collect();
            let share = if nearest { api::routing_policy::Share::Nearest } else { Default::default() };
            let spill_below = spill.map(|ready| api::routing_policy::SpillBelow { ready: Some(ready), percent: None });
            api::routing_policy::Tier { share, spill_below, ..tier(choices) }
        }).collect();
        if !tiers.is_empty() {
            world.policy(tiers);
        }
        world
    }
}

proptest! {
    #[test]
    fn only_clusters_that_can_serve_get_a_share_and_verdicts_agree_with_shares(mut world in any_world()) {
        let decision = world.decide();
        for verdict in &decision.verdicts {
            let shared = decision.shares.iter().any(|share| share.cluster == verdict.cluster);
            prop_assert_eq!(shared, verdict.standing == Standing::Used);
            if shared {
                prop_assert!(verdict.ready > 0);
                prop_assert!(world.clusters.standing(&verdict.cluster, world.now).is_ok());
            }
        }
        // A tier that can serve is never passed over in silence.
        let standby = decision.verdicts.iter().any(|verdict| verdict.standing == Standing::Standby);
        prop_assert!(!(standby && decision.shares.is_empty()));
        prop_assert!(decision.shares.iter().map(|share| share.weight).sum::<u64>() <= u64::from(u32::MAX));
    }

    #[test]
    fn a_decision_repeated_with_its_memory_is_the_same(mut world in any_world()) {
        let first = world.decide();
        prop_assert_eq!(world.decide(), first);
    }

    #[test]
    fn policies_may_arrive_in_any_order(mut order in Just((0..6).collect::<Vec<i64>>()).prop_shuffle()) {
        let world = World::new();
        let decide_after = |order: &[i64]| {
            let mut policies = routing::PolicySet::default();
            for age in order {
                let choice = named(["birch", "cedar", "elm"][*age as usize % 3], 100);
                policies.apply(&policy(&format!("p{age}"), age / 2, vec![target("web", None)], vec![tier(vec![choice])]));
            }
            decide(&routing::Question {
                namespace: "shop", service: "web", port: "http",
                clusters: &world.clusters, policies: &policies, endpoints: &world.endpoints,
                memory: &world.memory, now: world.now,
            })
        };
        let shuffled = decide_after(&order);
        order.sort_unstable();
        prop_assert_eq!(shuffled, decide_after(&order));
    }
}
