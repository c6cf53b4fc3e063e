//! Many datagrams in one system call: recvmmsg and sendmmsg with the local address of each datagram.
//!
//! The one place of the packet path that needs `unsafe`: the kernel's structures hold plain pointers. Buffers for
//! headers are made once; pointers into packets are set for one call and never kept past it. Room for control messages
//! is larger than today's need, for UDP_SEGMENT and UDP_GRO belong here too.

#![expect(
    unsafe_code,
    reason = "recvmmsg and sendmmsg take structures of pointers; nix keeps stale lengths in its own"
)]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Datagrams in one system call. From 32 on the cost of the call itself no longer shows (datapath.md, section 2).
pub(crate) const BATCH: usize = 64;

/// Bytes for control messages of one datagram: packet info takes 40, and 24 remain for each offload.
const CONTROL_BYTES: usize = 128;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_BYTES]);

/// Headers for one batch, in either direction. Stays on the thread that made it.
pub(crate) struct Headers {
    headers: Box<[libc::mmsghdr]>,
    slices: Box<[libc::iovec]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
}

/// What the kernel said of one received datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) len: usize,
    pub(crate) from: SocketAddr,
    /// The address it was sent to.
    pub(crate) local: Option<IpAddr>,
    /// It was longer than its buffer, and the end is lost.
    pub(crate) truncated: bool,
}

/// One datagram to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Departure<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) to: SocketAddr,
    /// The local address to send from; the kernel chooses where there is none.
    pub(crate) source: Option<IpAddr>,
    /// The path carries less than the least of IPv6 besides its headers, and may not say so.
    pub(crate) is_too_narrow: bool,
}

impl<'a> Departure<'a> {
    /// As the kernel sends it.
    pub(crate) fn uncut(bytes: &'a [u8], to: SocketAddr, source: Option<IpAddr>) -> Self {
        Self { bytes, to, source, is_too_narrow: false }
    }
}

impl Headers {
    pub(crate) fn new() -> Self {
        // SAFETY: all three are plain C structures for which all zeros is a valid value: null pointers, zero lengths.
        let (header, slice, name) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
        Self {
            headers: vec![header; BATCH].into_boxed_slice(),
            slices: vec![slice; BATCH].into_boxed_slice(),
            names: vec![name; BATCH].into_boxed_slice(),
            controls: vec![Control([0; CONTROL_BYTES]); BATCH].into_boxed_slice(),
        }
    }

    /// Receives what is there without waiting, each datagram into a piece of `room` of `piece` bytes. Gives how many
    /// came; [`Headers::arrival`] says what each is.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>, room: &mut [u8], piece: usize) -> io::Result<usize> {
        let mut count = 0;
        for (index, bytes) in room.chunks_exact_mut(piece.max(1)).take(BATCH).enumerate() {
            self.slices[index] = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let name_len = size_of::<libc::sockaddr_storage>();
            self.point_header(index, name_len, CONTROL_BYTES);
            count = index + 1;
        }
        if count == 0 {
            return Ok(0);
        }
        // SAFETY: the first `count` headers point into `slices`, `names` and `controls`, which live as long as `self`
        // and are not moved, and through `slices` into disjoint pieces of `room`, which is borrowed for this call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                u32::try_from(count).unwrap_or_default(),
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// What [`Headers::receive`] got at `index`. `None` beyond the last, and for an address of a family that a UDP
    /// socket cannot have.
    pub(crate) fn arrival(&self, index: usize) -> Option<Arrival> {
        let header = self.headers.get(index)?;
        Some(Arrival {
            len: usize::try_from(header.msg_len).unwrap_or_default(),
            from: socket_address(self.names.get(index)?)?,
            local: self.local_address(index),
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        })
    }

    /// Sends up to [`BATCH`] datagrams. Gives how many the kernel took; an error is about the first of them.
    pub(crate) fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: impl Iterator<Item = Departure<'a>>,
    ) -> io::Result<usize> {
        let mut count = 0;
        for (index, datagram) in datagrams.take(BATCH).enumerate() {
            // sendmmsg only reads through this pointer; the field is mutable because receiving shares the type.
            let base = datagram.bytes.as_ptr().cast_mut().cast();
            self.slices[index] = libc::iovec { iov_base: base, iov_len: datagram.bytes.len() };
            let name_len = write_socket_address(&mut self.names[index], datagram.to);
            let control_len = datagram.source.map_or(0, |source| self.write_source(index, source, datagram.to));
            self.point_header(index, name_len, control_len);
            count = index + 1;
        }
        if count == 0 {
            return Ok(0);
        }
        // SAFETY: as in `receive`; the packets are borrowed for 'a, which outlives this call.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                u32::try_from(count).unwrap_or_default(),
                libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn point_header(&mut self, index: usize, name_len: usize, control_len: usize) {
        let header = &mut self.headers[index];
        header.msg_len = 0;
        header.msg_hdr.msg_name = ptr::from_mut(&mut self.names[index]).cast();
        header.msg_hdr.msg_namelen = u32::try_from(name_len).unwrap_or_default();
        header.msg_hdr.msg_iov = ptr::from_mut(&mut self.slices[index]);
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control =
            if control_len == 0 { ptr::null_mut() } else { ptr::from_mut(&mut self.controls[index]).cast() };
        header.msg_hdr.msg_controllen = control_len;
        header.msg_hdr.msg_flags = 0;
    }

    fn local_address(&self, index: usize) -> Option<IpAddr> {
        let header = &self.headers.get(index)?.msg_hdr;
        // SAFETY: the kernel wrote `msg_controllen` bytes of well-formed control messages into `controls[index]`, to
        // which `msg_control` points; CMSG_FIRSTHDR and CMSG_NXTHDR stay inside those bytes.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(header);
            while let Some(control) = message.as_ref() {
                let data = libc::CMSG_DATA(message);
                match (control.cmsg_level, control.cmsg_type) {
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                        return Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                        return Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                    }
                    _ => message = libc::CMSG_NXTHDR(header, message),
                }
            }
        }
        None
    }

    /// Writes the control message that pins the source; gives its length, 0 where the families differ.
    fn write_source(&mut self, index: usize, source: IpAddr, to: SocketAddr) -> usize {
        let control = &mut self.controls[index].0;
        match (source, to) {
            (IpAddr::V4(source), SocketAddr::V4(_)) => {
                let address = libc::in_addr { s_addr: u32::from(source).to_be() };
                // The interface stays 0: routing chooses it, only the address is ours to say.
                let info =
                    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: libc::in_addr { s_addr: 0 } };
                write_control(control, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
            }
            (IpAddr::V6(source), SocketAddr::V6(to)) => {
                // A link-local source means nothing without its link, which is the destination's.
                let interface = if source.is_unicast_link_local() { to.scope_id() } else { 0 };
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                    ipi6_ifindex: interface,
                };
                write_control(control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
            }
            _ => 0,
        }
    }
}

fn write_control<T>(control: &mut [u8; CONTROL_BYTES], level: i32, kind: i32, value: T) -> usize {
    let size = u32::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: both macros compute on numbers alone.
    let (space, len) = unsafe { (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size) as usize) };
    if space > CONTROL_BYTES {
        return 0;
    }
    let header = control.as_mut_ptr().cast::<libc::cmsghdr>();
    // SAFETY: `control` is aligned to 8 by its type and has `space` bytes, in which the header and, behind it, the
    // value lie.
    unsafe {
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = len;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
    }
    space
}

fn socket_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let start = ptr::from_ref(storage);
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: sockaddr_storage is larger than and aligned for every socket address; all its bytes are set.
            let address = unsafe { start.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { start.cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            // The flow label is the sender's affair: kept, it would make one endpoint look like many.
            Some(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, address.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn write_socket_address(storage: &mut libc::sockaddr_storage, address: SocketAddr) -> usize {
    let start = ptr::from_mut(storage);
    match address {
        SocketAddr::V4(address) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is larger than and aligned for every socket address.
            unsafe { start.cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: as above.
            unsafe { start.cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>()
        }
    }
}
