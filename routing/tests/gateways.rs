//! What several gateways tell, as one view.

mod world;

use std::time::Duration;

use api::health::{HealthReport, PathReason, PeerHealth, Reachability};
use api::time::Instant;
use routing::GatewayReports;
use routing::gateway_reports::{PROVEN, SILENCE, UNANSWERED};
use world::id;

fn report(slot: u16, reachability: Reachability, milliseconds: u64) -> HealthReport {
    let peer = PeerHealth {
        cluster: id("birch"),
        reachability,
        reason: if reachability == Reachability::Up { PathReason::Answering } else { PathReason::SilentPeer },
        age: Duration::from_secs(3),
        round_trip: Some(Duration::from_millis(milliseconds)),
        loss_permille: 0,
        mtu: 1400 - slot,
        lanes: 1,
    };
    HealthReport { slot, draining: false, peers: vec![peer] }
}

fn at(milliseconds: u64) -> Instant {
    Instant::from_millis(10_000 + milliseconds)
}

#[test]
fn a_peer_is_up_when_one_gateway_reaches_it_and_only_that_gateway_is_a_path() {
    let mut reports = GatewayReports::default();
    assert!(reports.take(report(0, Reachability::Down, 9), at(0)));
    assert!(reports.take(report(1, Reachability::Up, 12), at(0)));
    assert_eq!(reports.clusters()[&id("birch")].reachability, Reachability::Up);
    assert_eq!(reports.paths(&id("birch")).into_keys().collect::<Vec<_>>(), [1]);
}

#[test]
fn round_trip_times_alone_are_no_change() {
    let mut reports = GatewayReports::default();
    reports.take(report(0, Reachability::Up, 9), at(0));
    assert!(!reports.take(report(0, Reachability::Up, 7), at(100)));
    assert_eq!(reports.clusters()[&id("birch")].round_trip, Some(Duration::from_millis(7)));
}

#[test]
fn a_silent_gateway_leaves_after_its_time_and_what_it_told_with_it() {
    let mut reports = GatewayReports::default();
    reports.take(report(0, Reachability::Up, 9), at(0));
    reports.take(report(1, Reachability::Up, 9), at(100));
    assert_eq!(reports.next_expiry(), Some(at(0) + SILENCE));
    assert!(!reports.expire(at(399)));
    assert!(reports.expire(at(400)));
    assert_eq!(reports.answering(), [1].into());
    assert!(reports.expire(at(500)));
    assert!(reports.clusters().is_empty());
}

#[test]
fn a_draining_gateway_is_used_only_when_there_is_no_other() {
    let mut reports = GatewayReports::default();
    let draining = HealthReport { draining: true, ..report(0, Reachability::Up, 9) };
    assert!(reports.take(draining, at(0)));
    assert_eq!(reports.paths(&id("birch")).len(), 1);
    reports.take(report(1, Reachability::Up, 9), at(0));
    assert_eq!(reports.paths(&id("birch")).into_keys().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_gateway_that_comes_back_is_used_beside_another_after_a_second_of_proof() {
    let mut reports = GatewayReports::default();
    let mut fresh = report(0, Reachability::Up, 9);
    fresh.peers[0].age = PROVEN - Duration::from_millis(1);
    reports.take(fresh.clone(), at(0));
    assert_eq!(reports.paths(&id("birch")).len(), 1, "alone it is used at once");
    reports.take(report(1, Reachability::Up, 9), at(0));
    assert_eq!(reports.paths(&id("birch")).into_keys().collect::<Vec<_>>(), [1]);
    fresh.peers[0].age = PROVEN;
    assert!(reports.take(fresh, at(1)), "the proof is news");
    assert_eq!(reports.paths(&id("birch")).len(), 2);
}

#[test]
fn a_reader_that_counts_its_questions_takes_a_gateway_as_silent_only_after_ten() {
    let mut reports = GatewayReports::default();
    reports.take(report(0, Reachability::Up, 9), at(0));
    reports.asked(0);
    assert!(!reports.expire(at(60_000)), "this process was asleep");
    assert_eq!(reports.next_expiry(), None, "the next question is what to wait for");
    (2..=UNANSWERED).for_each(|_| reports.asked(0));
    assert!(reports.expire(at(60_000)));
    assert!(reports.answering().is_empty());
}

#[test]
fn a_peer_that_fell_silent_proves_itself_from_when_it_is_heard_again_and_one_that_is_met_first_does_not() {
    let told = |reachability, reason, age| {
        let mut report = report(0, reachability, 9);
        (report.peers[0].reason, report.peers[0].age) = (reason, Duration::from_millis(age));
        report
    };
    let proving_until = |reports: &GatewayReports| reports.clusters()[&id("birch")].proving_until;
    let up = |age| told(Reachability::Up, PathReason::Answering, age);
    let mut reports = GatewayReports::default();
    reports.take(told(Reachability::Down, PathReason::NoHandshakeYet, 0), at(0));
    reports.take(up(0), at(100));
    assert_eq!(proving_until(&reports), None, "it was never away");
    reports.take(told(Reachability::Down, PathReason::SilentPeer, 0), at(2_000));
    assert_eq!(proving_until(&reports), None);
    assert!(reports.take(up(30), at(3_000)));
    assert_eq!(proving_until(&reports), Some(at(2_970) + PROVEN));
    reports.take(up(130), at(3_100));
    assert_eq!(proving_until(&reports), Some(at(2_970) + PROVEN), "it goes on");
    // A gateway of ours that was started anew has no past.
    assert!(reports.expire(at(3_100) + SILENCE));
    reports.take(up(0), at(4_000));
    assert_eq!(proving_until(&reports), None);
}
