//! Peers whose prefixes overlap ours and each other's (decision 7).

use serde_json::json;

use super::world::{T0, World, local_cluster, object, peer};
use super::*;
use crate::testing::cluster;

/// Amber, which has 10.1.0.0/16 and may translate into `pool`.
fn amber(pool: &str) -> World {
    let mut world = World::empty();
    world.show_resets();
    let mut local = local_cluster();
    local.spec.translation_prefixes = vec![pool.parse().unwrap()];
    world.put(local);
    world.put_namespace("shop");
    world
}

/// A peer that has 10.1.0.0/16 as well.
fn overlapping(name: &str) -> ClusterPeer {
    let mut peer = peer(name, 1);
    peer.spec.allow_overlap = true;
    peer
}

fn translations(world: &World, name: &str) -> Vec<TranslatedPrefix> {
    world.get::<ClusterPeer>("", name).unwrap().translations().to_vec()
}

#[test]
fn an_overlapping_peers_endpoints_are_imported_as_they_are_seen_here() {
    let mut world = amber("10.240.0.0/16");
    world.put(overlapping("birch"));
    world.settle();
    let given = TranslatedPrefix { real: "10.1.0.0/16".parse().unwrap(), seen: "10.240.0.0/16".parse().unwrap() };
    assert_eq!(translations(&world, "birch"), [given]);
    let accepted = world.condition::<ClusterPeer>("", "birch", "Accepted");
    assert_eq!(accepted, Some(("True".into(), "Accepted".into())));
    world.hears("birch", 1, &["10.1.2.3", "10.2.0.1"]);
    world.settle();
    let shown = world.slices().remove(0);
    assert_eq!((shown.0.as_str(), shown.1), ("birch", vec![("10.240.2.3".to_string(), true)]));
    let refused = world.get::<ClusterPeer>("", "birch").unwrap().status.unwrap().refused;
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].starts_with("EndpointOutsidePrefixes"), "{refused:?}");
}

#[test]
fn nothing_of_an_overlapping_prefix_is_imported_before_everybody_can_know_how_it_is_seen() {
    let mut world = amber("10.240.0.0/16");
    world.put(overlapping("birch"));
    // The status is planned, and not written yet: gateways and nodes read it there.
    world.hears("birch", 1, &["10.1.2.3"]);
    let usable = world.engine.remote().usable(&cluster("birch")).unwrap();
    assert!(usable.iter().all(|(_, item)| match &**item {
        crate::advertisement::Item::Slice(slice) => slice.endpoints.is_empty(),
        crate::advertisement::Item::Service(_) => true,
    }));
    world.settle();
    assert_eq!(world.slices()[0].1[0].0, "10.240.2.3");
}

#[test]
fn a_range_once_given_is_kept_over_restarts_and_whoever_comes_or_goes() {
    let mut world = amber("10.240.0.0/12");
    world.put(overlapping("birch"));
    world.settle();
    world.put(overlapping("cedar"));
    world.settle();
    let (birch, cedar) = (translations(&world, "birch"), translations(&world, "cedar"));
    assert!(birch.len() == 1 && cedar.len() == 1 && !birch[0].seen.overlaps(&cedar[0].seen));
    world.engine = Engine::new(IdentityKey([1; 32]), "e".into(), None, Bounds::default(), T0);
    world.show_resets();
    world.settle();
    assert_eq!((translations(&world, "birch"), translations(&world, "cedar")), (birch, cedar.clone()));
    // Blocked, birch keeps its range, and cedar its own.
    let mut blocked: ClusterPeer = world.get("", "birch").unwrap();
    blocked.spec.state = PeerState::Blocked;
    world.put(blocked);
    world.settle();
    assert_eq!(translations(&world, "birch").len(), 1);
    assert_eq!(translations(&world, "cedar"), cedar);
}

#[test]
fn a_peer_that_may_not_overlap_and_one_for_which_no_range_is_left_are_refused_by_name() {
    let mut world = amber("10.240.0.0/16");
    world.put(overlapping("birch"));
    world.put(overlapping("cedar"));
    world.put(peer("dogwood", 1));
    world.settle();
    let refused = |name| world.get::<ClusterPeer>("", name).unwrap().status.unwrap().refused;
    let without: Vec<&str> = ["birch", "cedar"].into_iter().filter(|name| !refused(name).is_empty()).collect();
    assert_eq!(without.len(), 1, "there is one range for both");
    assert_eq!(
        refused(without[0]),
        [
            "10.1.0.0/16 overlaps 10.1.0.0/16 of this cluster, and translationPrefixes of the LocalCluster have no /16 left for it"
        ]
    );
    assert_eq!(refused("dogwood"), ["10.1.0.0/16 overlaps 10.1.0.0/16 of this cluster"]);
    let condition = world.condition::<ClusterPeer>("", without[0], "Accepted");
    assert_eq!(condition, Some(("False".into(), "PrefixRefused".into())));
    // More room, and it is served.
    let mut local = local_cluster();
    local.spec.translation_prefixes = vec!["10.240.0.0/15".parse().unwrap()];
    let held: LocalCluster = world.get("", "local").unwrap();
    local.metadata = held.metadata;
    local.status = held.status;
    world.put(local);
    world.settle();
    let names = ["birch", "cedar"];
    let given: BTreeSet<TranslatedPrefix> = names.iter().flat_map(|name| translations(&world, name)).collect();
    assert_eq!(given.len(), 2);
    assert_eq!(world.condition::<ClusterPeer>("", without[0], "Accepted"), Some(("True".into(), "Accepted".into())));
}

#[test]
fn a_translation_that_somebody_wrote_by_hand_is_used_only_when_it_is_ours_to_give() {
    let mut world = amber("10.240.0.0/12");
    let by_hand = |seen: &str| -> ClusterPeer {
        let mut value = serde_json::to_value(overlapping("birch")).unwrap();
        value["status"] = json!({ "translations": [{ "real": "10.1.0.0/16", "seen": seen }] });
        object(value)
    };
    world.put(by_hand("10.9.0.0/16"));
    world.settle();
    let given = translations(&world, "birch");
    assert!("10.240.0.0/12".parse::<api::Prefix>().unwrap().covers(&given[0].seen), "{given:?}");
}
