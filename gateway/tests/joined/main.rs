//! Gateways as processes in network namespaces, joined over a pretend internet, without root.

mod admission;
mod changes;
mod end;
mod health;
mod interop;
mod packets;
mod relay;
mod strangers;

use anyhow::Result;
use netns_tests::World;

use end::{End, PORT};

/// Which family the clusters reach each other by.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outer {
    V4,
    V6,
}

/// Two clusters that trust each other, joined and up.
fn joined(world: &World, outer: Outer) -> Result<(End, End)> {
    let (one, other) = prepared(world, outer, [1, 1])?;
    started(one, other)
}

/// The same, not yet started, with these numbers of lanes.
fn prepared(world: &World, outer: Outer, lanes: [u16; 2]) -> Result<(End, End)> {
    let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
    let (mut one, mut other) = (End::new(&amber, lanes[0])?, End::new(&birch, lanes[1])?);
    let endpoints = [&one, &other].map(|end| end.node.addresses().with_port(PORT)[outer as usize]);
    one.trust(&other, &endpoints[1..])?;
    other.trust(&one, &endpoints[..1])?;
    Ok((one, other))
}

fn started(mut one: End, mut other: End) -> Result<(End, End)> {
    let clusters = [other.cluster.clone(), one.cluster.clone()];
    for (end, peer) in [&mut one, &mut other].into_iter().zip(&clusters) {
        end.add_infrastructure_addresses()?;
        end.start()?;
        end.route_to(&[peer])?;
    }
    one.wait_until("birch", "Up")?;
    other.wait_until("amber", "Up")?;
    Ok((one, other))
}
