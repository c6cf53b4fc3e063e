//! [`Probe`]: what two gateways ask each other inside a tunnel: ten times a second whether they hear each other, and now
//! and then whether a packet of some size arrives.
//!
//! A probe is an IPv6 UDP packet between the two control addresses. It is made and read here and never reaches a TUN
//! device, so it measures the tunnel and the gateway process, not the kernel behind it. The tunnel authenticates it.
//!
//! After the UDP header, big-endian, 40 bytes:
//!
//! | bytes | meaning |
//! |---|---|
//! | 4 | `TmbP` |
//! | 1 | version, 1 |
//! | 1 | 1 request, 2 reply, 3 request of a size, 4 reply to one of a size |
//! | 1 | flags: 1 draining, 2 draining was seen, 4 hears the other, 8 idle |
//! | 1 | sender's lane |
//! | 8 | sender's incarnation |
//! | 8 | sequence of the request |
//! | 8 | in a reply: time since the request came, in microseconds |
//! | 2 | in 4: size of the request, as it arrived |
//! | 6 | zero |
//!
//! A request of a size is followed by zeros up to that size; its reply is not.
//!
//! A later version may be longer: what is behind is ignored, and the version says how much is understood.

use core::net::{IpAddr, Ipv6Addr};

use api::names::ports;

use crate::link::LaneNumber;
use crate::packet::{Fragment, Packet, protocol};
use crate::refusal::Refusal;
use crate::udp_checksum::udp_checksum;

const MAGIC: &[u8; 4] = b"TmbP";
const VERSION: u8 = 1;
const PAYLOAD: usize = 40;
const HEADERS: usize = 40 + 8;

/// Bytes of a probe packet that has no size of its own, IPv6 and UDP headers included.
pub const PROBE_LEN: usize = HEADERS + PAYLOAD;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    Request,
    Reply,
    /// Whether a packet this large arrives. Lost ones say nothing of the path's life, so their sequence
    /// is another.
    SizeRequest,
    SizeReply,
}

/// What a probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub kind: ProbeKind,
    /// The sender is going away.
    pub draining: bool,
    /// The sender knows that the receiver is going away.
    pub saw_draining: bool,
    /// The sender's probes on this link are being answered.
    pub hears_you: bool,
    /// The sender uses another link with newer keys: on this one nothing but probes comes from it.
    pub idle: bool,
    pub lane: LaneNumber,
    /// A number the sender drew when its process started: a new one is a restart.
    pub incarnation: u64,
    pub sequence: u64,
    /// How long the replying end took in microseconds, so that its scheduling does not count as distance.
    pub held: u64,
    /// Of a request of a size: bytes of the whole packet. Of a reply to one: how many arrived. Else 0.
    pub size: u16,
}

impl Probe {
    /// Writes the whole packet and gives its length. `None` when it does not fit into `room`, or cannot be that short.
    pub fn write(&self, source: Ipv6Addr, destination: Ipv6Addr, room: &mut [u8]) -> Option<usize> {
        let len = if self.kind == ProbeKind::SizeRequest { usize::from(self.size) } else { PROBE_LEN };
        let packet = room.get_mut(..len).filter(|packet| packet.len() >= PROBE_LEN)?;
        packet.fill(0);
        let udp_len = ((len - 40) as u16).to_be_bytes();
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&udp_len);
        packet[6] = protocol::UDP;
        packet[7] = 64;
        packet[8..24].copy_from_slice(&source.octets());
        packet[24..40].copy_from_slice(&destination.octets());
        packet[40..42].copy_from_slice(&ports::PROBE.to_be_bytes());
        packet[42..44].copy_from_slice(&ports::PROBE.to_be_bytes());
        packet[44..46].copy_from_slice(&udp_len);
        packet[48..52].copy_from_slice(MAGIC);
        packet[52] = VERSION;
        packet[53] = match self.kind {
            ProbeKind::Request => 1,
            ProbeKind::Reply => 2,
            ProbeKind::SizeRequest => 3,
            ProbeKind::SizeReply => 4,
        };
        packet[54] = u8::from(self.draining)
            | u8::from(self.saw_draining) << 1
            | u8::from(self.hears_you) << 2
            | u8::from(self.idle) << 3;
        packet[55] = self.lane.0;
        packet[56..64].copy_from_slice(&self.incarnation.to_be_bytes());
        packet[64..72].copy_from_slice(&self.sequence.to_be_bytes());
        packet[72..80].copy_from_slice(&self.held.to_be_bytes());
        if self.kind == ProbeKind::SizeReply {
            packet[80..82].copy_from_slice(&self.size.to_be_bytes());
        }
        // A probe that strays to a kernel is still a valid packet.
        let checksum = udp_checksum(&packet[8..40], &packet[40..]);
        packet[46..48].copy_from_slice(&checksum.to_be_bytes());
        Some(len)
    }

    /// Whether a packet is meant to be a probe, going by its addresses' owner and its port.
    pub fn is_addressed(packet: &Packet) -> bool {
        packet.flow.protocol == protocol::UDP && packet.flow.destination_port == ports::PROBE
    }

    /// Reads the probe in a packet for which [`is_addressed`](Self::is_addressed) holds.
    pub fn read(packet: &Packet, bytes: &[u8]) -> Result<Self, Refusal> {
        let IpAddr::V6(_) = packet.flow.source else { return Err(Refusal::MalformedProbe) };
        if packet.fragment != Fragment::Whole {
            return Err(Refusal::MalformedProbe);
        }
        let payload = bytes.get(packet.transport + 8..packet.len).ok_or(Refusal::MalformedProbe)?;
        let payload: &[u8; PAYLOAD] = payload.first_chunk().ok_or(Refusal::MalformedProbe)?;
        if payload[..4] != *MAGIC || payload[4] < VERSION {
            return Err(Refusal::MalformedProbe);
        }
        let kind = match payload[5] {
            1 => ProbeKind::Request,
            2 => ProbeKind::Reply,
            3 => ProbeKind::SizeRequest,
            4 => ProbeKind::SizeReply,
            _ => return Err(Refusal::MalformedProbe),
        };
        let number = |at: usize| {
            let bytes = payload.get(at..).and_then(|rest| rest.first_chunk::<8>());
            bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
        };
        let size = match kind {
            // What arrived counts, whatever was meant.
            ProbeKind::SizeRequest => u16::try_from(packet.len).map_err(|_| Refusal::MalformedProbe)?,
            ProbeKind::SizeReply => u16::from_be_bytes([payload[32], payload[33]]),
            ProbeKind::Request | ProbeKind::Reply => 0,
        };
        Ok(Self {
            kind,
            draining: payload[6] & 1 != 0,
            saw_draining: payload[6] & 2 != 0,
            hears_you: payload[6] & 4 != 0,
            idle: payload[6] & 8 != 0,
            lane: LaneNumber(payload[7]),
            incarnation: number(8),
            sequence: number(16),
            held: number(24),
            size,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addresses() -> (Ipv6Addr, Ipv6Addr) {
        ("fd01::1".parse().unwrap(), "fd02::1".parse().unwrap())
    }

    proptest! {
        #[test]
        fn a_probe_reads_back_as_it_was_written(
            kind in 0usize..4, flags in any::<[bool; 4]>(), lane in any::<u8>(), numbers in any::<[u64; 3]>(),
            size in PROBE_LEN as u16..2000,
        ) {
            let kind = [ProbeKind::Request, ProbeKind::Reply, ProbeKind::SizeRequest, ProbeKind::SizeReply][kind];
            let (len, size) = match kind {
                ProbeKind::SizeRequest => (usize::from(size), size),
                ProbeKind::SizeReply => (PROBE_LEN, size),
                ProbeKind::Request | ProbeKind::Reply => (PROBE_LEN, 0),
            };
            let probe = Probe {
                kind,
                draining: flags[0], saw_draining: flags[1], hears_you: flags[2], idle: flags[3],
                lane: LaneNumber(lane),
                incarnation: numbers[0], sequence: numbers[1], held: numbers[2], size,
            };
            let mut room = [0u8; 2000];
            let (source, destination) = addresses();
            prop_assert_eq!(probe.write(source, destination, &mut room), Some(len));
            prop_assert_eq!(udp_checksum(&room[8..40], &room[40..len]), 0xffff, "its own checksum makes the sum whole");
            let packet = Packet::parse(&room).unwrap();
            prop_assert_eq!(packet.len, len);
            prop_assert!(Probe::is_addressed(&packet));
            prop_assert_eq!(packet.flow.source, IpAddr::V6(source));
            prop_assert_eq!(Probe::read(&packet, &room), Ok(probe));
        }

        #[test]
        fn no_payload_makes_it_panic(payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut bytes = alloc::vec![0u8; 40];
            bytes[0] = 0x60;
            bytes[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            bytes[6] = protocol::UDP;
            bytes.extend_from_slice(&payload);
            if let Ok(packet) = Packet::parse(&bytes) {
                let _ = Probe::read(&packet, &bytes);
            }
        }
    }

    #[test]
    fn the_checksum_is_the_one_a_kernel_would_accept() {
        let probe = Probe {
            kind: ProbeKind::Request,
            draining: false,
            saw_draining: false,
            hears_you: true,
            idle: false,
            lane: LaneNumber(1),
            incarnation: 0x0123_4567_89ab_cdef,
            sequence: 7,
            held: 0,
            size: 0,
        };
        let mut room = [0u8; PROBE_LEN];
        let (source, destination) = addresses();
        probe.write(source, destination, &mut room).unwrap();
        // Summing a datagram with its right checksum gives all ones, which is zero again after the complement.
        assert_eq!(udp_checksum(&room[8..40], &room[40..]), 0xffff);
    }
}
