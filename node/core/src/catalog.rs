//! [`Catalog`]: services of the clusterset, their endpoints and this cluster's exports, indexed so that a change finds
//! the services it touches and no others.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

use api::kubernetes::{EndpointSlice, Service};
use api::service_import::ImportType;
use api::{ClusterId, ServiceImport, names};
use kernel_core::{Affinity, Protocol};

use crate::facts::read_address;
use crate::input::Key;
use crate::problem::Problem;

/// What of a ServiceImport matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportFacts {
    pub headless: bool,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<PortFacts>,
    pub affinity: Affinity,
}

/// A port by its name: of an import the service's own, of a slice the endpoints'.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortFacts {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

/// Whose endpoints a slice holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SliceOwner {
    /// Of a service of the clusterset, exported by that cluster.
    Import { service: Key, cluster: ClusterId },
    /// Of a Service of this cluster.
    Local { service: Key },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceFacts {
    pub owner: SliceOwner,
    pub ports: Vec<PortFacts>,
    pub endpoints: Vec<EndpointFacts>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointFacts {
    /// The first address alone: the others are fungible by the API's own words.
    pub address: IpAddr,
    pub ready: bool,
    /// Not ready for new flows, and goes on with those it has.
    pub finishing: bool,
    pub node: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Catalog {
    pub(crate) imports: BTreeMap<Key, ImportFacts>,
    slices: BTreeMap<Key, SliceFacts>,
    /// Services of this cluster that can be exported.
    services: BTreeSet<Key>,
    exports: BTreeSet<Key>,
    by_import: BTreeMap<Key, BTreeSet<Key>>,
    by_service: BTreeMap<Key, BTreeSet<Key>>,
    /// Services with slices of a cluster, and how many.
    by_cluster: BTreeMap<ClusterId, BTreeMap<Key, usize>>,
}

/// What a change touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub imports: BTreeSet<Key>,
    pub exports: BTreeSet<Key>,
}

impl ImportFacts {
    pub fn of(import: &ServiceImport) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let spec = &import.spec;
        let ports = spec
            .ports
            .iter()
            .filter_map(|port| read_port(&port.name, &port.protocol, i64::from(port.port), &mut problems));
        let ports = ports.collect();
        let addresses = spec.ips.iter().filter_map(|text| read_address(text, &mut problems)).collect();
        let affinity = match spec.session_affinity.as_deref() {
            Some("ClientIP") => Affinity::ClientAddress,
            _ => Affinity::None,
        };
        (Self { headless: spec.import_type == ImportType::Headless, addresses, ports, affinity }, problems)
    }
}

impl SliceFacts {
    /// None for a slice of no service.
    pub fn of(slice: &EndpointSlice) -> (Option<Self>, Vec<Problem>) {
        let mut problems = Vec::new();
        let namespace = slice.metadata.namespace.clone().unwrap_or_default();
        let label = |name: &str| slice.metadata.labels.as_ref().and_then(|labels| labels.get(name));
        let owner = match (label(names::mcs::SERVICE_NAME), label(names::mcs::SOURCE_CLUSTER)) {
            (Some(service), Some(cluster)) => match ClusterId::new(cluster) {
                Ok(cluster) => SliceOwner::Import { service: (namespace, service.clone()), cluster },
                Err(_) => {
                    problems.push(Problem::BadClusterId(cluster.clone()));
                    return (None, problems);
                }
            },
            _ => match label(names::kubernetes::SERVICE_NAME) {
                Some(service) => SliceOwner::Local { service: (namespace, service.clone()) },
                None => return (None, problems),
            },
        };
        let mut ports = Vec::new();
        for port in slice.ports.as_deref().unwrap_or_default() {
            let (name, protocol) =
                (port.name.as_deref().unwrap_or_default(), port.protocol.as_deref().unwrap_or("TCP"));
            // No number means every port, which only headless names can mean.
            let Some(number) = port.port else { continue };
            ports.extend(read_port(name, protocol, i64::from(number), &mut problems));
        }
        let mut endpoints = Vec::new();
        for endpoint in slice.endpoints.as_deref().unwrap_or_default() {
            let Some(text) = endpoint.addresses.first() else { continue };
            // Names instead of addresses have no place in the kernel.
            if slice.address_type == "FQDN" {
                continue;
            }
            if let Some(address) = read_address(text, &mut problems) {
                // Unknown is ready: discovery.k8s.io/v1, EndpointConditions.
                let conditions = endpoint.conditions.as_ref();
                let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
                let serving = conditions.and_then(|conditions| conditions.serving) == Some(true);
                let finishing = serving && !ready;
                endpoints.push(EndpointFacts { address, ready, finishing, node: endpoint.node_name.clone() });
            }
        }
        (Some(Self { owner, ports, endpoints }), problems)
    }
}

fn read_port(name: &str, protocol: &str, port: i64, problems: &mut Vec<Problem>) -> Option<PortFacts> {
    let protocol = match protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        other => {
            problems.push(Problem::BadProtocol(other.to_string()));
            return None;
        }
    };
    match u16::try_from(port) {
        Ok(port @ 1..) => Some(PortFacts { name: name.to_string(), protocol, port }),
        _ => {
            problems.push(Problem::BadPort(port));
            None
        }
    }
}

/// Whether a Service can be exported at all.
pub fn is_exportable(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() != Some("ExternalName"))
}

impl Catalog {
    pub fn set_import(&mut self, key: &Key, import: Option<ImportFacts>) -> Touched {
        let before = match import {
            Some(import) if self.imports.get(key) == Some(&import) => return Touched::default(),
            Some(import) => self.imports.insert(key.clone(), import),
            None => self.imports.remove(key),
        };
        let touched = before.is_some() || self.imports.contains_key(key);
        Touched { imports: touched.then(|| key.clone()).into_iter().collect(), ..Touched::default() }
    }

    pub fn set_slice(&mut self, key: &Key, slice: Option<SliceFacts>) -> Touched {
        let mut touched = Touched::default();
        if self.slices.get(key) == slice.as_ref() {
            return touched;
        }
        if let Some(before) = self.slices.remove(key) {
            self.unindex(key, &before.owner);
            touch(&before.owner, &mut touched);
        }
        if let Some(slice) = slice {
            self.index(key, &slice.owner);
            touch(&slice.owner, &mut touched);
            self.slices.insert(key.clone(), slice);
        }
        touched
    }

    fn index(&mut self, slice: &Key, owner: &SliceOwner) {
        match owner {
            SliceOwner::Import { service, cluster } => {
                self.by_import.entry(service.clone()).or_default().insert(slice.clone());
                *self.by_cluster.entry(cluster.clone()).or_default().entry(service.clone()).or_default() += 1;
            }
            SliceOwner::Local { service } => {
                self.by_service.entry(service.clone()).or_default().insert(slice.clone());
            }
        }
    }

    fn unindex(&mut self, slice: &Key, owner: &SliceOwner) {
        match owner {
            SliceOwner::Import { service, cluster } => {
                forget(&mut self.by_import, service, slice);
                if let Some(services) = self.by_cluster.get_mut(cluster) {
                    if let Some(count) = services.get_mut(service) {
                        *count -= 1;
                    }
                    services.retain(|_, count| *count > 0);
                    if services.is_empty() {
                        self.by_cluster.remove(cluster);
                    }
                }
            }
            SliceOwner::Local { service } => forget(&mut self.by_service, service, slice),
        }
    }

    pub fn set_service(&mut self, key: &Key, exportable: bool) -> Touched {
        let changed = if exportable { self.services.insert(key.clone()) } else { self.services.remove(key) };
        Touched { exports: changed.then(|| key.clone()).into_iter().collect(), ..Touched::default() }
    }

    pub fn set_export(&mut self, key: &Key, present: bool) -> Touched {
        let changed = if present { self.exports.insert(key.clone()) } else { self.exports.remove(key) };
        Touched { exports: changed.then(|| key.clone()).into_iter().collect(), ..Touched::default() }
    }

    /// Slices of a service of the clusterset, with the cluster each is of.
    pub fn slices_of_import(&self, service: &Key) -> impl Iterator<Item = (&ClusterId, &SliceFacts)> {
        let slices = self.by_import.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key));
        slices.filter_map(|slice| match &slice.owner {
            SliceOwner::Import { cluster, .. } => Some((cluster, slice)),
            SliceOwner::Local { .. } => None,
        })
    }

    /// Whether a Service of this cluster is exported and can be.
    pub fn is_exported(&self, service: &Key) -> bool {
        self.exports.contains(service) && self.services.contains(service)
    }

    /// Slices of a Service of this cluster that is exported; none while it is not.
    pub fn exported_slices(&self, service: &Key) -> impl Iterator<Item = &SliceFacts> {
        let exported = self.is_exported(service);
        let slices = self.by_service.get(service).filter(|_| exported).into_iter().flatten();
        slices.filter_map(|key| self.slices.get(key))
    }

    /// Services of the clusterset with endpoints in that cluster.
    pub fn services_of_cluster(&self, cluster: &ClusterId) -> impl Iterator<Item = &Key> {
        self.by_cluster.get(cluster).into_iter().flat_map(BTreeMap::keys)
    }

    pub fn imports(&self) -> impl Iterator<Item = (&Key, &ImportFacts)> {
        self.imports.iter()
    }
    pub fn exports(&self) -> impl Iterator<Item = &Key> {
        self.exports.iter()
    }
    pub fn services(&self) -> impl Iterator<Item = &Key> {
        self.services.iter()
    }
    pub fn slices(&self) -> impl Iterator<Item = &Key> {
        self.slices.keys()
    }
}

fn forget(index: &mut BTreeMap<Key, BTreeSet<Key>>, service: &Key, slice: &Key) {
    if let Some(slices) = index.get_mut(service) {
        slices.remove(slice);
        if slices.is_empty() {
            index.remove(service);
        }
    }
}

fn touch(owner: &SliceOwner, touched: &mut Touched) {
    match owner {
        SliceOwner::Import { service, .. } => touched.imports.insert(service.clone()),
        SliceOwner::Local { service } => touched.exports.insert(service.clone()),
    };
}
