//! Inner packets for tests.

use std::net::IpAddr;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// An IP packet of either family around a transport payload.
pub(crate) fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend_from_slice(&[0x45, 0]);
            bytes.extend_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
            bytes.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
            bytes.extend_from_slice(&source.octets());
            bytes.extend_from_slice(&destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend_from_slice(&[0x60, 0, 0, 0]);
            bytes.extend_from_slice(&(payload.len() as u16).to_be_bytes());
            bytes.extend_from_slice(&[protocol, 64]);
            bytes.extend_from_slice(&source.octets());
            bytes.extend_from_slice(&destination.octets());
        }
        _ => panic!("a packet has one family"),
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// A UDP packet between ports 4000 and `port`.
pub(crate) fn udp(source: IpAddr, destination: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend_from_slice(&4000u16.to_be_bytes());
    datagram.extend_from_slice(&port.to_be_bytes());
    datagram.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    ip(source, destination, UDP, &datagram)
}

/// A TCP segment between ports 4000 and `port`: `flags` 0x02 is SYN, 0x10 ACK.
pub(crate) fn tcp(source: IpAddr, destination: IpAddr, port: u16, flags: u8) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[..2].copy_from_slice(&4000u16.to_be_bytes());
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    segment[12] = 0x50;
    segment[13] = flags;
    ip(source, destination, TCP, &segment)
}

/// An ICMP message of this type, of the addresses' family.
pub(crate) fn icmp(source: IpAddr, destination: IpAddr, kind: u8) -> Vec<u8> {
    let protocol = if source.is_ipv4() { 1 } else { 58 };
    ip(source, destination, protocol, &[kind, 0, 0, 0, 0, 0, 0, 0])
}
