//! Devices: found by name, watched as they come and go; the VXLAN devices among them that are ours.

use std::collections::BTreeMap;

use kernel_core::link::{ALIAS, NAME_PREFIX};
use kernel_core::{DeviceName, Mac, Vxlan};
use nix::errno::Errno;

use crate::Error;
use crate::message::{Message, Received, address, attributes_after, find, flag, octets, read_be16, read_u32, text};
use crate::socket::Socket;

pub(crate) const NEW_LINK: u16 = 16;
pub(crate) const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const FIXED: usize = 16;
const UP: u32 = 1;

// <linux/if_link.h>
const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const LINKINFO: u16 = 18;
const IFALIAS: u16 = 20;
const AF_SPEC: u16 = 26;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VXLAN_ID: u16 = 1;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const VXLAN_LOCAL6: u16 = 17;
const AF_INET6: u16 = 10;
const INET6_ADDR_GEN_MODE: u16 = 8;
/// No link-local address: nothing speaks neighbour discovery here, and an address would only be announced.
const GENERATE_NONE: u8 = 1;

/// A device as the kernel has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub name: DeviceName,
    pub index: u32,
    pub up: bool,
    pub mtu: u32,
    /// None for devices without link-layer addresses, such as tunnels.
    pub mac: Option<Mac>,
    pub(crate) vxlan: Option<Vxlan>,
}

impl Device {
    /// Whether we made it: a VXLAN device with a name that begins as ours do.
    pub(crate) fn is_ours(&self) -> bool {
        self.vxlan.is_some() && self.name.as_str().starts_with(NAME_PREFIX)
    }

    /// The VXLAN device as a value. A device that is down passes nothing and has lost its routes: it is shown with an
    /// MTU of zero, so that it differs from any that is wanted and is brought up with the MTU set.
    pub(crate) fn observed_vxlan(&self) -> Option<Vxlan> {
        let vxlan = self.vxlan.clone()?;
        Some(Vxlan { mtu: if self.up { self.mtu } else { 0 }, ..vxlan })
    }

    /// Reads a link message; none if it is of another kind or has no name we could use.
    pub(crate) fn read(received: Received<'_>) -> Option<Self> {
        let payload = received.payload;
        let mut device = Self {
            name: DeviceName::loopback(),
            index: read_u32(payload, 4)?,
            up: read_u32(payload, 8)? & UP != 0,
            mtu: 0,
            mac: None,
            vxlan: None,
        };
        let mut name = None;
        let mut info = None;
        for (kind, value) in attributes_after(payload, FIXED) {
            match kind {
                NAME => name = text(value).and_then(|text| DeviceName::new(text).ok()),
                MTU => device.mtu = read_u32(value, 0)?,
                ADDRESS => device.mac = value.try_into().ok().map(Mac),
                LINKINFO => info = Some(value),
                _ => {}
            }
        }
        device.name = name?;
        if let Some(info) = info
            && find(info, INFO_KIND).and_then(text) == Some("vxlan")
        {
            device.vxlan = read_vxlan(find(info, INFO_DATA)?, device.mac?, device.mtu);
        }
        Some(device)
    }
}

fn read_vxlan(data: &[u8], mac: Mac, mtu: u32) -> Option<Vxlan> {
    let local = find(data, VXLAN_LOCAL6).or_else(|| find(data, VXLAN_LOCAL)).and_then(address);
    Some(Vxlan {
        vni: read_u32(find(data, VXLAN_ID)?, 0)?,
        port: read_be16(find(data, VXLAN_PORT)?, 0)?,
        // Without an address of its own it is not one of ours as we make them: shown so that it differs.
        local: local.unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
        mac,
        mtu,
    })
}

/// All devices of the namespace at one time.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    by_name: BTreeMap<DeviceName, Device>,
    names: BTreeMap<u32, DeviceName>,
}

impl Devices {
    pub(crate) fn list(socket: &mut Socket) -> Result<Self, Error> {
        let message = Message::new(GET_LINK, 0, &[0; FIXED]);
        let list = socket.dump(&message, Device::read).map_err(|error| error.of("list of devices"))?;
        let names = list.iter().map(|device| (device.index, device.name.clone())).collect();
        Ok(Self { by_name: list.into_iter().map(|device| (device.name.clone(), device)).collect(), names })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Device> {
        self.by_name.values()
    }

    pub(crate) fn name(&self, index: u32) -> Option<&DeviceName> {
        self.names.get(&index)
    }

    pub(crate) fn is_ours(&self, index: u32) -> bool {
        self.name(index).and_then(|name| self.by_name.get(name)).is_some_and(Device::is_ours)
    }
}

/// The device of that name, if there is one.
pub(crate) fn find_device(socket: &mut Socket, name: &DeviceName) -> Result<Option<Device>, Error> {
    let mut message = Message::new(GET_LINK, 0, &[0; FIXED]);
    message.put_text(NAME, name.as_str());
    match socket.get(message, Device::read) {
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        other => other.map_err(|error| error.of(format!("device {name}"))),
    }
}

/// The kernel's number of a device that `object` needs.
pub(crate) fn index_of(socket: &mut Socket, name: &DeviceName, object: &str) -> Result<u32, Error> {
    match find_device(socket, name)? {
        Some(device) => Ok(device.index),
        None => Err(Error::NoDevice { object: object.into(), device: name.to_string() }),
    }
}

/// Makes a VXLAN device and brings it up; leaves nothing behind when a step fails.
pub(crate) fn add(socket: &mut Socket, name: &DeviceName, link: &Vxlan) -> Result<(), Error> {
    let object = format!("link {name}");
    if !name.as_str().starts_with(NAME_PREFIX) {
        let reason =
            format!("a link of ours has a name that begins with '{NAME_PREFIX}', or it could not be found again");
        return Err(Error::Invalid { object, reason });
    }
    if link.vni >= 1 << 24 {
        return Err(Error::Invalid { object, reason: format!("VNI {} has more than 24 bits", link.vni) });
    }
    let mut message = Message::new(NEW_LINK, flag::CREATE | flag::EXCLUSIVE, &[0; FIXED]);
    message.put_text(NAME, name.as_str()).put_u32(MTU, link.mtu).put(ADDRESS, &link.mac.0);
    message.nest(LINKINFO, |info| {
        info.put(INFO_KIND, b"vxlan");
        info.nest(INFO_DATA, |data| {
            let local = if link.local.is_ipv4() { VXLAN_LOCAL } else { VXLAN_LOCAL6 };
            data.put_u32(VXLAN_ID, link.vni).put(VXLAN_PORT, &link.port.to_be_bytes());
            data.put(local, &octets(link.local)).put_u8(VXLAN_LEARNING, 0);
        });
    });
    socket.request(message).map_err(|error| error.of(&object))?;
    dress(socket, name).map_err(|error| {
        // The link is of no use half made; the next try starts anew.
        let _first_error_matters = remove(socket, name);
        error.of(&object)
    })
}

/// Alias, no addresses of its own, up. The order matters: a device that comes up gives itself an address at once.
fn dress(socket: &mut Socket, name: &DeviceName) -> Result<(), Error> {
    let mut message = Message::new(SET_LINK, 0, &[0; FIXED]);
    message.put_text(NAME, name.as_str()).put(IFALIAS, ALIAS.as_bytes());
    message.nest(AF_SPEC, |families| {
        families.nest(AF_INET6, |inet6| {
            inet6.put_u8(INET6_ADDR_GEN_MODE, GENERATE_NONE);
        });
    });
    socket.request(message)?;
    socket.request(up(name))
}

fn up(name: &DeviceName) -> Message {
    let mut fixed = [0; FIXED];
    fixed[8..12].copy_from_slice(&UP.to_ne_bytes());
    fixed[12..16].copy_from_slice(&UP.to_ne_bytes());
    let mut message = Message::new(SET_LINK, 0, &fixed);
    message.put_text(NAME, name.as_str());
    message
}

/// Sets the MTU and sees that the device is up.
pub(crate) fn set_mtu(socket: &mut Socket, name: &DeviceName, mtu: u32) -> Result<(), Error> {
    let mut message = up(name);
    message.put_u32(MTU, mtu);
    socket.request(message).map_err(|error| error.of(format!("MTU {mtu} of link {name}")))
}

pub(crate) fn remove(socket: &mut Socket, name: &DeviceName) -> Result<(), Error> {
    let mut message = Message::new(DELETE_LINK, 0, &[0; FIXED]);
    message.put_text(NAME, name.as_str());
    match socket.request(message) {
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(()),
        other => other.map_err(|error| error.of(format!("link {name}"))),
    }
}
