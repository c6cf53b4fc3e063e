//! SRV records (RFC 2782) and the addresses that go with them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::name::MAX_NAME;
use crate::query::{HEADER, record_type};
use crate::record::{self, HEADLESS_TTL, SERVICE_TTL};
use crate::response::{Response, Section};
use crate::service::{Cluster, Import, Service};
use crate::slice::{NamedPort, Protocol};
use crate::zone::Zone;

/// All records have the same: which endpoint is better is not for DNS to say.
const PRIORITY: u16 = 0;
/// See [`PRIORITY`]. Not 0, which RFC 2782 keeps for records that are hardly ever to be taken.
const WEIGHT: u16 = 100;
/// The target begins after the owner's pointer, the fixed part, priority, weight and port.
const TARGET_OFFSET: usize = 2 + 10 + 6;
/// Offsets over this do not fit a compression pointer (RFC 1035, section 4.1.4).
const MAX_POINTER: usize = 0x3fff;

/// The port asked for: by protocol and name, or every named one.
type Asked<'a> = Option<(Protocol, &'a [u8])>;

fn is_asked(asked: Asked<'_>, port: &NamedPort) -> bool {
    asked.is_none_or(|(protocol, name)| port.protocol == protocol && port.name.as_bytes() == name)
}

/// The target's name, whole: SRV data must not be compressed (RFC 3597, section 4).
fn target(zone: &Zone, before: &[u8], service: &Service) -> Option<Vec<u8>> {
    let mut name = before.to_vec();
    for label in [&service.name, &service.namespace] {
        name.push(label.len() as u8);
        name.extend_from_slice(label.as_bytes());
    }
    name.extend_from_slice(b"\x03svc");
    name.extend_from_slice(zone.origin.wire());
    name.push(0);
    // A name too long for DNS cannot be asked for either: its owner's to shorten (D-13).
    (name.len() <= MAX_NAME).then_some(name)
}

/// Adds one record; returns where its target stands.
fn add(response: &mut Response<'_>, ttl: u32, port: u16, target: &[u8]) -> Option<usize> {
    let mut record = vec![0xc0, HEADER as u8];
    record::push_fixed(&mut record, record_type::SRV, ttl, (6 + target.len()) as u16);
    for number in [PRIORITY, WEIGHT, port] {
        record.extend_from_slice(&number.to_be_bytes());
    }
    record.extend_from_slice(target);
    let place = response.position() + TARGET_OFFSET;
    response.add(Section::Answer, &record).then_some(place)
}

/// Adds addresses of the name that stands at `place`, as far as there is room.
pub(crate) fn add_glue(
    response: &mut Response<'_>,
    place: usize,
    addresses: impl IntoIterator<Item = IpAddr>,
    ttl: u32,
) {
    if place > MAX_POINTER || response.is_truncated() {
        return;
    }
    for address in addresses {
        let mut record = vec![0xc0 | (place >> 8) as u8, place as u8];
        record::push_address_data(&mut record, ttl, address);
        if !response.add(Section::Additional, &record) {
            return;
        }
    }
}

/// A service with clusterset addresses: its own name and the import's port numbers (D-4), each once (D-12).
pub(crate) fn add_service(
    zone: &Zone,
    service: &Service,
    import: &Import,
    asked: Asked<'_>,
    response: &mut Response<'_>,
) {
    let Some(target) = target(zone, b"", service) else {
        return;
    };
    // Without an address there is nothing to connect to yet.
    if import.addresses().next().is_none() {
        return;
    }
    let numbers: BTreeSet<u16> =
        import.ports.iter().filter(|port| is_asked(asked, port)).map(|port| port.number).collect();
    let places: Vec<_> = numbers.into_iter().filter_map(|port| add(response, SERVICE_TTL, port, &target)).collect();
    if let Some(place) = places.first() {
        add_glue(response, *place, import.addresses(), SERVICE_TTL);
    }
}

/// A headless service: each ready endpoint by name, with the ports of its slice (D-7); a target and port stand once,
/// whatever the number of protocols and families (D-12).
pub(crate) fn add_endpoints<'z>(
    zone: &Zone,
    service: &'z Service,
    clusters: impl Iterator<Item = &'z Cluster> + Clone,
    asked: Asked<'_>,
    response: &mut Response<'_>,
) {
    let mut glue = Vec::new();
    for cluster in clusters {
        let mut wanted = BTreeSet::new();
        for slice in cluster.slices.values() {
            let numbers: BTreeSet<u16> =
                slice.ports.iter().filter(|port| is_asked(asked, port)).map(|port| port.number).collect();
            for host in &slice.hosts {
                wanted.extend(numbers.iter().map(|number| (&*host.label, *number)));
            }
        }
        let mut before = None;
        let mut last = None;
        for (label, number) in wanted {
            // One endpoint's ports follow each other: its name is made once, its addresses are told once.
            let is_new = before != Some(label);
            if is_new {
                before = Some(label);
                last = target(zone, &prefix(label, cluster), service);
            }
            let Some(name) = &last else {
                continue;
            };
            let Some(place) = add(response, HEADLESS_TTL, number, name) else {
                return;
            };
            if is_new {
                glue.push((place, cluster, label));
            }
        }
    }
    for (place, cluster, label) in glue {
        add_glue(response, place, cluster.addresses_of(label.as_bytes()), HEADLESS_TTL);
    }
}

/// `<label>.<cluster>` in wire form.
fn prefix(label: &str, cluster: &Cluster) -> Vec<u8> {
    let mut wire = Vec::with_capacity(MAX_NAME);
    wire.push(label.len() as u8);
    wire.extend_from_slice(label.as_bytes());
    wire.extend_from_slice(&cluster.wire);
    wire
}

/// One cluster of a service with clusterset addresses, where the operator wants that name answered: the name itself,
/// with the endpoints' ports.
pub(crate) fn add_cluster(zone: &Zone, service: &Service, cluster: &Cluster, response: &mut Response<'_>) {
    let Some(target) = target(zone, &cluster.wire, service) else {
        return;
    };
    let slices = || cluster.slices.values().filter(|slice| !slice.hosts.is_empty());
    let numbers: BTreeSet<u16> = slices().flat_map(|slice| &slice.ports).map(|port| port.number).collect();
    let places: Vec<_> = numbers.into_iter().filter_map(|port| add(response, HEADLESS_TTL, port, &target)).collect();
    if let Some(place) = places.first() {
        let addresses: BTreeSet<IpAddr> = slices().flat_map(|slice| &slice.hosts).map(|host| host.address).collect();
        add_glue(response, *place, addresses, HEADLESS_TTL);
    }
}
