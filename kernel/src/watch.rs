//! Devices that come and go: a gateway's tunnel device goes with its process, and comes back with it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use kernel_core::DeviceName;
use netlink_sys::Socket;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::device::{DELETE_LINK, NEW_LINK};
use crate::message::messages;
use crate::{Device, Error};

/// `RTNLGRP_LINK`.
const LINKS: u32 = 1;
/// Longer than any one event.
const LONGEST_DATAGRAM: usize = 64 * 1024;

/// Something happened to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// It is there, came, or changed.
    Present(Device),
    Gone(DeviceName),
    /// More happened than the queue could hold: look at everything again.
    Missed,
}

/// A queue of what happens to devices from the moment it is opened.
pub struct DeviceWatch {
    socket: Socket,
    buffer: Vec<u8>,
    ready: VecDeque<DeviceEvent>,
}

impl DeviceWatch {
    /// Opens a queue in the network namespace of the calling thread. Open it before looking at what is there, so that
    /// nothing is missed in between.
    pub fn open() -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::Refused {
            object: "watch over devices".into(),
            errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
            said: None,
        };
        let mut socket = Socket::new(crate::socket::ROUTE).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.add_membership(LINKS).map_err(failed)?;
        socket.set_non_blocking(true).map_err(failed)?;
        Ok(Self { socket, buffer: Vec::with_capacity(LONGEST_DATAGRAM), ready: VecDeque::new() })
    }

    /// The next event, if one is there within `limit`; at once when the limit is zero. Its descriptor is ready to read
    /// when there is one.
    pub fn next(&mut self, limit: Duration) -> Result<Option<DeviceEvent>, Error> {
        if let Some(event) = self.take()? {
            return Ok(Some(event));
        }
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, limit) {
            Ok(0) | Err(Errno::EINTR) => Ok(None),
            Ok(_) => self.take(),
            Err(errno) => Err(Error::Refused { object: "watch over devices".into(), errno, said: None }),
        }
    }

    fn take(&mut self) -> Result<Option<DeviceEvent>, Error> {
        while self.ready.is_empty() {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => self.ready.extend(messages(&self.buffer).filter_map(|received| {
                    let device = Device::read(received)?;
                    match received.kind {
                        NEW_LINK => Some(DeviceEvent::Present(device)),
                        DELETE_LINK => Some(DeviceEvent::Gone(device.name)),
                        _ => None,
                    }
                })),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return Ok(None),
                    Some(Errno::EINTR) => {}
                    Some(Errno::ENOBUFS) => return Ok(Some(DeviceEvent::Missed)),
                    errno => {
                        let errno = errno.unwrap_or(Errno::EIO);
                        return Err(Error::Refused { object: "watch over devices".into(), errno, said: None });
                    }
                },
            }
        }
        Ok(self.ready.pop_front())
    }
}

impl AsFd for DeviceWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
