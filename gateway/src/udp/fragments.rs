//! Socket options that neither nix nor socket2 has: whether outer packets may be cut.

use std::io;
use std::os::fd::AsRawFd;

use libc::{c_int, socklen_t};
use socket2::Socket;

/// Lets outer packets be cut where a path is narrower than the tunnel assumes: slow is better than nothing. IPv4 packets
/// are cut on their way, IPv6 packets by this host as far as ICMP tells it; [`super::pieces`] is for where it does not.
pub(super) fn allow(socket: &Socket, is_ipv4: bool) -> io::Result<()> {
    if is_ipv4 {
        return set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT);
    }
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)?;
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT)
}

/// Has outer packets arrive whole or not at all, whatever this host believes of the path.
pub(super) fn forbid(socket: &Socket, is_ipv4: bool) -> io::Result<()> {
    if is_ipv4 {
        return set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE);
    }
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)?;
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
}

#[expect(unsafe_code, reason = "setsockopt takes a pointer")]
fn set(socket: &Socket, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let len = size_of::<c_int>() as socklen_t;
    // SAFETY: the pointer is to a c_int that lives through the call, and the length is its size.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(&value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
