//! Next hop objects and groups of them.

use std::collections::BTreeMap;

use kernel_core::{Family, Group, GroupId, Nexthop, NexthopId, PROTOCOL};
use nix::errno::Errno;

use crate::Error;
use crate::device::{Devices, index_of};
use crate::message::{Message, address, attributes_after, flag, read_u32};
use crate::socket::Socket;

const NEW: u16 = 104;
const DELETE: u16 = 105;
const GET: u16 = 106;
const FIXED: usize = 8;

// <linux/nexthop.h>
const ID: u16 = 1;
const GROUP: u16 = 2;
const DEVICE: u16 = 5;
const GATEWAY: u16 = 6;
/// `RTNH_F_ONLINK`: reachable on the device without asking.
const ON_LINK: u32 = 4;
/// Bytes of one member of a group: number, weight less one, three of padding.
const MEMBER: usize = 8;

pub(crate) fn set(socket: &mut Socket, id: NexthopId, nexthop: &Nexthop) -> Result<(), Error> {
    let object = format!("next hop {} by {}", id.number(), nexthop.device);
    if nexthop.via.is_some_and(|via| Family::of(via) != nexthop.family) {
        return Err(Error::Invalid { object, reason: "its address is of the other family".into() });
    }
    let index = index_of(socket, &nexthop.device, &object)?;
    let flags = if nexthop.via.is_some() { ON_LINK } else { 0 };
    let family = if nexthop.family == Family::Ipv4 { 2 } else { 10 };
    let mut message = Message::new(NEW, flag::CREATE | flag::REPLACE, &fixed(family, flags));
    message.put_u32(ID, id.number()).put_u32(DEVICE, index);
    if let Some(via) = nexthop.via {
        message.put_address(GATEWAY, via);
    }
    socket.request(message).map_err(|error| error.of(object))
}

pub(crate) fn set_group(socket: &mut Socket, id: GroupId, group: &Group) -> Result<(), Error> {
    let mut members = Vec::with_capacity(group.members().len() * MEMBER);
    for (member, weight) in group.members() {
        members.extend_from_slice(&member.number().to_ne_bytes());
        members.extend_from_slice(&[u8::try_from(weight - 1).unwrap_or(u8::MAX), 0, 0, 0]);
    }
    let mut message = Message::new(NEW, flag::CREATE | flag::REPLACE, &fixed(0, 0));
    message.put_u32(ID, id.number()).put(GROUP, &members);
    socket.request(message).map_err(|error| error.of(format!("next hop group {}", id.number())))
}

/// Removes a next hop or a group by its number in the kernel.
pub(crate) fn remove(socket: &mut Socket, number: u32) -> Result<(), Error> {
    let mut message = Message::new(DELETE, 0, &[0; FIXED]);
    message.put_u32(ID, number);
    match socket.request(message) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
        other => other.map_err(|error| error.of(format!("next hop {number}"))),
    }
}

/// Next hops and groups that carry our protocol number and have a number of our ranges.
#[derive(Debug, Default)]
pub(crate) struct Nexthops {
    pub(crate) single: BTreeMap<NexthopId, Nexthop>,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    /// Ours by protocol, but with a number or a form we do not make (an earlier version did): cleanup removes them.
    pub(crate) strange: Vec<u32>,
}

pub(crate) fn list(socket: &mut Socket, devices: &Devices) -> Result<Nexthops, Error> {
    let message = Message::new(GET, 0, &[0; FIXED]);
    let entries = match socket.dump(&message, |received| read(received.payload, devices)) {
        // Without IPv6 or with an old kernel there are no next hop objects, so none of ours.
        Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => Vec::new(),
        other => other.map_err(|error| error.of("list of next hops"))?,
    };
    let mut nexthops = Nexthops::default();
    for (number, entry) in entries {
        match (entry, NexthopId::from_number(number), GroupId::from_number(number)) {
            (Some(Entry::Single(nexthop)), Some(id), _) => drop(nexthops.single.insert(id, nexthop)),
            (Some(Entry::Group(group)), _, Some(id)) => drop(nexthops.groups.insert(id, group)),
            _ => nexthops.strange.push(number),
        }
    }
    Ok(nexthops)
}

pub(crate) enum Entry {
    Single(Nexthop),
    Group(Group),
}

pub(crate) fn read(payload: &[u8], devices: &Devices) -> Option<(u32, Option<Entry>)> {
    if *payload.get(2)? != PROTOCOL {
        return None;
    }
    let family = if *payload.first()? == 10 { Family::Ipv6 } else { Family::Ipv4 };
    let (mut number, mut device, mut via, mut members) = (0, None, None, None);
    for (kind, value) in attributes_after(payload, FIXED) {
        match kind {
            ID => number = read_u32(value, 0)?,
            DEVICE => device = devices.name(read_u32(value, 0)?).cloned(),
            GATEWAY => via = address(value),
            GROUP => members = Some(value),
            _ => {}
        }
    }
    let entry = match (members, device) {
        (Some(members), _) => read_group(members).map(Entry::Group),
        (None, Some(device)) => Some(Entry::Single(Nexthop { family, device, via })),
        (None, None) => None,
    };
    Some((number, entry))
}

fn read_group(members: &[u8]) -> Option<Group> {
    let member = |bytes: &[u8]| Some((NexthopId::from_number(read_u32(bytes, 0)?)?, u16::from(*bytes.get(4)?) + 1));
    Group::new(members.chunks_exact(MEMBER).map(member).collect::<Option<_>>()?).ok()
}

fn fixed(family: u8, flags: u32) -> [u8; FIXED] {
    let mut fixed = [family, 0, PROTOCOL, 0, 0, 0, 0, 0];
    fixed[4..8].copy_from_slice(&flags.to_ne_bytes());
    fixed
}
