//! [`udp_checksum`]: the sum in a UDP header, for the datagrams that are made here.

use crate::packet::protocol;

/// The checksum of a datagram between `addresses` (source, then destination, of either family), whose own field is still
/// zero (RFC 768; RFC 8200, 8.1: never zero). With the right one in its field it comes out as all ones.
pub(crate) fn udp_checksum(addresses: &[u8], datagram: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum()
    };
    // The pseudo-header's length and protocol, whatever their place in it.
    let mut sum = words(addresses) + datagram.len() as u32 + u32::from(protocol::UDP) + words(datagram);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        checksum => checksum,
    }
}
