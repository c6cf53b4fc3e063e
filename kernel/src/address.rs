//! Addresses of ours on devices.

use ipnet::IpNet;
use kernel_core::{Address, PROTOCOL};
use nix::errno::Errno;

use crate::Error;
use crate::device::{Devices, index_of};
use crate::message::{Message, address, attributes_after, flag, octets, read_u32};
use crate::socket::Socket;

const NEW: u16 = 20;
const DELETE: u16 = 21;
const GET: u16 = 22;
const FIXED: usize = 8;

// <linux/if_addr.h>
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const FLAGS: u16 = 8;
const ADDRESS_PROTOCOL: u16 = 11;
/// Usable at once: nobody else can have it.
const NO_DUPLICATE_DETECTION: u32 = 0x02;
/// Routes are ours to make, in our table.
const NO_PREFIX_ROUTE: u32 = 0x200;

pub(crate) fn add(socket: &mut Socket, wanted: &Address) -> Result<(), Error> {
    let mut message = message(socket, NEW, flag::CREATE | flag::REPLACE, wanted)?;
    message.put_u32(FLAGS, NO_DUPLICATE_DETECTION | NO_PREFIX_ROUTE).put_u8(ADDRESS_PROTOCOL, PROTOCOL);
    socket.request(message).map_err(|error| error.of(name(wanted)))
}

pub(crate) fn remove(socket: &mut Socket, gone: &Address) -> Result<(), Error> {
    let message = match message(socket, DELETE, 0, gone) {
        Err(Error::NoDevice { .. }) => return Ok(()),
        other => other?,
    };
    match socket.request(message) {
        Err(error) if error.errno() == Some(Errno::EADDRNOTAVAIL) => Ok(()),
        other => other.map_err(|error| error.of(name(gone))),
    }
}

/// Addresses that carry our protocol number, and all on links of ours. (Kernels before 5.18 keep no such number.)
pub(crate) fn list(socket: &mut Socket, devices: &Devices) -> Result<Vec<Address>, Error> {
    let message = Message::new(GET, 0, &[0; FIXED]);
    let entries = socket.dump(&message, |received| {
        let payload = received.payload;
        let length = *payload.get(1)?;
        let index = read_u32(payload, 4)?;
        let (mut local, mut remote, mut ours) = (None, None, devices.is_ours(index));
        for (kind, value) in attributes_after(payload, FIXED) {
            match kind {
                LOCAL => local = address(value),
                ADDRESS => remote = address(value),
                ADDRESS_PROTOCOL => ours |= value == [PROTOCOL],
                _ => {}
            }
        }
        let net = IpNet::new(local.or(remote)?, length).ok()?;
        ours.then(|| Some(Address { device: devices.name(index)?.clone(), net })).flatten()
    });
    entries.map_err(|error| error.of("list of addresses"))
}

fn name(address: &Address) -> String {
    format!("address {} on {}", address.net, address.device)
}

fn message(socket: &mut Socket, kind: u16, flags: u16, wanted: &Address) -> Result<Message, Error> {
    let index = index_of(socket, &wanted.device, &name(wanted))?;
    let family = if wanted.net.addr().is_ipv4() { 2 } else { 10 };
    let mut fixed = vec![family, wanted.net.prefix_len(), 0, 0];
    fixed.extend_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(kind, flags, &fixed);
    let bytes = octets(wanted.net.addr());
    message.put(LOCAL, &bytes).put(ADDRESS, &bytes);
    Ok(message)
}
