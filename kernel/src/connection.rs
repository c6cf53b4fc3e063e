//! Tracked flows: those to an endpoint that left are ended, those that live are shown.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel_core::{Backend, Frontend, Protocol};
use nix::errno::Errno;

use crate::Error;
use crate::message::{Message, address, attributes_after, find, read_be16};
use crate::socket::{NETFILTER, Socket};
use crate::table::FIXED;

// <linux/netfilter/nfnetlink_conntrack.h>: subsystem 1 in the upper byte.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const SOURCES: [u16; 2] = [1, 3];
const DESTINATIONS: [u16; 2] = [2, 4];
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

/// Ends tracked flows that began to one of the frontends and were given to the backend beside it. All are looked for in
/// one list; returns how many were ended.
pub(crate) fn forget(socket: &mut Socket, gone: &BTreeSet<(Frontend, Backend)>) -> Result<usize, Error> {
    let mut ended = 0;
    let families: BTreeSet<u8> = gone.iter().map(|(frontend, _)| family(frontend.address)).collect();
    for family in families {
        let fixed = [family, 0, 0, 0];
        let flows = socket.dump(&Message::new(GET, 0, &fixed), |received| {
            let attributes = received.payload.get(FIXED..)?;
            let original = find(attributes, ORIGINAL)?;
            let given = read_tuple(original)?;
            let answering = read_tuple(find(attributes, REPLY)?)?;
            let protocol = Protocol::from_number(given.protocol)?;
            let ((address, port), (to, to_port)) = (given.destination, answering.source);
            let is_gone =
                gone.contains(&(Frontend { address, protocol, port }, Backend { address: to, port: to_port }));
            is_gone.then(|| (original.to_vec(), find(attributes, ID).map(<[u8]>::to_vec)))
        });
        for (original, id) in flows.map_err(|error| error.of("list of tracked connections"))? {
            let mut message = Message::new(DELETE, 0, &fixed);
            message.nest(ORIGINAL, |tuple| {
                for (kind, value) in attributes_after(&original, 0) {
                    tuple.put(kind | NESTED, value);
                }
            });
            // With its number, so that a flow that took its place meanwhile stays.
            if let Some(id) = id {
                message.put(ID, &id);
            }
            match socket.request(message) {
                Ok(()) => ended += 1,
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                Err(error) => return Err(error.of("tracked connection")),
            }
        }
    }
    Ok(ended)
}

/// A flow that is tracked and lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who opened it.
    pub from: IpAddr,
    /// Who answers it, after every translation.
    pub to: IpAddr,
    /// At which port.
    pub port: u16,
    /// The kernel's number of it; not used twice at a time.
    pub id: u32,
}

/// What `pick` takes of every flow that lives, in the network namespace of the calling thread. Costs a look at all of
/// them, beside whatever [`Kernel`](crate::Kernel) does meanwhile.
pub fn flows<T>(mut pick: impl FnMut(Flow) -> Option<T>) -> Result<Vec<T>, Error> {
    let mut socket = Socket::open(NETFILTER)?;
    let mut picked = Vec::new();
    for family in [2, 10] {
        let some = socket.dump(&Message::new(GET, 0, &[family, 0, 0, 0]), |received| {
            let attributes = received.payload.get(FIXED..)?;
            let original = read_tuple(find(attributes, ORIGINAL)?)?;
            let answering = read_tuple(find(attributes, REPLY)?)?;
            let id = find(attributes, ID).and_then(|id| Some(u32::from_be_bytes(id.try_into().ok()?))).unwrap_or(0);
            let ((to, port), from) = (answering.source, original.source.0);
            let flow = Flow { from, to, port, id };
            lives(attributes).then(|| pick(flow)).flatten()
        });
        picked.extend(some.map_err(|error| error.of("list of tracked connections"))?);
    }
    Ok(picked)
}

/// Whether anything can still come: a TCP connection that both sides closed is only remembered.
fn lives(attributes: &[u8]) -> bool {
    let tcp = find(attributes, PROTOCOL_STATE).and_then(|info| find(info, STATE_OF_TCP));
    tcp.and_then(|tcp| find(tcp, TCP_STATE)).and_then(|state| state.first()).is_none_or(|state| OPEN.contains(state))
}

const PROTOCOL_STATE: u16 = 4;
const STATE_OF_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
/// `<linux/netfilter/nf_conntrack_tcp.h>`: from SYN_SENT to LAST_ACK; TIME_WAIT and CLOSE come after.
const OPEN: std::ops::RangeInclusive<u8> = 1..=6;

const NESTED: u16 = 0x8000;

pub(crate) struct Tuple {
    protocol: u8,
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
}

pub(crate) fn read_tuple(tuple: &[u8]) -> Option<Tuple> {
    let (ip, protocol) = (find(tuple, TUPLE_IP)?, find(tuple, TUPLE_PROTOCOL)?);
    let of = |kinds: [u16; 2]| kinds.iter().find_map(|kind| find(ip, *kind)).and_then(address);
    let port = |kind| find(protocol, kind).and_then(|port| read_be16(port, 0));
    Some(Tuple {
        protocol: *find(protocol, PROTOCOL_NUMBER)?.first()?,
        source: (of(SOURCES)?, port(SOURCE_PORT)?),
        destination: (of(DESTINATIONS)?, port(DESTINATION_PORT)?),
    })
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

/// Who opened the connections that are tracked.
#[cfg(test)]
pub(crate) fn sources(socket: &mut Socket) -> BTreeSet<IpAddr> {
    let all = Message::new(GET, 0, &[0; FIXED]);
    let list =
        socket.dump(&all, |received| Some(read_tuple(find(received.payload.get(FIXED..)?, ORIGINAL)?)?.source.0));
    list.expect("a list of tracked connections").into_iter().collect()
}
