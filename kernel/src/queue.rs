//! Messages the kernel sends unasked: a queue to wait on.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::Socket;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Error;
use crate::message::{Received, messages};

/// Longer than any one datagram.
const LONGEST_DATAGRAM: usize = 64 * 1024;

pub(crate) struct Queue<T> {
    name: &'static str,
    socket: Socket,
    buffer: Vec<u8>,
    ready: VecDeque<T>,
}

impl<T> Queue<T> {
    /// Takes a socket that does not block.
    pub(crate) fn new(name: &'static str, socket: Socket) -> Self {
        Self { name, socket, buffer: Vec::with_capacity(LONGEST_DATAGRAM), ready: VecDeque::new() }
    }

    /// The next thing that `read` makes of a message, if there is one within `limit`; `missed` when the queue was too
    /// short.
    pub(crate) fn next(
        &mut self,
        limit: Duration,
        missed: impl Fn() -> T,
        read: impl Fn(Received<'_>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        if let Some(found) = self.take(&missed, &read)? {
            return Ok(Some(found));
        }
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, limit) {
            Ok(0) | Err(Errno::EINTR) => Ok(None),
            Ok(_) => self.take(&missed, &read),
            Err(errno) => Err(self.refused(errno)),
        }
    }

    fn take(&mut self, missed: impl Fn() -> T, read: impl Fn(Received<'_>) -> Option<T>) -> Result<Option<T>, Error> {
        while self.ready.is_empty() {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => self.ready.extend(messages(&self.buffer).filter_map(&read)),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return Ok(None),
                    Some(Errno::EINTR) => {}
                    Some(Errno::ENOBUFS) => return Ok(Some(missed())),
                    errno => return Err(self.refused(errno.unwrap_or(Errno::EIO))),
                },
            }
        }
        Ok(self.ready.pop_front())
    }

    fn refused(&self, errno: Errno) -> Error {
        Error::Refused { object: self.name.into(), errno, said: None }
    }
}

impl<T> AsFd for Queue<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

pub(crate) fn failed(object: &str, error: &std::io::Error) -> Error {
    let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    Error::Refused { object: object.into(), errno, said: None }
}
