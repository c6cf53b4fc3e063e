//! [`Slice`]: what the zone keeps of one EndpointSlice: ready endpoints, their names, and their records as bytes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::cluster_id::is_dns_label;
use api::kubernetes::{Endpoint, EndpointPort, EndpointSlice};

use crate::record;
use crate::refusal::{Refusal, RefusalLog};

/// Most endpoints of a slice (Kubernetes API, EndpointSlice).
const MAX_ENDPOINTS: usize = 1000;
/// Most addresses of an endpoint, and most ports of a slice (Kubernetes API, EndpointSlice).
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;

/// A transport protocol as it stands in the name of an SRV record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// From a manifest: absent is TCP, as Kubernetes has it.
    pub fn from_manifest(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// From a lower-cased label: `_tcp`.
    pub fn from_label(label: &[u8]) -> Option<Self> {
        match label {
            b"_tcp" => Some(Self::Tcp),
            b"_udp" => Some(Self::Udp),
            b"_sctp" => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// A port with a name. Ports without one have no SRV record (D-4, D-7), so they are not kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub number: u16,
}

/// One ready address and the label it is found by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    /// The endpoint's hostname, else its address with dashes (D-6).
    pub label: Box<str>,
    pub address: IpAddr,
}

/// The part of an EndpointSlice that is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub ipv6: bool,
    /// Sorted by label, so that a name is found by halving.
    pub hosts: Vec<Host>,
    /// A or AAAA records of all hosts, each owned by the name of the question; an address stands here once.
    pub records: Vec<u8>,
    pub ports: Vec<NamedPort>,
    /// Endpoints that are not ready, for `explain`.
    pub unready: u32,
}

impl Slice {
    /// Takes what is good in `manifest` and reports the rest; `None` when nothing can be.
    pub fn read(manifest: &EndpointSlice, object: &str, refusals: &mut RefusalLog) -> Option<Self> {
        let ipv6 = match manifest.address_type.as_str() {
            "IPv4" => false,
            "IPv6" => true,
            other => {
                refusals.add(Refusal::WrongFamily, object, &format!("addressType '{other}': use IPv4 or IPv6"));
                return None;
            }
        };
        let mut slice = Self { ipv6, hosts: Vec::new(), records: Vec::new(), ports: Vec::new(), unready: 0 };
        let endpoints = manifest.endpoints.as_deref().unwrap_or_default();
        if endpoints.len() > MAX_ENDPOINTS {
            let said = format!("{} endpoints: the first {MAX_ENDPOINTS} are taken", endpoints.len());
            refusals.add(Refusal::TooMany, object, &said);
        }
        for endpoint in endpoints.iter().take(MAX_ENDPOINTS) {
            slice.add_endpoint(endpoint, object, refusals);
        }
        slice.hosts.sort_unstable();
        slice.hosts.dedup();
        for port in manifest.ports.iter().flatten().take(MAX_PORTS) {
            slice.add_port(port, object, refusals);
        }
        slice.ports.sort_unstable();
        slice.ports.dedup();
        let addresses: BTreeSet<IpAddr> = slice.hosts.iter().map(|host| host.address).collect();
        for address in addresses {
            record::push_address(&mut slice.records, record::HEADLESS_TTL, address);
        }
        slice.hosts.shrink_to_fit();
        slice.records.shrink_to_fit();
        Some(slice)
    }

    fn add_endpoint(&mut self, endpoint: &Endpoint, object: &str, refusals: &mut RefusalLog) {
        // Readiness that is not told counts as ready (D-10).
        if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(false) {
            self.unready += 1;
            return;
        }
        let hostname = endpoint.hostname.as_deref().filter(|name| !name.is_empty());
        let label = hostname.filter(|name| is_dns_label(name));
        if let (Some(name), None) = (hostname, label) {
            refusals.add(Refusal::InvalidHostname, object, &format!("hostname '{name}': use a DNS label (RFC 1123)"));
        }
        if endpoint.addresses.len() > MAX_ADDRESSES {
            let said = format!("{} addresses of one endpoint", endpoint.addresses.len());
            refusals.add(Refusal::TooMany, object, &said);
        }
        for text in endpoint.addresses.iter().take(MAX_ADDRESSES) {
            match text.parse::<IpAddr>() {
                Ok(address) if address.is_ipv6() != self.ipv6 => {
                    refusals.add(
                        Refusal::WrongFamily,
                        object,
                        &format!("address {address} is not of the slice's family"),
                    );
                }
                Ok(address) => {
                    let label = label.map_or_else(|| dashed(address), Into::into);
                    self.hosts.push(Host { label, address });
                }
                Err(_) => refusals.add(Refusal::InvalidAddress, object, &format!("'{text}' is no IP address")),
            }
        }
    }

    fn add_port(&mut self, port: &EndpointPort, object: &str, refusals: &mut RefusalLog) {
        // No number means every port: there is nothing an SRV record could say.
        let (Some(name), Some(number)) = (port.name.as_deref().filter(|name| !name.is_empty()), port.port) else {
            return;
        };
        match (Protocol::from_manifest(port.protocol.as_deref()), u16::try_from(number)) {
            (Some(protocol), Ok(number @ 1..)) if is_dns_label(name) => {
                self.ports.push(NamedPort { name: name.into(), protocol, number });
            }
            _ => refusals.add(Refusal::InvalidPort, object, &format!("port '{name}' {number}")),
        }
    }

    /// The hosts of that label.
    pub fn hosts_of(&self, label: &[u8]) -> &[Host] {
        let from = self.hosts.partition_point(|host| host.label.as_bytes() < label);
        let length = self.hosts[from..].partition_point(|host| host.label.as_bytes() == label);
        &self.hosts[from..from + length]
    }
}

/// An address as a label: `10-1-2-3`. One that would end in a dash gets a zero, for a label must not (D-6).
fn dashed(address: IpAddr) -> Box<str> {
    let mut label = address.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    label.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_becomes_a_label_that_never_ends_in_a_dash() {
        assert_eq!(&*dashed("10.1.2.3".parse().unwrap()), "10-1-2-3");
        assert_eq!(&*dashed("5678:abcd::1".parse().unwrap()), "5678-abcd--1");
        assert_eq!(&*dashed("5678:abcd::".parse().unwrap()), "5678-abcd--0");
    }

    #[test]
    fn bad_addresses_hostnames_and_ports_are_refused_and_the_rest_is_taken() {
        let manifest: EndpointSlice = serde_json::from_value(serde_json::json!({
            "metadata": {}, "addressType": "IPv4",
            "endpoints": [
                { "addresses": ["10.0.0.1", "10.0.0.300", "fd00::1"], "hostname": "Not_A_Label" },
                { "addresses": ["10.0.0.2"], "conditions": { "ready": false } },
            ],
            "ports": [{ "name": "http", "port": 8080 }, { "name": "odd", "port": 70000 }, { "port": 81 }],
        }))
        .unwrap();
        let mut refusals = RefusalLog::default();
        let slice = Slice::read(&manifest, "EndpointSlice a/b", &mut refusals).unwrap();
        assert_eq!(slice.hosts, [Host { label: "10-0-0-1".into(), address: "10.0.0.1".parse().unwrap() }]);
        assert_eq!(slice.unready, 1);
        assert_eq!(slice.ports, [NamedPort { name: "http".into(), protocol: Protocol::Tcp, number: 8080 }]);
        let names: Vec<_> = refusals.counts().keys().map(|refusal| refusal.as_str()).collect();
        assert_eq!(names, ["InvalidAddress", "WrongFamily", "InvalidHostname", "InvalidPort"]);
    }
}
