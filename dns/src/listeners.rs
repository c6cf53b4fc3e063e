//! Opens the sockets: for each address one TCP listener and one UDP socket for each worker.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::{Context, bail};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// How many connections may wait to be taken.
const BACKLOG: i32 = 1024;
/// How often a port is drawn anew when it is free for UDP and taken for TCP.
const DRAWS: usize = 20;

/// The sockets of one address.
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    pub(crate) tcp: TcpListener,
    /// One a worker; the kernel spreads clients over them.
    pub(crate) udp: Vec<UdpSocket>,
}

/// Opens every address. `[::]` alone stands for both families, as people expect of it.
pub(crate) fn open(addresses: &[SocketAddr], workers: usize) -> anyhow::Result<Vec<Listener>> {
    let wanted: BTreeSet<SocketAddr> = addresses.iter().copied().collect();
    let mut listeners = Vec::new();
    for address in &wanted {
        let everything = address.ip() == IpAddr::from([0u16; 8]);
        let other = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
        let stands_for_both = everything && !wanted.contains(&other);
        match open_one(*address, workers) {
            Ok(listener) => listeners.push(listener),
            // A host without IPv6 still answers over IPv4.
            Err(error) if stands_for_both && lacks_family(&error) => {
                tracing::warn!(%address, "this host has no IPv6: names are answered over IPv4 alone");
            }
            Err(error) => return Err(error.context(format!("cannot answer names on {address}"))),
        }
        if stands_for_both {
            let port = listeners.last().filter(|_| address.port() == 0).map_or(address.port(), |l| l.address.port());
            let other = SocketAddr::new(other.ip(), port);
            listeners.push(open_one(other, workers).with_context(|| format!("cannot answer names on {other}"))?);
        }
    }
    if listeners.is_empty() {
        bail!("no address to answer names on: give at least one");
    }
    Ok(listeners)
}

fn lacks_family(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    [nix::errno::Errno::EAFNOSUPPORT, nix::errno::Errno::EADDRNOTAVAIL].iter().any(|errno| code == Some(*errno as i32))
}

fn open_one(address: SocketAddr, workers: usize) -> anyhow::Result<Listener> {
    let draws = if address.port() == 0 { DRAWS } else { 1 };
    let mut last = None;
    for _ in 0..draws {
        match open_both(address, workers) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow::anyhow!("no port could be drawn"), explained))
}

/// The same error with what to do about it.
fn explained(error: io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "another DNS server has it: stop that one, or listen on one address instead of all",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE, or net.ipv4.ip_unprivileged_port_start"
        }
        io::ErrorKind::AddrNotAvailable => "no interface of this host has that address",
        _ => return error.into(),
    };
    anyhow::Error::from(error).context(advice)
}

fn open_both(address: SocketAddr, workers: usize) -> io::Result<Listener> {
    // TCP first: its port is not shared, so a second server on the same address is noticed here.
    let tcp = socket(address, Type::STREAM, Protocol::TCP)?;
    tcp.set_reuse_address(true)?;
    tcp.bind(&address.into())?;
    tcp.listen(BACKLOG)?;
    let tcp: TcpListener = tcp.into();
    let address = tcp.local_addr()?;
    let udp = (0..workers.max(1)).map(|_| open_udp(address)).collect::<io::Result<_>>()?;
    Ok(Listener { address, tcp, udp })
}

fn open_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let udp = socket(address, Type::DGRAM, Protocol::UDP)?;
    udp.set_reuse_port(true)?;
    // An answer has to come from the address that was asked, which only the packet itself knows.
    if address.is_ipv4() {
        setsockopt(&udp, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(&udp, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    udp.bind(&address.into())?;
    Ok(udp.into())
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        // Each family has its own socket, so that addresses are what they look like.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}
