//! ICMP echo in both families (RFC 792, RFC 4443).

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use crate::host::Host;

/// How long [`ping`] goes on trying.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it sends meanwhile.
const SEND_EVERY: Duration = Duration::from_millis(200);
const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
/// Enough to be told from other echoes and to fit everywhere.
const PAYLOAD: usize = 32;

/// Sends echo requests from `host` until one is answered; five seconds at most. Returns how long that one took.
pub fn ping(host: &Host, target: IpAddr) -> Result<Duration> {
    let attempts = PATIENCE.as_millis() / SEND_EVERY.as_millis();
    for _ in 0..attempts {
        if let Some(took) = ping_once(host, target, SEND_EVERY)? {
            return Ok(took);
        }
    }
    bail!("{}: no echo from {target} within {PATIENCE:?}", host.name())
}

/// Sends one echo request from `host` and returns how long the answer took, or None when none came within `limit`.
pub fn ping_once(host: &Host, target: IpAddr, limit: Duration) -> Result<Option<Duration>> {
    host.run(|| ask(target, limit))?.with_context(|| format!("{}: ICMP echo to {target}", host.name()))
}

/// As [`ping_once`], from the network namespace of the calling thread.
pub fn ask(target: IpAddr, limit: Duration) -> io::Result<Option<Duration>> {
    /// Tells the echoes of one run from another's: raw sockets see them all.
    static IDENTIFIER: AtomicU16 = AtomicU16::new(1);
    let identifier = IDENTIFIER.fetch_add(1, Ordering::Relaxed);
    let (domain, protocol) =
        if target.is_ipv4() { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
    let mut socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    // The kernel fails a connect, and later a send, to where there is no route: that is silence too.
    if socket.connect(&SocketAddr::new(target, 0).into()).is_err() {
        return Ok(None);
    }
    let started = Instant::now();
    if socket.write_all(&request(target.is_ipv4(), identifier)).is_err() {
        return Ok(None);
    }
    let mut buffer = [0; 2048];
    loop {
        let left = limit.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut buffer) {
            Ok(length) if is_reply(&buffer[..length], target.is_ipv4(), identifier) => {
                return Ok(Some(started.elapsed()));
            }
            Ok(_) => {}
            // Also a told refusal ("host unreachable") is no echo.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(None),
        }
    }
}

fn request(v4: bool, identifier: u16) -> Vec<u8> {
    let mut packet = vec![0; HEADER + PAYLOAD];
    packet[0] = if v4 { ECHO_REQUEST_V4 } else { ECHO_REQUEST_V6 };
    packet[4..6].copy_from_slice(&identifier.to_be_bytes());
    packet[7] = 1;
    if v4 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    // For IPv6 the kernel writes the checksum, which covers addresses it has yet to choose.
    packet
}

/// The internet checksum (RFC 1071).
fn checksum(packet: &[u8]) -> u16 {
    let mut sum: u32 =
        packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A raw IPv4 socket gives the IP header too; a raw IPv6 socket does not.
fn is_reply(packet: &[u8], v4: bool, identifier: u16) -> bool {
    let header = if v4 { packet.first().map_or(0, |&first| usize::from(first & 0x0f) * 4) } else { 0 };
    let kind = if v4 { ECHO_REPLY_V4 } else { ECHO_REPLY_V6 };
    let Some(message) = packet.get(header..) else { return false };
    message.first() == Some(&kind) && message.get(4..6) == Some(&identifier.to_be_bytes()[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_packet_with_its_checksum_is_zero() {
        assert_eq!(checksum(&request(true, 77)), 0);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(0u8.., 0..64), v4: bool) {
            is_reply(&bytes, v4, 1);
        }
    }
}
