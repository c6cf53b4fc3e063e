//! Refused packets as the kernel logs them: the reason, and whose they were.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use kernel_core::{Flow, Refusal};

use crate::Error;
use crate::message::{Message, Received, attributes_after, flag, read_be32, text};
use crate::queue::Queue;
use crate::socket::{NETFILTER, Socket};
use crate::table::FIXED;

// <linux/netfilter/nfnetlink_log.h>: subsystem 4 in the upper byte.
pub(crate) const PACKET: u16 = 4 << 8;
const CONFIGURE: u16 = 4 << 8 | 1;
const COMMAND: u16 = 1;
const MODE: u16 = 2;
const QUEUE_THRESHOLD: u16 = 5;
const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const INPUT_DEVICE: u16 = 4;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;

/// Of each packet so many bytes are copied: both headers.
const COPIED: u32 = 128;

/// A packet our filters refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Packet {
        reason: Refusal,
        flow: Flow,
        /// The number of the device it came by; none when this host sent it.
        device: Option<u32>,
    },
    /// More were refused than the queue could hold; the counters have all of them.
    Missed,
}

/// The log group that [`kernel_core::Ruleset::log_group`] names. One reader a group.
pub struct RefusalLog(Queue<Refused>);

impl RefusalLog {
    /// Begins to read, in the network namespace of the calling thread.
    pub fn open(group: u16) -> Result<Self, Error> {
        let object = format!("log group {group} of refused packets");
        let [high, low] = group.to_be_bytes();
        let fixed = [0, 0, high, low];
        let mut socket = Socket::open(NETFILTER)?;
        let mut bind = Message::new(CONFIGURE, flag::ACK, &fixed);
        bind.put_u8(COMMAND, BIND);
        socket.request(bind).map_err(|error| error.of(&object))?;
        let mut mode = Message::new(CONFIGURE, flag::ACK, &fixed);
        let [a, b, c, d] = COPIED.to_be_bytes();
        mode.put(MODE, &[a, b, c, d, COPY_PACKET, 0]);
        // Each at once: there are few, and somebody looks for them.
        mode.put_be32(QUEUE_THRESHOLD, 1);
        socket.request(mode).map_err(|error| error.of(&object))?;
        Ok(Self(Queue::new("log of refused packets", socket.into_queue()?)))
    }

    /// The next refused packet, if there is one within `limit`; at once when the limit is zero. The descriptor is ready
    /// to read when there is one.
    pub fn next(&mut self, limit: Duration) -> Result<Option<Refused>, Error> {
        self.0.next(limit, || Refused::Missed, read)
    }
}

pub(crate) fn read(received: Received<'_>) -> Option<Refused> {
    if received.kind != PACKET {
        return None;
    }
    let (mut reason, mut flow, mut device) = (None, None, None);
    for (kind, value) in attributes_after(received.payload, FIXED) {
        match kind {
            PREFIX => reason = text(value).and_then(Refusal::from_name),
            PAYLOAD => flow = Flow::read(value),
            INPUT_DEVICE => device = read_be32(value, 0),
            _ => {}
        }
    }
    Some(Refused::Packet { reason: reason?, flow: flow?, device })
}

impl AsFd for RefusalLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
