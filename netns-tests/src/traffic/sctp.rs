//! The first two packets of an SCTP association (RFC 9260), made by hand for kernels that have no SCTP sockets.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::host::Host;

/// IANA protocol number.
const SCTP: i32 = 132;
/// Source port, destination port, verification tag, checksum.
const COMMON_HEADER: usize = 12;
/// Both begin with their type, flags, length and the sender's tag (sections 3.3.2 and 3.3.3).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// What the one who answers calls the association; never 0.
const SERVERS_TAG: u32 = 0x746f_6d62;

/// Answers the next INIT to `port` that comes to the host within `limit`; who sent it, or none.
pub fn answer_once(host: &Host, v4: bool, port: u16, limit: Duration) -> Result<Option<IpAddr>> {
    host.run(|| serve(v4, port, limit))?.with_context(|| format!("{}: answering an SCTP INIT", host.name()))
}

fn serve(v4: bool, port: u16, limit: Duration) -> io::Result<Option<IpAddr>> {
    let socket = open(v4)?;
    let mut buffer = [0; 2048];
    let given_up = Instant::now() + limit;
    while let Some((length, from)) = receive(&socket, &mut buffer, given_up)? {
        let Some(packet) = sctp_of(&buffer[..length], v4) else { continue };
        if word(packet, 2) == port && packet.get(COMMON_HEADER) == Some(&INIT) {
            let tag = packet[COMMON_HEADER + 4..COMMON_HEADER + 8].try_into().map(u32::from_be_bytes);
            let tag = tag.map_err(io::Error::other)?;
            let answer = packet_of(INIT_ACK, (port, word(packet, 0)), tag, SERVERS_TAG);
            socket.send_to(&answer, SocketAddr::new(from, 0))?;
            return Ok(Some(from));
        }
    }
    Ok(None)
}

/// Sends an INIT from the host to `target`; whether it is answered by `target` within `limit`, as an association of it.
pub fn begins(host: &Host, target: SocketAddr, source: u16, limit: Duration) -> Result<bool> {
    host.run(|| ask(target, source, limit))?.with_context(|| format!("{}: SCTP to {target}", host.name()))
}

fn ask(target: SocketAddr, source: u16, limit: Duration) -> io::Result<bool> {
    let socket = open(target.is_ipv4())?;
    let tag = u32::from(source) << 8 | 1;
    socket.send_to(&packet_of(INIT, (source, target.port()), 0, tag), SocketAddr::new(target.ip(), 0))?;
    let mut buffer = [0; 2048];
    let given_up = Instant::now() + limit;
    while let Some((length, from)) = receive(&socket, &mut buffer, given_up)? {
        let Some(packet) = sctp_of(&buffer[..length], target.is_ipv4()) else { continue };
        let tagged = packet.get(4..8) == Some(&tag.to_be_bytes()[..]);
        let ports = (word(packet, 0), word(packet, 2));
        if from == target.ip() && ports == (target.port(), source) && tagged && packet[COMMON_HEADER] == INIT_ACK {
            return Ok(is_whole(packet));
        }
    }
    Ok(false)
}

/// A raw socket; the calls are those of UDP.
fn open(v4: bool) -> io::Result<UdpSocket> {
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP)))?;
    Ok(UdpSocket::from(OwnedFd::from(socket)))
}

/// None when the time is up.
fn receive(socket: &UdpSocket, buffer: &mut [u8], given_up: Instant) -> io::Result<Option<(usize, IpAddr)>> {
    loop {
        let left = given_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv_from(buffer) {
            Ok((length, from)) => return Ok(Some((length, from.ip()))),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What is behind the IP header, which only IPv4 shows. None when it is too short for a chunk with a tag.
fn sctp_of(bytes: &[u8], v4: bool) -> Option<&[u8]> {
    let header = if v4 { usize::from(bytes.first()? & 0x0f) * 4 } else { 0 };
    bytes.get(header..).filter(|packet| packet.len() >= COMMON_HEADER + 8)
}

fn packet_of(chunk: u8, (source, destination): (u16, u16), verification: u32, own_tag: u32) -> Vec<u8> {
    // An INIT ACK carries a cookie (parameter 7) of any content.
    let cookie: &[u8] = if chunk == INIT_ACK { &[0, 7, 0, 8, 1, 2, 3, 4] } else { &[] };
    let mut packet = Vec::new();
    packet.extend_from_slice(&source.to_be_bytes());
    packet.extend_from_slice(&destination.to_be_bytes());
    packet.extend_from_slice(&verification.to_be_bytes());
    packet.extend_from_slice(&[0; 4]);
    packet.extend_from_slice(&[chunk, 0, 0, 20 + cookie.len() as u8]);
    packet.extend_from_slice(&own_tag.to_be_bytes());
    // Receiver window, streams out and in, first sequence number.
    packet.extend_from_slice(&[0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    packet.extend_from_slice(cookie);
    let checksum = crc32c(&packet);
    packet[8..12].copy_from_slice(&checksum.to_le_bytes());
    packet
}

/// Whether the checksum is that of the packet: whoever changes a port on the way has to compute it anew.
fn is_whole(packet: &[u8]) -> bool {
    let mut bare = packet.to_vec();
    bare[8..12].fill(0);
    packet[8..12] == crc32c(&bare).to_le_bytes()
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let by_bit = |sum: u32| if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| by_bit(sum)))
}

fn word(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, B.4: 32 bytes of zero, and of ones.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }
}
