//! Joined with upstream wireguard-go, whichever side calls.

use anyhow::{Result, ensure};
use netns_tests::traffic::icmp;
use netns_tests::wireguard_go::{PROGRAM_VARIABLE, WireguardGo, WireguardPeer, build};
use netns_tests::{World, world_test_with};

use crate::end::{End, LIMIT, PORT};

#[test]
fn a_gateway_calls_wireguard_go() {
    let program = build().expect("wireguard-go");
    world_test_with(&[(PROGRAM_VARIABLE, program.as_os_str())], |world| joined_with_wireguard_go(world, Caller::Us));
}

#[test]
fn wireguard_go_calls_a_gateway() {
    let program = build().expect("wireguard-go");
    world_test_with(&[(PROGRAM_VARIABLE, program.as_os_str())], |world| joined_with_wireguard_go(world, Caller::Them));
}

#[derive(Clone, Copy, PartialEq)]
enum Caller {
    Us,
    Them,
}

fn joined_with_wireguard_go(world: &World, caller: Caller) -> Result<()> {
    let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
    let mut ours = End::new(&amber, 1)?;
    // Only its keys and prefixes are birch's: a plain WireGuard end has no control address.
    let theirs = End::new(&birch, 1)?;
    let endpoints = theirs.node.addresses().with_port(PORT);
    let known = if caller == Caller::Us { &endpoints[..1] } else { &[] };
    ours.trust_record("birch", &theirs.plain_record(known))?;
    ours.add_infrastructure_addresses()?;
    ours.start()?;
    ours.route_to(&[&birch])?;

    let end = WireguardGo::start(&theirs.node, "wg0")?;
    end.configure(theirs.secrets[0].as_bytes(), PORT)?;
    end.add_addresses(theirs.node.infrastructure())?;
    let ranges = [amber.ranges().pods(), amber.ranges().infrastructure()];
    end.set_peer(&WireguardPeer {
        public_key: ours.public_keys()[0],
        endpoint: (caller == Caller::Them).then(|| ours.node.addresses().with_port(PORT)[0]),
        allowed: ranges.into_iter().flat_map(|ranges| ranges.both()).collect(),
        keepalive: 0,
    })?;
    let (client, server) = (ours.node.pod("client")?, theirs.node.infrastructure());
    if caller == Caller::Them {
        for address in client.addresses().both() {
            icmp::ping(&theirs.node, address)?;
        }
    }
    for address in server.both() {
        icmp::ping(&client, address)?;
    }
    for address in client.addresses().both() {
        icmp::ping(&theirs.node, address)?;
    }
    end.wait_for_handshake(LIMIT)?;
    ours.wait_until("birch", "Up")?;
    ensure!(ours.counted("MalformedDatagram")? == 0 && ours.counted("Unauthentic")? == 0, "nothing was misread");
    Ok(())
}
