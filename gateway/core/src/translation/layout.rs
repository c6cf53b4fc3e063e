//! [`Layout`]: where the addresses and checksums of a packet lie, of a whole one or of one that an ICMP error quotes.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{Fragment, Intent, Packet, protocol};

/// DCCP (RFC 4340, 5.1) and UDP-Lite (RFC 3828, 3.1): a checksum with a pseudo-header where UDP has its own.
const DCCP: u8 = 33;
const UDP_LITE: u8 = 136;

#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    is_ipv4: bool,
    protocol: u8,
    /// Where the transport header begins; `None` where this part of the datagram has none.
    transport: Option<usize>,
    /// Whether it is an ICMP error, and so quotes another packet.
    is_error: bool,
}

/// A checksum of the transport header.
pub(super) struct Checksum {
    pub(super) at: usize,
    /// Whether it covers the packet's addresses.
    pub(super) has_pseudo_header: bool,
    /// Whether 0 says that none was computed.
    pub(super) zero_is_none: bool,
}

impl Layout {
    pub(super) fn of(packet: &Packet) -> Self {
        let is_ipv4 = packet.flow.source.is_ipv4();
        let is_icmp = packet.flow.protocol == if is_ipv4 { protocol::ICMP } else { protocol::ICMPV6 };
        Self {
            is_ipv4,
            protocol: packet.flow.protocol,
            transport: (packet.fragment != Fragment::Later).then_some(packet.transport),
            is_error: is_icmp && packet.intent == Intent::Continue,
        }
    }

    /// Of a packet that may be cut off anywhere behind its addresses. `None` when even those are not there.
    pub(super) fn of_quoted(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header: &[u8; 20] = bytes.first_chunk()?;
                let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
                let length = usize::from(header[0] & 0x0f) * 4;
                let transport = (offset == 0 && length >= 20).then_some(length);
                Some(Self { is_ipv4: true, protocol: header[9], transport, is_error: false })
            }
            6 => {
                let header: &[u8; 40] = bytes.first_chunk()?;
                let (protocol, transport) = last_header(bytes, header[6]);
                Some(Self { is_ipv4: false, protocol, transport, is_error: false })
            }
            _ => None,
        }
    }

    pub(super) fn source_at(&self) -> usize {
        if self.is_ipv4 { 12 } else { 8 }
    }

    pub(super) fn destination_at(&self) -> usize {
        if self.is_ipv4 { 16 } else { 24 }
    }

    pub(super) fn address(&self, bytes: &[u8], at: usize) -> Option<IpAddr> {
        let bytes = bytes.get(at..)?;
        if self.is_ipv4 {
            bytes.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into())
        } else {
            bytes.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into())
        }
    }

    pub(super) fn header_checksum_at(&self) -> Option<usize> {
        self.is_ipv4.then_some(10)
    }

    pub(super) fn checksum(&self) -> Option<Checksum> {
        let (offset, has_pseudo_header, zero_is_none) = match self.protocol {
            protocol::TCP => (16, true, false),
            protocol::UDP | UDP_LITE => (6, true, true),
            DCCP => (6, true, false),
            protocol::ICMP if self.is_ipv4 => (2, false, false),
            protocol::ICMPV6 if !self.is_ipv4 => (2, true, false),
            _ => return None,
        };
        Some(Checksum { at: self.transport? + offset, has_pseudo_header, zero_is_none })
    }

    /// Where the packet begins that an ICMP error quotes (RFC 792; RFC 4443, 3).
    pub(super) fn quoted_at(&self, bytes: &[u8]) -> Option<usize> {
        let at = self.transport.filter(|_| self.is_error)?;
        let quotes = match bytes.get(at)? {
            // Unreachable, time exceeded, parameter problem.
            3 | 11 | 12 => self.is_ipv4,
            // Unreachable, too big, time exceeded, parameter problem.
            1..=4 => !self.is_ipv4,
            _ => false,
        };
        // An ICMP header has 8 bytes.
        quotes.then_some(at + 8)
    }
}

/// Walks the extension headers as far as they are there; the transport is `None` where they are not all, or where a
/// fragment header says that it was in another packet.
fn last_header(bytes: &[u8], first: u8) -> (u8, Option<usize>) {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION_OPTIONS: u8 = 60;

    let (mut next, mut at) = (first, 40);
    loop {
        let Some([following, units, third, fourth]) = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()) else {
            return (next, None);
        };
        at += match next {
            FRAGMENT if u16::from_be_bytes([*third, *fourth]) & !7 != 0 => return (*following, None),
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(*units) + 2) * 4,
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (usize::from(*units) + 1) * 8,
            _ => return (next, Some(at)),
        };
        next = *following;
    }
}
