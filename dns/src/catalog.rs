//! [`Catalog`]: takes objects as they come and go, and hands out zones. One task owns it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::kubernetes::EndpointSlice;
use api::local_cluster::DnsSettings;
use api::names::mcs;
use api::{ClusterId, ServiceImport};

use crate::reach::Reach;
use crate::refusal::{Refusal, RefusalLog};
use crate::service::{Import, Service, ServiceKey, service_key};
use crate::slice::Slice;
use crate::zone::Zone;

/// Namespace and name of an object.
type ObjectName = (String, String);

/// Which service and cluster a slice belongs to: both stand in labels, which may change.
#[derive(Clone, PartialEq, Eq)]
struct Home {
    key: ServiceKey,
    service: String,
    cluster: ClusterId,
}

/// How much was touched, so that a test can hold the cost of a change to its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub services: u64,
    pub slices: u64,
}

/// The source of zones.
pub struct Catalog {
    zone: Zone,
    changed: bool,
    homes: BTreeMap<ObjectName, Home>,
    imports: BTreeSet<ObjectName>,
    refusals: RefusalLog,
    work: Work,
}

impl Catalog {
    /// Begins with a zone of which nothing is known ([`Zone::unknown`]).
    pub fn new(zone: Zone) -> Self {
        Self {
            zone,
            changed: false,
            homes: BTreeMap::new(),
            imports: BTreeSet::new(),
            refusals: RefusalLog::default(),
            work: Work::default(),
        }
    }

    /// The first state is complete: from now on absent names are denied.
    pub fn complete(&mut self) {
        self.changed |= !self.zone.known;
        self.zone.known = true;
    }

    /// The zone as it is now, when anything changed since the last call; its serial is one higher (RFC 1982).
    pub fn publish(&mut self) -> Option<Zone> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.zone.serial = self.zone.serial.wrapping_add(1);
        Some(self.zone.clone())
    }

    pub fn refusals(&self) -> &RefusalLog {
        &self.refusals
    }

    /// Namespace and name of every imported headless service.
    pub fn headless_services(&self) -> impl Iterator<Item = (String, String)> {
        let headless = self.zone.services.values().filter(|service| service.is_headless());
        headless.map(|service| (service.namespace.to_string(), service.name.to_string()))
    }

    /// The service of that name, imported or not.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.zone.service(namespace, name)
    }

    pub fn work(&self) -> Work {
        self.work
    }

    pub fn set_settings(&mut self, settings: DnsSettings) {
        self.changed |= self.zone.settings != settings;
        self.zone.settings = settings;
    }

    /// Takes what is known of the clusters' health. Costs nothing per service: it is applied when a name is looked up.
    /// True when it is news.
    pub fn set_reach(&mut self, reach: Reach) -> bool {
        let changed = self.zone.reach != reach;
        self.changed |= changed;
        self.zone.reach = reach;
        changed
    }

    /// Takes the clusters a routing policy selects for a headless service; `None`: no policy does.
    pub fn select(&mut self, namespace: &str, name: &str, clusters: Option<BTreeSet<ClusterId>>) {
        let Some(key) = service_key(namespace, name) else {
            return;
        };
        if self.zone.services.get(&key).and_then(|service| service.selected.as_ref()) != clusters.as_ref() {
            self.change_service(&key, namespace, name, |service| service.selected = clusters);
        }
    }

    /// Takes a new or changed ServiceImport.
    pub fn set_import(&mut self, manifest: &ServiceImport) {
        let meta = &manifest.metadata;
        let (namespace, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let object = format!("ServiceImport {namespace}/{name}");
        let Some(key) = service_key(namespace, name) else {
            self.refusals.add(Refusal::InvalidName, &object, "name and namespace must be DNS labels (RFC 1123)");
            return;
        };
        self.imports.insert((namespace.into(), name.into()));
        let import = Import::read(manifest, &object, &mut self.refusals);
        if self.zone.services.get(&key).and_then(|service| service.import.as_ref()) != Some(&import) {
            self.change_service(&key, namespace, name, |service| service.import = Some(import));
        }
    }

    pub fn remove_import(&mut self, namespace: &str, name: &str) {
        self.imports.remove(&(namespace.into(), name.into()));
        if let Some(key) = service_key(namespace, name)
            && self.zone.services.contains_key(&key)
        {
            self.change_service(&key, namespace, name, |service| service.import = None);
        }
    }

    /// Takes a full list of ServiceImports: those not in it are gone.
    pub fn reset_imports(&mut self, manifests: &[ServiceImport]) {
        let listed: BTreeSet<ObjectName> = manifests.iter().map(|m| object_name(&m.metadata)).collect();
        let gone: Vec<ObjectName> = self.imports.difference(&listed).cloned().collect();
        gone.iter().for_each(|(namespace, name)| self.remove_import(namespace, name));
        manifests.iter().for_each(|manifest| self.set_import(manifest));
    }

    /// Takes a new or changed EndpointSlice. One that belongs to no service of the clusterset is not ours to judge.
    pub fn set_slice(&mut self, manifest: &EndpointSlice) {
        let place = object_name(&manifest.metadata);
        let home = self.home(manifest, &place);
        let object = format!("EndpointSlice {}/{}", place.0, place.1);
        let slice = home.as_ref().and_then(|_| Slice::read(manifest, &object, &mut self.refusals));
        let home = home.filter(|_| slice.is_some());
        if self.homes.get(&place).is_some_and(|old| Some(old) != home.as_ref()) {
            self.remove_slice(&place.0, &place.1);
        }
        let (Some(home), Some(slice)) = (home, slice) else {
            return;
        };
        let cluster_wire = crate::name::wire(home.cluster.as_str().split('.'));
        let old = self
            .zone
            .services
            .get(&home.key)
            .and_then(|service| service.clusters.get(&cluster_wire))
            .and_then(|cluster| cluster.slices.get(place.1.as_str()));
        if old.is_some_and(|old| **old == slice) {
            return;
        }
        self.work.slices += 1;
        self.change_service(&home.key, &place.0, &home.service, |service| {
            service.set_slice(&home.cluster, &place.1, Some(Arc::new(slice)));
        });
        self.homes.insert(place, home);
    }

    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        let Some(home) = self.homes.remove(&(namespace.into(), name.into())) else {
            return;
        };
        self.work.slices += 1;
        self.change_service(&home.key, namespace, &home.service, |service| {
            service.set_slice(&home.cluster, name, None);
        });
    }

    /// Takes a full list of EndpointSlices: those not in it are gone.
    pub fn reset_slices(&mut self, manifests: &[EndpointSlice]) {
        let listed: BTreeSet<ObjectName> = manifests.iter().map(|m| object_name(&m.metadata)).collect();
        let gone: Vec<ObjectName> = self.homes.keys().filter(|place| !listed.contains(*place)).cloned().collect();
        gone.iter().for_each(|(namespace, name)| self.remove_slice(namespace, name));
        manifests.iter().for_each(|manifest| self.set_slice(manifest));
    }

    fn home(&mut self, manifest: &EndpointSlice, place: &ObjectName) -> Option<Home> {
        let label = |key: &str| manifest.metadata.labels.as_ref()?.get(key).map(String::as_str);
        let service = label(mcs::SERVICE_NAME)?;
        let object = format!("EndpointSlice {}/{}", place.0, place.1);
        let Some(cluster) = label(mcs::SOURCE_CLUSTER) else {
            let detail = format!("has {} without {}", mcs::SERVICE_NAME, mcs::SOURCE_CLUSTER);
            self.refusals.add(Refusal::NoSourceCluster, &object, &detail);
            return None;
        };
        let cluster = match ClusterId::new(cluster) {
            Ok(cluster) => cluster,
            Err(error) => {
                self.refusals.add(Refusal::InvalidClusterId, &object, &error.to_string());
                return None;
            }
        };
        let Some(key) = service_key(&place.0, service) else {
            self.refusals.add(Refusal::InvalidName, &object, &format!("service '{service}' must be a DNS label"));
            return None;
        };
        Some(Home { key, service: service.to_owned(), cluster })
    }

    /// Changes one service, and what the zone counts of it.
    fn change_service(&mut self, key: &[u8], namespace: &str, name: &str, change: impl FnOnce(&mut Service)) {
        self.work.services += 1;
        self.changed = true;
        let old = self.zone.services.get(key).cloned();
        let mut service = old.as_deref().cloned().unwrap_or_else(|| Service::new(namespace, name));
        let (was_imported, had) = (service.import.is_some(), service.records());
        change(&mut service);
        let (is_imported, has) = (service.import.is_some(), service.records());
        self.zone.records = self.zone.records - had + has;
        let imports = self.zone.namespaces.get(namespace.as_bytes()).copied().unwrap_or(0);
        let imports = imports + u32::from(is_imported) - u32::from(was_imported);
        if imports == 0 {
            self.zone.namespaces.remove(namespace.as_bytes());
        } else {
            self.zone.namespaces.insert(namespace.as_bytes().into(), imports);
        }
        if service.is_forgotten() {
            self.zone.services.remove(key);
        } else {
            self.zone.services.insert(key.into(), Arc::new(service));
        }
    }
}

fn object_name(meta: &api::kubernetes::ObjectMeta) -> ObjectName {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}
