//! [`Cutter`]: sends in pieces what an IPv6 path does not carry whole.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use api::names::OUTER_MARK;
use gateway_core::outer_fragments::OuterFragments;
use socket2::{Domain, Protocol, Socket, Type};

use super::messages::Departure;

/// Sent packets bring their own IPv6 header, and nothing is received (raw(7): IPPROTO_RAW).
const RAW: i32 = 255;

/// Whether a datagram would be lost whole. Over IPv4 routers cut it.
pub(super) fn must_be_cut(departure: &Departure<'_>) -> bool {
    departure.is_too_narrow && departure.to.is_ipv6() && OuterFragments::are_needed(departure.bytes.len())
}

/// Belongs to one thread.
#[derive(Default)]
pub(super) struct Cutter {
    fragments: OuterFragments,
    socket: Option<Socket>,
    /// Whether the operator was told that this host does not allow it.
    has_complained: bool,
}

impl Cutter {
    /// Sends the datagram in pieces from the port of `lane`; whether that went well. Where not, it may still go as others
    /// do: the kernel cuts it if it was told that it must.
    pub(super) fn send(&mut self, lane: &Socket, departure: &Departure<'_>) -> bool {
        match self.try_send(lane, departure) {
            Ok(()) => true,
            Err(error) => {
                if !std::mem::replace(&mut self.has_complained, true) {
                    tracing::warn!(%error, to = %departure.to, "datagrams cannot be cut for a path that is too narrow; run with CAP_NET_RAW");
                }
                false
            }
        }
    }

    fn try_send(&mut self, lane: &Socket, departure: &Departure<'_>) -> io::Result<()> {
        let SocketAddr::V6(to) = departure.to else { return Err(io::ErrorKind::Unsupported.into()) };
        let port = lane.local_addr()?.as_socket().map(|own| own.port()).unwrap_or_default();
        let source = match departure.source {
            Some(IpAddr::V6(source)) => source,
            _ => source_towards(to)?,
        };
        let socket = match &mut self.socket {
            Some(socket) => socket,
            empty => empty.insert(open()?),
        };
        // The port of a raw socket's address is a protocol, and only 0 is always right.
        let next = SocketAddrV6::new(*to.ip(), 0, 0, to.scope_id()).into();
        // The end of a sealed datagram is a tag that nobody can guess.
        let tag = departure.bytes.last_chunk::<4>().map_or(0, |tag| u32::from_be_bytes(*tag));
        let from = SocketAddrV6::new(source, port, 0, 0);
        self.fragments.each(from, to, departure.bytes, tag, |piece| socket.send_to(piece, &next).map(|_| ()))
    }
}

fn open() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW.cloexec(), Some(Protocol::from(RAW)))?;
    socket.set_mark(OUTER_MARK)?;
    Ok(socket)
}

/// The address that the kernel would send from. Nothing is sent.
fn source_towards(to: SocketAddrV6) -> io::Result<std::net::Ipv6Addr> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    socket.set_mark(OUTER_MARK)?;
    socket.connect(&to.into())?;
    match socket.local_addr()?.as_socket() {
        Some(SocketAddr::V6(own)) => Ok(*own.ip()),
        _ => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}
