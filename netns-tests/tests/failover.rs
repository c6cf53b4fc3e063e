//! Two gateways a cluster: one goes away and comes back, in every way it can, and the flows through it go on.

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::ClusterPlan;
use netns_tests::scenario::clear_text;
use netns_tests::scenario::failover::{self, Event};
use netns_tests::scenario::other_programs::OtherPrograms;
use netns_tests::scenario::promise::EXCUSE_PERCENT;
use netns_tests::scenario::three_clusters::ThreeClusters;
use netns_tests::scenario::two_gateways::TwoGateways;
use netns_tests::{World, world_test};

/// Where other programs hold a good part of the cores ([`EXCUSE_PERCENT`]), another test among them, some retransmissions more than the promise
/// allows may be theirs. A flow that is not carried again at all is silent for ever.
const LONGEST_BESIDE_OTHERS: Duration = failover::SILENT_FOR.saturating_mul(4);

fn holds(world: &World, events: &[Event]) -> Result<()> {
    holds_in(&TwoGateways::joined(world, 1)?, events)
}

fn holds_in(clusters: &TwoGateways, events: &[Event]) -> Result<()> {
    for event in events {
        let others = OtherPrograms::watch()?;
        let measured = failover::measure(clusters, *event)?;
        let others = others.percent()?;
        let longest = if others < EXCUSE_PERCENT { failover::SILENT_FOR } else { LONGEST_BESIDE_OTHERS };
        println!("{}: {measured:?}; others held {others:.0} % of the cores", event.name());
        measured.check()?;
        for (what, seen) in [("gone", &measured.gone), ("back", &measured.back)] {
            let silent = seen.longest_silence;
            ensure!(
                silent < longest,
                "{}, {what}: a flow was silent for {silent:?}, others held {others:.0} % of the cores",
                event.name()
            );
        }
        let lossless = if event.is_graceful() { measured.gone.lost } else { 0 } + measured.back.lost;
        ensure!(lossless == 0, "{}: {lossless} datagrams were lost: {measured:?}", event.name());
    }
    Ok(())
}

#[test]
fn flows_go_on_when_a_gateway_is_killed_on_either_side_and_nothing_is_lost_when_it_returns() {
    world_test(|world| holds(world, &[Event::KilledHere, Event::KilledThere]));
}

#[test]
fn flows_go_on_when_a_gateways_host_loses_its_link_both_ways() {
    world_test(|world| holds(world, &[Event::Unplugged, Event::CutOff]));
}

#[test]
fn flows_go_on_when_a_gateways_host_is_heard_or_hears_in_one_direction_only() {
    world_test(|world| holds(world, &[Event::Mute, Event::Deaf]));
}

#[test]
fn nothing_is_lost_when_a_gateway_is_stopped_and_started_on_either_side() {
    world_test(|world| holds(world, &[Event::StoppedHere, Event::StoppedThere]));
}

#[test]
fn flows_go_on_when_a_gateway_loses_its_path_to_the_peer_alone() {
    world_test(|world| holds(world, &[Event::Partitioned]));
}

#[test]
fn a_gateway_of_two_lanes_carries_flows_by_both_and_its_loss_breaks_none() {
    world_test(|world| {
        // The flows that are measured are opened until every lane carries some.
        holds_in(&TwoGateways::joined(world, 2)?, &[Event::KilledHere])
    });
}

#[test]
fn a_third_cluster_is_joined_too_and_nothing_leaves_in_clear_when_both_gateways_are_killed() {
    world_test(|world| {
        let plan = ClusterPlan { gateways: 2, ..ClusterPlan::default() };
        let three = ThreeClusters::start_with(world, plan)?;
        three.introduce()?;
        three.export_web()?;
        let [target, _] = three.web()?;
        three.wait_for_answers_from(target, &["birch", "cedar"])?;
        holds_in(&TwoGateways::among(&three)?, &[Event::KilledHere])?;
        let leaked = clear_text::measure(&three, target)?;
        ensure!(leaked == 0, "{leaked} packets with inner addresses reached the router");
        Ok(())
    });
}
