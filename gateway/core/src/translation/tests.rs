//! Promises of [`Translation`](super::Translation). The oracle writes each packet twice, once with real addresses and once
//! with those that are seen, and computes every checksum from the start.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::packet::protocol;

fn translation(pairs: &[(&str, &str)]) -> Translation {
    let pair =
        |(real, seen): &(&str, &str)| TranslatedPrefix { real: real.parse().unwrap(), seen: seen.parse().unwrap() };
    Translation::new(&pairs.iter().map(pair).collect::<Vec<_>>())
}

/// The peer's 10.1.0.0/16 and fd00:1::/48 overlap; its 10.9.0.0/16 and fd00:9::/48 do not.
fn birch() -> Translation {
    translation(&[
        ("10.1.0.0/16", "10.240.0.0/16"),
        ("10.6.0.0/15", "10.242.0.0/15"),
        ("fd00:1::/48", "fd00:f00d:7::/48"),
    ])
}

/// RFC 1071, over bytes that begin at an even place.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        sum += part
            .chunks(2)
            .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low)))
            .sum::<u64>();
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Transport {
    Tcp,
    Udp,
    /// Over IPv4 UDP may go without; over IPv6 some tunnels do (RFC 6935).
    UdpWithoutChecksum,
    Echo,
    Sctp,
    UdpLite,
    Dccp,
    Unknown,
}

#[derive(Clone, Debug)]
struct Shape {
    transport: Transport,
    payload: Vec<u8>,
    /// Words of IPv4 options, or IPv6 destination options headers.
    options: usize,
    first_fragment: bool,
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A transport message with its checksum, as its sender would write it.
fn message(shape: &Shape, source: IpAddr, destination: IpAddr) -> (u8, Vec<u8>) {
    let v6 = source.is_ipv6();
    let (number, header, at): (u8, usize, Option<usize>) = match shape.transport {
        Transport::Tcp => (protocol::TCP, 20, Some(16)),
        Transport::Udp | Transport::UdpWithoutChecksum => (protocol::UDP, 8, Some(6)),
        Transport::Echo if v6 => (protocol::ICMPV6, 8, Some(2)),
        Transport::Echo => (protocol::ICMP, 8, Some(2)),
        Transport::Sctp => (protocol::SCTP, 16, None),
        Transport::UdpLite => (136, 8, Some(6)),
        Transport::Dccp => (33, 16, Some(6)),
        Transport::Unknown => (89, 20, None),
    };
    let mut bytes = vec![0x5a; header];
    match shape.transport {
        Transport::Echo => bytes[0] = if v6 { 128 } else { 8 },
        Transport::Tcp => bytes[12..14].copy_from_slice(&[0x50, 0x10]),
        _ => bytes[..4].copy_from_slice(&[0x9c, 0x40, 0, 53]),
    }
    bytes.extend_from_slice(&shape.payload);
    if let Some(at) = at {
        bytes[at..at + 2].fill(0);
        let length = (bytes.len() as u32).to_be_bytes();
        let pseudo_header = if number == protocol::ICMP {
            vec![]
        } else {
            [octets(source), octets(destination), length.to_vec(), vec![0, 0, 0, number]].concat()
        };
        let sum = match (shape.transport, checksum(&[&pseudo_header, &bytes])) {
            (Transport::UdpWithoutChecksum, _) => 0,
            (Transport::Udp | Transport::UdpLite, 0) => 0xffff,
            (_, sum) => sum,
        };
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    (number, bytes)
}

fn ip(shape: &Shape, source: IpAddr, destination: IpAddr, (number, body): (u8, Vec<u8>)) -> Vec<u8> {
    let addresses = [octets(source), octets(destination)].concat();
    if source.is_ipv4() {
        let header_len = 20 + 4 * shape.options;
        let mut bytes = vec![0u8; 20];
        bytes[0] = 0x40 | (header_len / 4) as u8;
        bytes[2..4].copy_from_slice(&((header_len + body.len()) as u16).to_be_bytes());
        bytes[6] = if shape.first_fragment { 0x20 } else { 0 };
        bytes[8..10].copy_from_slice(&[61, number]);
        bytes[12..20].copy_from_slice(&addresses);
        bytes.extend((0..shape.options).flat_map(|_| [1, 1, 1, 1]));
        let sum = checksum(&[&bytes]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(body);
        return bytes;
    }
    let mut chain = vec![60u8; shape.options];
    chain.extend(shape.first_fragment.then_some(44));
    chain.push(number);
    let mut rest = Vec::new();
    for pair in chain.windows(2) {
        rest.extend_from_slice(&if pair[0] == 44 {
            [pair[1], 0, 0, 1, 0, 0, 0, 9]
        } else {
            [pair[1], 0, 1, 4, 0, 0, 0, 0]
        });
    }
    rest.extend(body);
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend_from_slice(&(rest.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[chain[0], 61]);
    bytes.extend(addresses);
    bytes.extend(rest);
    bytes
}

fn packet(shape: &Shape, source: IpAddr, destination: IpAddr) -> Vec<u8> {
    ip(shape, source, destination, message(shape, source, destination))
}

/// "Too big" of either family, about the first bytes of another packet.
fn error(source: IpAddr, destination: IpAddr, quoted: &[u8]) -> Vec<u8> {
    let plain = Shape { transport: Transport::Unknown, payload: vec![], options: 0, first_fragment: false };
    let mut body = match source {
        IpAddr::V4(_) => vec![3, 4, 0, 0, 0, 0, 5, 0],
        IpAddr::V6(_) => vec![2, 0, 0, 0, 0, 0, 5, 0],
    };
    body.extend_from_slice(quoted);
    let number = if source.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
    let length = (body.len() as u32).to_be_bytes();
    let pseudo_header = [octets(source), octets(destination), length.to_vec(), vec![0, 0, 0, number]].concat();
    let sum = checksum(&[if source.is_ipv4() { &[] } else { &pseudo_header }, &body]);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(&plain, source, destination, (number, body))
}

fn inbound(translation: &Translation, mut bytes: Vec<u8>) -> Vec<u8> {
    let packet = Packet::parse(&bytes).unwrap();
    translation.rewrite_inbound(&packet, &mut bytes);
    bytes
}

fn outbound(translation: &Translation, mut bytes: Vec<u8>) -> Vec<u8> {
    let packet = Packet::parse(&bytes).unwrap();
    translation.rewrite_outbound(&packet, &mut bytes);
    bytes
}

fn shapes() -> impl Strategy<Value = Shape> {
    use Transport::{Dccp, Echo, Sctp, Tcp, Udp, UdpLite, UdpWithoutChecksum, Unknown};
    let transports = select(vec![Tcp, Udp, UdpWithoutChecksum, Echo, Sctp, UdpLite, Dccp, Unknown]);
    // Words of all bits and of none bring out the two zeros of one's complement.
    let byte = prop_oneof![Just(0u8), Just(0xff), any::<u8>()];
    (transports, proptest::collection::vec(byte, 0..64), 0usize..4, any::<bool>())
        .prop_map(|(transport, payload, options, first_fragment)| Shape { transport, payload, options, first_fragment })
}

/// An address of the peer, real and as seen here; the first two sorts are translated.
fn peers_addresses(v6: bool) -> impl Strategy<Value = (IpAddr, IpAddr)> {
    (0usize..3, any::<u64>()).prop_map(move |(sort, host)| {
        let v4 = |a: u8, b: u8| IpAddr::from([a, b, (host >> 8) as u8, host as u8]);
        let v6_of = |high: u128| IpAddr::V6((high << 80 | u128::from(host)).into());
        match (v6, sort) {
            (false, 0) => (v4(10, 1), v4(10, 240)),
            (false, 1) => (v4(10, 7), v4(10, 243)),
            (false, _) => (v4(10, 9), v4(10, 9)),
            (true, 2) => (v6_of(0xfd00_0009_0000), v6_of(0xfd00_0009_0000)),
            (true, _) => (v6_of(0xfd00_0001_0000), v6_of(0xfd00_f00d_0007)),
        }
    })
}

fn ours(v6: bool) -> IpAddr {
    if v6 { "fd00:1::5".parse().unwrap() } else { "10.1.0.5".parse().unwrap() }
}

/// A shape; one address of the peer; another; ours; after how many words an error cuts what it quotes: of half a checksum
/// nobody can say how it changes.
fn stories() -> impl Strategy<Value = (Shape, (IpAddr, IpAddr), (IpAddr, IpAddr), IpAddr, usize)> {
    any::<bool>().prop_flat_map(|v6| (shapes(), peers_addresses(v6), peers_addresses(v6), Just(ours(v6)), 0usize..60))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_packet_is_as_if_its_sender_had_used_the_other_address((shape, (real, seen), _, ours, _) in stories()) {
        let birch = birch();
        prop_assert_eq!(inbound(&birch, packet(&shape, real, ours)), packet(&shape, seen, ours));
        prop_assert_eq!(outbound(&birch, packet(&shape, ours, seen)), packet(&shape, ours, real));
    }

    #[test]
    fn an_icmp_error_is_as_if_all_had_used_the_other_addresses(
        (shape, (real, seen), (router, router_seen), ours, cut) in stories(),
    ) {
        let birch = birch();
        let cut_off = |mut bytes: Vec<u8>| {
            bytes.truncate(if ours.is_ipv4() { 20 } else { 40 } + 2 * cut);
            bytes
        };
        // About what we sent, from the peer; and about what the peer sent, from us.
        let (sent, wanted) = (cut_off(packet(&shape, ours, real)), cut_off(packet(&shape, ours, seen)));
        prop_assert_eq!(inbound(&birch, error(router, ours, &sent)), error(router_seen, ours, &wanted));
        let (got, wanted) = (cut_off(packet(&shape, seen, ours)), cut_off(packet(&shape, real, ours)));
        prop_assert_eq!(outbound(&birch, error(ours, router_seen, &got)), error(ours, router, &wanted));
    }

    #[test]
    fn a_damaged_packet_stays_damaged((shape, (real, seen), _, ours, place) in stories(), damage in 1u8..) {
        prop_assume!(!shape.payload.is_empty());
        let damaged = |mut bytes: Vec<u8>| {
            let at = bytes.len() - 1 - place % shape.payload.len();
            bytes[at] ^= damage;
            bytes
        };
        prop_assert_eq!(inbound(&birch(), damaged(packet(&shape, real, ours))), damaged(packet(&shape, seen, ours)));
    }

    #[test]
    fn there_and_back_is_the_same_packet((shape, (real, _), _, ours, _) in stories()) {
        let birch = birch();
        let before = packet(&shape, real, ours);
        let mut bytes = inbound(&birch, before.clone());
        let packet = Packet::parse(&bytes).unwrap();
        birch.rewrite(&packet, &mut bytes, Change::Source(Way::ToReal), Change::Destination(Way::ToReal));
        prop_assert_eq!(bytes, before);
    }

    #[test]
    fn no_bytes_make_it_panic_and_padding_is_left_alone(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        // ICMP errors of both families, and anything else.
        (version, protocol) in select(vec![(0x45u8, 1u8), (0x60, 58), (0x45, 17), (0x60, 44), (0x46, 6), (0x60, 0)]),
        kind in 0u8..13,
        padding in 0usize..9,
        // Of what an error quotes.
        quoted in select(vec![0x45u8, 0x60, 0x4f, 0xff]),
    ) {
        // Half of all addresses are translated.
        let half = translation(&[("0.0.0.0/1", "128.0.0.0/1"), ("::/1", "8000::/1")]);
        let header = if version == 0x60 { 40 } else { 20 };
        if bytes.len() > header + 8 + padding {
            let len = bytes.len() - padding;
            bytes[0] = version;
            if version == 0x60 {
                bytes[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
                bytes[6] = protocol;
            } else {
                bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                bytes[6..8].fill(0);
                bytes[9] = protocol;
            }
            bytes[header] = kind;
            bytes[header + 8] = quoted;
        }
        if let Ok(packet) = Packet::parse(&bytes) {
            let before = bytes.clone();
            half.rewrite_inbound(&packet, &mut bytes);
            half.rewrite_outbound(&packet, &mut bytes);
            prop_assert_eq!(&bytes[packet.len..], &before[packet.len..]);
        }
    }
}

#[test]
fn a_later_fragment_changes_in_its_header_alone() {
    let shape = Shape { transport: Transport::Udp, payload: vec![7; 32], options: 0, first_fragment: false };
    let later = |source: &str| {
        let mut bytes = packet(&shape, source.parse().unwrap(), ours(false));
        // Bytes 800 and after of a datagram.
        bytes[6..8].copy_from_slice(&100u16.to_be_bytes());
        bytes[10..12].fill(0);
        let sum = checksum(&[&bytes[..20]]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    let (before, after) = (later("10.1.0.9"), inbound(&birch(), later("10.1.0.9")));
    assert_eq!(after[..20], later("10.240.0.9")[..20]);
    assert_eq!(after[20..], before[20..]);
}

#[test]
fn no_peer_has_an_address_that_we_made_up() {
    let birch = birch();
    let source = |text: &str| birch.seen_source(text.parse().unwrap());
    assert_eq!(source("10.1.2.3"), "10.240.2.3".parse().ok());
    assert_eq!(source("10.9.2.3"), "10.9.2.3".parse().ok(), "not translated: its owner is looked up");
    assert_eq!(source("10.240.2.3"), None);
}
