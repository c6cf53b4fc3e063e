//! A real packet through the tunnel and back, for `tombolo ping`: an ICMPv6 echo (RFC 4443, 4.1) from our control
//! address to the peer's, answered by the kernel of its gateway's host.

use std::io::{self, Read};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

/// Beyond any path on this planet, by way of two satellites.
const LIMIT: Duration = Duration::from_secs(2);

const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
const HEADER: usize = 8;

/// Sends one and waits for its answer. Blocks the thread for two seconds at most.
pub(crate) fn ping(own: Ipv6Addr, target: Ipv6Addr) -> Result<Duration> {
    let socket = open().context("an ICMPv6 socket needs CAP_NET_RAW, or net.ipv4.ping_group_range to include us")?;
    let address = |ip| SocketAddr::V6(SocketAddrV6::new(ip, 0, 0, 0)).into();
    socket.bind(&address(own)).context("using our control address")?;
    socket.connect(&address(target)).context("routing to the peer's control address")?;
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).context("the system gives no random numbers")?;
    let mut request = [0; HEADER + 16];
    // The kernel writes the checksum, and on a ping socket the identifier as well; the nonce tells answers apart.
    request[0] = ECHO_REQUEST;
    request[HEADER..].copy_from_slice(&nonce);
    let started = Instant::now();
    socket.send(&request).context("sending an echo request")?;
    let mut answer = [0; 256];
    loop {
        let left = LIMIT.checked_sub(started.elapsed()).filter(|left| !left.is_zero());
        let Some(left) = left else { bail!("no answer within {} s", LIMIT.as_secs()) };
        socket.set_read_timeout(Some(left))?;
        match (&socket).read(&mut answer) {
            Ok(len) if is_answer(&answer[..len], &nonce) => return Ok(started.elapsed()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("waiting for the echo's answer"),
        }
    }
}

fn open() -> io::Result<Socket> {
    let icmp = Some(Protocol::ICMPV6);
    Socket::new(Domain::IPV6, Type::RAW, icmp).or_else(|_| Socket::new(Domain::IPV6, Type::DGRAM, icmp))
}

fn is_answer(packet: &[u8], nonce: &[u8; 16]) -> bool {
    packet.first() == Some(&ECHO_REPLY) && packet.get(HEADER..) == Some(nonce.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reply_with_our_nonce_is_an_answer() {
        let nonce = [7; 16];
        let reply = |kind: u8, nonce: &[u8]| [&[kind, 0, 0, 0, 0, 0, 0, 0], nonce].concat();
        assert!(is_answer(&reply(ECHO_REPLY, &nonce), &nonce));
        assert!(!is_answer(&reply(ECHO_REQUEST, &nonce), &nonce));
        assert!(!is_answer(&reply(ECHO_REPLY, &[8; 16]), &nonce));
        assert!(!is_answer(&[ECHO_REPLY], &nonce) && !is_answer(&[], &nonce));
    }
}
