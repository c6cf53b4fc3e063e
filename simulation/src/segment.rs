//! TCP segments, as bytes: what pods say to each other, and what carries the control relay.

use std::net::{IpAddr, SocketAddr};

use gateway_core::packet::Packet;

use crate::packets;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

const HEADER: usize = 20;

/// What a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledged: u32,
}

impl Segment {
    /// The packet that carries it.
    pub(crate) fn packet(self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend_from_slice(&from.port().to_be_bytes());
        bytes.extend_from_slice(&to.port().to_be_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.acknowledged.to_be_bytes());
        bytes.extend_from_slice(&[0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.extend_from_slice(payload);
        packets::ip(from.ip(), to.ip(), packets::TCP, &bytes)
    }

    /// Reads the segment of a TCP packet, and its payload.
    pub(crate) fn read<'a>(packet: &Packet, bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let segment = bytes.get(packet.transport..packet.len).filter(|_| packet.flow.protocol == packets::TCP)?;
        let (header, payload) = segment.split_at_checked(HEADER)?;
        let word = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
        Some((Self { flags: header[13], sequence: word(4)?, acknowledged: word(8)? }, payload))
    }

    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Both ends of a packet's flow.
pub(crate) fn ends(packet: &Packet) -> (SocketAddr, SocketAddr) {
    let end = |address: IpAddr, port| SocketAddr::new(address, port);
    (end(packet.flow.source, packet.flow.source_port), end(packet.flow.destination, packet.flow.destination_port))
}
