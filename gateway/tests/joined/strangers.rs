//! Nothing is answered to those who cannot prove who they are.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use netns_tests::traffic::icmp;
use netns_tests::world_test;

use crate::end::PORT;
use crate::{Outer, joined};

/// A socket on the internet that shouts at a gateway.
fn stranger(world: &netns_tests::World, target: SocketAddr) -> Result<UdpSocket> {
    let socket = world.internet().run(|| UdpSocket::bind("0.0.0.0:0"))??;
    socket.connect(target)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Bytes that look random, the same in every run.
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        // Knuth's linear congruential generator: its upper bits are good enough to shout with.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}

#[test]
fn two_hundred_random_datagrams_get_no_answer_and_are_counted() {
    world_test(|world| {
        let (one, other) = joined(world, Outer::V4)?;
        let target = other.node.addresses().with_port(PORT)[0];
        let socket = stranger(world, target)?;
        let mut expected = 0;
        for number in 0..200u64 {
            let mut datagram: Vec<u8> = noise(number + 1).take(1 + (number as usize * 7) % 300).collect();
            // Every other one has a header that makes it look like WireGuard.
            if number % 2 == 0 {
                datagram.resize([148, 92, 64, 80][number as usize / 2 % 4], 7);
                datagram[..4].copy_from_slice(&[1 + (number / 2 % 4) as u8, 0, 0, 0]);
            }
            expected += u64::from(socket.send(&datagram).is_ok());
        }
        let names = ["MalformedDatagram", "UnknownPeer", "UnknownSession", "Unauthentic", "HandshakeRefused"];
        other.wait_for("all to be counted", |end| {
            let counted: Result<Vec<u64>> = names.iter().map(|name| end.counted(name)).collect();
            Ok(counted?.iter().sum::<u64>() >= expected)
        })?;
        let mut answer = [0; 256];
        ensure!(socket.recv(&mut answer).is_err(), "a stranger got an answer");
        icmp::ping(&one.node, other.node.infrastructure().v4.into()).map(|_| ())
    });
}

#[test]
fn under_a_flood_of_handshakes_senders_get_cookies_and_peers_stay_up() {
    world_test(|world| {
        let (one, other) = joined(world, Outer::V4)?;
        let target = other.node.addresses().with_port(PORT)[0];
        let socket = stranger(world, target)?;
        // It knows the gateway's public key, as anybody may who has seen a member record.
        let public = PublicKey::from(other.public_keys()[0]);
        let mut tunnel = Tunn::new(StaticSecret::from([99; 32]), public, None, None, 1, None);
        let mut room = [0; 148];
        let mut answer = [0; 256];
        let mut cookies = 0;
        // More than a second's worth is let through; a slow machine may spread the flood over several.
        for _ in 0..20_000 {
            if let TunnResult::WriteToNetwork(initiation) = tunnel.format_handshake_initiation(&mut room, true) {
                socket.send(initiation)?;
            }
            while let Ok(len) = socket.recv(&mut answer) {
                ensure!(len == 64 && answer[0] == 3, "only cookies are sent to strangers: {len} bytes");
                cookies += 1;
            }
            if cookies >= 10 {
                break;
            }
        }
        ensure!(cookies >= 10, "under load there are cookies");
        other.wait_for("all of it to be counted", |end| {
            Ok(end.counted("CookieRequired")? >= cookies && end.counted("UnknownPeer")? > 0)
        })?;
        icmp::ping(&one.node, other.node.infrastructure().v4.into())?;
        one.wait_until("birch", "Up")
    });
}

#[test]
fn a_replayed_datagram_is_refused_and_moves_no_endpoint() {
    world_test(|world| {
        let (one, other) = joined(world, Outer::V4)?;
        let target = other.node.addresses().with_port(PORT)[0];
        // What the internet carried for birch, said again by somebody else.
        let overheard = overheard_datagrams(world, target)?;
        let socket = stranger(world, target)?;
        for datagram in &overheard {
            socket.send(datagram)?;
        }
        other.wait_for("the replays to be counted", |end| {
            Ok(end.counted("ReplayedPacket")? >= overheard.len() as u64)
        })?;
        let endpoint = other.status()?["peers"][0]["sessions"][0]["endpoint"].clone();
        let wanted = one.node.addresses().with_port(PORT)[0].to_string();
        ensure!(endpoint == wanted.as_str(), "still {wanted}: {endpoint}");
        let mut answer = [0; 256];
        ensure!(socket.recv(&mut answer).is_err(), "a replay got an answer");
        Ok(())
    });
}

/// Five data messages on their way to `target`, as a router sees them.
fn overheard_datagrams(world: &netns_tests::World, target: SocketAddr) -> Result<Vec<Vec<u8>>> {
    use socket2::{Domain, Protocol, Socket, Type};
    // ETH_P_ALL: packets that are forwarded pass no socket of the router but this kind.
    const EVERYTHING: i32 = 3;
    let listen = || {
        let protocol = Protocol::from(i32::from((EVERYTHING as u16).to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        std::io::Result::Ok(socket)
    };
    let socket = world.internet().run(listen)??;
    let mut overheard = Vec::new();
    let mut packet = vec![0; 2_048];
    while overheard.len() < 5 {
        let len = std::io::Read::read(&mut &socket, &mut packet).context("overhearing the internet")?;
        let udp = packet[..len].get(20..).unwrap_or_default();
        let is_ours = packet[0] == 0x45 && packet[9] == 17 && udp.get(2..4) == Some(&target.port().to_be_bytes());
        let SocketAddr::V4(target) = target else { break };
        let datagram = udp.get(8..).unwrap_or_default();
        if is_ours && packet[16..20] == target.ip().octets() && datagram.first() == Some(&4) {
            overheard.push(datagram.to_vec());
        }
    }
    Ok(overheard)
}
