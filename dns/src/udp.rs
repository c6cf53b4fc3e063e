//! Answers datagrams: one blocking thread for each socket, which reads, answers and sends until nothing waits, then
//! sleeps. The zone is read without a lock.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arc_swap::ArcSwap;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg};

use crate::answer::{Transport, Verdict, answer};
use crate::tally::Tally;
use crate::turns::Turns;
use crate::zone::Zone;

/// Longest query that is read. A name, EDNS and some padding (RFC 8467 pads to 128) stay far below; what is longer is
/// cut and then malformed.
const LONGEST_QUERY: usize = 2048;

/// One thread's socket and what it works with.
pub(crate) struct Worker {
    pub(crate) socket: UdpSocket,
    pub(crate) zone: Arc<ArcSwap<Zone>>,
    pub(crate) tally: Arc<Tally>,
    /// Readable once the server is to stop.
    pub(crate) stop: Arc<EventFd>,
    pub(crate) turns: Turns,
}

/// The address a datagram came to: the answer leaves from there.
enum Asked {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

impl Worker {
    /// Answers until the server stops.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        let mut query = [0u8; LONGEST_QUERY];
        let mut control = cmsg_space!(libc::in6_pktinfo);
        let mut out = Vec::with_capacity(usize::from(crate::answer::UDP_LIMIT));
        while self.wait()? {
            // Until nothing waits; a stop is looked for between bursts only, and a burst ends with the senders' patience.
            for _ in 0..BURST {
                let (length, client, asked) = match receive(&self.socket, &mut query, &mut control) {
                    Ok(Some(received)) => received,
                    Ok(None) => break,
                    // What a router said of an earlier answer, or too little memory: the next datagram is another matter.
                    Err(error) => {
                        tracing::debug!(%error, "a datagram could not be read");
                        self.tally.unsent.fetch_add(1, Relaxed);
                        break;
                    }
                };
                let begin = std::time::Instant::now();
                let verdict = answer(&self.zone.load(), &query[..length], Transport::Udp, self.turns.next(), &mut out);
                self.tally.add(verdict, begin.elapsed());
                if matches!(verdict, Verdict::Answered { .. })
                    && send(&self.socket, &out, &client, asked.as_ref()).is_err()
                {
                    // A full queue drops as the network would: the client asks again.
                    self.tally.unsent.fetch_add(1, Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Sleeps until there is a datagram; false when the server is to stop.
    fn wait(&self) -> anyhow::Result<bool> {
        let mut watched =
            [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN), PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) => Ok(watched[1].revents().is_none_or(|events| events.is_empty())),
            Err(Errno::EINTR) => Ok(true),
            Err(error) => Err(anyhow::Error::from(error).context("waiting for queries")),
        }
    }
}

/// Datagrams taken before the stop signal is looked at again.
const BURST: usize = 256;

/// Takes one datagram; `None` when nothing waits.
fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
    control: &mut [u8],
) -> nix::Result<Option<(usize, SockaddrStorage, Option<Asked>)>> {
    let mut parts = [IoSliceMut::new(buffer)];
    let received =
        match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(control), MsgFlags::MSG_DONTWAIT) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error),
        };
    let asked = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(Asked::V4(info)),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Asked::V6(info)),
        _ => None,
    });
    let client = received.address.ok_or(Errno::EDESTADDRREQ)?;
    Ok(Some((received.bytes, client, asked)))
}

fn send(socket: &UdpSocket, answer: &[u8], client: &SockaddrStorage, asked: Option<&Asked>) -> nix::Result<usize> {
    let parts = [IoSlice::new(answer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    match asked {
        Some(Asked::V4(info)) => {
            // The interface is left to routing: answers may leave by another one than questions came in by.
            let source = libc::in_pktinfo { ipi_ifindex: 0, ..*info };
            let source = [ControlMessage::Ipv4PacketInfo(&source)];
            sendmsg(socket.as_raw_fd(), &parts, &source, flags, Some(client))
        }
        Some(Asked::V6(info)) => {
            let address = std::net::Ipv6Addr::from(info.ipi6_addr.s6_addr);
            // A link-local address means nothing without its interface.
            let interface = if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
            let source = libc::in6_pktinfo { ipi6_ifindex: interface, ..*info };
            let source = [ControlMessage::Ipv6PacketInfo(&source)];
            sendmsg(socket.as_raw_fd(), &parts, &source, flags, Some(client))
        }
        None => sendmsg(socket.as_raw_fd(), &parts, &[], flags, Some(client)),
    }
}
