//! Processes that die, addresses that move, gateways that leave.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use netns_tests::traffic::icmp;
use netns_tests::{Pod, world_test};
use serde_json::json;

use crate::end::{End, LIMIT, PORT};
use crate::{Outer, joined};

fn pods(one: &End, other: &End) -> Result<(Pod, Pod)> {
    Ok((one.node.pod("client")?, other.node.pod("server")?))
}

fn reach(client: &Pod, server: &Pod) -> Result<()> {
    server.addresses().both().into_iter().try_for_each(|address| icmp::ping(client, address).map(|_| ()))
}

#[test]
fn a_gateway_that_was_killed_is_noticed_and_joins_again_whichever_side_it_is() {
    world_test(|world| {
        let (mut one, mut other) = joined(world, Outer::V4)?;
        let (client, server) = pods(&one, &other)?;
        reach(&client, &server)?;
        for turn in ["other", "one"] {
            let (killed, witness) = if turn == "other" { (&mut other, &mut one) } else { (&mut one, &mut other) };
            killed.kill()?;
            witness.wait_until(killed.id(), "Down")?;
            let started = Instant::now();
            killed.start()?;
            killed.route_to(&[&witness.cluster])?;
            witness.wait_until(killed.id(), "Up")?;
            killed.wait_until(witness.id(), "Up")?;
            println!("{} is back after {:?}", killed.id(), started.elapsed());
            reach(&client, &server)?;
            let remembered = killed.ask("events")?.as_array().map_or(0, Vec::len);
            ensure!(remembered >= 2, "its journal has what was before its end: {remembered}");
            let events = witness.ask("events")?;
            let reasons: Vec<_> =
                events.as_array().context("events are a list")?.iter().map(|event| event["reason"].clone()).collect();
            ensure!(reasons.contains(&json!("SilentPeer")), "{reasons:?}");
            ensure!(reasons.contains(&json!("PeerRestarted")), "{reasons:?}");
        }
        Ok(())
    });
}

#[test]
fn a_gateway_whose_address_changes_is_followed() {
    world_test(|world| {
        let (one, other) = joined(world, Outer::V4)?;
        let (client, server) = pods(&one, &other)?;
        let before = one.node.addresses().v4;
        one.cluster.change_address(&one.node)?;
        let after = one.node.addresses().with_port(PORT)[0];
        ensure!(after.ip() != before, "the address did change");
        other.wait_for("the new endpoint", |end| {
            Ok(end.status()?["peers"][0]["sessions"][0]["endpoint"] == json!(after.to_string()))
        })?;
        one.wait_until("birch", "Up")?;
        reach(&client, &server)
    });
}

#[test]
fn a_gateway_behind_address_translation_calls_and_is_followed_when_it_is_rebound() {
    world_test(|world| {
        let (mut one, mut other) = crate::prepared(world, Outer::V4, [1, 1])?;
        one.cluster.hide_behind_nat()?;
        // Nobody can call amber: its record names no endpoint.
        let nowhere = one.record(&[]);
        other.trust_record("amber", &nowhere)?;
        one.trust(&other, &[other.node.addresses().with_port(PORT)[0]])?;
        let (one, other) = crate::started(one, other)?;
        let (client, server) = pods(&one, &other)?;
        reach(&client, &server)?;
        let endpoint =
            |end: &End| -> Result<String> { Ok(end.status()?["peers"][0]["sessions"][0]["endpoint"].to_string()) };
        let before = endpoint(&other)?;
        one.cluster.rebind_nat()?;
        other.wait_for("another port", |end| Ok(endpoint(end)? != before))?;
        one.wait_until("birch", "Up")?;
        reach(&server, &client)
    });
}

#[test]
fn a_gateway_that_is_stopped_tells_its_peer_before_it_goes() {
    world_test(|world| {
        let (mut one, other) = joined(world, Outer::V4)?;
        let process = one.process()?.clone();
        one.stop()?;
        let ended = process.wait_for_exit(LIMIT)?;
        ensure!(ended.success(), "it leaves in good order: {ended}");
        let events = other.ask("events")?;
        let events = events.as_array().context("events are a list")?;
        let place = |reason: &str| events.iter().position(|event| event["reason"] == json!(reason));
        ensure!(place("PeerDraining").is_some(), "{events:?}");
        ensure!(
            process.lines().iter().any(|line| line.contains("everybody_knows=true")),
            "{:?}",
            process.last_lines(5)
        );
        Ok(())
    });
}

#[test]
fn a_peer_that_is_blocked_is_cut_off_and_others_are_not_disturbed() {
    world_test(|world| {
        let (mut one, other) = joined(world, Outer::V4)?;
        let cedar = End::new(&world.cluster("cedar")?, 1)?;
        let handshake = |end: &End| -> Result<Option<f64>> {
            Ok(end.status()?["peers"][0]["sessions"][0]["handshakeAge"].as_f64())
        };
        let before = handshake(&one)?.context("a session with birch")?;
        one.trust(&cedar, &[])?;
        one.wait_for("cedar to be known", |end| {
            Ok(end.status()?["peers"].as_array().is_some_and(|all| all.len() == 2))
        })?;
        ensure!(handshake(&one)?.is_some_and(|age| age >= before), "birch's session is the same");
        one.block("birch")?;
        one.wait_for("birch to be gone", |end| {
            Ok(end.status()?["peers"].as_array().is_some_and(|all| all.iter().all(|path| path["peer"] != "birch")))
        })?;
        other.wait_until("amber", "Down")
    });
}

#[test]
fn a_gateway_starts_from_its_last_state_while_its_controller_is_away() {
    world_test(|world| {
        let (mut one, other) = joined(world, Outer::V4)?;
        let (client, server) = pods(&one, &other)?;
        let condition = |end: &End| -> Result<serde_json::Value> {
            Ok(end.read("TunnelGateway", "gateway-0")?["status"]["conditions"][0].clone())
        };
        one.wait_for("its status", |end| Ok(condition(end)?["status"] == "True"))?;
        one.kill()?;
        other.wait_until("amber", "Down")?;
        one.start_cut_off()?;
        one.route_to(&[&other.cluster])?;
        one.wait_until("birch", "Up")?;
        reach(&client, &server)?;
        ensure!(one.read("Lease", "gateway-slot-0")?.is_null(), "nothing could be written");
        ensure!(one.status()?["feed"]["interruptedFor"].is_number(), "and status says so");
        one.request(&json!({"cutOff": false}))?;
        one.wait_for("its slot", |end| Ok(!end.read("Lease", "gateway-slot-0")?.is_null()))?;
        one.wait_for("its status", |end| Ok(condition(end)?["status"] == "True"))
    });
}

#[test]
fn another_mtu_starts_the_lanes_anew_and_they_join_again() {
    world_test(|world| {
        let (mut one, other) = joined(world, Outer::V4)?;
        let (client, server) = pods(&one, &other)?;
        one.set_mtu(1300)?;
        one.wait_for("the new MTU", |end| Ok(end.status()?["peers"][0]["mtu"] == 1300))?;
        one.wait_until("birch", "Up")?;
        // Routes over a device go away with it.
        one.route_to(&[&other.cluster])?;
        other.wait_until("amber", "Up")?;
        reach(&client, &server)
    });
}
