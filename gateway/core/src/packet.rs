//! [`Packet`]: the facts the gateway needs of an IPv4 or IPv6 packet, checked and read once.
//!
//! The only place that looks into foreign IP bytes. Sources: RFC 791, 8200, 9293, 9260, 792, 4443; what is refused
//! because it defeats filters: RFC 1858 and 3128 (tiny and overlapping fragments), 5095 and 7126 (source routes), 7112
//! (header chains split over fragments).

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::refusal::Refusal;
use crate::refusal_log::{mix, mix_address};

/// IANA protocol numbers the gateway knows.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// RFC 8200 names six kinds, each to appear at most once but destination options twice.
const MAX_EXTENSION_HEADERS: usize = 7;

/// The five values that tell one conversation from another. Ports are 0 where the protocol, or the fragment, has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
}

impl Flow {
    /// A number that spreads flows evenly; the same for every packet of the flow.
    pub(crate) fn digest(&self) -> u64 {
        let ports = (u64::from(self.protocol) << 32) | (u64::from(self.source_port) << 16);
        mix(self.addresses_digest(), ports | u64::from(self.destination_port))
    }

    fn addresses_digest(&self) -> u64 {
        mix_address(mix_address(0, self.source), self.destination)
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, protocol, source_port, destination_port } = self;
        write!(f, "protocol {protocol} {source} port {source_port} > {destination} port {destination_port}")
    }
}

/// Which part of a datagram a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    Whole,
    /// The first of several: it has the transport header.
    First,
    /// One of the others: nothing can be said of its ports.
    Later,
}

/// What a packet is to the filter of new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Carries on something, or is of a kind whose beginning only a tracking host can tell (UDP).
    Continue,
    /// TCP SYN without ACK, SCTP INIT.
    Connect,
    /// An ICMP echo request.
    Echo,
    /// ICMP that has no business beyond one link: redirects, router and neighbour discovery, address queries.
    NeighbourIcmp,
    /// A protocol that services do not have.
    Other,
}

/// What was read of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub flow: Flow,
    /// Bytes the packet has by its own header; the buffer may hold padding behind.
    pub len: usize,
    /// Where the transport header begins; where the payload begins for a later fragment.
    pub transport: usize,
    pub fragment: Fragment,
    pub intent: Intent,
    /// Whether the packet may be cut by routers: IPv4 without DF.
    pub may_be_fragmented: bool,
}

impl Packet {
    /// Reads a packet. The buffer may be longer than the packet, not shorter.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => parse_ipv4(bytes),
            Some(6) => parse_ipv6(bytes),
            _ => Err(Refusal::MalformedPacket),
        }
    }

    /// A number by which to spread flows over equal links. All fragments of a datagram have the same, the first
    /// included; else the far host waits for parts at two gateways.
    pub fn spread(&self) -> u64 {
        match self.fragment {
            Fragment::Whole => self.flow.digest(),
            Fragment::First | Fragment::Later => self.flow.addresses_digest(),
        }
    }
}

fn parse_ipv4(bytes: &[u8]) -> Result<Packet, Refusal> {
    const DONT_FRAGMENT: u16 = 0x4000;
    const MORE_FRAGMENTS: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;

    let header: &[u8; 20] = bytes.first_chunk().ok_or(Refusal::MalformedPacket)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let bytes = bytes.get(..len).ok_or(Refusal::MalformedPacket)?;
    let options = bytes.get(20..header_len).ok_or(Refusal::MalformedPacket)?;
    refuse_source_route_option(options)?;

    let fragment_field = u16::from_be_bytes([header[6], header[7]]);
    let offset = usize::from(fragment_field & OFFSET) * 8;
    let fragment = match (offset, fragment_field & MORE_FRAGMENTS != 0) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    };
    let protocol = header[9];
    // A fragment at byte 8 rewrites the flags of a TCP header that has passed already.
    if protocol == protocol::TCP && offset == 8 {
        return Err(Refusal::TinyFragment);
    }
    // A reassembled datagram longer than 65535 bytes is an old attack on hosts.
    if fragment == Fragment::Later && offset + len > usize::from(u16::MAX) {
        return Err(Refusal::MalformedPacket);
    }
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    let transport = read_transport(bytes, header_len, protocol, fragment, false)?;
    Ok(transport.packet(source.into(), destination.into(), len, fragment, fragment_field & DONT_FRAGMENT == 0))
}

/// Loose and strict source routes send a packet elsewhere than its destination says.
fn refuse_source_route_option(mut options: &[u8]) -> Result<(), Refusal> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    while let Some((&kind, rest)) = options.split_first() {
        options = match kind {
            END => return Ok(()),
            NO_OPERATION => rest,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(Refusal::SourceRouted),
            _ => {
                let len = rest.first().map_or(0, |len| usize::from(*len));
                if len < 2 {
                    return Err(Refusal::MalformedPacket);
                }
                options.get(len..).ok_or(Refusal::MalformedPacket)?
            }
        };
    }
    Ok(())
}

fn parse_ipv6(bytes: &[u8]) -> Result<Packet, Refusal> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION_OPTIONS: u8 = 60;
    const MOBILITY: u8 = 135;
    const HOST_IDENTITY: u8 = 139;
    const SHIM6: u8 = 140;

    let header: &[u8; 40] = bytes.first_chunk().ok_or(Refusal::MalformedPacket)?;
    let len = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let bytes = bytes.get(..len).ok_or(Refusal::MalformedPacket)?;
    let [_, _, _, _, _, _, _, _, addresses @ ..] = header;
    let (source, destination) = addresses.split_at(16);
    let source = Ipv6Addr::from(<[u8; 16]>::try_from(source).map_err(|_| Refusal::MalformedPacket)?);
    let destination = Ipv6Addr::from(<[u8; 16]>::try_from(destination).map_err(|_| Refusal::MalformedPacket)?);

    let mut next = header[6];
    let mut at = 40;
    let mut fragment = Fragment::Whole;
    // In a first fragment the chain must be whole (RFC 7112): running out of bytes is then an attack, not an accident.
    let short = |fragment| if fragment == Fragment::Whole { Refusal::MalformedPacket } else { Refusal::TinyFragment };
    for walked in 0.. {
        if !matches!(
            next,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6
        ) {
            break;
        }
        if walked == MAX_EXTENSION_HEADERS {
            return Err(Refusal::TooManyExtensionHeaders);
        }
        let extension = bytes.get(at..).ok_or(short(fragment))?;
        let [following, units, third, fourth, ..] = *extension else { return Err(short(fragment)) };
        let size = match next {
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(units) + 2) * 4,
            _ => (usize::from(units) + 1) * 8,
        };
        if extension.len() < size {
            return Err(short(fragment));
        }
        match next {
            HOP_BY_HOP if walked > 0 => return Err(Refusal::MalformedPacket),
            // The fourth byte counts the segments still to visit: the destination in the header is then not the last.
            ROUTING if fourth != 0 => return Err(Refusal::SourceRouted),
            FRAGMENT if fragment != Fragment::Whole => return Err(Refusal::MalformedPacket),
            FRAGMENT => {
                let field = u16::from_be_bytes([third, fourth]);
                fragment = match (field & !7, field & 1 != 0) {
                    (0, false) => Fragment::Whole,
                    (0, true) => Fragment::First,
                    _ => Fragment::Later,
                };
            }
            _ => {}
        }
        next = following;
        at += size;
        if fragment == Fragment::Later {
            break;
        }
    }
    let transport = read_transport(bytes, at, next, fragment, true)?;
    Ok(transport.packet(source.into(), destination.into(), len, fragment, false))
}

struct Transport {
    protocol: u8,
    at: usize,
    ports: (u16, u16),
    intent: Intent,
}

impl Transport {
    fn packet(
        self,
        source: IpAddr,
        destination: IpAddr,
        len: usize,
        fragment: Fragment,
        may_be_fragmented: bool,
    ) -> Packet {
        let (source_port, destination_port) = self.ports;
        let flow = Flow { source, destination, protocol: self.protocol, source_port, destination_port };
        Packet { flow, len, transport: self.at, fragment, intent: self.intent, may_be_fragmented }
    }
}

fn read_transport(
    bytes: &[u8],
    at: usize,
    protocol: u8,
    fragment: Fragment,
    is_ipv6: bool,
) -> Result<Transport, Refusal> {
    let known = matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
        || protocol == if is_ipv6 { protocol::ICMPV6 } else { protocol::ICMP };
    if !known {
        return Ok(Transport { protocol, at, ports: (0, 0), intent: Intent::Other });
    }
    if fragment == Fragment::Later {
        return Ok(Transport { protocol, at, ports: (0, 0), intent: Intent::Continue });
    }
    let header = bytes.get(at..).unwrap_or_default();
    let shortest = match protocol {
        protocol::TCP => 20,
        // The common header and the head of the first chunk.
        protocol::SCTP => 16,
        _ => 8,
    };
    if header.len() < shortest {
        let whole = fragment == Fragment::Whole;
        return Err(if whole { Refusal::MalformedPacket } else { Refusal::TinyFragment });
    }
    let byte = |index: usize| header.get(index).copied().unwrap_or_default();
    let ports = (u16::from_be_bytes([byte(0), byte(1)]), u16::from_be_bytes([byte(2), byte(3)]));
    let (ports, intent) = match protocol {
        protocol::TCP => (ports, tcp_intent(byte(13))),
        protocol::SCTP => (ports, sctp_intent(byte(12))),
        protocol::UDP => (ports, Intent::Continue),
        protocol::ICMP => ((0, 0), icmp_intent(byte(0))),
        _ => ((0, 0), icmpv6_intent(byte(0))),
    };
    Ok(Transport { protocol, at, ports, intent })
}

const fn tcp_intent(flags: u8) -> Intent {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    if flags & (SYN | ACK) == SYN { Intent::Connect } else { Intent::Continue }
}

/// INIT travels alone (RFC 9260, 4.3), so the first chunk tells.
const fn sctp_intent(first_chunk: u8) -> Intent {
    const INIT: u8 = 1;
    if first_chunk == INIT { Intent::Connect } else { Intent::Continue }
}

const fn icmp_intent(kind: u8) -> Intent {
    match kind {
        8 => Intent::Echo,
        // Echo reply, unreachable, time exceeded, parameter problem.
        0 | 3 | 11 | 12 => Intent::Continue,
        _ => Intent::NeighbourIcmp,
    }
}

const fn icmpv6_intent(kind: u8) -> Intent {
    match kind {
        128 => Intent::Echo,
        // Unreachable, too big, time exceeded, parameter problem, echo reply.
        1..=4 | 129 => Intent::Continue,
        _ => Intent::NeighbourIcmp,
    }
}

#[cfg(test)]
mod tests;
