//! State survives: everything restarted in any order, with peers present and away.

use std::time::{Duration, Instant};

use anyhow::ensure;
use netns_tests::deployment::Part;
use netns_tests::scenario::three_clusters::{PATIENCE, ThreeClusters};
use netns_tests::traffic::http;
use netns_tests::world_test;

#[test]
fn every_part_of_a_cluster_may_be_killed_and_started_again_in_any_order() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let [target, _] = clusters.web()?;
        let amber = &clusters.amber;
        let (gateway, worker) = (amber.cluster().gateway()?, amber.cluster().worker()?);
        let forwards = [
            (Part::Dns, gateway),
            (Part::Node, gateway),
            (Part::Controller, gateway),
            (Part::Node, worker),
            (Part::Gateway, gateway),
        ];
        for order in [forwards.to_vec(), forwards.iter().rev().copied().collect()] {
            for (part, node) in order {
                amber.process(part, node)?.kill()?;
                amber.start_part(part, node)?;
            }
            amber.wait_until_ready(PATIENCE)?;
            http::get_within(&clusters.client, target, PATIENCE)?;
            let addresses = amber.clusterset_addresses("shop", "web", PATIENCE)?;
            ensure!(
                addresses.contains(&target.ip()),
                "the clusterset address changed: {addresses:?}, was {}",
                target.ip()
            );
        }
        Ok(())
    });
}

#[test]
fn a_cluster_restarted_while_its_peers_are_away_serves_its_last_known_names() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let before = clusters.amber.clusterset_addresses("shop", "web", PATIENCE)?;
        clusters.birch.kill_everything()?;
        clusters.cedar.kill_everything()?;
        clusters.amber.kill_everything()?;
        let started = Instant::now();
        clusters.amber.start_everything()?;
        let after = clusters.amber.clusterset_addresses("shop", "web", PATIENCE)?;
        ensure!(before == after, "before {before:?}, after {after:?}");
        // The promise is a second; two cores may be shared with three other tests.
        ensure!(started.elapsed() < Duration::from_secs(10), "served after {:?}", started.elapsed());
        Ok(())
    });
}

#[test]
fn agents_serve_their_last_known_state_while_no_controller_runs() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let [target, _] = clusters.web()?;
        let amber = &clusters.amber;
        let (gateway, worker) = (amber.cluster().gateway()?, amber.cluster().worker()?);
        let endpoint = clusters.servers[0].addresses().both()[0].to_string();
        for (part, node) in [(Part::Node, worker), (Part::Node, gateway), (Part::Dns, gateway)] {
            amber.wait_until_kept(node, part, &endpoint, PATIENCE)?;
        }
        amber.process(Part::Controller, gateway)?.kill()?;
        for (part, node) in
            [(Part::Gateway, gateway), (Part::Node, worker), (Part::Node, gateway), (Part::Dns, gateway)]
        {
            amber.process(part, node)?.kill()?;
            amber.start_part(part, node)?;
        }
        http::get_within(&clusters.client, target, PATIENCE)?;
        amber.clusterset_addresses("shop", "web", PATIENCE)?;
        Ok(())
    });
}
