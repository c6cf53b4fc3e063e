//! The foreign peer works in the world, so that what fails beside it is ours.

use std::time::Duration;

use anyhow::{Result, ensure};
use ipnet::IpNet;
use netns_tests::addresses::Addresses;
use netns_tests::traffic::icmp;
use netns_tests::wireguard_go::{PROGRAM_VARIABLE, WireguardGo, WireguardPeer, build};
use netns_tests::{Capture, world_test_with};
use x25519_dalek::{PublicKey, StaticSecret};

const PORT: u16 = 51_820;

#[test]
fn two_upstream_peers_join_two_clusters_and_nothing_passes_in_clear() {
    let program = build().expect("wireguard-go");
    world_test_with(&[(PROGRAM_VARIABLE, program.as_os_str())], |world| {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        let secrets = [StaticSecret::from([1; 32]), StaticSecret::from([2; 32])];
        // Addresses inside the tunnel, from the ranges that clusters give to infrastructure.
        let inner = [amber.gateway()?.infrastructure(), birch.gateway()?.infrastructure()];
        let capture =
            Capture::of_clear_text(world.internet(), [&amber, &birch].map(|c| c.ranges().infrastructure()).into())?;
        let mut ends = Vec::new();
        for (own, cluster, other) in [(0, &amber, &birch), (1, &birch, &amber)] {
            let end = WireguardGo::start(cluster.gateway()?, "wg0")?;
            end.configure(secrets[own].as_bytes(), PORT)?;
            end.add_addresses(inner[own])?;
            end.set_peer(&WireguardPeer {
                public_key: PublicKey::from(&secrets[1 - own]).to_bytes(),
                endpoint: Some(other.gateway()?.addresses().with_port(PORT)[own]),
                allowed: single(inner[1 - own]),
                keepalive: 0,
            })?;
            ends.push(end);
        }
        for target in inner[1].both() {
            icmp::ping(amber.gateway()?, target)?;
        }
        ends[1].wait_for_handshake(Duration::from_secs(10))?;
        let seen = capture.stop()?;
        ensure!(seen.passed > 0 && seen.wanted == 0 && seen.lost == 0, "{seen:?}");
        check_refusal(&ends[0])
    });
}

fn single(addresses: Addresses) -> Vec<IpNet> {
    addresses.both().map(IpNet::from).into()
}

fn check_refusal(end: &WireguardGo) -> Result<()> {
    let refused = end.configure(&[7; 32], 0).and_then(|()| {
        end.set_peer(&WireguardPeer {
            public_key: [3; 32],
            endpoint: Some(([127, 0, 0, 1], 1).into()),
            allowed: vec![],
            keepalive: 0,
        })
    });
    ensure!(refused.is_ok(), "a second configuration is taken: {refused:?}");
    ensure!(end.status()?.iter().filter(|(name, _)| name == "public_key").count() == 2, "{:?}", end.status());
    Ok(())
}
