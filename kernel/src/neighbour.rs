//! Static neighbours and forwarding entries on links of ours.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kernel_core::{ForwardingKey, Mac, NeighbourKey};
use nix::errno::Errno;

use crate::Error;
use crate::device::{Devices, index_of};
use crate::message::{Message, address, attributes_after, flag, read_u16, read_u32};
use crate::socket::Socket;

const NEW: u16 = 28;
const DELETE: u16 = 29;
const GET: u16 = 30;
const FIXED: usize = 12;
const FAMILY_BRIDGE: u8 = 7;

// <linux/neighbour.h>
const DESTINATION: u16 = 1;
const LINK_ADDRESS: u16 = 2;
const PERMANENT: u16 = 0x80;
const NO_RESOLUTION: u16 = 0x40;
/// The entry is the device's own, not that of a bridge above it.
const SELF: u8 = 0x02;

pub(crate) fn set(socket: &mut Socket, key: &NeighbourKey, mac: Mac) -> Result<(), Error> {
    let object = neighbour_name(key);
    let index = index_of(socket, &key.device, &object)?;
    let mut message = Message::new(NEW, flag::CREATE | flag::REPLACE, &fixed(family(key.address), index, PERMANENT, 0));
    message.put_address(DESTINATION, key.address).put(LINK_ADDRESS, &mac.0);
    socket.request(message).map_err(|error| error.of(object))
}

pub(crate) fn remove(socket: &mut Socket, key: &NeighbourKey) -> Result<(), Error> {
    let object = neighbour_name(key);
    let Some(index) = index_if_there(socket, &key.device, &object)? else { return Ok(()) };
    let mut message = Message::new(DELETE, 0, &fixed(family(key.address), index, 0, 0));
    message.put_address(DESTINATION, key.address);
    forgiving(socket.request(message)).map_err(|error| error.of(object))
}

pub(crate) fn set_forwarding(socket: &mut Socket, key: &ForwardingKey, remote: IpAddr) -> Result<(), Error> {
    let object = forwarding_name(key);
    let index = index_of(socket, &key.device, &object)?;
    let fixed = fixed(FAMILY_BRIDGE, index, PERMANENT | NO_RESOLUTION, SELF);
    let mut message = Message::new(NEW, flag::CREATE | flag::REPLACE, &fixed);
    message.put(LINK_ADDRESS, &key.mac.0).put_address(DESTINATION, remote);
    socket.request(message).map_err(|error| error.of(object))
}

pub(crate) fn remove_forwarding(socket: &mut Socket, key: &ForwardingKey) -> Result<(), Error> {
    let object = forwarding_name(key);
    let Some(index) = index_if_there(socket, &key.device, &object)? else { return Ok(()) };
    let mut message = Message::new(DELETE, 0, &fixed(FAMILY_BRIDGE, index, 0, SELF));
    message.put(LINK_ADDRESS, &key.mac.0);
    forgiving(socket.request(message)).map_err(|error| error.of(object))
}

/// Permanent neighbours on links of ours.
pub(crate) fn list(socket: &mut Socket, devices: &Devices) -> Result<BTreeMap<NeighbourKey, Mac>, Error> {
    let mut found = BTreeMap::new();
    for family in [2, 10] {
        let message = Message::new(GET, 0, &fixed(family, 0, 0, 0));
        let entries = socket.dump(&message, |received| {
            let entry = Entry::read(received.payload)?;
            let permanent = entry.state & PERMANENT != 0 && devices.is_ours(entry.index);
            let key = NeighbourKey { device: devices.name(entry.index)?.clone(), address: entry.destination? };
            permanent.then_some((key, entry.mac?))
        });
        found.extend(entries.map_err(|error| error.of("list of neighbours"))?);
    }
    Ok(found)
}

/// Forwarding entries of links of ours.
pub(crate) fn list_forwarding(
    socket: &mut Socket,
    devices: &Devices,
) -> Result<BTreeMap<ForwardingKey, IpAddr>, Error> {
    if !devices.iter().any(crate::Device::is_ours) {
        return Ok(BTreeMap::new());
    }
    let message = Message::new(GET, 0, &fixed(FAMILY_BRIDGE, 0, 0, 0));
    let entries = socket.dump(&message, |received| {
        let entry = Entry::read(received.payload)?;
        let key = ForwardingKey { device: devices.name(entry.index)?.clone(), mac: entry.mac? };
        devices.is_ours(entry.index).then_some((key, entry.destination?))
    });
    Ok(entries.map_err(|error| error.of("list of forwarding entries"))?.into_iter().collect())
}

pub(crate) struct Entry {
    index: u32,
    state: u16,
    destination: Option<IpAddr>,
    mac: Option<Mac>,
}

impl Entry {
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let mut entry =
            Self { index: read_u32(payload, 4)?, state: read_u16(payload, 8)?, destination: None, mac: None };
        for (kind, value) in attributes_after(payload, FIXED) {
            match kind {
                DESTINATION => entry.destination = address(value),
                LINK_ADDRESS => entry.mac = value.try_into().ok().map(Mac),
                _ => {}
            }
        }
        Some(entry)
    }
}

fn fixed(family: u8, index: u32, state: u16, flags: u8) -> [u8; FIXED] {
    let mut fixed = [0; FIXED];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&state.to_ne_bytes());
    fixed[10] = flags;
    fixed
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

fn neighbour_name(key: &NeighbourKey) -> String {
    format!("neighbour {} on {}", key.address, key.device)
}

fn forwarding_name(key: &ForwardingKey) -> String {
    format!("forwarding entry {} on {}", key.mac, key.device)
}

fn index_if_there(socket: &mut Socket, device: &kernel_core::DeviceName, object: &str) -> Result<Option<u32>, Error> {
    match index_of(socket, device, object) {
        Err(Error::NoDevice { .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// What is gone is removed.
fn forgiving(answer: Result<(), Error>) -> Result<(), Error> {
    match answer {
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
        other => other,
    }
}
