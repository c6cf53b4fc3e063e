//! [`ExportIndex`]: which endpoints of this cluster peers may open connections to, as changes.
//!
//! An endpoint is exported when it is in an EndpointSlice of a Service for which a ServiceExport stands that is not
//! refused. One address and port may belong to several services; it closes with the last of them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use api::ServiceExport;
use api::conditions::ConditionType;
use api::kubernetes::EndpointSlice;
use api::names::{MANAGED_BY_TOMBOLO, kubernetes};
use api::time::Instant;

use crate::exports::{ExportChange, ExportedEndpoint};
use crate::packet::protocol;

/// Namespace and name of an object.
pub type ObjectKey = (String, String);

/// An endpoint that left an exported service is open for this much longer: peers learn of it a little later, and a
/// connection they open in between must not lose its first packet. As long as the nodes' filters.
pub const LINGER: Duration = Duration::from_secs(5);

/// Owned by the task that watches the store.
#[derive(Debug, Default)]
pub struct ExportIndex {
    exported: BTreeSet<ObjectKey>,
    /// By the slice's key: its Service, and what it holds.
    slices: BTreeMap<ObjectKey, (ObjectKey, BTreeSet<ExportedEndpoint>)>,
    slices_of: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// In how many slices of exported services an endpoint is, or was a moment ago.
    open: BTreeMap<ExportedEndpoint, usize>,
    /// What left an exported service, by service, and until when it counts still.
    leaving: BTreeMap<ObjectKey, Vec<(Instant, BTreeSet<ExportedEndpoint>)>>,
}

impl ExportIndex {
    /// A ServiceExport was made or changed.
    pub fn apply_export(&mut self, export: &ServiceExport) -> Vec<ExportChange> {
        let service = key_of(&export.metadata);
        let refused = export
            .status
            .iter()
            .flat_map(|status| &status.conditions)
            .any(|condition| condition.type_ == ConditionType::Valid.as_str() && condition.status == "False");
        self.set_exported(service, !refused)
    }

    pub fn remove_export(&mut self, service: ObjectKey) -> Vec<ExportChange> {
        self.set_exported(service, false)
    }

    /// All ServiceExports there are.
    pub fn reset_exports(&mut self, exports: &[ServiceExport]) -> Vec<ExportChange> {
        let named: BTreeSet<_> = exports.iter().map(|export| key_of(&export.metadata)).collect();
        let gone: Vec<_> = self.exported.difference(&named).cloned().collect();
        let mut changes: Vec<_> = gone.into_iter().flat_map(|service| self.set_exported(service, false)).collect();
        changes.extend(exports.iter().flat_map(|export| self.apply_export(export)));
        changes
    }

    /// An EndpointSlice was made or changed.
    pub fn apply_slice(&mut self, slice: &EndpointSlice, now: Instant) -> Vec<ExportChange> {
        let key = key_of(&slice.metadata);
        let Some(service) = service_of(slice) else { return self.remove_slice(&key, now) };
        let endpoints = endpoints_of(slice);
        // The new ones first, so that what stays is never closed for a moment.
        let opened = if self.exported.contains(&service) { self.count(&endpoints) } else { Vec::new() };
        let closed = self.take_out(&key, &endpoints, now);
        self.slices_of.entry(service.clone()).or_default().insert(key.clone());
        self.slices.insert(key, (service, endpoints));
        opened.into_iter().chain(closed).collect()
    }

    pub fn remove_slice(&mut self, key: &ObjectKey, now: Instant) -> Vec<ExportChange> {
        self.take_out(key, &BTreeSet::new(), now)
    }

    /// Forgets a slice. What is not in `next` lingers, if its service is exported.
    fn take_out(&mut self, key: &ObjectKey, next: &BTreeSet<ExportedEndpoint>, now: Instant) -> Vec<ExportChange> {
        let Some((service, endpoints)) = self.slices.remove(key) else { return Vec::new() };
        if let Some(slices) = self.slices_of.get_mut(&service) {
            slices.remove(key);
            if slices.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        if !self.exported.contains(&service) {
            return Vec::new();
        }
        let (staying, left): (BTreeSet<_>, BTreeSet<_>) =
            endpoints.iter().partition(|endpoint| next.contains(endpoint));
        if !left.is_empty() {
            self.leaving.entry(service).or_default().push((now + LINGER, left));
        }
        self.uncount(&staying)
    }

    /// Closes what left long enough ago. Call it now and then.
    pub fn expire(&mut self, now: Instant) -> Vec<ExportChange> {
        let mut over = Vec::new();
        for waiting in self.leaving.values_mut() {
            waiting.retain_mut(|(until, endpoints)| {
                let keep = now < *until;
                if !keep {
                    over.push(core::mem::take(endpoints));
                }
                keep
            });
        }
        self.leaving.retain(|_, waiting| !waiting.is_empty());
        over.iter().flat_map(|endpoints| self.uncount(endpoints)).collect()
    }

    /// All EndpointSlices there are.
    pub fn reset_slices(&mut self, slices: &[EndpointSlice], now: Instant) -> Vec<ExportChange> {
        let named: BTreeSet<_> = slices.iter().map(|slice| key_of(&slice.metadata)).collect();
        let gone: Vec<_> = self.slices.keys().filter(|key| !named.contains(key)).cloned().collect();
        let mut changes: Vec<_> = gone.iter().flat_map(|key| self.remove_slice(key, now)).collect();
        changes.extend(slices.iter().flat_map(|slice| self.apply_slice(slice, now)));
        changes
    }

    /// Everything that is open, for a lane that starts.
    pub fn everything(&self) -> impl Iterator<Item = ExportChange> {
        self.open.keys().map(|endpoint| ExportChange::Add(*endpoint))
    }

    fn set_exported(&mut self, service: ObjectKey, exported: bool) -> Vec<ExportChange> {
        let changed = if exported { self.exported.insert(service.clone()) } else { self.exported.remove(&service) };
        if !changed {
            return Vec::new();
        }
        let slices: Vec<_> = self.slices_of.get(&service).into_iter().flatten().cloned().collect();
        let mut changes = Vec::new();
        if !exported {
            let leaving = self.leaving.remove(&service).unwrap_or_default();
            changes.extend(leaving.iter().flat_map(|(_, endpoints)| self.uncount(endpoints)));
        }
        for slice in slices {
            let Some((_, endpoints)) = self.slices.get(&slice) else { continue };
            let endpoints = endpoints.clone();
            changes.extend(if exported { self.count(&endpoints) } else { self.uncount(&endpoints) });
        }
        changes
    }

    fn count(&mut self, endpoints: &BTreeSet<ExportedEndpoint>) -> Vec<ExportChange> {
        let mut changes = Vec::new();
        for endpoint in endpoints {
            let count = self.open.entry(*endpoint).or_default();
            *count += 1;
            if *count == 1 {
                changes.push(ExportChange::Add(*endpoint));
            }
        }
        changes
    }

    fn uncount(&mut self, endpoints: &BTreeSet<ExportedEndpoint>) -> Vec<ExportChange> {
        let mut changes = Vec::new();
        for endpoint in endpoints {
            let Some(count) = self.open.get_mut(endpoint) else { continue };
            *count -= 1;
            if *count == 0 {
                self.open.remove(endpoint);
                changes.push(ExportChange::Remove(*endpoint));
            }
        }
        changes
    }
}

pub fn key_of(meta: &api::kubernetes::ObjectMeta) -> ObjectKey {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The local Service a slice belongs to. Slices that we imported belong to other clusters' endpoints.
fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let label = |name| slice.metadata.labels.as_ref()?.get(name);
    if label(kubernetes::MANAGED_BY).is_some_and(|manager| manager == MANAGED_BY_TOMBOLO) {
        return None;
    }
    Some((slice.metadata.namespace.clone().unwrap_or_default(), label(kubernetes::SERVICE_NAME)?.clone()))
}

fn endpoints_of(slice: &EndpointSlice) -> BTreeSet<ExportedEndpoint> {
    let ports: Vec<(u8, u16)> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            let protocol = match port.protocol.as_deref().unwrap_or("TCP") {
                "TCP" => protocol::TCP,
                "UDP" => protocol::UDP,
                "SCTP" => protocol::SCTP,
                _ => return None,
            };
            Some((protocol, u16::try_from(port.port?).ok()?))
        })
        .collect();
    let addresses = slice.endpoints.iter().flatten().flat_map(|endpoint| &endpoint.addresses);
    addresses
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .flat_map(|address| {
            ports.iter().map(move |(protocol, port)| ExportedEndpoint { address, protocol: *protocol, port: *port })
        })
        .collect()
}

#[cfg(test)]
#[path = "export_index_tests.rs"]
mod tests;
