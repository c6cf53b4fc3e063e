//! Traffic made and measured by ourselves, so that a world needs no foreign programs.
//!
//! Servers are processes ([`crate::Pod::serve_http`] and its neighbours); clients run on a thread of the host that
//! they ask from and return what they saw. Nothing waits for ever: every client takes a limit for a single silence.

pub mod dns;
pub mod http;
pub mod icmp;
pub mod load;
pub mod lookups;
pub mod pulse;
pub mod sctp;
pub mod stream;
pub mod surface;
pub mod udp;

use std::io;
use std::net::{Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// What every server prints, with its port, once a client may come.
pub const LISTENING: &str = "listening on";

/// Connections that may wait to be accepted: more than any test opens at once.
const BACKLOG: i32 = 1024;

/// A socket on every address of both families.
fn both_families(kind: Type, protocol: Protocol, port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    if protocol == Protocol::TCP {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}
