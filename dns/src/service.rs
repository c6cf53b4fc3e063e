//! [`Service`]: one service of the clusterset as the zone holds it: what its ServiceImport says, and its endpoints by
//! the cluster they come from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use api::service_import::ImportType;
use api::{ClusterId, ServiceImport};

use crate::name;
use crate::reach::Reach;
use crate::refusal::{Refusal, RefusalLog};
use crate::slice::{NamedPort, Protocol, Slice};

/// A service by name: `<service>.<namespace>` in wire form and lower case, just as a question has it.
pub type ServiceKey = Box<[u8]>;

/// The key of a service; `None` when a name is no DNS label and so cannot be asked for.
pub fn service_key(namespace: &str, service: &str) -> Option<ServiceKey> {
    let good = |label: &str| api::cluster_id::is_dns_label(label);
    (good(namespace) && good(service)).then(|| name::wire([service, namespace]))
}

/// What a ServiceImport says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub headless: bool,
    pub v4: Vec<Ipv4Addr>,
    pub v6: Vec<Ipv6Addr>,
    pub ports: Vec<NamedPort>,
}

impl Import {
    /// Takes what is good in `manifest` and reports the rest.
    pub fn read(manifest: &ServiceImport, object: &str, refusals: &mut RefusalLog) -> Self {
        let spec = &manifest.spec;
        let headless = spec.import_type == ImportType::Headless;
        let mut import = Self { headless, v4: Vec::new(), v6: Vec::new(), ports: Vec::new() };
        for text in &spec.ips {
            match text.parse() {
                // Implementations have written addresses, even "None", into headless imports (IM-6): not ours to answer.
                _ if headless => {
                    refusals.add(Refusal::InvalidAddress, object, &format!("'{text}' of a headless import"))
                }
                Ok(IpAddr::V4(address)) => import.v4.push(address),
                Ok(IpAddr::V6(address)) => import.v6.push(address),
                Err(_) => refusals.add(Refusal::InvalidAddress, object, &format!("'{text}' is no IP address")),
            }
        }
        import.v4.dedup();
        import.v6.dedup();
        for port in spec.ports.iter().filter(|port| !port.name.is_empty()) {
            match Protocol::from_manifest(Some(&port.protocol)) {
                Some(protocol) if port.port != 0 && api::cluster_id::is_dns_label(&port.name) => {
                    import.ports.push(NamedPort { name: port.name.as_str().into(), protocol, number: port.port });
                }
                _ => refusals.add(Refusal::InvalidPort, object, &format!("port '{}' {}", port.name, port.port)),
            }
        }
        import
    }

    /// The clusterset addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.iter().copied().map(IpAddr::V4).chain(self.v6.iter().copied().map(IpAddr::V6))
    }
}

/// The endpoints of one service in one cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub id: ClusterId,
    /// The id's labels in wire form.
    pub wire: Box<[u8]>,
    /// By the EndpointSlice's name. Unchanged slices are shared by every zone that has them.
    pub slices: BTreeMap<Box<str>, Arc<Slice>>,
}

impl Cluster {
    pub fn has_hosts(&self) -> bool {
        self.slices.values().any(|slice| !slice.hosts.is_empty())
    }

    /// Whether an endpoint here has that name.
    pub fn has_host(&self, label: &[u8]) -> bool {
        self.slices.values().any(|slice| !slice.hosts_of(label).is_empty())
    }

    /// The addresses of the endpoint of that name, in order and each once.
    pub fn addresses_of(&self, label: &[u8]) -> BTreeSet<IpAddr> {
        self.slices.values().flat_map(|slice| slice.hosts_of(label)).map(|host| host.address).collect()
    }
}

/// One service. Without an import it is not in the zone, and only keeps the slices that came before it.
#[derive(Clone, Debug)]
pub struct Service {
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub import: Option<Import>,
    /// By the cluster id's labels in wire form.
    pub clusters: BTreeMap<Box<[u8]>, Cluster>,
    /// The clusters a routing policy selects for the answers of a headless service; `None`: all of them.
    pub selected: Option<BTreeSet<ClusterId>>,
    /// An address stands in several slices: answers have to leave the copies out.
    pub repeats: bool,
}

impl Service {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            import: None,
            clusters: BTreeMap::new(),
            selected: None,
            repeats: false,
        }
    }

    /// Whether nothing is known of it any more.
    pub fn is_forgotten(&self) -> bool {
        self.import.is_none() && self.clusters.is_empty() && self.selected.is_none()
    }

    pub fn is_headless(&self) -> bool {
        self.import.as_ref().is_some_and(|import| import.headless)
    }

    /// Clusters in service that have ready endpoints.
    pub fn served<'a>(&'a self, reach: &'a Reach) -> impl Iterator<Item = &'a Cluster> + Clone {
        self.clusters.values().filter(|cluster| cluster.has_hosts() && reach.serves(&cluster.id))
    }

    /// Those of them whose endpoints answer for the service's own name: who came back a moment ago or is about to go
    /// only where there is no other.
    pub fn answering<'a>(&'a self, reach: &'a Reach) -> impl Iterator<Item = &'a Cluster> + Clone {
        let selected = |cluster: &&'a Cluster| self.selected.as_ref().is_none_or(|chosen| chosen.contains(&cluster.id));
        let chosen = self.served(reach).filter(selected);
        let has_others = chosen.clone().any(|cluster| !reach.is_last_resort(&cluster.id));
        chosen.filter(move |cluster| !has_others || !reach.is_last_resort(&cluster.id))
    }

    /// Puts a slice in, or takes it out.
    pub fn set_slice(&mut self, cluster: &ClusterId, slice_name: &str, slice: Option<Arc<Slice>>) {
        let key = name::wire(cluster.as_str().split('.'));
        match slice {
            Some(slice) => {
                let wire = key.clone();
                let fresh = || Cluster { id: cluster.clone(), wire, slices: BTreeMap::new() };
                let place = self.clusters.entry(key).or_insert_with(fresh);
                place.slices.insert(slice_name.into(), slice);
            }
            None => {
                if let Some(place) = self.clusters.get_mut(&key) {
                    place.slices.remove(slice_name);
                    if place.slices.is_empty() {
                        self.clusters.remove(&key);
                    }
                }
            }
        }
        self.repeats = self.has_repeats();
    }

    fn has_repeats(&self) -> bool {
        let slices = || self.clusters.values().flat_map(|cluster| cluster.slices.values());
        [false, true].into_iter().any(|ipv6| {
            let of_family = || slices().filter(|slice| slice.ipv6 == ipv6);
            // A slice alone holds each address once.
            if of_family().count() < 2 {
                return false;
            }
            let record = crate::record::address_record_length(ipv6);
            let mut seen = BTreeSet::new();
            of_family().flat_map(|slice| slice.records.chunks_exact(record)).any(|bytes| !seen.insert(bytes))
        })
    }

    /// Whether the service has a port of that protocol, and of that name where one is asked for.
    pub fn has_port(&self, reach: &Reach, protocol: Protocol, port: Option<&[u8]>) -> bool {
        let wanted = |candidate: &NamedPort| {
            candidate.protocol == protocol && port.is_none_or(|name| candidate.name.as_bytes() == name)
        };
        match &self.import {
            None => false,
            Some(import) if !import.headless => import.ports.iter().any(wanted),
            Some(_) => self
                .served(reach)
                .flat_map(|cluster| cluster.slices.values())
                .any(|slice| !slice.hosts.is_empty() && slice.ports.iter().any(wanted)),
        }
    }

    /// How many address and SRV records the service has, whatever the health of clusters.
    pub fn records(&self) -> u64 {
        let count = match &self.import {
            None => 0,
            Some(import) if !import.headless => import.addresses().count() + import.ports.len(),
            Some(_) => self
                .clusters
                .values()
                .flat_map(|cluster| cluster.slices.values())
                .map(|slice| slice.hosts.len() * (2 + slice.ports.len()))
                .sum(),
        };
        count as u64
    }
}
