//! Stories of three clusters, each with one thing that happens.

use std::time::Duration;

use api::ClusterId;
use api::health::{PathReason, Reachability};
use gateway_core::paths::ROOM_PER_LINK;
use gateway_core::{Arena, EventKind, PathState, Refusal};

use crate::packets;
use crate::world::{AMBER, BIRCH, CEDAR, Weather, World, pod, topology};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// 400 ms of silence, the delay of the last packets, and a probe's pace.
const DOWN_BUDGET: Duration = ms(460);
/// A handshake a second, over as many endpoints as a link may know, and the probes after it.
const UP_BUDGET: Duration = ms(4000);

#[test]
fn clusters_that_start_together_are_joined_within_a_second() {
    let mut world = World::new(1);
    assert!(world.run_until(ms(1200), World::all_up).is_some(), "{}", world.describe());
}

#[test]
fn packets_of_both_families_arrive_at_their_cluster_alone() {
    let mut world = World::joined(2);
    let sent: Vec<u64> = [(AMBER, BIRCH), (BIRCH, CEDAR), (CEDAR, AMBER)]
        .into_iter()
        .flat_map(|(from, to)| [(from, to, false), (from, to, true)])
        .map(|(from, to, ipv6)| world.send(from, to, ipv6))
        .collect();
    world.run(ms(50));
    assert!(sent.iter().all(|number| world.has_arrived(*number)));
    assert_eq!(world.violations, Vec::<String>::new());
}

#[test]
fn a_cut_is_noticed_on_both_sides_within_the_budget_and_mended_after_it_heals() {
    for seed in 0..10 {
        let mut world = World::joined(seed);
        world.run(ms(seed * 13));
        world.block(AMBER, BIRCH);
        world.block(BIRCH, AMBER);
        let down = |world: &World| world.is(AMBER, BIRCH, PathState::Down) && world.is(BIRCH, AMBER, PathState::Down);
        assert!(world.run_until(DOWN_BUDGET, down).is_some(), "{}", world.describe());
        assert!(world.is(AMBER, CEDAR, PathState::Up), "the others go on");
        world.run(ms(5000));
        world.heal();
        assert!(world.run_until(UP_BUDGET, World::all_up).is_some(), "{}", world.describe());
    }
}

#[test]
fn a_cut_in_one_direction_is_noticed_on_both_sides() {
    let mut world = World::joined(3);
    world.block(AMBER, BIRCH);
    let down = |world: &World| world.is(AMBER, BIRCH, PathState::Down) && world.is(BIRCH, AMBER, PathState::Down);
    assert!(world.run_until(ms(900), down).is_some(), "{}", world.describe());
    let id = ClusterId::new("birch").unwrap();
    let now = world.time_at(AMBER);
    let report = world.gateway(AMBER).paths.health_report(now);
    let peer = report.peers.iter().find(|peer| peer.cluster == id).unwrap();
    assert_eq!((peer.reachability, peer.reason), (Reachability::Down, PathReason::PeerDoesNotHearUs));
}

#[test]
fn a_killed_gateway_is_back_within_the_budget_and_its_peers_know_it_restarted() {
    let mut world = World::joined(4);
    world.restart(BIRCH);
    assert!(world.run_until(UP_BUDGET, World::all_up).is_some(), "{}", world.describe());
    world.run(ms(300));
    assert!(world.gateway(AMBER).events.iter().any(|event| event.kind == EventKind::PeerRestarted));
    let number = world.send(AMBER, BIRCH, false);
    world.run(ms(50));
    assert!(world.has_arrived(number));
}

#[test]
fn a_translator_that_takes_new_ports_costs_no_session_and_no_second() {
    let mut world = World::joined(5);
    world.rebind();
    let number = world.send(CEDAR, AMBER, true);
    world.run(ms(300));
    assert!(world.all_up() && world.times_down(AMBER) == 0, "{}", world.describe());
    let answer = world.send(AMBER, CEDAR, true);
    world.run(ms(50));
    assert!(world.has_arrived(number) && world.has_arrived(answer), "{}", world.describe());
}

#[test]
fn a_killed_gateway_whose_peer_moved_is_found_by_that_peer() {
    let mut world = World::joined(6);
    world.rebind();
    world.run(ms(500));
    // amber forgets where cedar went, and what is written down is stale.
    world.restart(AMBER);
    assert!(world.run_until(UP_BUDGET, World::all_up).is_some(), "{}", world.describe());
}

#[test]
fn a_machine_that_wakes_after_an_hour_agrees_on_new_keys_at_once() {
    let mut world = World::joined(7);
    world.jump(AMBER, Duration::from_secs(3600));
    world.run(ms(1500));
    assert!(world.all_up(), "{}", world.describe());
    let number = world.send(AMBER, BIRCH, false);
    world.run(ms(50));
    assert!(world.has_arrived(number));
}

#[test]
fn keys_are_renewed_for_ten_minutes_without_a_path_going_down_or_a_packet_lost() {
    let mut world = World::joined(8);
    let mut sent = Vec::new();
    for step in 0..600 {
        sent.push(world.send(step % 3, (step + 1) % 3, step % 2 == 0));
        world.run(Duration::from_secs(1));
    }
    assert!(sent.iter().all(|number| world.has_arrived(*number)));
    assert_eq!((0..3).map(|cluster| world.times_down(cluster)).sum::<usize>(), 0, "{}", world.describe());
}

#[test]
fn five_percent_loss_and_200_ms_of_jitter_take_no_path_down_in_ten_minutes() {
    for seed in 9..12 {
        let mut world = World::joined(seed);
        world.weather = Weather { loss_permille: 50, duplicate_permille: 20, delay: ms(20), jitter: ms(200) };
        // A path that takes forty times as long from one moment to the next may well count as gone for once.
        world.run(Duration::from_secs(10));
        let down = |world: &World| (0..3).map(|cluster| world.times_down(cluster)).sum::<usize>();
        let before = down(&world);
        world.run(Duration::from_secs(600));
        assert_eq!(down(&world), before, "seed {seed}: {}", world.describe());
        let now = world.time_at(AMBER);
        let losses: Vec<u16> =
            world.gateway(AMBER).paths.statuses(now).map(|(_, status)| status.loss_permille).collect();
        assert!(losses.iter().any(|loss| *loss > 0), "and the loss is seen: {losses:?}");
    }
}

#[test]
fn of_two_clusters_at_one_distance_none_seems_nearer_by_a_fifth_through_loss_and_jitter() {
    for (seed, loss_permille) in [(14, 50), (15, 200)] {
        let mut world = World::joined(seed);
        world.weather = Weather { loss_permille, duplicate_permille: 20, delay: ms(20), jitter: ms(200) };
        // A minute to learn the new distance.
        world.run(Duration::from_secs(60));
        for second in 0..600 {
            world.run(Duration::from_secs(1));
            let now = world.time_at(AMBER);
            let report = world.gateway(AMBER).paths.health_report(now);
            let mut distances: Vec<Duration> = report.peers.iter().filter_map(|peer| peer.round_trip).collect();
            distances.sort();
            // What `nearest` of a routing policy wants before it changes its mind.
            assert!(distances[0] * 100 > distances[1] * 80, "second {second}, seed {seed}: {distances:?}");
        }
    }
}

#[test]
fn a_stranger_gets_no_answer_whatever_it_sends() {
    let mut world = World::joined(10);
    world.chat();
    for _ in 0..20 {
        world.run(ms(500));
        world.disturb();
    }
    assert_eq!(world.violations, Vec::<String>::new());
    assert!(world.all_up(), "{}", world.describe());
    let refused = world.gateway(AMBER).lanes[0].inbound.refusals();
    assert!(refused.total() > 0 && !refused.records().is_empty());
}

#[test]
fn a_gateway_that_went_bad_cannot_speak_for_others() {
    let mut world = World::joined(11);
    for ipv6 in [false, true] {
        world.cheat(AMBER, pod(CEDAR, ipv6), BIRCH);
        world.cheat(AMBER, pod(BIRCH, ipv6), BIRCH);
        world.cheat(AMBER, if ipv6 { "2001:db8::1" } else { "192.0.2.200" }.parse().unwrap(), BIRCH);
    }
    world.run(ms(50));
    assert_eq!(world.violations, Vec::<String>::new());
    assert!(world.gateway(BIRCH).lanes[0].inbound.refusals().count(Refusal::WrongSource) >= 6);
}

#[test]
fn a_drain_is_known_to_every_peer_within_an_instant_and_can_be_taken_back() {
    let mut world = World::joined(12);
    let now = world.time_at(AMBER);
    world.gateway(AMBER).paths.set_draining(true, now);
    assert!(!world.gateway(AMBER).paths.drain_is_acknowledged());
    world.run(ms(300));
    assert!(world.gateway(AMBER).paths.drain_is_acknowledged(), "{}", world.describe());
    let id = ClusterId::new("amber").unwrap();
    let now = world.time_at(BIRCH);
    let report = world.gateway(BIRCH).paths.health_report(now);
    let amber = report.peers.iter().find(|peer| peer.cluster == id).unwrap();
    assert_eq!((amber.reachability, amber.reason), (Reachability::Up, PathReason::PeerDraining));
    let number = world.send(AMBER, BIRCH, false);
    world.run(ms(50));
    assert!(world.has_arrived(number), "it forwards while it drains");
    let now = world.time_at(AMBER);
    world.gateway(AMBER).paths.set_draining(false, now);
    world.run(ms(300));
    let kinds: Vec<_> = world.gateway(BIRCH).events.iter().map(|event| event.kind).collect();
    assert!(kinds.contains(&EventKind::PeerDraining(true)) && kinds.contains(&EventKind::PeerDraining(false)));
}

#[test]
fn a_new_topology_disturbs_only_the_links_it_changes() {
    let mut world = World::joined(13);
    let mut without = topology(AMBER);
    without.peers.retain(|peer| peer.id.as_str() != "birch");
    let now = world.time_at(AMBER);
    let changed = world.gateway(AMBER).reconfigure(without, now);
    assert!(changed.added.is_empty() && changed.refused.is_empty() && changed.removed.len() == 2);
    world.run(ms(1000));
    assert!(world.is(AMBER, CEDAR, PathState::Up) && world.times_down(AMBER) == 0);
    world.inject(AMBER, &packets::udp(pod(AMBER, false), pod(BIRCH, false), 9, &[]));
    assert_eq!(world.gateway(AMBER).lanes[0].outbound.refusals().count(Refusal::NoRoute), 1);
    let now = world.time_at(AMBER);
    assert_eq!(world.gateway(AMBER).reconfigure(topology(AMBER), now).added.len(), 2);
    assert!(world.run_until(UP_BUDGET, World::all_up).is_some(), "{}", world.describe());
}

#[test]
fn claims_that_cannot_be_are_refused_by_name_and_the_rest_is_joined() {
    let mut world = World::joined(14);
    let mut greedy = topology(AMBER);
    greedy.peers[0].prefixes.push("10.1.7.0/24".parse().unwrap());
    greedy.peers[0].prefixes.push("10.3.0.0/17".parse().unwrap());
    greedy.peers[0].prefixes.push("0.0.0.0/0".parse().unwrap());
    let now = world.time_at(AMBER);
    let changed = world.gateway(AMBER).reconfigure(greedy, now);
    let reasons: Vec<String> = changed.refused.iter().map(ToString::to_string).collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(reasons.iter().all(|reason| reason.starts_with("birch claims")));
    world.run(ms(1000));
    assert!(world.all_up());
    let number = world.send(AMBER, CEDAR, false);
    world.run(ms(50));
    assert!(world.has_arrived(number), "cedar keeps what was its own");
}

#[test]
fn a_packet_larger_than_the_path_is_refused_and_its_sender_told() {
    let mut world = World::joined(15);
    for ipv6 in [false, true] {
        world.inject(AMBER, &packets::udp(pod(AMBER, ipv6), pod(BIRCH, ipv6), 9, &[0; 1400]));
    }
    let gateway = world.gateway(AMBER);
    assert_eq!(gateway.lanes[0].outbound.refusals().count(Refusal::TooBig), 2);
    assert_eq!(gateway.answers.len(), 2);
}

#[test]
fn a_flood_of_packets_that_are_too_large_is_not_answered_one_by_one() {
    let mut world = World::joined(16);
    for _ in 0..1000 {
        world.inject(AMBER, &packets::udp(pod(AMBER, true), pod(BIRCH, true), 9, &[0; 1400]));
    }
    assert_eq!(world.gateway(AMBER).answers.len(), 100);
}

#[test]
fn a_path_that_narrows_without_a_word_is_used_with_smaller_packets_within_seconds_and_fully_when_it_widens() {
    let mut world = World::joined(18);
    assert_eq!((world.mtu(AMBER, BIRCH), world.mtu(BIRCH, AMBER)), (1380, 1380));
    let large = packets::udp(pod(AMBER, true), pod(BIRCH, true), 9, &[0; 1380 - 48]);
    assert!(world.passes(AMBER, BIRCH, &large));

    world.narrow(AMBER, BIRCH, 1300);
    let limit = Duration::from_secs(6);
    assert!(world.run_until(limit, |world| world.mtu(AMBER, BIRCH) == 1300).is_some(), "{}", world.describe());
    assert_eq!(world.mtu(BIRCH, AMBER), 1380, "the way back is as wide as before");
    assert!(world.all_up() && world.times_down(AMBER) == 0, "{}", world.describe());
    assert!(!world.passes(AMBER, BIRCH, &large));
    let answer = world.gateway(AMBER).answers.pop().expect("the sender is told");
    assert_eq!((answer[40], &answer[44..48]), (2, 1300u32.to_be_bytes().as_slice()));
    assert!(world.passes(AMBER, BIRCH, &packets::udp(pod(AMBER, true), pod(BIRCH, true), 9, &[0; 1300 - 48])));

    world.narrow(AMBER, BIRCH, 9000);
    let limit = Duration::from_secs(15);
    assert!(world.run_until(limit, |world| world.mtu(AMBER, BIRCH) == 1380).is_some(), "{}", world.describe());
    assert!(world.passes(AMBER, BIRCH, &large));
    assert_eq!(world.violations, Vec::<String>::new());
}

#[test]
fn links_that_find_no_room_in_a_batch_are_served_in_the_next() {
    let mut world = World::new(17);
    let now = world.time_at(AMBER);
    let gateway = world.gateway(AMBER);
    let mut handshakes = 0;
    let mut out = Arena::new(ROOM_PER_LINK, 8);
    while gateway.paths.next_deadline() <= now {
        out.clear();
        gateway.paths.poll(&gateway.sessions, &mut out, now);
        assert!(!out.is_empty(), "every call does something");
        handshakes += out.len();
    }
    assert_eq!(handshakes, gateway.paths.links().count());
}
