//! UDP there and back.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Protocol, Type};

use crate::host::Host;

/// The largest UDP payload that IPv4 can carry.
const LARGEST: usize = 65_507;

/// Bytes of datagrams that may wait, where the kernel allows as many: half a second of 10,000 small ones a second, while
/// programs that start keep this one from its core.
const WAITING: usize = 8 << 20;

/// Sends every datagram back to where it came from, until the process ends.
pub fn serve_echo(port: u16) -> io::Result<()> {
    let socket = super::both_families(Type::DGRAM, Protocol::UDP, port)?;
    // More than net.core.rmem_max becomes that; to go beyond it takes the first user namespace.
    socket.set_recv_buffer_size(WAITING)?;
    let socket = UdpSocket::from(socket);
    println!("{} {port}", super::LISTENING);
    let mut buffer = vec![0; LARGEST];
    loop {
        // An ICMP error of an earlier answer shows up here; it concerns nobody else.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        if let Err(error) = socket.send_to(&buffer[..length], client) {
            eprintln!("{client} was not answered: {error}");
        }
    }
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Echoes {
    pub sent: usize,
    pub answered: usize,
    /// How long each took, in order of sending.
    pub took: Vec<Duration>,
    /// The last error that the kernel told the socket: an ICMP refusal, or "message too long".
    pub error: Option<String>,
}

/// Sends `count` datagrams of `size` bytes from `host`, each after the answer to the one before or after `limit`.
pub fn echo(host: &Host, target: SocketAddr, count: usize, size: usize, limit: Duration) -> Result<Echoes> {
    host.run(|| ask(target, count, size, limit))?.with_context(|| format!("{}: UDP echo with {target}", host.name()))
}

/// As [`echo`], from the network namespace of the calling thread.
pub fn ask(target: SocketAddr, count: usize, size: usize, limit: Duration) -> Result<Echoes> {
    ensure!((8..=LARGEST).contains(&size), "a datagram here has 8 to {LARGEST} bytes, not {size}");
    let from: SocketAddr =
        if target.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(from)?;
    socket.connect(target)?;
    let mut echoes = Echoes::default();
    let mut buffer = vec![0; LARGEST];
    for number in 0..count as u64 {
        let mut datagram = vec![0x5a; size];
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        let started = Instant::now();
        echoes.sent += 1;
        if let Err(error) = socket.send(&datagram) {
            echoes.error = Some(error.to_string());
            continue;
        }
        loop {
            let left = limit.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut buffer) {
                // A late answer to an earlier one is not this one's.
                Ok(length) if buffer[..length] != datagram[..] => {}
                Ok(_) => {
                    echoes.answered += 1;
                    echoes.took.push(started.elapsed());
                    break;
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => break,
                Err(error) => {
                    echoes.error = Some(error.to_string());
                    break;
                }
            }
        }
    }
    Ok(echoes)
}
