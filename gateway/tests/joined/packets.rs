//! What passes, whole and in both directions.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::traffic::{icmp, udp};
use netns_tests::{Capture, World, world_test};

use crate::end::LIMIT;
use crate::{Outer, joined, prepared, started};

#[test]
fn pods_reach_pods_in_both_families_over_ipv4() {
    world_test(|world| pods_reach_pods(world, Outer::V4));
}

#[test]
fn pods_reach_pods_in_both_families_over_ipv6() {
    world_test(|world| pods_reach_pods(world, Outer::V6));
}

fn pods_reach_pods(world: &World, outer: Outer) -> Result<()> {
    let (one, other) = joined(world, outer)?;
    let inner = [&one, &other].into_iter().map(|end| end.cluster.ranges().pods());
    let capture = Capture::of_clear_text(world.internet(), inner.collect())?;
    let (client, server) = (one.node.pod("client")?, other.node.pod("server")?);
    for address in server.addresses().both() {
        icmp::ping(&client, address)?;
    }
    for address in client.addresses().both() {
        icmp::ping(&server, address)?;
    }
    let seen = capture.stop()?;
    ensure!(seen.passed > 0 && seen.wanted == 0, "nothing passes in clear: {seen:?}");
    let endpoint = one.status()?["peers"][0]["sessions"][0]["endpoint"].to_string();
    ensure!(endpoint.contains('[') == (outer == Outer::V6), "over the family that was asked for: {endpoint}");
    Ok(())
}

#[test]
fn packets_of_every_size_up_to_the_mtu_arrive_unchanged() {
    world_test(|world| {
        let (one, other) = joined(world, Outer::V4)?;
        let (client, server) = (one.node.pod("client")?, other.node.pod("server")?);
        let _echo = server.namespace().spawn(|| udp::serve_echo(7))?;
        // IPv4 and UDP headers have 28 bytes, IPv6 and UDP 48.
        for (family, headers) in [(0, 28), (1, 48)] {
            let target = server.addresses().with_port(7)[family];
            wait_for_echo(&client, target)?;
            for size in [8, 15, 16, 17, 500, 1280 - headers, 1419 - headers, 1420 - headers] {
                let echoes = udp::echo(&client, target, 5, size, LIMIT)?;
                ensure!(echoes.answered == 5, "{size} bytes to {target}: {echoes:?}");
            }
            // Larger ones are cut by whoever sends them, once it was told how small, and put together again behind the
            // tunnel.
            let echoes = udp::echo(&client, target, 20, 8_000, Duration::from_millis(300))?;
            ensure!(echoes.answered > 0, "fragments to {target}: {echoes:?}");
        }
        Ok(())
    });
}

fn wait_for_echo(client: &netns_tests::Host, target: SocketAddr) -> Result<()> {
    // The echo server's thread may not have its socket yet.
    for _ in 0..50 {
        if udp::echo(client, target, 1, 8, Duration::from_millis(200))?.answered > 0 {
            return Ok(());
        }
    }
    anyhow::bail!("no echo from {target}")
}

#[test]
fn every_lane_carries_packets_and_a_cluster_with_one_lane_joins_one_with_two() {
    world_test(|world| {
        let (one, other) = prepared(world, Outer::V4, [2, 1])?;
        let (one, other) = started(one, other)?;
        one.wait_for("two sessions", |end| {
            let sessions = end.status()?["peers"][0]["sessions"].clone();
            Ok(sessions
                .as_array()
                .is_some_and(|all| all.len() == 2 && all.iter().all(|session| session["handshakeAge"].is_number())))
        })?;
        let (client, server) = (one.node.pod("client")?, other.node.pod("server")?);
        for device in ["tombolo0", "tombolo1"] {
            one.route_over(device, &[&other.cluster])?;
            for address in server.addresses().both() {
                icmp::ping(&client, address)?;
            }
        }
        Ok(())
    });
}

#[test]
fn ping_is_a_real_packet_and_says_so_when_nobody_answers() {
    world_test(|world| {
        let (one, mut other) = joined(world, Outer::V4)?;
        let answer = one.ask("ping?peer=birch")?;
        ensure!(answer["roundTripMs"].as_f64().is_some_and(|took| took > 0.0), "{answer}");
        ensure!(one.ask("ping?peer=cedar")?["reason"].as_str().is_some_and(|text| text.contains("no peer")));
        other.kill()?;
        let answer = one.ask("ping?peer=birch")?;
        ensure!(answer["roundTripMs"].is_null() && answer["reason"].as_str().is_some_and(|text| !text.is_empty()));
        Ok(())
    });
}
