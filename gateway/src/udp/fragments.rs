//! One socket option that neither nix nor socket2 has.

use std::io;
use std::os::fd::AsRawFd;

use socket2::Socket;

/// Lets IPv4 outer packets be cut on the way where a path is narrower than the tunnel assumes: slow is better than
/// nothing, and the path MTU is measured inside. IPv6 is cut by its sender, which the kernel does by itself.
#[expect(unsafe_code, reason = "setsockopt takes a pointer")]
pub(crate) fn allow_fragments(socket: &Socket) -> io::Result<()> {
    let value: libc::c_int = libc::IP_PMTUDISC_DONT;
    // SAFETY: the pointer is to a c_int that lives through the call, and the length is its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
