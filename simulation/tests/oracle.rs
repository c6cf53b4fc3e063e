//! The oracle sees what it is there for: a part that is broken on purpose is found out, and told as a short story.

use simulation::{Failure, Families, Happening, Order, Sabotage, Schedule, Shape, live};

/// Two clusters with one gateway each; birch alone has an endpoint of `shop/web`, and both know of it.
fn schedule(sabotage: Option<Sabotage>, trouble: &[(u64, Happening)]) -> Schedule {
    let (cluster, service) = (1, simulation::Name::Web);
    let endpoint = Happening::Endpoint { cluster, service, host: 0, place: 0, ready: Some(true) };
    let mut happenings = vec![(0, endpoint), (0, Happening::Export { cluster, service })];
    happenings.extend_from_slice(trouble);
    happenings.push((9_000, Happening::Calm));
    Schedule { seed: 1, clusters: vec![Shape::PLAIN; 2], hub: None, happenings, sabotage }
}

fn isolated() -> Vec<(u64, Happening)> {
    vec![(3_000, Happening::Isolate { cluster: 1 })]
}

fn told(sabotage: Sabotage, trouble: &[(u64, Happening)]) -> Failure {
    match live(&schedule(Some(sabotage), trouble)) {
        Ok(tally) => panic!("{sabotage:?} went unseen: {tally:?}"),
        Err(failure) => *failure,
    }
}

#[test]
fn the_same_story_is_well_where_nothing_is_broken() {
    let tally = live(&schedule(None, &isolated())).unwrap_or_else(|failure| panic!("{}", failure.describe(true)));
    assert!(tally.answered > 20 && tally.unserved > 20, "{tally:?}");
}

#[test]
fn filters_that_let_everything_in_are_found_out() {
    let failure = told(Sabotage::OpenFilters, &[]);
    assert!(failure.wrong[0].contains("after it was to be closed"), "{}", failure.describe(true));
}

#[test]
fn health_that_hides_a_lost_cluster_is_found_out() {
    let failure = told(Sabotage::RosyHealth, &isolated());
    assert!(failure.wrong[0].contains("which is lost since"), "{}", failure.describe(true));
}

#[test]
fn a_missing_blackhole_is_found_out_when_the_tunnel_dies() {
    let killed = Happening::Kill { cluster: 0, part: simulation::Part::Gateway(0) };
    let failure = told(Sabotage::NoBlackholes, &[(3_000, killed)]);
    assert!(failure.wrong.iter().any(|wrong| wrong.contains("in clear")), "{}", failure.describe(true));
}

#[test]
fn a_failing_story_loses_what_has_nothing_to_do_with_it() {
    let mut trouble = isolated();
    let clock = Happening::SetClock { cluster: 0, by: 600 };
    trouble.extend([(1_000, clock.clone()), (3_500, Happening::BackUp { cluster: 0 })]);
    let shrunk = told(Sabotage::RosyHealth, &trouble).shrink();
    let left = &shrunk.schedule.happenings;
    assert!(left.iter().any(|(_, happening)| matches!(happening, Happening::Isolate { .. })), "{left:?}");
    assert!(left.iter().all(|(_, happening)| *happening != clock), "{left:?}");
    assert!(shrunk.describe(false).contains("birch is cut off from the world"));
}

/// Orders of a cluster that stand nowhere: what the oracle says of them.
fn lost(gateways: [u16; 2], cluster: usize, order: Order) -> Vec<String> {
    let order = Happening::Order { cluster, order, undo: false };
    let mut lost = schedule(Some(Sabotage::LostOrders), &[(3_000, order)]);
    lost.clusters = gateways.iter().map(|gateways| Shape { gateways: *gateways, ..Shape::PLAIN }).collect();
    let held = live(&Schedule { sabotage: None, ..lost.clone() });
    held.unwrap_or_else(|failure| panic!("{}", failure.describe(true)));
    live(&lost).err().map_or_else(Vec::new, |failure| failure.wrong)
}

#[track_caller]
fn assert_told(wrong: &[String], words: &str) {
    assert!(wrong.iter().any(|line| line.contains(words)), "{words}: {wrong:?}");
}

#[test]
fn a_drained_peer_that_is_still_given_connections_is_found_out() {
    assert_told(&lost([1, 1], 0, Order::DrainPeer(1)), "gives shop/web to birch");
}

#[test]
fn a_cluster_that_asks_in_vain_to_be_given_nothing_is_found_out() {
    assert_told(&lost([1, 1], 1, Order::DrainCluster), "was given 10.2.1.10, and should get nobody");
    assert_told(&lost([1, 1], 1, Order::DrainNode(0)), "and should have birch 10.2.1.10 (not ready)");
}

#[test]
fn a_blocked_cluster_whose_connections_still_arrive_is_found_out() {
    assert_told(&lost([1, 1], 1, Order::BlockPeer(0)), "after its cluster was to be cut off");
}

#[test]
fn a_drained_gateway_that_is_still_used_is_found_out() {
    assert_told(&lost([2, 1], 0, Order::DrainGateway(0)), "goes by gateway 0 of amber, which is drained");
}

#[test]
fn a_lane_that_is_shut_costs_nothing_and_is_found_out_where_nobody_leaves_it() {
    let shut = Happening::Lane { cluster: 1, slot: 0, lane: 1, open: false };
    let mut story = schedule(None, &[(3_000, shut)]);
    story.clusters = vec![Shape { lanes: 2, ..Shape::PLAIN }; 2];
    live(&story).unwrap_or_else(|failure| panic!("{}", failure.describe(true)));
    let failure = live(&Schedule { sabotage: Some(Sabotage::RosyLanes), ..story }).expect_err("it went unseen");
    assert_told(&failure.wrong, "no answer, though nothing is in the way");
}

#[test]
fn what_is_missing_of_ipv6_alone_is_found_out() {
    let killed = Happening::Kill { cluster: 0, part: simulation::Part::Gateway(0) };
    let faults = [
        (Sabotage::OnlyIpv4, Families::Both, Vec::new(), "by Ipv6: nobody answers, and birch should"),
        (Sabotage::OpenFilters, Families::Ipv6, Vec::new(), "after it was to be closed"),
        (Sabotage::NoBlackholes, Families::Ipv6, vec![(3_000, killed)], "in clear"),
    ];
    for (sabotage, families, trouble, words) in faults {
        let mut story = schedule(None, &trouble);
        story.clusters = vec![Shape { families, ..Shape::PLAIN }; 2];
        live(&story).unwrap_or_else(|failure| panic!("{}", failure.describe(true)));
        let failure = live(&Schedule { sabotage: Some(sabotage), ..story }).expect_err("it went unseen");
        assert_told(&failure.wrong, words);
    }
}

#[test]
fn clusters_that_reach_each_other_by_a_hub_alone_are_found_out_where_it_passes_nothing_on() {
    let mut story = schedule(
        None,
        &[(3_000, Happening::Restart { cluster: 2, part: simulation::Part::Gateway(0), disk: simulation::Disk::Kept })],
    );
    (story.clusters, story.hub) = (vec![Shape::PLAIN; 3], Some(2));
    let tally = live(&story).unwrap_or_else(|failure| panic!("{}", failure.describe(true)));
    assert!(tally.passed_on > 100, "{tally:?}");
    let failure = live(&Schedule { sabotage: Some(Sabotage::LazyHub), ..story }).expect_err("it went unseen");
    assert_told(&failure.wrong, "amber gateway 0 has no path to birch 0");
}

#[test]
fn a_controller_that_slept_past_its_lease_and_writes_all_the_same_is_found_out() {
    let (cluster, service) = (1, simulation::Name::Api);
    let trouble = [
        (3_000, Happening::Sleep { cluster: 0, seconds: 20 }),
        // It falls asleep with the import under way, and of what it was to import nothing is left when it wakes.
        (3_200, Happening::Export { cluster, service }),
        (5_000, Happening::Unexport { cluster, service }),
    ];
    let tally = live(&schedule(None, &trouble)).unwrap_or_else(|failure| panic!("{}", failure.describe(true)));
    assert!(tally.late > 0, "{tally:?}");
    let failure = told(Sabotage::UncheckedWriter, &trouble);
    assert_told(&failure.wrong, "amber-0 did create ServiceImport api in amber, and the Lease is amber-1's");
}

#[test]
fn clusters_whose_pods_have_the_same_addresses_are_found_out_where_gateways_forget_as_what_they_see_them() {
    let restart = |cluster| {
        (3_000, {
            let (part, disk) = (simulation::Part::Gateway(0), simulation::Disk::Kept);
            Happening::Restart { cluster, part, disk }
        })
    };
    let db = |cluster: usize, host| Happening::Endpoint {
        cluster,
        service: simulation::Name::Db,
        host,
        place: 0,
        ready: Some(true),
    };
    let mut trouble = vec![restart(0), restart(1)];
    // By their names too, and at the same place in both.
    for cluster in 0..2 {
        trouble.extend([(0, db(cluster, 0)), (0, Happening::Export { cluster, service: simulation::Name::Db })]);
    }
    for families in [Families::Ipv4, Families::Both] {
        let plain = Shape { families, ..Shape::PLAIN };
        let mut story = schedule(None, &trouble);
        story.clusters = vec![plain, Shape { pods_like: Some(0), ..plain }];
        let tally = live(&story).unwrap_or_else(|failure| panic!("{}", failure.describe(true)));
        assert!(tally.answered > 20, "{tally:?}");
        story.sabotage = Some(Sabotage::LostTranslations);
        let failure = live(&story).expect_err("it went unseen");
        assert_told(&failure.wrong, "no answer, though nothing is in the way");
    }
}
