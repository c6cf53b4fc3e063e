//! Seeing what passes a point of the world: an AF_PACKET socket read by a thread (packet(7)).

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};

use crate::addresses::Ranges;
use crate::host::Host;

/// Packets kept; later ones are only counted.
const PACKETS_KEPT: usize = 20_000;
/// Bytes kept of each: both headers of a tunnelled packet and the beginning of what is inside.
const BYTES_KEPT: usize = 256;
/// How often the thread looks whether it shall end.
const LOOK_UP_EVERY: u16 = 20;
/// The kernel doubles this and caps it by rmem_max, which cannot be raised without root.
const RECEIVE_BUFFER: usize = 4 << 20;

/// One packet, from its IP header on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The interface it was seen at.
    pub interface: String,
    /// Whether the host sent it (or sent it on) rather than received it.
    pub outgoing: bool,
    /// Its length on the wire in bytes, without the link's header.
    pub length: usize,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

impl Packet {
    /// Source and destination of the outermost IP header; None when it is no IP.
    pub fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        match self.bytes.first()? >> 4 {
            4 => {
                let address = |at: usize| Some(Ipv4Addr::from(*self.bytes.get(at..)?.first_chunk::<4>()?).into());
                Some((address(12)?, address(16)?))
            }
            6 => {
                let address = |at: usize| Some(Ipv6Addr::from(*self.bytes.get(at..)?.first_chunk::<16>()?).into());
                Some((address(8)?, address(24)?))
            }
            _ => None,
        }
    }

    /// The protocol number that the outermost IP header names: 6 TCP, 17 UDP.
    pub fn protocol(&self) -> Option<u8> {
        match self.bytes.first()? >> 4 {
            4 => self.bytes.get(9).copied(),
            6 => self.bytes.get(6).copied(),
            _ => None,
        }
    }

    /// Whether its outermost source or destination lies in these ranges.
    pub fn touches(&self, ranges: Ranges) -> bool {
        self.addresses().is_some_and(|(from, to)| ranges.contains(from) || ranges.contains(to))
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.outgoing { "out by" } else { "in by" };
        write!(f, "{way} {}, {} bytes", self.interface, self.length)?;
        if let (Some((source, destination)), Some(protocol)) = (self.addresses(), self.protocol()) {
            write!(f, ", {source} to {destination}, protocol {protocol}")?;
        }
        f.write_str(":")?;
        self.bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

/// A running capture. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<Result<Result<()>>>>,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Captured>,
    changed: Condvar,
    stop: AtomicBool,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    /// The first packets that were wanted.
    pub packets: Vec<Packet>,
    /// How many were wanted, kept or not.
    pub wanted: usize,
    /// How many passed in all.
    pub passed: usize,
    /// How many the kernel could not hand over in time: if not 0, absence proves nothing.
    pub lost: usize,
}

impl Capture {
    /// Watches all interfaces of `host` but `lo`, and keeps the packets that are `wanted`.
    ///
    /// A router sees each packet twice: coming in and going out.
    pub fn start(host: &Host, wanted: impl Fn(&Packet) -> bool + Send + 'static) -> Result<Self> {
        let socket = host.run(open)?.with_context(|| format!("{}: opening a capture", host.name()))?;
        let shared = Arc::new(Shared::default());
        let known = shared.clone();
        let thread = host.namespace().spawn(move || watch(&socket, &known, &wanted))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Watches for clear text: packets that show an address of these ranges in their outermost header.
    pub fn of_clear_text(host: &Host, inner: Vec<Ranges>) -> Result<Self> {
        Self::start(host, move |packet| inner.iter().any(|&range| packet.touches(range)))
    }

    /// How many wanted packets were seen up to now.
    pub fn wanted_so_far(&self) -> usize {
        self.seen().wanted
    }

    /// Waits until at least `count` wanted packets were seen.
    pub fn wait_for(&self, count: usize, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut seen = self.seen();
        while seen.wanted < count {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "{} of {count} packets seen within {limit:?}", seen.wanted);
            seen = self.shared.changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Ends the capture. Every packet that passed before this call is in the result.
    pub fn stop(mut self) -> Result<Captured> {
        self.end()?;
        Ok(std::mem::take(&mut *self.seen()))
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Release);
        match self.thread.take().map(std::thread::JoinHandle::join) {
            Some(Ok(result)) => result?,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Captured> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Whoever drops a capture does not want what it found.
        let _ = self.end();
    }
}

fn open() -> Result<OwnedFd> {
    // Datagram: the kernel takes the link's header off, so that TUN devices and cables look alike.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll)?;
    // A smaller buffer still works; what it loses is counted.
    let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
    Ok(socket)
}

fn watch(socket: &OwnedFd, shared: &Shared, wanted: &dyn Fn(&Packet) -> bool) -> Result<()> {
    let mut names = BTreeMap::new();
    let mut buffer = vec![0; u16::MAX.into()];
    loop {
        // Asked before reading: what passed until the stop is read to its end.
        let stopping = shared.stop.load(Ordering::Acquire);
        loop {
            match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
                Ok((length, Some(from))) => {
                    let name = names.entry(from.ifindex()).or_insert_with(|| interface_name(from.ifindex()));
                    if name == "lo" {
                        continue;
                    }
                    let packet = Packet {
                        interface: name.clone(),
                        outgoing: from.pkttype() == libc::PACKET_OUTGOING,
                        length,
                        bytes: buffer[..length.min(BYTES_KEPT)].to_vec(),
                    };
                    note(shared, packet, wanted);
                }
                Ok((_, None)) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                // The interface went down, which is often what a test is about.
                Err(Errno::ENETDOWN) => {}
                Err(error) => return Err(error).context("reading a capture"),
            }
        }
        if stopping {
            lock(&shared.seen).lost = lost(socket);
            return Ok(());
        }
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::from(LOOK_UP_EVERY)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for packets"),
        }
    }
}

fn note(shared: &Shared, packet: Packet, wanted: &dyn Fn(&Packet) -> bool) {
    let is_wanted = wanted(&packet);
    let mut seen = lock(&shared.seen);
    seen.passed += 1;
    if is_wanted {
        seen.wanted += 1;
        if seen.packets.len() < PACKETS_KEPT {
            seen.packets.push(packet);
        }
        shared.changed.notify_all();
    }
}

/// Interfaces that went away before they were asked for have a number only.
fn interface_name(index: usize) -> String {
    let name = u32::try_from(index).ok().and_then(|index| nix::net::if_::if_indextoname(index).ok());
    name.map_or_else(|| index.to_string(), |name| name.to_string_lossy().into_owned())
}

#[expect(unsafe_code, reason = "nix knows no PACKET_STATISTICS")]
fn lost(socket: &OwnedFd) -> usize {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `statistics`, a plain C struct.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    // Unknown is not none.
    if result == 0 { statistics.tp_drops as usize } else { usize::MAX }
}

fn lock(seen: &Mutex<Captured>) -> MutexGuard<'_, Captured> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(bytes: Vec<u8>) -> Packet {
        Packet { interface: "eth0".into(), outgoing: false, length: bytes.len(), bytes }
    }

    #[test]
    fn addresses_are_read_where_each_family_has_them() {
        let mut v4 = vec![0x45; 20];
        v4[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(packet(v4).addresses(), Some(([10, 0, 0, 1].into(), [10, 0, 0, 2].into())));
        let mut v6 = vec![0x60; 40];
        v6[8..40].fill(7);
        assert_eq!(packet(v6).addresses(), Some(([7u8; 16].into(), [7u8; 16].into())));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let packet = packet(bytes);
            prop_assert!(packet.addresses().is_none() || packet.protocol().is_some());
        }
    }
}
