//! A netlink socket that asks and waits for the answer. The kernel answers while the request is being sent, so waiting is
//! short, and bounded.

use std::os::fd::AsFd;

use netlink_sys::{Socket as Raw, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::Error;
use crate::message::{HEADER, Message, Received, attributes_after, flag, messages, read_u32, text};

pub(crate) const ROUTE: isize = 0;
pub(crate) const NETFILTER: isize = 12;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The answer's header says: the list changed while it was read.
const DUMP_INTERRUPTED: u16 = 0x10;
const ERROR_HAS_ATTRIBUTES: u16 = 0x200;
const ERROR_MESSAGE: u16 = 1;

/// No answer of the kernel takes that long; only a defect does.
const PATIENCE: i64 = 10;
/// A list that changes each time it is read is read again so often, then taken as it is.
const DUMP_TRIES: usize = 5;
/// The kernel never makes a piece of a list longer than this.
const LONGEST_DATAGRAM: usize = 64 * 1024;
/// Room asked for in both directions: a transaction has to fit into one send, a refusal of each of its parts into the
/// queue. The kernel grants less to those without privilege.
const BUFFER: usize = 4 * 1024 * 1024;

/// What the kernel said to one request of a transaction.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) sequence: u32,
    pub(crate) errno: Errno,
    pub(crate) said: Option<String>,
}

pub(crate) struct Socket {
    raw: Raw,
    sequence: u32,
    buffer: Vec<u8>,
    /// Bytes one send may have.
    room: usize,
    #[cfg(test)]
    pub(crate) sent: usize,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread, where it stays.
    pub(crate) fn open(protocol: isize) -> Result<Self, Error> {
        let failed = |error: std::io::Error| refused("netlink socket", error);
        let mut raw = Raw::new(protocol).map_err(failed)?;
        raw.bind_auto().map_err(failed)?;
        raw.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        raw.set_cap_ack(true).map_err(failed)?;
        raw.set_ext_ack(true).map_err(failed)?;
        if protocol == ROUTE {
            // Lists are filtered by the kernel, and a filter it does not know is an error instead of everything.
            raw.set_netlink_get_strict_chk(true).map_err(failed)?;
        }
        let fd = raw.as_fd();
        let _unprivileged =
            setsockopt(&fd, sockopt::SndBufForce, &BUFFER).or_else(|_| setsockopt(&fd, sockopt::SndBuf, &BUFFER));
        let _unprivileged =
            setsockopt(&fd, sockopt::RcvBufForce, &BUFFER).or_else(|_| setsockopt(&fd, sockopt::RcvBuf, &BUFFER));
        let wait = TimeVal::seconds(PATIENCE);
        setsockopt(&fd, sockopt::ReceiveTimeout, &wait).map_err(|errno| failed(errno.into()))?;
        let room = getsockopt(&fd, sockopt::SndBuf).map_err(|errno| failed(errno.into()))?;
        Ok(Self {
            raw,
            sequence: 0,
            buffer: Vec::with_capacity(LONGEST_DATAGRAM),
            room: room.saturating_sub(1024),
            #[cfg(test)]
            sent: 0,
        })
    }

    /// The socket alone, not blocking any more, for messages that come unasked.
    pub(crate) fn into_queue(self) -> Result<Raw, Error> {
        self.raw.set_non_blocking(true).map_err(|error| refused("netlink socket", error))?;
        Ok(self.raw)
    }

    /// How many bytes one transaction may have.
    pub(crate) fn room(&self) -> usize {
        self.room
    }

    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a request and waits until the kernel says yes or no.
    pub(crate) fn request(&mut self, mut message: Message) -> Result<(), Error> {
        message.put_flags(flag::ACK);
        let sequence = self.next_sequence();
        self.send(&message.numbered(sequence))?;
        loop {
            let mut answer = None;
            self.receive(|received| {
                if received.sequence == sequence && received.kind == NLMSG_ERROR {
                    answer = Some(verdict(received));
                }
            })?;
            if let Some(answer) = answer {
                return answer;
            }
        }
    }

    /// Asks for a list, and keeps what `entry` reads of it. When the list changes meanwhile it is read again from the
    /// start.
    pub(crate) fn dump<T>(
        &mut self,
        message: &Message,
        mut entry: impl FnMut(Received<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut entries = Vec::new();
        for _ in 0..DUMP_TRIES {
            entries.clear();
            if self.dump_once(message.clone(), |received| entries.extend(entry(received)))? {
                break;
            }
        }
        Ok(entries)
    }

    /// Whether the list is consistent.
    fn dump_once(&mut self, mut message: Message, mut each: impl FnMut(Received<'_>)) -> Result<bool, Error> {
        message.put_flags(flag::DUMP);
        let sequence = self.next_sequence();
        self.send(&message.numbered(sequence))?;
        let mut consistent = true;
        loop {
            let mut end = None;
            self.receive(|received| {
                if received.sequence != sequence {
                    return;
                }
                consistent &= received.flags & DUMP_INTERRUPTED == 0;
                match received.kind {
                    NLMSG_DONE => end = Some(done(received)),
                    NLMSG_ERROR => end = Some(verdict(received)),
                    _ => each(received),
                }
            })?;
            if let Some(end) = end {
                return end.map(|()| consistent);
            }
        }
    }

    /// Asks for one thing.
    pub(crate) fn get<T>(
        &mut self,
        message: Message,
        read: impl Fn(Received<'_>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let mut message = message;
        message.put_flags(flag::ACK);
        let sequence = self.next_sequence();
        self.send(&message.numbered(sequence))?;
        let mut found = None;
        loop {
            let mut end = None;
            self.receive(|received| {
                if received.sequence == sequence {
                    if received.kind == NLMSG_ERROR {
                        end = Some(verdict(received));
                    } else {
                        found = read(received);
                    }
                }
            })?;
            if let Some(end) = end {
                return end.map(|()| found);
            }
        }
    }

    /// Sends several messages in one piece and collects the refusals; none means that all of it is in force.
    pub(crate) fn transact(&mut self, bytes: &[u8], last: u32) -> Result<Vec<Refusal>, Error> {
        self.send(bytes)?;
        // Everything is judged while it is being sent; the last message, which asks for an answer, is answered last. A
        // batch that is not taken at all is answered at its first message only, so what is queued is all there is.
        let mut refusals = Vec::new();
        let mut answered = false;
        while let Queue::Read = self.receive_queued(|received| {
            if received.kind == NLMSG_ERROR {
                answered |= received.sequence == last;
                if let Err(Error::Refused { errno, said, .. }) = verdict(received) {
                    refusals.push(Refusal { sequence: received.sequence, errno, said });
                }
            }
        })? {}
        if !answered && refusals.is_empty() {
            return Err(Error::Netlink("a transaction was not answered".into()));
        }
        Ok(refusals)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        #[cfg(test)]
        {
            self.sent += bytes.len();
        }
        loop {
            match self.raw.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(refused("netlink request", error)),
            }
        }
    }

    fn receive(&mut self, each: impl FnMut(Received<'_>)) -> Result<(), Error> {
        match self.receive_with(0, each)? {
            Queue::Read => Ok(()),
            Queue::Empty => Err(Error::Netlink(format!("no answer within {PATIENCE} s"))),
        }
    }

    fn receive_queued(&mut self, each: impl FnMut(Received<'_>)) -> Result<Queue, Error> {
        const DONT_WAIT: i32 = nix::libc::MSG_DONTWAIT;
        self.receive_with(DONT_WAIT, each)
    }

    fn receive_with(&mut self, flags: i32, each: impl FnMut(Received<'_>)) -> Result<Queue, Error> {
        loop {
            self.buffer.clear();
            match self.raw.recv(&mut self.buffer, flags) {
                Ok(_) => {
                    messages(&self.buffer).for_each(each);
                    return Ok(Queue::Read);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(Queue::Empty),
                Err(error) => return Err(refused("netlink answer", error)),
            }
        }
    }
}

enum Queue {
    Read,
    Empty,
}

fn refused(object: &str, error: std::io::Error) -> Error {
    let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    Error::Refused { object: object.into(), errno, said: None }
}

/// What an acknowledgement says (`struct nlmsgerr`, then the kernel's words).
fn verdict(received: Received<'_>) -> Result<(), Error> {
    let Some(code) = read_u32(received.payload, 0) else {
        return Err(Error::Netlink("an answer ends in the middle".into()));
    };
    let code = code.cast_signed();
    if code == 0 {
        return Ok(());
    }
    // Requests are not sent back, only their headers.
    let said = (received.flags & ERROR_HAS_ATTRIBUTES != 0).then(|| words(received.payload, 4 + HEADER)).flatten();
    Err(Error::Refused { object: String::new(), errno: Errno::from_raw(code.saturating_neg()), said })
}

/// The end of a list carries an error too.
fn done(received: Received<'_>) -> Result<(), Error> {
    match read_u32(received.payload, 0).map(u32::cast_signed) {
        None | Some(0..) => Ok(()),
        Some(code) => Err(Error::Refused {
            object: String::new(),
            errno: Errno::from_raw(code.saturating_neg()),
            said: words(received.payload, 4),
        }),
    }
}

fn words(payload: &[u8], offset: usize) -> Option<String> {
    attributes_after(payload, offset)
        .find(|(kind, _)| *kind == ERROR_MESSAGE)
        .and_then(|(_, value)| text(value))
        .map(str::to_owned)
}
