//! Routes in our table.

use std::collections::BTreeMap;

use ipnet::IpNet;
use kernel_core::{GroupId, NexthopId, PROTOCOL, Route, RouteKey, RouteTable, Target};
use nix::errno::Errno;

use crate::Error;
use crate::device::{Devices, index_of};
use crate::message::{Message, address, attributes_after, find, flag, octets, read_u32};
use crate::socket::Socket;

const NEW: u16 = 24;
const DELETE: u16 = 25;
pub(crate) const GET: u16 = 26;
pub(crate) const FIXED: usize = 12;

// <linux/rtnetlink.h>
pub(crate) const DESTINATION: u16 = 1;
pub(crate) const DEVICE: u16 = 4;
pub(crate) const GATEWAY: u16 = 5;
pub(crate) const PRIORITY: u16 = 6;
const PREFERRED_SOURCE: u16 = 7;
pub(crate) const METRICS: u16 = 8;
pub(crate) const TABLE_NUMBER: u16 = 15;
pub(crate) const NEXTHOP: u16 = 30;
pub(crate) const METRIC_MTU: u16 = 2;
pub(crate) const UNICAST: u8 = 1;
const BLACKHOLE: u8 = 6;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_NOWHERE: u8 = 255;
const ON_LINK: u32 = 4;
/// In the one byte of the fixed part: the number is in an attribute.
const TABLE_ELSEWHERE: u8 = 252;

pub(crate) fn set(socket: &mut Socket, key: &RouteKey, route: &Route) -> Result<(), Error> {
    let object = name(key);
    if key.metric == 0 {
        return Err(Error::Invalid { object, reason: "its metric is zero, which IPv6 reads as 1024".into() });
    }
    let (mut kind, mut scope, mut flags) = (UNICAST, SCOPE_UNIVERSE, 0);
    let mut index = None;
    match &route.target {
        Target::Nexthop(_) | Target::Group(_) => {}
        Target::Blackhole => kind = BLACKHOLE,
        Target::Device { device, via } => {
            index = Some(index_of(socket, device, &object)?);
            match via {
                Some(_) => flags = ON_LINK,
                None if key.destination.addr().is_ipv4() => scope = SCOPE_LINK,
                None => {}
            }
        }
    }
    let mut message = message(NEW, flag::CREATE | flag::REPLACE, key, scope, kind, flags);
    match &route.target {
        Target::Nexthop(id) => {
            message.put_u32(NEXTHOP, id.number());
        }
        Target::Group(id) => {
            message.put_u32(NEXTHOP, id.number());
        }
        Target::Device { via: Some(via), .. } => {
            message.put_address(GATEWAY, *via);
        }
        Target::Device { via: None, .. } | Target::Blackhole => {}
    }
    if let Some(index) = index {
        message.put_u32(DEVICE, index);
    }
    if let Some(source) = route.source {
        message.put_address(PREFERRED_SOURCE, source);
    }
    if let Some(mtu) = route.mtu {
        message.nest(METRICS, |metrics| {
            metrics.put_u32(METRIC_MTU, mtu);
        });
    }
    socket.request(message).map_err(|error| error.of(object))
}

pub(crate) fn remove(socket: &mut Socket, key: &RouteKey) -> Result<(), Error> {
    let message = message(DELETE, 0, key, SCOPE_NOWHERE, 0, 0);
    match socket.request(message) {
        Err(error) if matches!(error.errno(), Some(Errno::ESRCH | Errno::ENOENT)) => Ok(()),
        other => other.map_err(|error| error.of(name(key))),
    }
}

/// Routes of our protocol number in our table.
pub(crate) fn list(socket: &mut Socket, devices: &Devices) -> Result<BTreeMap<RouteKey, Route>, Error> {
    let mut routes = BTreeMap::new();
    for (family, table) in [2, 10].into_iter().flat_map(|family| RouteTable::ALL.map(|table| (family, table.number())))
    {
        let mut fixed = [0; FIXED];
        fixed[0] = family;
        let mut message = Message::new(GET, 0, &fixed);
        message.put_u32(TABLE_NUMBER, table);
        match socket.dump(&message, |received| read(received.payload, devices)) {
            Ok(entries) => routes.extend(entries),
            // A table that never had a route does not exist.
            Err(error) if error.errno() == Some(Errno::ENOENT) => {}
            Err(error) => return Err(error.of(format!("list of routes in table {table}"))),
        }
    }
    Ok(routes)
}

pub(crate) fn read(payload: &[u8], devices: &Devices) -> Option<(RouteKey, Route)> {
    let (family, length) = (*payload.first()?, *payload.get(1)?);
    let (protocol, kind) = (*payload.get(5)?, *payload.get(7)?);
    let unspecified = if family == 2 { "0.0.0.0" } else { "::" };
    let mut destination = unspecified.parse().ok()?;
    let (mut table, mut metric, mut device, mut via, mut nexthop) = (0, 0, None, None, None);
    let mut route = Route::BLACKHOLE;
    for (kind, value) in attributes_after(payload, FIXED) {
        match kind {
            TABLE_NUMBER => table = read_u32(value, 0)?,
            DESTINATION => destination = address(value)?,
            PRIORITY => metric = read_u32(value, 0)?,
            DEVICE => device = devices.name(read_u32(value, 0)?).cloned(),
            GATEWAY => via = address(value),
            NEXTHOP => nexthop = read_u32(value, 0),
            PREFERRED_SOURCE => route.source = address(value),
            METRICS => route.mtu = find(value, METRIC_MTU).and_then(|mtu| read_u32(mtu, 0)).filter(|mtu| *mtu != 0),
            _ => {}
        }
    }
    if protocol != PROTOCOL {
        return None;
    }
    let table = RouteTable::from_number(table)?;
    route.target = match (kind, nexthop, device) {
        (BLACKHOLE, ..) => Target::Blackhole,
        (UNICAST, Some(number), _) => match (NexthopId::from_number(number), GroupId::from_number(number)) {
            (Some(id), _) => Target::Nexthop(id),
            (None, Some(id)) => Target::Group(id),
            (None, None) => return None,
        },
        (UNICAST, None, Some(device)) => Target::Device { device, via },
        _ => return None,
    };
    Some((RouteKey { table, destination: IpNet::new(destination, length).ok()?, metric }, route))
}

/// All that is left in our table, whatever it looks like, as messages that delete it. Foreign routes in it stay.
pub(crate) fn remove_all(socket: &mut Socket) -> Result<(), Error> {
    for (family, table) in [2, 10].into_iter().flat_map(|family| RouteTable::ALL.map(|table| (family, table.number())))
    {
        let mut fixed = [0; FIXED];
        fixed[0] = family;
        let mut message = Message::new(GET, 0, &fixed);
        message.put_u32(TABLE_NUMBER, table);
        let found = socket.dump(&message, |received| {
            let payload = received.payload;
            (*payload.get(5)? == PROTOCOL).then(|| payload.to_vec())
        });
        let found = match found {
            Err(error) if error.errno() == Some(Errno::ENOENT) => continue,
            other => other.map_err(|error| error.of(format!("list of routes in table {table}")))?,
        };
        for route in found {
            let mut fixed = [0; FIXED];
            fixed.copy_from_slice(route.get(..FIXED).unwrap_or(&[0; FIXED]));
            fixed[6] = SCOPE_NOWHERE;
            fixed[8..12].fill(0);
            let mut message = Message::new(DELETE, 0, &fixed);
            for (kind, value) in attributes_after(&route, FIXED) {
                if matches!(kind, TABLE_NUMBER | DESTINATION | PRIORITY) {
                    message.put(kind, value);
                }
            }
            match socket.request(message) {
                Err(error) if error.errno() != Some(Errno::ESRCH) => return Err(error.of("route of ours")),
                _ => {}
            }
        }
    }
    Ok(())
}

fn name(key: &RouteKey) -> String {
    format!("route to {} with metric {}", key.destination, key.metric)
}

fn message(kind: u16, flags: u16, key: &RouteKey, scope: u8, route_kind: u8, route_flags: u32) -> Message {
    let family = if key.destination.addr().is_ipv4() { 2 } else { 10 };
    let mut fixed = [0; FIXED];
    fixed[0] = family;
    fixed[1] = key.destination.prefix_len();
    fixed[4] = TABLE_ELSEWHERE;
    fixed[5] = PROTOCOL;
    fixed[6] = scope;
    fixed[7] = route_kind;
    fixed[8..12].copy_from_slice(&route_flags.to_ne_bytes());
    let mut message = Message::new(kind, flags, &fixed);
    message.put(DESTINATION, &octets(key.destination.network())).put_u32(TABLE_NUMBER, key.table.number());
    message.put_u32(PRIORITY, key.metric);
    message
}
