//! Gateways as processes in network namespaces, joined over a pretend internet, without root.

mod end;

use anyhow::{Result, ensure};
use netns_tests::traffic::icmp;
use netns_tests::{World, world_test};

use end::{End, PORT};

/// Two clusters that trust each other, with this outer family only, joined and up.
fn joined(world: &World, outer: usize) -> Result<(End, End)> {
    let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
    let (mut one, mut other) = (End::new(&amber, 1)?, End::new(&birch, 1)?);
    let endpoints = [&one, &other].map(|end| end.node.addresses().with_port(PORT)[outer]);
    one.trust(&other, &endpoints[1..])?;
    other.trust(&one, &endpoints[..1])?;
    for (end, peer) in [(&mut one, &birch), (&mut other, &amber)] {
        end.add_infrastructure_addresses()?;
        end.start()?;
        end.route_to(&[peer])?;
    }
    one.wait_until("birch", "Up")?;
    other.wait_until("amber", "Up")?;
    Ok((one, other))
}

#[test]
fn pods_reach_pods_in_both_families_over_ipv4() {
    world_test(|world| pods_reach_pods(world, 0));
}

#[test]
fn pods_reach_pods_in_both_families_over_ipv6() {
    world_test(|world| pods_reach_pods(world, 1));
}

fn pods_reach_pods(world: &World, outer: usize) -> Result<()> {
    let (one, other) = joined(world, outer)?;
    let (client, server) = (one.node.pod("client")?, other.node.pod("server")?);
    for address in server.addresses().both() {
        icmp::ping(&client, address)?;
    }
    let endpoint = one.status()?["peers"][0]["sessions"][0]["endpoint"].to_string();
    ensure!(endpoint.contains('[') == (outer == 1), "the outer family is the one that was asked for: {endpoint}");
    Ok(())
}
