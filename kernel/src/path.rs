//! Which way the kernel sends packets to an address, hop by hop, as it says itself.

use std::net::IpAddr;

use kernel_core::{ForwardingKey, GroupId, NeighbourKey, NexthopId};
use nix::errno::Errno;

use crate::device::Devices;
use crate::message::{Message, address, attributes_after, find, read_u32};
use crate::route::{
    DESTINATION, DEVICE, FIXED, GATEWAY, GET, METRIC_MTU, METRICS, NEXTHOP, PRIORITY, TABLE_NUMBER, UNICAST,
};
use crate::socket::Socket;
use crate::{Error, neighbour, nexthop};

/// The route that matches, and not only what comes of it.
const MATCHING_ROUTE: u32 = 0x2000;
/// The table it stands in. IPv4 says the main one unless it is asked; IPv6 always says it, and refuses to be asked.
const ITS_TABLE: u32 = 0x1000;

/// What the kernel does with a packet of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    Routed(Routed),
    /// A blackhole, or another route that drops.
    Dropped,
    /// No route at all.
    NoRoute,
}

/// A route that carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routed {
    /// The number of its table.
    pub table: u32,
    pub metric: u32,
    /// Largest packet, bytes, where the route says one.
    pub mtu: Option<u32>,
    /// The ways a flow may take; one, or several that share.
    pub hops: Vec<Hop>,
}

/// One way out of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// Empty where the device went meanwhile.
    pub device: String,
    pub via: Option<IpAddr>,
    /// On a VXLAN device of ours: the node that the outer packets are sent to; none where the kernel does not know it.
    pub node: Option<IpAddr>,
    /// Whether the device is our VXLAN device.
    pub by_vxlan: bool,
}

/// Asks for the route to an address; fails when the kernel does not answer.
pub(crate) fn find_path(socket: &mut Socket, to: IpAddr) -> Result<Path, Error> {
    let (family, length, flags) =
        if to.is_ipv4() { (2, 32, MATCHING_ROUTE | ITS_TABLE) } else { (10, 128, MATCHING_ROUTE) };
    let mut fixed = [0; FIXED];
    fixed[0] = family;
    fixed[1] = length;
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    let mut message = Message::new(GET, 0, &fixed);
    message.put_address(DESTINATION, to);
    let devices = Devices::list(socket)?;
    let found = match socket.get(message, |received| read(received.payload)) {
        Ok(found) => found,
        // Both families say so of blackholes, by different words.
        Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::EACCES)) => return Ok(Path::Dropped),
        Err(error) if matches!(error.errno(), Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ESRCH)) => {
            return Ok(Path::NoRoute);
        }
        Err(error) => return Err(error.of(format!("route to {to}"))),
    };
    let Some(found) = found else { return Ok(Path::NoRoute) };
    if found.kind != UNICAST {
        return Ok(Path::Dropped);
    }
    let mut hops = Vec::new();
    if let Some(number) = found.nexthop {
        let known = nexthop::list(socket, &devices)?;
        let group = GroupId::from_number(number).and_then(|id| known.groups.get(&id));
        let members = group.into_iter().flat_map(|group| group.members().keys().copied());
        for id in members.chain(NexthopId::from_number(number)) {
            let hop =
                known.single.get(&id).map(|hop| Hop { device: hop.device.to_string(), via: hop.via, ..Hop::default() });
            hops.push(hop.unwrap_or_default());
        }
    } else {
        let device = found.device.and_then(|index| devices.name(index)).map(ToString::to_string);
        hops.push(Hop { device: device.unwrap_or_default(), via: found.via, ..Hop::default() });
    }
    let neighbours = neighbour::list(socket, &devices)?;
    let forwarding = neighbour::list_forwarding(socket, &devices)?;
    for hop in &mut hops {
        let Some(device) = devices.iter().find(|device| device.name.as_str() == hop.device) else { continue };
        hop.by_vxlan = device.is_ours();
        hop.node = hop.via.and_then(|address| {
            let mac = *neighbours.get(&NeighbourKey { device: device.name.clone(), address })?;
            forwarding.get(&ForwardingKey { device: device.name.clone(), mac }).copied()
        });
    }
    Ok(Path::Routed(Routed { table: found.table, metric: found.metric, mtu: found.mtu, hops }))
}

pub(crate) struct Matching {
    kind: u8,
    table: u32,
    metric: u32,
    mtu: Option<u32>,
    device: Option<u32>,
    via: Option<IpAddr>,
    nexthop: Option<u32>,
}

pub(crate) fn read(payload: &[u8]) -> Option<Matching> {
    let table = u32::from(*payload.get(4)?);
    let kind = *payload.get(7)?;
    let mut found = Matching { kind, table, metric: 0, mtu: None, device: None, via: None, nexthop: None };
    for (kind, value) in attributes_after(payload, FIXED) {
        match kind {
            TABLE_NUMBER => found.table = read_u32(value, 0)?,
            PRIORITY => found.metric = read_u32(value, 0)?,
            DEVICE => found.device = read_u32(value, 0),
            GATEWAY => found.via = address(value),
            NEXTHOP => found.nexthop = read_u32(value, 0),
            METRICS => found.mtu = find(value, METRIC_MTU).and_then(|mtu| read_u32(mtu, 0)).filter(|mtu| *mtu != 0),
            _ => {}
        }
    }
    Some(found)
}
