//! What the kernel was told about the way of a connected socket.

use std::io;
use std::mem::size_of;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// The largest packet, bytes, that the kernel believes to pass on the way of a connected socket, of either family.
#[expect(unsafe_code, reason = "nix knows the option for IPv4 alone")]
pub(super) fn path_mtu(socket: &UdpSocket) -> io::Result<i32> {
    let (level, option) = match socket.local_addr()?.is_ipv4() {
        true => (nix::libc::IPPROTO_IP, nix::libc::IP_MTU),
        false => (nix::libc::IPPROTO_IPV6, nix::libc::IPV6_MTU),
    };
    let mut value: nix::libc::c_int = 0;
    let mut length = size_of::<nix::libc::c_int>() as nix::libc::socklen_t;
    // SAFETY: both pointers lead to variables of this function, and the length is that of the value.
    let result =
        unsafe { nix::libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
