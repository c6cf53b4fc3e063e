//! Gateways get new keys while downloads and datagrams pass: nothing is lost, also when the controller is killed on the
//! way, and a peer that was away finds the old keys in force until it has taken the new ones. The same for the identity of a
//! cluster.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use api::report::{ControllerReport, GatewayReport};
use netns_tests::deployment::{Deployment, Part};
use netns_tests::scenario::three_clusters::{PATIENCE, ThreeClusters};
use netns_tests::scenario::two_gateways::TwoGateways;
use netns_tests::traffic::http;
use netns_tests::world_test;

/// The keys of every lane of every gateway.
fn keys(deployment: &Deployment) -> Result<BTreeSet<String>> {
    let mut keys = BTreeSet::new();
    for gateway in deployment.cluster().gateways() {
        let report: GatewayReport = serde_json::from_value(deployment.ask(gateway, Part::Gateway, "status")?)?;
        ensure!(!report.lanes.is_empty(), "{} has no lanes", gateway.name());
        keys.extend(report.lanes.into_iter().map(|lane| lane.public_key));
    }
    Ok(keys)
}

/// Who still needs the old keys of which gateway, as the controller knows it.
fn waited_for(deployment: &Deployment) -> Result<Vec<(u16, Vec<String>)>> {
    let status = deployment.ask(deployment.cluster().gateway()?, Part::Controller, "status")?;
    let report: ControllerReport = serde_json::from_value(status)?;
    let rotations = report.rotations.context("the controller has not read the keys yet")?;
    Ok(rotations.into_iter().map(|rotation| (rotation.slot, rotation.waiting_for)).collect())
}

fn wait_until_over(deployment: &Deployment) -> Result<()> {
    deployment.eventually(PATIENCE, "the old keys are gone", || {
        let left = waited_for(deployment)?;
        ensure!(left.is_empty(), "waiting for {left:?}");
        Ok(())
    })
}

/// Waits until the gateways have heard of it.
fn has_new_keys_alone(deployment: &Deployment, before: &BTreeSet<String>) -> Result<()> {
    deployment.eventually(PATIENCE, "the gateways have new keys alone", || {
        let after = keys(deployment)?;
        ensure!(before.is_disjoint(&after) && before.len() == after.len(), "{before:?} became {after:?}");
        Ok(())
    })
}

#[test]
fn new_keys_cost_no_packet_and_no_connection_also_when_the_controller_is_killed_on_the_way() {
    world_test(|world| {
        let clusters = TwoGateways::joined(world, 1)?;
        let before = clusters.both().map(keys);
        let mut flows = clusters.flows()?;
        flows.start_measuring()?;

        let said = clusters.amber.types("keys rotate --wait", 0)?;
        ensure!(said.contains("keys of gateways 0, 1: Steady → Rotating"), "{said}");
        ensure!(said.contains("the old keys are gone"), "{said}");

        // The side that sends, and both of its gateways at once, with the controller dying twice.
        let (birch, host) = (&clusters.birch, clusters.birch.cluster().gateway()?);
        birch.types("keys rotate", 0)?;
        for _ in 0..2 {
            birch.process(Part::Controller, host)?.kill()?;
            birch.start_part(Part::Controller, host)?;
            birch.wait_until_ready(PATIENCE)?;
        }
        wait_until_over(birch)?;
        // What peers have heard of it, and let go.
        for (deployment, before) in clusters.both().into_iter().zip(before) {
            has_new_keys_alone(deployment, &before?)?;
            wait_until_over(deployment)?;
        }
        clusters.wait_until_all_are_used()?;
        flows.wait_until_all_go_on()?;
        let seen = flows.stop();
        ensure!(seen.ended.is_empty() && seen.lost == 0 && seen.sent > 0, "{seen:?}");
        Ok(())
    });
}

#[test]
fn a_peer_that_was_away_while_keys_changed_joins_again_by_the_old_ones() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let (amber, cedar) = (&clusters.amber, &clusters.cedar);
        let before = keys(amber)?;
        cedar.kill_everything()?;
        amber.types("keys rotate", 0)?;
        amber.eventually(PATIENCE, "cedar alone is waited for", || {
            let waiting = waited_for(amber)?;
            ensure!(waiting == [(0, vec!["cedar".to_owned()])], "waiting for {waiting:?}");
            Ok(())
        })?;
        let output = amber.tombolo(amber.cluster().gateway()?, &["status"])?;
        let status = String::from_utf8_lossy(&output.stdout);
        ensure!(status.contains("gateway 0: new keys for ") && status.contains("cedar still needs"), "{status}");

        cedar.start_everything()?;
        wait_until_over(amber)?;
        has_new_keys_alone(amber, &before)?;
        amber.wait_until_connected("cedar", PATIENCE)?;
        let [target, _] = clusters.web()?;
        clusters.wait_for_answers_from(target, &["birch", "cedar"])?;
        http::get_within(&clusters.client, target, PATIENCE)?;
        Ok(())
    });
}

/// The identity of a cluster as its own controller has it, and who is waited for while it is replaced.
fn identity(deployment: &Deployment) -> Result<(String, Option<Vec<String>>)> {
    let status = deployment.ask(deployment.cluster().gateway()?, Part::Controller, "status")?;
    let report: ControllerReport = serde_json::from_value(status)?;
    ensure!(!report.fingerprint.is_empty(), "the controller has no record yet");
    Ok((report.fingerprint, report.identity_rotation.map(|rotation| rotation.waiting_for)))
}

/// Waits until the old identity is gone, and gives the new one.
fn another_identity(deployment: &Deployment, before: &str) -> Result<String> {
    deployment.eventually(PATIENCE, "the old identity is gone", || {
        let (after, rotation) = identity(deployment)?;
        ensure!(rotation.is_none() && after != before, "{after} after {before}, waiting for {rotation:?}");
        Ok(after)
    })
}

/// Waits until a cluster is synced with a peer that it lets in by this identity alone.
fn knows_as(deployment: &Deployment, peer: &str, fingerprint: &str) -> Result<()> {
    deployment.eventually(PATIENCE, &format!("{peer} is known as {fingerprint}"), || {
        let status = deployment.ask(deployment.cluster().gateway()?, Part::Controller, "status")?;
        let report: ControllerReport = serde_json::from_value(status)?;
        let sync = report.peers.into_iter().find(|sync| sync.peer == peer).context("no such peer")?;
        ensure!(sync.synced && sync.fingerprint == fingerprint && sync.next_fingerprint.is_empty(), "{sync:?}");
        Ok(())
    })
}

#[test]
fn another_identity_costs_no_packet_and_no_connection_also_when_the_controller_is_killed_on_the_way() {
    world_test(|world| {
        let clusters = TwoGateways::joined(world, 1)?;
        let (amber, birch) = (&clusters.amber, &clusters.birch);
        let [first, second] = [identity(amber)?.0, identity(birch)?.0];
        let mut flows = clusters.flows()?;
        flows.start_measuring()?;

        let said = amber.types("identity rotate --wait", 0)?;
        ensure!(said.contains("identity: Steady → Rotating") && said.contains("the old identity is gone"), "{said}");
        let first = another_identity(amber, &first)?;

        // The side that sends, with the controller dying twice.
        let host = birch.cluster().gateway()?;
        birch.types("identity rotate", 0)?;
        for _ in 0..2 {
            birch.process(Part::Controller, host)?.kill()?;
            birch.start_part(Part::Controller, host)?;
            birch.wait_until_ready(PATIENCE)?;
        }
        let second = another_identity(birch, &second)?;
        knows_as(birch, "amber", &first)?;
        knows_as(amber, "birch", &second)?;
        clusters.wait_until_all_are_used()?;
        flows.wait_until_all_go_on()?;
        let seen = flows.stop();
        ensure!(seen.ended.is_empty() && seen.lost == 0 && seen.sent > 0, "{seen:?}");

        // What is on disk is enough for all of it to start again.
        for deployment in clusters.both() {
            deployment.kill_everything()?;
        }
        for deployment in clusters.both() {
            deployment.start_everything()?;
        }
        knows_as(birch, "amber", &first)?;
        knows_as(amber, "birch", &second)?;
        Ok(())
    });
}

#[test]
fn a_peer_that_was_away_while_the_identity_changed_joins_again_by_the_old_one_or_by_another_member() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let (amber, cedar) = (&clusters.amber, &clusters.cedar);
        let (first, _) = identity(amber)?;
        cedar.kill_everything()?;
        amber.types("identity rotate", 0)?;
        amber.eventually(PATIENCE, "cedar alone is waited for", || {
            let (_, waiting) = identity(amber)?;
            ensure!(waiting == Some(vec!["cedar".to_owned()]), "waiting for {waiting:?}");
            Ok(())
        })?;
        let output = amber.tombolo(amber.cluster().gateway()?, &["status"])?;
        let status = String::from_utf8_lossy(&output.stdout);
        ensure!(
            status.contains("identity: next one SHA256:") && status.contains("cedar does not trust it"),
            "{status}"
        );
        cedar.start_everything()?;
        let second = another_identity(amber, &first)?;
        knows_as(cedar, "amber", &second)?;

        // It is not waited for, and hears of it from birch.
        cedar.kill_everything()?;
        amber.types("identity rotate", 0)?;
        clusters.birch.eventually(PATIENCE, "birch is told", || {
            let (_, waiting) = identity(amber)?;
            ensure!(waiting == Some(vec!["cedar".to_owned()]), "waiting for {waiting:?}");
            Ok(())
        })?;
        amber.types("identity retire", 0)?;
        let third = another_identity(amber, &second)?;
        knows_as(&clusters.birch, "amber", &third)?;
        cedar.start_everything()?;
        knows_as(cedar, "amber", &third)?;
        knows_as(amber, "cedar", &identity(cedar)?.0)?;
        Ok(())
    });
}
