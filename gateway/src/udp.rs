//! [`Sockets`]: the outside of a lane, one UDP socket for each family on the same port.

mod fragments;
mod messages;
mod pieces;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use api::names::OUTER_MARK;
use gateway_core::{Arena, Received};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use messages::Headers;
use pieces::Cutter;

pub(crate) use messages::{BATCH, Departure};

/// What a burst of all TCP windows through one gateway needs; smaller buffers cost a tenth of the throughput and lose
/// packets (datapath.md, section 2).
const RECEIVE_BUFFER: usize = 16 << 20;
const SEND_BUFFER: usize = 8 << 20;

/// A lane's sockets. All threads of the lane send by them; only its receiving thread receives.
pub(crate) struct Sockets {
    v4: Option<Socket>,
    v6: Option<Socket>,
    port: u16,
}

/// Where a received datagram was sent to, beside what the core keeps of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) from: SocketAddr,
    pub(crate) local: Option<IpAddr>,
}

impl Sockets {
    /// Opens both families on `port`. One family may be missing on this host; both may not.
    pub(crate) fn open(port: u16) -> Result<Self> {
        let v4 = open_socket(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port));
        let v6 = open_socket(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
        let (v4, v6) = match (v4, v6) {
            (Ok(v4), Ok(v6)) => (Some(v4), Some(v6)),
            (Ok(v4), Err(error)) if is_family_missing(&error) => {
                tracing::warn!(port, "no IPv6 outside the tunnel: peers must have IPv4 endpoints");
                (Some(v4), None)
            }
            (Err(error), Ok(v6)) if is_family_missing(&error) => {
                tracing::warn!(port, "no IPv4 outside the tunnel: peers must have IPv6 endpoints");
                (None, Some(v6))
            }
            (Err(error), _) | (_, Err(error)) => {
                let advice = "is another gateway or WireGuard running on this host? Choose another spec.gateways.port";
                return Err(error).with_context(|| format!("listening on UDP port {port}: {advice}"));
            }
        };
        Ok(Self { v4, v6, port })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    fn for_address(&self, address: &SocketAddr) -> Option<&Socket> {
        if address.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    /// Sends so that no datagram is cut, here or on its way. Only one thread may do so at a time; what others send by
    /// these sockets meanwhile is not cut either, a few microseconds long.
    pub(crate) fn whole<T>(&self, send: impl FnOnce() -> T) -> io::Result<T> {
        let sockets =
            || [(&self.v4, true), (&self.v6, false)].into_iter().filter_map(|(s, v4)| Some((s.as_ref()?, v4)));
        let forbidden = sockets().try_for_each(|(socket, is_ipv4)| fragments::forbid(socket, is_ipv4));
        let sent = forbidden.map(|()| send());
        // Both are asked back, whatever becomes of one.
        let results: Vec<io::Result<()>> =
            sockets().map(|(socket, is_ipv4)| fragments::allow(socket, is_ipv4)).collect();
        results.into_iter().collect::<io::Result<()>>()?;
        sent
    }

    /// What to wait on for datagrams.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.v4, &self.v6].into_iter().flatten().map(AsFd::as_fd)
    }
}

/// Has what this IPv6 socket sends arrive whole or not at all.
pub(crate) fn never_cut(socket: &Socket) -> io::Result<()> {
    fragments::forbid(socket, false)
}

fn is_family_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

fn open_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    fragments::allow(&socket, address.is_ipv4())?;
    // Without the mark advertised node networks may route the tunnel into itself; a host that refuses the mark has no
    // such routes of ours either, for they need the same privilege.
    if let Err(error) = socket.set_mark(OUTER_MARK) {
        tracing::warn!(%error, "outer packets carry no mark: run with CAP_NET_ADMIN where the node's own network is advertised");
    }
    // The forced way passes the host's limit and needs CAP_NET_ADMIN; the other is cut to net.core.*mem_max.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
        socket.set_send_buffer_size(SEND_BUFFER)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Receives for one lane. Belongs to the receiving thread.
pub(crate) struct Receiver {
    headers: Headers,
    /// Bytes for one datagram: the largest sealed packet of this lane.
    piece: usize,
}

impl Receiver {
    pub(crate) fn new(piece: usize) -> Self {
        Self { headers: Headers::new(), piece }
    }

    /// Takes what has arrived on either socket, without waiting. `asked[i]` belongs to datagram `i`. Gives the number
    /// of datagrams that were longer than any of ours and were dropped.
    pub(crate) fn receive(
        &mut self,
        sockets: &Sockets,
        datagrams: &mut Arena<Received>,
        asked: &mut Vec<Asked>,
    ) -> Result<u64> {
        let mut oversized = 0;
        for descriptor in sockets.descriptors() {
            let count = match self.headers.receive(descriptor, datagrams.room(), self.piece) {
                Ok(count) => count,
                // Errors of earlier sends (an ICMP unreachable) are reported to whoever calls next; they are no news.
                Err(error) if is_passing(&error) => 0,
                Err(error) => return Err(error).context("receiving from the tunnel's UDP socket"),
            };
            let mut packed = 0;
            for index in 0..count {
                let Some(arrival) = self.headers.arrival(index) else { continue };
                if arrival.truncated {
                    oversized += 1;
                    continue;
                }
                // Pieces are far apart and packets lie close together: move each to the end of those before it.
                let start = index * self.piece - packed;
                let room = datagrams.room();
                if start > 0 {
                    room.copy_within(start..start + arrival.len, 0);
                }
                if datagrams.commit(arrival.len, Received::from(arrival.from)).is_err() {
                    break;
                }
                packed += arrival.len;
                asked.push(Asked { from: arrival.from, local: arrival.local });
            }
        }
        Ok(oversized)
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::EAGAIN
                | Errno::EINTR
                | Errno::ECONNREFUSED
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::ENETDOWN
                | Errno::ENOMEM
                | Errno::ENOBUFS
                | Errno::EMSGSIZE
        )
    )
}

/// Sends for one lane. Each thread has its own.
pub(crate) struct Sender {
    headers: Headers,
    cutter: Cutter,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) datagrams: u64,
    pub(crate) failed: u64,
}

impl Sender {
    pub(crate) fn new() -> Self {
        Self { headers: Headers::new(), cutter: Cutter::default() }
    }

    /// Sends datagrams in order. One that cannot be sent (no route, filtered) is counted and does not hold up the rest.
    pub(crate) fn send<'a>(
        &mut self,
        sockets: &Sockets,
        count: usize,
        datagram: impl Fn(usize) -> Departure<'a>,
    ) -> Sent {
        let mut result = Sent::default();
        let mut next = 0;
        while next < count {
            let first = datagram(next);
            let Some(socket) = sockets.for_address(&first.to) else {
                result.failed += 1;
                next += 1;
                continue;
            };
            if pieces::must_be_cut(&first) && self.cutter.send(socket, &first) {
                result.datagrams += 1;
                next += 1;
                continue;
            }
            // Neighbours of one family go out in one call, whatever peers they are for.
            let others = (next + 1..count).map(&datagram);
            let run =
                others.take_while(|other| other.to.is_ipv4() == first.to.is_ipv4() && !pieces::must_be_cut(other));
            let run = std::iter::once(first).chain(run);
            match self.headers.send(socket.as_fd(), run) {
                Ok(sent) => {
                    result.datagrams += sent as u64;
                    next += sent.max(1);
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => {
                    // The pinned address may be gone from this host: let the kernel choose.
                    let again = first.source.is_some()
                        && self
                            .headers
                            .send(socket.as_fd(), std::iter::once(Departure { source: None, ..first }))
                            .is_ok_and(|sent| sent == 1);
                    if again {
                        result.datagrams += 1;
                    } else {
                        result.failed += 1;
                        tracing::debug!(to = %first.to, %error, "datagram not sent");
                    }
                    next += 1;
                }
            }
        }
        result
    }
}

#[cfg(test)]
#[path = "udp_tests.rs"]
mod tests;
