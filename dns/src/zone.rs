//! [`Zone`]: everything that can be answered, immutable once it is published. A clone shares every service with the
//! zone it came from, so a new zone costs what changed and nothing else.

use std::net::IpAddr;
use std::sync::Arc;

use api::local_cluster::{ClusterNames, DnsSettings, EmptyName};
use imbl::OrdMap;

use crate::name::{MAX_LABEL, Origin, QueryName};
use crate::reach::Reach;
use crate::service::{Cluster, Service, ServiceKey};
use crate::slice::Protocol;

/// The zone at one moment.
#[derive(Clone)]
pub struct Zone {
    pub(crate) origin: Arc<Origin>,
    /// False until the first state is there: then nothing can be denied yet (D-16).
    pub(crate) known: bool,
    pub(crate) serial: u32,
    pub(crate) settings: DnsSettings,
    pub(crate) reach: Reach,
    /// The addresses of `ns.dns.<zone>`.
    pub(crate) name_servers: Arc<[IpAddr]>,
    pub(crate) services: OrdMap<ServiceKey, Arc<Service>>,
    /// How many services are imported into each namespace.
    pub(crate) namespaces: OrdMap<Box<[u8]>, u32>,
    pub(crate) records: u64,
}

/// What a name is.
#[derive(Clone, Copy)]
pub enum Found<'z> {
    /// It does not exist, nor does anything below it.
    Nothing,
    /// It has no records, but names below it do (RFC 8020).
    Between,
    /// The zone itself.
    Apex,
    /// `dns-version` (D-1).
    Version,
    /// `ns.dns`, which the zone's NS record names.
    NameServer,
    /// `<service>.<namespace>.svc`.
    Service(&'z Service),
    /// `_<port>._<protocol>.<service>.<namespace>.svc`; the port's name is without its underscore.
    Port { service: &'z Service, protocol: Protocol, port: &'z [u8] },
    /// `<cluster>.<service>.<namespace>.svc`: reserved (D-8), unless the operator chose otherwise.
    Cluster { service: &'z Service, cluster: &'z Cluster },
    /// `<hostname>.<cluster>.<service>.<namespace>.svc` of a headless service.
    Endpoint { cluster: &'z Cluster, hostname: &'z [u8] },
}

impl Zone {
    /// A zone of which nothing is known yet. `serial` is the SOA's first; later zones count up from it.
    pub fn unknown(origin: Origin, name_servers: &[IpAddr], serial: u32) -> Self {
        Self {
            origin: Arc::new(origin),
            known: false,
            serial,
            settings: DnsSettings::default(),
            reach: Reach::default(),
            name_servers: name_servers.into(),
            services: OrdMap::new(),
            namespaces: OrdMap::new(),
            records: 0,
        }
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether the first state is there.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// The serial of the SOA record.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Address and SRV records, whatever the health of clusters.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Services that have names here.
    pub fn imports(&self) -> usize {
        self.services.values().filter(|service| service.import.is_some()).count()
    }

    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// The service of that name, imported or not.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(&*crate::service::service_key(namespace, name)?).map(|service| &**service)
    }

    /// What `name` is; `None` when it is outside the zone.
    pub fn find<'z>(&'z self, name: &'z QueryName) -> Option<Found<'z>> {
        let before = name.labels_before(&self.origin)?;
        let label = |index: usize| name.label(index);
        Some(match before {
            0 => Found::Apex,
            1 => match label(0) {
                b"dns-version" => Found::Version,
                b"svc" | b"dns" => Found::Between,
                _ => Found::Nothing,
            },
            2 if label(1) == b"dns" && label(0) == b"ns" => Found::NameServer,
            2 if label(1) == b"svc" && self.namespaces.contains_key(label(0)) => Found::Between,
            3.. if label(before - 1) == b"svc" => self.find_in_service(name, before - 3),
            _ => Found::Nothing,
        })
    }

    /// `below` is how many labels stand before the service's own.
    fn find_in_service<'z>(&'z self, name: &'z QueryName, below: usize) -> Found<'z> {
        let Some(service) = self.services.get(name.wire_of(below, below + 2)).map(|service| &**service) else {
            return Found::Nothing;
        };
        let Some(import) = &service.import else {
            return Found::Nothing;
        };
        // Without a ready endpoint a headless service and all below it are absent (D-5).
        if import.headless && service.served(&self.reach).next().is_none() {
            return Found::Nothing;
        }
        if below == 0 {
            return Found::Service(service);
        }
        if let Some(protocol) = Protocol::from_label(name.label(below - 1)) {
            return self.find_port(service, protocol, name, below);
        }
        let cluster_of = |first: usize| {
            service.clusters.get(name.wire_of(first, below)).filter(|c| c.has_hosts() && self.reach.serves(&c.id))
        };
        // A cluster id has one label or two (LS-3). An endpoint of a cluster comes before the reserved name of another.
        if import.headless
            && matches!(below, 2 | 3)
            && let Some(cluster) = cluster_of(1).filter(|cluster| cluster.has_host(name.label(0)))
        {
            return Found::Endpoint { cluster, hostname: name.label(0) };
        }
        if matches!(below, 1 | 2)
            && let Some(cluster) = cluster_of(0)
        {
            return self.find_cluster(service, cluster);
        }
        let answered = self.settings.cluster_names == ClusterNames::Answered;
        // The second label of a dotted cluster id has names below it.
        if below == 1 && (import.headless || answered) {
            let suffix = name.wire_of(0, 1);
            let is_suffix = |wire: &[u8]| wire.len() > suffix.len() && wire.ends_with(suffix);
            if service.clusters.iter().any(|(wire, c)| is_suffix(wire) && c.has_hosts() && self.reach.serves(&c.id)) {
                return Found::Between;
            }
        }
        Found::Nothing
    }

    fn find_port<'z>(
        &'z self,
        service: &'z Service,
        protocol: Protocol,
        name: &'z QueryName,
        below: usize,
    ) -> Found<'z> {
        match below {
            1 if service.has_port(&self.reach, protocol, None) => Found::Between,
            2 => match name.label(0).strip_prefix(b"_") {
                Some(port) if service.has_port(&self.reach, protocol, Some(port)) => {
                    Found::Port { service, protocol, port }
                }
                _ => Found::Nothing,
            },
            _ => Found::Nothing,
        }
    }

    fn find_cluster<'z>(&'z self, service: &'z Service, cluster: &'z Cluster) -> Found<'z> {
        if self.settings.cluster_names == ClusterNames::Answered {
            return Found::Cluster { service, cluster };
        }
        match self.settings.empty_cluster_name {
            // Only a headless service has names below.
            EmptyName::NoData if service.is_headless() => Found::Between,
            EmptyName::NoData | EmptyName::NameError => Found::Nothing,
        }
    }
}

// A label of a key is never longer than a length byte can say without being a pointer.
const _: () = assert!(MAX_LABEL < 0xc0);
