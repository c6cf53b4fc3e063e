//! Devices that come and go: a gateway's tunnel device goes with its process, and comes back with it.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use kernel_core::DeviceName;
use netlink_sys::Socket;

use crate::device::{DELETE_LINK, NEW_LINK};
use crate::queue::{Queue, failed};
use crate::socket::ROUTE;
use crate::{Device, Error};

/// `RTNLGRP_LINK`.
const LINKS: u32 = 1;
const NAME: &str = "watch over devices";

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
pub struct DeviceWatch(Queue<DeviceEvent>);

impl DeviceWatch {
    /// Opens a queue in the network namespace of the calling thread. Open it before looking at what is there, so that
    /// nothing is missed in between.
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(ROUTE)?;
            socket.bind_auto()?;
            socket.add_membership(LINKS)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        Ok(Self(Queue::new(NAME, open().map_err(|error| failed(NAME, &error))?)))
    }

    /// The next event, if one is there within `limit`; at once when the limit is zero. The descriptor is ready to read
    /// when there is one.
    pub fn next(&mut self, limit: Duration) -> Result<Option<DeviceEvent>, Error> {
        self.0.next(
            limit,
            || DeviceEvent::Missed,
            |received| {
                let device = Device::read(received)?;
                match received.kind {
                    NEW_LINK => Some(DeviceEvent::Present(device)),
                    DELETE_LINK => Some(DeviceEvent::Gone(device.name)),
                    _ => None,
                }
            },
        )
    }
}

impl AsFd for DeviceWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
