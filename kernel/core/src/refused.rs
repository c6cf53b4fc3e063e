//! [`Flow`]: who wanted what, read from the first bytes of a refused packet.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The 5-tuple of a packet. Ports are there for TCP, UDP and SCTP, in the first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The transport protocol's number, behind IPv6 extension headers if there are any.
    pub protocol: u8,
    /// Source and destination port.
    pub ports: Option<(u16, u16)>,
}

/// More extension headers than any honest packet has.
const MOST_EXTENSIONS: usize = 8;

impl Flow {
    /// Reads a packet from its IP header on (RFC 791, RFC 8200). None when it is no IP packet, or ends before its
    /// addresses.
    pub fn read(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::read_ipv4(packet),
            6 => Self::read_ipv6(packet),
            _ => None,
        }
    }

    fn read_ipv4(packet: &[u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0xf) * 4;
        let address = |offset: usize| -> Option<IpAddr> {
            let bytes: [u8; 4] = packet.get(offset..offset + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes).into())
        };
        let (source, destination) = (address(12)?, address(16)?);
        let protocol = *packet.get(9)?;
        let fragment_offset = u16::from_be_bytes([*packet.get(6)? & 0x1f, *packet.get(7)?]);
        let first = header >= 20 && fragment_offset == 0;
        let ports = if first { ports(protocol, packet.get(header..)) } else { None };
        Some(Self { source, destination, protocol, ports })
    }

    fn read_ipv6(packet: &[u8]) -> Option<Self> {
        let address = |offset: usize| -> Option<IpAddr> {
            let bytes: [u8; 16] = packet.get(offset..offset + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(bytes).into())
        };
        let (source, destination) = (address(8)?, address(24)?);
        let mut protocol = *packet.get(6)?;
        let mut rest = packet.get(40..);
        let mut first = true;
        for _ in 0..MOST_EXTENSIONS {
            let Some(bytes) = rest.filter(|bytes| bytes.len() >= 8) else { break };
            let length = match protocol {
                // Hop-by-hop, routing, destination options.
                0 | 43 | 60 => (usize::from(bytes[1]) + 1) * 8,
                // Fragment.
                44 => {
                    first &= u16::from_be_bytes([bytes[2], bytes[3]]) & 0xfff8 == 0;
                    8
                }
                // Authentication: in words of four bytes, less two.
                51 => (usize::from(bytes[1]) + 2) * 4,
                _ => break,
            };
            protocol = bytes[0];
            rest = bytes.get(length..);
        }
        let ports = if first { ports(protocol, rest) } else { None };
        Some(Self { source, destination, protocol, ports })
    }
}

fn ports(protocol: u8, transport: Option<&[u8]>) -> Option<(u16, u16)> {
    const WITH_PORTS: [u8; 3] = [6, 17, 132];
    let bytes = transport.filter(|_| WITH_PORTS.contains(&protocol))?.get(..4)?;
    Some((u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]])))
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol: &dyn fmt::Display = match self.protocol {
            1 | 58 => &"icmp",
            6 => &"tcp",
            17 => &"udp",
            132 => &"sctp",
            _ => &self.protocol,
        };
        let socket = |address: IpAddr, port: Option<u16>| match port {
            Some(port) => alloc::format!("{}", core::net::SocketAddr::from((address, port))),
            None => alloc::format!("{address}"),
        };
        let from = socket(self.source, self.ports.map(|ports| ports.0));
        let to = socket(self.destination, self.ports.map(|ports| ports.1));
        write!(f, "{protocol} {from} > {to}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn ipv4(protocol: u8, fragment: u16) -> Vec<u8> {
        let mut packet = alloc::vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 2, 0, 1, 10, 1, 0, 1];
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet.extend_from_slice(&[0x9c, 0x40, 0, 80]);
        packet
    }

    #[test]
    fn a_flow_is_written_as_people_write_it() {
        assert_eq!(Flow::read(&ipv4(6, 0)).unwrap().to_string(), "tcp 10.2.0.1:40000 > 10.1.0.1:80");
        assert_eq!(Flow::read(&ipv4(1, 0)).unwrap().to_string(), "icmp 10.2.0.1 > 10.1.0.1");
    }

    #[test]
    fn only_the_first_fragment_has_ports() {
        assert_eq!(Flow::read(&ipv4(17, 0x2000)).unwrap().ports, Some((40_000, 80)));
        assert_eq!(Flow::read(&ipv4(17, 0x2001)).unwrap().ports, None);
    }

    #[test]
    fn ports_are_found_behind_extension_headers() {
        let mut packet = alloc::vec![0x60, 0, 0, 0, 0, 0, 0, 64];
        packet.extend_from_slice(&[0xfd; 32]);
        packet.extend_from_slice(&[44, 0, 0, 0, 0, 0, 0, 0]);
        packet.extend_from_slice(&[17, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend_from_slice(&[0x9c, 0x40, 0, 53]);
        let flow = Flow::read(&packet).unwrap();
        assert_eq!((flow.protocol, flow.ports), (17, Some((40_000, 53))));
        assert!(flow.to_string().contains("]:53"), "{flow}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(mut packet in prop::collection::vec(any::<u8>(), 0..120), six in any::<bool>()) {
            if let Some(first) = packet.first_mut() {
                *first = if six { 0x60 } else { 0x40 } | (*first & 0xf);
            }
            if let Some(flow) = Flow::read(&packet) {
                prop_assert!(!flow.to_string().is_empty());
            }
        }
    }
}
