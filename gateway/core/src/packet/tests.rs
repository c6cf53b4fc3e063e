//! Promises of [`Packet`](super::Packet).

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

fn ipv4(protocol: u8, fragment_field: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut bytes = vec![0u8; 20];
    bytes[0] = 0x40 | (header_len / 4) as u8;
    bytes[2..4].copy_from_slice(&((header_len + payload.len()) as u16).to_be_bytes());
    bytes[6..8].copy_from_slice(&fragment_field.to_be_bytes());
    bytes[8] = 64;
    bytes[9] = protocol;
    bytes[12..16].copy_from_slice(&[10, 1, 0, 5]);
    bytes[16..20].copy_from_slice(&[10, 2, 0, 7]);
    bytes.extend_from_slice(options);
    bytes.extend_from_slice(payload);
    bytes
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0u8; 40];
    bytes[0] = 0x60;
    bytes[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    bytes[6] = next;
    bytes[7] = 64;
    bytes[8] = 0xfd;
    bytes[24] = 0xfd;
    bytes[39] = 1;
    bytes.extend_from_slice(payload);
    bytes
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut bytes = vec![0u8; 20];
    bytes[0..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
    bytes[12] = 0x50;
    bytes[13] = flags;
    bytes
}

const DF: u16 = 0x4000;
const MF: u16 = 0x2000;

#[test]
fn a_syn_opens_a_connection_and_a_syn_ack_does_not() {
    let syn = Packet::parse(&ipv4(6, DF, &[], &tcp(0x02))).unwrap();
    assert_eq!(syn.intent, Intent::Connect);
    assert_eq!((syn.flow.source_port, syn.flow.destination_port), (40000, 80));
    assert!(!syn.may_be_fragmented);
    assert_eq!(Packet::parse(&ipv4(6, DF, &[], &tcp(0x12))).unwrap().intent, Intent::Continue);
    assert_eq!(Packet::parse(&ipv6(6, &tcp(0x02))).unwrap().intent, Intent::Connect);
    assert_eq!(Packet::parse(&ipv6(6, &tcp(0xc2))).unwrap().intent, Intent::Connect, "ECN bits do not hide a SYN");
}

#[test]
fn an_sctp_init_opens_a_connection_and_data_does_not() {
    let mut init = vec![0u8; 20];
    init[12] = 1;
    assert_eq!(Packet::parse(&ipv4(132, 0, &[], &init)).unwrap().intent, Intent::Connect);
    init[12] = 0;
    assert_eq!(Packet::parse(&ipv4(132, 0, &[], &init)).unwrap().intent, Intent::Continue);
}

#[test]
fn echo_requests_errors_and_redirects_are_told_apart_in_both_families() {
    let icmp = |kind| Packet::parse(&ipv4(1, 0, &[], &[kind, 0, 0, 0, 0, 0, 0, 0])).unwrap().intent;
    assert_eq!((icmp(8), icmp(0), icmp(3), icmp(5)), {
        (Intent::Echo, Intent::Continue, Intent::Continue, Intent::NeighbourIcmp)
    });
    let icmpv6 = |kind| Packet::parse(&ipv6(58, &[kind, 0, 0, 0, 0, 0, 0, 0])).unwrap().intent;
    assert_eq!((icmpv6(128), icmpv6(129), icmpv6(2), icmpv6(137)), {
        (Intent::Echo, Intent::Continue, Intent::Continue, Intent::NeighbourIcmp)
    });
}

#[test]
fn padding_behind_a_packet_is_not_part_of_it() {
    let mut bytes = ipv4(17, 0, &[], &[0; 8]);
    bytes.extend_from_slice(&[0; 12]);
    assert_eq!(Packet::parse(&bytes).unwrap().len, 28);
    bytes.truncate(27);
    assert_eq!(Packet::parse(&bytes), Err(Refusal::MalformedPacket));
}

#[test]
fn a_first_fragment_is_judged_and_a_later_one_has_no_ports() {
    let first = Packet::parse(&ipv4(6, MF, &[], &tcp(0x02))).unwrap();
    assert_eq!((first.fragment, first.intent), (Fragment::First, Intent::Connect));
    let later = Packet::parse(&ipv4(6, 100, &[], &[0xff; 40])).unwrap();
    assert_eq!((later.fragment, later.intent, later.flow.source_port), (Fragment::Later, Intent::Continue, 0));
    assert_eq!(first.spread(), later.spread(), "all fragments take one way");
}

#[test]
fn fragments_that_hide_or_overwrite_the_transport_header_are_refused() {
    assert_eq!(Packet::parse(&ipv4(6, MF, &[], &tcp(0x02)[..8])), Err(Refusal::TinyFragment));
    assert_eq!(Packet::parse(&ipv4(6, 1, &[], &[0; 12])), Err(Refusal::TinyFragment));
    // IPv6: a fragment header (first, more to come), then only 8 bytes of TCP.
    let mut payload = vec![6, 0, 0, 1, 0, 0, 0, 9];
    payload.extend_from_slice(&tcp(0x02)[..8]);
    assert_eq!(Packet::parse(&ipv6(44, &payload)), Err(Refusal::TinyFragment));
    assert_eq!(
        Packet::parse(&ipv4(17, 0x1fff, &[], &[0; 100])),
        Err(Refusal::MalformedPacket),
        "longer than a datagram"
    );
}

#[test]
fn an_ipv6_syn_is_found_behind_extension_headers() {
    // Hop-by-hop options, a used-up routing header, an atomic fragment header, then TCP.
    let mut payload = vec![43, 0, 1, 4, 0, 0, 0, 0];
    payload.extend_from_slice(&[44, 0, 0, 0, 0, 0, 0, 0]);
    payload.extend_from_slice(&[6, 0, 0, 0, 0, 0, 0, 1]);
    payload.extend_from_slice(&tcp(0x02));
    let packet = Packet::parse(&ipv6(0, &payload)).unwrap();
    assert_eq!((packet.intent, packet.transport, packet.fragment), (Intent::Connect, 64, Fragment::Whole));
}

#[test]
fn a_chain_of_extension_headers_without_end_is_refused() {
    let payload: Vec<u8> = (0..20).flat_map(|_| [60, 0, 1, 4, 0, 0, 0, 0]).collect();
    assert_eq!(Packet::parse(&ipv6(60, &payload)), Err(Refusal::TooManyExtensionHeaders));
}

#[test]
fn source_routes_are_refused_in_both_families() {
    let loose = [131, 7, 4, 10, 9, 9, 9, 0];
    assert_eq!(Packet::parse(&ipv4(6, 0, &loose, &tcp(0x10))), Err(Refusal::SourceRouted));
    let mut payload = vec![6, 2, 0, 1, 0, 0, 0, 0];
    payload.extend_from_slice(&[0; 16]);
    payload.extend_from_slice(&tcp(0x10));
    assert_eq!(Packet::parse(&ipv6(43, &payload)), Err(Refusal::SourceRouted));
    let record_route = [7, 7, 4, 0, 0, 0, 0, 0];
    assert!(Packet::parse(&ipv4(6, 0, &record_route, &tcp(0x10))).is_ok());
    assert_eq!(Packet::parse(&ipv4(6, 0, &[7, 9, 0, 0], &tcp(0x10))), Err(Refusal::MalformedPacket));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_what_it_says_lies_inside_the_packet(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        version in prop_oneof![Just(0x45u8), Just(0x46), Just(0x4f), Just(0x60), any::<u8>()],
        // Lengths that agree let the rest of the parser be reached.
        agree in any::<bool>(),
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        if agree && bytes.len() >= 40 {
            let v4 = version >> 4 == 4;
            let (at, len) = if v4 { (2, bytes.len()) } else { (4, bytes.len() - 40) };
            bytes[at..at + 2].copy_from_slice(&(len as u16).to_be_bytes());
            if v4 {
                bytes[6] &= 0x60;
                bytes[7] = 0;
            }
        }
        if let Ok(packet) = Packet::parse(&bytes) {
            prop_assert!(packet.len <= bytes.len());
            prop_assert!(packet.transport <= packet.len);
        }
    }

    #[test]
    fn an_extension_chain_never_hides_a_syn(kinds in proptest::collection::vec(
        prop_oneof![Just(60u8), Just(43), Just(51), Just(135)], 0..6,
    )) {
        // An authentication header counts in words less two, so that a length of 0 is 8 bytes for it as for the others.
        let mut next = kinds;
        next.push(6);
        let mut payload = Vec::new();
        for pair in next.windows(2) {
            payload.extend_from_slice(&[pair[1], 0, 0, 0, 0, 0, 0, 0]);
        }
        payload.extend_from_slice(&tcp(0x02));
        prop_assert_eq!(Packet::parse(&ipv6(next[0], &payload)).unwrap().intent, Intent::Connect);
    }
}
