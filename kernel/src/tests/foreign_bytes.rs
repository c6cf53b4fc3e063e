//! No message, however it is made up, stops a reader: a kernel of another version is a stranger too.

use proptest::prelude::*;

use crate::device::{Device, Devices};
use crate::message::{Received, attributes};
use crate::{connection, neighbour, nexthop, path, refused, route, rule, table};

/// Attributes of plausible types and any content, some of which hold attributes themselves.
fn attribute_list() -> impl Strategy<Value = Vec<u8>> {
    let content = prop::collection::vec(any::<u8>(), 0..24);
    let leaf = prop::collection::vec((0u16..32, content), 0..6).prop_map(encode);
    leaf.prop_recursive(3, 32, 4, |inner| prop::collection::vec((0u16..32, inner), 0..5).prop_map(encode))
}

fn encode(list: Vec<(u16, Vec<u8>)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in list {
        bytes.extend_from_slice(&u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_reader_survives_every_message(
        fixed in prop::collection::vec(prop::sample::select(vec![0u8, 1, 2, 6, 10, 116, 255]), 0..20),
        list in attribute_list(),
        kind in any::<u16>(),
    ) {
        let payload = [fixed, list.clone()].concat();
        let received = Received { kind, flags: 0, sequence: 0, payload: &payload };
        let devices = Devices::default();
        let _ = Device::read(received).map(|device| device.observed_vxlan());
        let _ = neighbour::Entry::read(&payload);
        let _ = nexthop::read(&payload, &devices);
        let _ = (route::read(&payload, &devices), path::read(&payload));
        let _ = rule::read(received, kernel_core::Family::Ipv6);
        let _ = refused::read(Received { kind: refused::PACKET, ..received });
        let _ = connection::read_tuple(&list);
        let entries: Vec<_> = attributes(&list).filter_map(|(_, value)| table::observe::read_entry(value)).collect();
        let _ = table::slots::read(kernel_core::Family::Ipv4, &entries, &entries);
    }
}
