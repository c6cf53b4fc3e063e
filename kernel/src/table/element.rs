//! Elements of sets as bytes, and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use kernel_core::ruleset::set_name;
use kernel_core::table::Verdict;
use kernel_core::{DeviceName, Element, Exported, Family, Frontend, Protocol, Sets};

use super::{expression, kind, message};
use crate::message::{Message, address, flag, octets};

// <linux/netfilter/nf_tables.h>
pub(crate) const LIST_SET: u16 = 2;
pub(crate) const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
pub(crate) const KEY: u16 = 1;
pub(crate) const DATA: u16 = 2;
pub(crate) const FLAGS: u16 = 3;
/// The first key that does not belong to the interval any more.
pub(crate) const INTERVAL_END: u32 = 1;
/// Bytes a device name takes in a register.
const DEVICE_BYTES: usize = 16;

/// One element as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    pub(crate) end: bool,
    pub(crate) value: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Goto(String),
    Bytes(Vec<u8>),
}

impl Entry {
    pub(crate) fn key(key: Vec<u8>) -> Self {
        Self { key, end: false, value: None }
    }
}

/// A message that adds entries to a set (or takes them out, by key).
pub(crate) fn change(add: bool, set: &str, entries: &[Entry]) -> Message {
    let mut message = if add { message(kind::NEW_ELEMENT, flag::CREATE) } else { message(kind::DELETE_ELEMENT, 0) };
    message.put_text(LIST_SET, set);
    message.nest(LIST_ELEMENTS, |list| {
        for entry in entries {
            list.nest(LIST_ELEMENT, |element| {
                expression::put_value(element, KEY, &entry.key);
                if entry.end {
                    element.put_be32(FLAGS, INTERVAL_END);
                }
                match &entry.value {
                    Some(Value::Goto(chain)) if add => {
                        element.nest(DATA, |data| expression::put_verdict(data, &Verdict::Goto(chain.clone())));
                    }
                    Some(Value::Bytes(bytes)) if add => expression::put_value(element, DATA, bytes),
                    _ => {}
                }
            });
        }
    });
    message
}

/// The set an element belongs to, and its entries.
pub(crate) fn entries(element: &Element) -> (String, Vec<Entry>) {
    let of_net = |stem: &str, net: &IpNet| (set_name(stem, Family::of_net(net)), interval(net));
    let plain = |stem: &str, family: Family, key: Vec<u8>| (set_name(stem, family), vec![Entry::key(key)]);
    match element {
        Element::Remote(net) => of_net("remote", net),
        Element::Local(net) => of_net("local", net),
        Element::Clusterset(net) => of_net("clusterset", net),
        Element::Here(net) => of_net("here", net),
        Element::Control(net) => of_net("control", net),
        Element::Node(node) => plain("nodes", Family::of(*node), octets(*node)),
        Element::Hairpin(pod) => plain("hairpin", Family::of(*pod), [octets(*pod), octets(*pod)].concat()),
        Element::Exported(it) => {
            plain("exported", Family::of(it.address), destination_key(it.address, it.protocol, it.port))
        }
        Element::Echo(address) => plain("echo", Family::of(*address), octets(*address)),
        Element::Tunnel(device) => ("tunnels".to_owned(), vec![Entry::key(device_key(device))]),
    }
}

/// Address, protocol and port, each padded to four bytes.
pub(crate) fn destination_key(address: IpAddr, protocol: Protocol, port: u16) -> Vec<u8> {
    let mut key = octets(address);
    key.extend_from_slice(&[protocol.number(), 0, 0, 0]);
    key.extend_from_slice(&port.to_be_bytes());
    key.extend_from_slice(&[0, 0]);
    key
}

/// The reverse of [`destination_key`]; more bytes may follow.
pub(crate) fn read_destination(key: &[u8], family: Family) -> Option<Frontend> {
    let length = if family == Family::Ipv4 { 4 } else { 16 };
    let protocol = Protocol::from_number(*key.get(length)?)?;
    let port = crate::message::read_be16(key, length + 4)?;
    Some(Frontend { address: address(key.get(..length)?)?, protocol, port })
}

fn device_key(device: &DeviceName) -> Vec<u8> {
    let mut key = device.as_str().as_bytes().to_vec();
    key.resize(DEVICE_BYTES, 0);
    key
}

fn interval(net: &IpNet) -> Vec<Entry> {
    let first = Entry::key(octets(net.network()));
    let end = match net.broadcast() {
        IpAddr::V4(last) => u32::from(last).checked_add(1).map(|next| octets(Ipv4Addr::from(next).into())),
        IpAddr::V6(last) => u128::from(last).checked_add(1).map(|next| octets(Ipv6Addr::from(next).into())),
    };
    // An interval that reaches the last address has no end.
    let end = end.map(|key| Entry { key, end: true, value: None });
    std::iter::once(first).chain(end).collect()
}

/// Puts the entries found in a set into `sets`; false if one is not as we make them.
pub(crate) fn read(stem: &str, family: Family, mut entries: Vec<Entry>, sets: &mut Sets) -> bool {
    let plain = |make: &dyn Fn(&[u8]) -> Option<Element>, sets: &mut Sets| {
        entries.iter().all(|entry| make(&entry.key).map(|element| sets.insert(element)).is_some())
    };
    match stem {
        "nodes" => plain(&|key| address(key).map(Element::Node), sets),
        "hairpin" => plain(
            &|key| {
                let (one, other) = key.split_at(key.len() / 2);
                (one == other).then(|| address(one).map(Element::Hairpin)).flatten()
            },
            sets,
        ),
        "exported" => plain(
            &|key| {
                let Frontend { address, protocol, port } = read_destination(key, family)?;
                Some(Element::Exported(Exported { address, protocol, port }))
            },
            sets,
        ),
        "echo" => plain(&|key| address(key).map(Element::Echo), sets),
        "tunnels" => plain(&|key| read_device(key).map(Element::Tunnel), sets),
        _ => {
            // Ends come before the start of the next interval at the same key.
            entries.sort_by(|a, b| a.key.cmp(&b.key).then(b.end.cmp(&a.end)));
            match prefixes(&entries) {
                Some(prefixes) => {
                    let set = match stem {
                        "remote" => &mut sets.remote,
                        "local" => &mut sets.local,
                        "clusterset" => &mut sets.clusterset,
                        "here" => &mut sets.here,
                        "control" => &mut sets.control,
                        _ => return false,
                    };
                    set.extend(prefixes);
                    true
                }
                None => false,
            }
        }
    }
}

fn read_device(key: &[u8]) -> Option<DeviceName> {
    crate::message::text(key).and_then(|text| DeviceName::new(text).ok())
}

/// The prefixes that sorted starts and ends stand for.
fn prefixes(entries: &[Entry]) -> Option<Vec<IpNet>> {
    let mut prefixes = Vec::new();
    let mut entries = entries.iter().peekable();
    while let Some(start) = entries.next() {
        if start.end {
            return None;
        }
        let end = entries.next_if(|next| next.end);
        if end.is_none() && entries.peek().is_some() {
            return None;
        }
        match (address(&start.key)?, end.map(|end| address(&end.key))) {
            (IpAddr::V4(first), end) => {
                let last = match end {
                    Some(Some(IpAddr::V4(end))) => Ipv4Addr::from(u32::from(end).checked_sub(1)?),
                    None => Ipv4Addr::BROADCAST,
                    Some(_) => return None,
                };
                prefixes.extend(Ipv4Subnets::new(first, last, 0).map(IpNet::V4));
            }
            (IpAddr::V6(first), end) => {
                let last = match end {
                    Some(Some(IpAddr::V6(end))) => Ipv6Addr::from(u128::from(end).checked_sub(1)?),
                    None => Ipv6Addr::from(u128::MAX),
                    Some(_) => return None,
                };
                prefixes.extend(Ipv6Subnets::new(first, last, 0).map(IpNet::V6));
            }
        }
    }
    Some(prefixes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nets() -> impl Strategy<Value = Vec<IpNet>> {
        let v4 = (any::<u32>(), 0u8..=32).prop_map(|(bits, length)| IpNet::new(Ipv4Addr::from(bits).into(), length));
        let v6 = (any::<u128>(), 0u8..=128).prop_map(|(bits, length)| IpNet::new(Ipv6Addr::from(bits).into(), length));
        prop_oneof![prop::collection::vec(v4, 0..20), prop::collection::vec(v6, 0..20)]
            .prop_map(|nets| nets.into_iter().map(|net| net.unwrap().trunc()).collect())
    }

    proptest! {
        #[test]
        fn prefixes_come_back_from_their_intervals(nets in nets()) {
            let wanted = Sets { remote: nets.into_iter().collect(), ..Sets::default() }.normalized();
            let mut entries: Vec<Entry> = wanted.remote.iter().flat_map(interval).collect();
            entries.reverse();
            let mut found = Sets::default();
            prop_assert!(read("remote", Family::Ipv4, entries, &mut found));
            prop_assert_eq!(found.normalized(), wanted);
        }

        #[test]
        fn no_entries_make_the_reader_panic(
            keys in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), any::<bool>()), 0..8),
            stem in prop::sample::select(vec!["remote", "nodes", "hairpin", "exported", "tunnels", "unknown"]),
        ) {
            let entries = keys.into_iter().map(|(key, end)| Entry { key, end, value: None }).collect();
            read(stem, Family::Ipv6, entries, &mut Sets::default());
        }
    }
}
