//! The ICMP message that tells a sender its packet is too large for the path (RFC 1191, RFC 4443 section 3.2).

use core::net::IpAddr;

use crate::packet::{Fragment, Intent, Packet, protocol};

/// Longest answer: what every IPv6 link carries (RFC 4443, 2.4 c). For IPv4 this is more than RFC 792 asks, and within RFC 1812.
const MAX_LEN_IPV6: usize = 1280;
const MAX_LEN_IPV4: usize = 576;

/// Writes the answer to `packet`, to be given to the TUN device. `None` when it must not be answered or does not fit.
///
/// Its source is the destination of the packet it answers: the one address for which even a strict rp_filter expects
/// packets from this TUN device, and one the sender already talks to.
pub fn write(packet: &Packet, bytes: &[u8], mtu: u16, room: &mut [u8]) -> Option<usize> {
    let is_icmp = matches!(packet.flow.protocol, protocol::ICMP | protocol::ICMPV6);
    // Never about an ICMP error, and only about the fragment that has the header (RFC 1122, 3.2.2).
    if packet.fragment == Fragment::Later || (is_icmp && packet.intent != Intent::Echo) {
        return None;
    }
    let original = bytes.get(..packet.len)?;
    match (packet.flow.source, packet.flow.destination) {
        (IpAddr::V4(sender), IpAddr::V4(destination)) => {
            let quoted = original.get(..original.len().min(MAX_LEN_IPV4 - 28))?;
            let len = 28 + quoted.len();
            let answer = room.get_mut(..len)?;
            answer.fill(0);
            answer[0] = 0x45;
            answer[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            answer[6] = 0x40;
            answer[8] = 64;
            answer[9] = protocol::ICMP;
            answer[12..16].copy_from_slice(&destination.octets());
            answer[16..20].copy_from_slice(&sender.octets());
            let header_sum = checksum(0, &answer[..20]);
            answer[10..12].copy_from_slice(&header_sum.to_be_bytes());
            answer[20..22].copy_from_slice(&[3, 4]);
            answer[26..28].copy_from_slice(&mtu.to_be_bytes());
            answer[28..].copy_from_slice(quoted);
            let sum = checksum(0, &answer[20..]);
            answer[22..24].copy_from_slice(&sum.to_be_bytes());
            Some(len)
        }
        (IpAddr::V6(sender), IpAddr::V6(destination)) => {
            let quoted = original.get(..original.len().min(MAX_LEN_IPV6 - 48))?;
            let len = 48 + quoted.len();
            let answer = room.get_mut(..len)?;
            answer.fill(0);
            answer[0] = 0x60;
            answer[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
            answer[6] = protocol::ICMPV6;
            answer[7] = 64;
            answer[8..24].copy_from_slice(&destination.octets());
            answer[24..40].copy_from_slice(&sender.octets());
            answer[40] = 2;
            answer[44..48].copy_from_slice(&u32::from(mtu).to_be_bytes());
            answer[48..].copy_from_slice(quoted);
            let pseudo_header = (len - 40) as u32 + u32::from(protocol::ICMPV6);
            let sum = checksum(pseudo_header, &answer[8..]);
            answer[42..44].copy_from_slice(&sum.to_be_bytes());
            Some(len)
        }
        _ => None,
    }
}

/// The Internet checksum (RFC 1071) over big-endian words, on top of what is already summed.
fn checksum(already: u32, bytes: &[u8]) -> u16 {
    let pairs = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from));
    let mut sum = already + pairs.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    fn udp6(len: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; len];
        bytes[0] = 0x60;
        bytes[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        bytes[6] = protocol::UDP;
        bytes[8..10].copy_from_slice(&[0xfd, 1]);
        bytes[24..26].copy_from_slice(&[0xfd, 2]);
        bytes
    }

    fn udp4(len: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; len];
        bytes[0] = 0x45;
        bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        bytes[6] = 0x40;
        bytes[9] = protocol::UDP;
        bytes[12..16].copy_from_slice(&[10, 1, 0, 5]);
        bytes[16..20].copy_from_slice(&[10, 2, 0, 7]);
        bytes
    }

    #[test]
    fn an_ipv6_sender_is_told_the_size_by_the_address_it_sent_to() {
        let bytes = udp6(1500);
        let packet = Packet::parse(&bytes).unwrap();
        let mut room = [0u8; 2048];
        let len = write(&packet, &bytes, 1380, &mut room).unwrap();
        assert_eq!(len, 1280);
        let answer = Packet::parse(&room[..len]).unwrap();
        assert_eq!((answer.flow.source, answer.flow.destination), (packet.flow.destination, packet.flow.source));
        assert_eq!((room[40], &room[44..48]), (2, 1380u32.to_be_bytes().as_slice()));
        assert_eq!(checksum(1240 + 58, &room[8..len]), 0, "the checksum holds");
    }

    #[test]
    fn an_ipv4_sender_is_told_the_size_with_both_checksums_right() {
        let bytes = udp4(1500);
        let packet = Packet::parse(&bytes).unwrap();
        let mut room = [0u8; 2048];
        let len = write(&packet, &bytes, 1380, &mut room).unwrap();
        assert_eq!((room[20], room[21], &room[26..28]), (3, 4, 1380u16.to_be_bytes().as_slice()));
        assert_eq!((checksum(0, &room[..20]), checksum(0, &room[20..len])), (0, 0));
    }

    #[test]
    fn an_icmp_error_is_never_answered() {
        let mut bytes = udp6(1500);
        bytes[6] = protocol::ICMPV6;
        bytes[40] = 1;
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(write(&packet, &bytes, 1380, &mut [0u8; 2048]), None);
    }
}
