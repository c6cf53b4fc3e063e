//! What is due for one service: its ServiceImport, the imported EndpointSlices, and the conditions of our export.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

use api::conditions::{ConditionType, ServiceReason};
use api::kubernetes::EndpointSlice;
use api::service_import::{ClusterStatus, ImportType, ServiceImportSpec};
use api::time::WallTime;
use api::{ServiceExport, ServiceImport, names};

use crate::advertisement::{AdvertisedSlice, Family, ServiceName};
use crate::condition::{self, Status, Wanted};
use crate::engine::Engine;
use crate::index::ObjectKey;
use crate::merge::{self, Claim, Merged};
use crate::plan::{Verb, Write};
use crate::slices::{self, Source};

/// On every ServiceImport this controller makes, so that it knows its own again.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Whether an import is this controller's.
pub fn is_ours(import: &ServiceImport) -> bool {
    let labels = import.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|value| value == names::MANAGED_BY_TOMBOLO)
}

/// What an import should be, and what it should say of itself.
struct WantedImport {
    spec: ServiceImportSpec,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    clusters: Vec<ClusterStatus>,
    ready: Wanted,
}

impl Engine {
    pub(crate) fn plan_service(&mut self, name: &ServiceName, wall: WallTime) -> Vec<Write> {
        let key = ObjectKey::from(name);
        let merged = self.merged(name);
        let mut writes = Vec::new();
        let foreign = self.imports.get(&key).is_some_and(|import| !is_ours(import));
        writes.extend(self.plan_export_status(name, merged.as_ref(), foreign, wall));

        if self.imports.get(&key).is_some_and(|import| !foreign && self.awaits_a_word(name, import)) {
            return writes;
        }
        let wanted = match &merged {
            Some(merged) if !foreign && self.local.has_namespace(&name.namespace) => {
                Some(self.wanted_import(name, merged))
            }
            _ => None,
        };
        let observed = self.imports.get(&key);
        let mut owner = None;
        match (wanted, observed) {
            (None, None) => {
                self.cluster_addresses.release(&name.to_string());
            }
            (None, Some(_)) if foreign => {}
            (None, Some(import)) => writes.push(Write::new(Verb::Delete, import.clone())),
            (Some(wanted), None) => writes.push(Write::new(Verb::Create, wanted.object(name))),
            (Some(wanted), Some(import)) => {
                owner = import.metadata.uid.clone();
                // Both carry the version that was seen: the status follows when the update was.
                writes.extend(wanted.update(import).or_else(|| wanted.status_update(import, wall)));
            }
        }
        let slices = match (&merged, &owner) {
            (Some(merged), Some(owner)) => self.wanted_slices(name, merged, owner),
            _ => BTreeMap::new(),
        };
        let served = slices.values().any(|slice| slice.endpoints.iter().flatten().any(is_ready));
        if owner.is_some() && !served {
            self.unserved.insert(name.clone());
        } else {
            self.unserved.remove(name);
        }
        // Slices of an import that is yet to be made wait for its uid; those there are stay until then.
        if owner.is_some() || merged.is_none() || foreign {
            writes.extend(self.plan_slices(name, slices));
        }
        writes
    }

    /// What all clusters together say of a service.
    pub fn merged(&self, name: &ServiceName) -> Option<Merged> {
        let own_id = self.cluster_id()?;
        let own = self.local.advertisement().service(name);
        let own = own.map(|service| Claim { cluster: own_id, service });
        let remote = self.remote.claims(name).map(|(cluster, service)| Claim { cluster, service });
        let claims: Vec<Claim<'_>> = own.into_iter().chain(remote).collect();
        let oldest = claims.iter().min_by_key(|claim| (claim.service.first_exported, claim.cluster))?;
        // A headless service needs no address of ours: it has the families pods have.
        let families = match oldest.service.service_type {
            ImportType::ClusterSetIP => self.address_families(),
            ImportType::Headless => {
                let pods = self.pod_families();
                if pods.is_empty() { self.address_families() } else { pods }
            }
        };
        merge::merge(&claims, &families)
    }

    fn wanted_import(&mut self, name: &ServiceName, merged: &Merged) -> WantedImport {
        let owner = name.to_string();
        let mut families = merged.ip_families.clone();
        let mut ips: Vec<IpAddr> = Vec::new();
        let mut exhausted: Vec<&str> = Vec::new();
        match merged.import_type {
            ImportType::Headless => {
                self.cluster_addresses.release(&owner);
            }
            ImportType::ClusterSetIP => {
                families.retain(|family| match self.cluster_addresses.obtain(&owner, *family) {
                    Some(address) => {
                        ips.push(address);
                        true
                    }
                    None => {
                        exhausted.push(family.as_str());
                        false
                    }
                })
            }
        }
        let ready = |status: bool, reason: ServiceReason, message: String| {
            Wanted::new(ConditionType::Ready, status, reason, message)
        };
        let ready = if !exhausted.is_empty() {
            let message = format!(
                "The {} prefixes of LocalCluster.spec.clusterSetPrefixes have no address left: add a prefix.",
                exhausted.join(" and ")
            );
            ready(false, ServiceReason::AddressesExhausted, message)
        } else if families.is_empty() {
            let has: Vec<&str> = self.address_families().into_iter().map(Family::as_str).collect();
            let has = if has.is_empty() { "none".to_string() } else { has.join(" and ") };
            let message = format!(
                "No exporting cluster shares an IP family with this one, which has {has}: see LocalCluster.spec.clusterSetPrefixes."
            );
            ready(false, ServiceReason::IPFamilyNotSupported, message)
        } else {
            ready(true, ServiceReason::Ready, format!("Imported from {} cluster(s).", merged.clusters.len()))
        };
        let mut labels = merged.labels.clone();
        labels.insert(MANAGED_BY.into(), names::MANAGED_BY_TOMBOLO.into());
        let mut annotations = merged.annotations.clone();
        annotations.insert(names::FIRST_EXPORTED.into(), condition::object_time(merged.first_exported).0.to_string());
        WantedImport {
            spec: ServiceImportSpec {
                ports: merged.ports.clone(),
                ips: ips.iter().map(ToString::to_string).collect(),
                ip_families: families.iter().map(|family| family.as_str().to_string()).collect(),
                import_type: merged.import_type,
                session_affinity: merged.session_affinity.clone(),
                session_affinity_config: merged.session_affinity_config.clone(),
                internal_traffic_policy: merged.internal_traffic_policy.clone(),
                traffic_distribution: merged.traffic_distribution.clone(),
            },
            labels,
            annotations,
            clusters: merged.clusters.iter().map(|cluster| ClusterStatus { cluster: cluster.to_string() }).collect(),
            ready,
        }
    }

    pub(crate) fn wanted_slices(
        &self,
        name: &ServiceName,
        merged: &Merged,
        owner: &str,
    ) -> BTreeMap<String, EndpointSlice> {
        let Some(own_id) = self.cluster_id() else { return BTreeMap::new() };
        let mut wanted = BTreeMap::new();
        for cluster in &merged.clusters {
            let local = cluster == own_id;
            let said = if local { Some(self.local.advertisement()) } else { self.remote.usable(cluster) };
            let Some((said, service)) = said.and_then(|said| Some((said, said.service(name)?))) else { continue };
            let served: BTreeSet<String> = merge::served_ports(merged, service);
            let silent = !local && self.remote.is_silent(cluster);
            let source =
                |id, slice| Source { service: name, cluster, id, slice, served: &served, silent, local, owner };
            let slices: Vec<(&str, &AdvertisedSlice)> = said.slices(name).collect();
            for made in slices.into_iter().filter_map(|(id, slice)| slices::imported(source(id, slice))) {
                wanted.insert(made.metadata.name.clone().unwrap_or_default(), made);
            }
        }
        wanted
    }

    /// The difference between the slices that should be and those that are.
    pub(crate) fn plan_slices(&self, name: &ServiceName, mut wanted: BTreeMap<String, EndpointSlice>) -> Vec<Write> {
        let mut writes = Vec::new();
        for slice_name in self.imported_of.get(name).into_iter().flatten() {
            let key = ObjectKey { namespace: name.namespace.clone(), name: slice_name.clone() };
            let Some(observed) = self.imported.get(&key) else { continue };
            match wanted.remove(slice_name) {
                None => writes.push(Write::new(Verb::Delete, observed.clone())),
                // The address type of a slice cannot change: it is made anew, once the old one is gone.
                Some(slice) if slice.address_type != observed.address_type => {
                    writes.push(Write::new(Verb::Delete, observed.clone()));
                }
                Some(slice) if slices::is_up_to_date(&slice, observed) => {}
                Some(mut slice) => {
                    let mut metadata = observed.metadata.clone();
                    metadata.labels.get_or_insert_default().extend(slice.metadata.labels.take().unwrap_or_default());
                    metadata.owner_references = slice.metadata.owner_references.take();
                    writes.push(Write::new(Verb::Update, EndpointSlice { metadata, ..slice }));
                }
            }
        }
        writes.extend(wanted.into_values().map(|slice| Write::new(Verb::Create, slice)));
        writes
    }

    fn plan_export_status(
        &self,
        name: &ServiceName,
        merged: Option<&Merged>,
        foreign: bool,
        wall: WallTime,
    ) -> Option<Write> {
        let export = self.local.export(name)?;
        let verdict = self.local.verdict(name)?;
        let valid = verdict.valid == ServiceReason::Valid;
        let valid_message = if valid { "The Service can be exported." } else { verdict.message.as_str() };
        let (status, reason, message) = match verdict.ready {
            _ if foreign => (
                Status::False,
                ServiceReason::ForeignController,
                "A ServiceImport of this name is here that another controller manages: delete it, or stop the other controller.",
            ),
            ServiceReason::Exported => (Status::True, ServiceReason::Exported, verdict.message.as_str()),
            reason => (Status::False, reason, verdict.message.as_str()),
        };
        let conflicts = merged.filter(|_| valid);
        let (conflict_reason, conflict_message) = match conflicts {
            Some(merged) if !merged.conflicts.is_empty() => (merged.conflict_reason(), merged.conflict_message()),
            _ => (ServiceReason::NoConflicts.to_string(), "All clusters that export it agree.".to_string()),
        };
        let conflicted = conflicts.is_some_and(|merged| !merged.conflicts.is_empty());
        let wanted = [
            Wanted::new(ConditionType::Valid, valid, verdict.valid, valid_message),
            Wanted::new(ConditionType::Ready, status, reason, message),
            Wanted::new(ConditionType::Conflict, conflicted, conflict_reason, conflict_message),
        ];
        let current = export.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let conditions = condition::merged(current, &wanted, export.metadata.generation, wall);
        (conditions != current).then(|| {
            let mut export: ServiceExport = export.clone();
            export.status.get_or_insert_default().conditions = conditions;
            Write::new(Verb::UpdateStatus, export)
        })
    }
}

impl WantedImport {
    fn object(&self, name: &ServiceName) -> ServiceImport {
        let mut import = ServiceImport::new(&name.name, self.spec.clone());
        import.metadata.namespace = Some(name.namespace.clone());
        import.metadata.labels = Some(self.labels.clone());
        import.metadata.annotations = Some(self.annotations.clone());
        import
    }

    /// Spec, labels and annotations in one write.
    fn update(&self, observed: &ServiceImport) -> Option<Write> {
        let mut annotations = self.annotations.clone();
        // Written by whoever makes the derived Service (IM-13).
        let kept =
            observed.metadata.annotations.as_ref().and_then(|all| all.get_key_value(names::mcs::DERIVED_SERVICE));
        annotations.extend(kept.map(|(key, value)| (key.clone(), value.clone())));
        let same = observed.spec == self.spec
            && observed.metadata.labels.as_ref() == Some(&self.labels)
            && observed.metadata.annotations.as_ref() == Some(&annotations);
        if same {
            return None;
        }
        let mut import = observed.clone();
        import.spec = self.spec.clone();
        import.metadata.labels = Some(self.labels.clone());
        import.metadata.annotations = Some(annotations);
        Some(Write::new(Verb::Update, import))
    }

    fn status_update(&self, observed: &ServiceImport, wall: WallTime) -> Option<Write> {
        let mut status = observed.status.clone().unwrap_or_default();
        status.clusters = self.clusters.clone();
        status.conditions = condition::merged(
            &status.conditions,
            core::slice::from_ref(&self.ready),
            observed.metadata.generation,
            wall,
        );
        if observed.status.as_ref() == Some(&status) {
            return None;
        }
        let mut import = observed.clone();
        import.status = Some(status);
        Some(Write::new(Verb::UpdateStatus, import))
    }
}

fn is_ready(endpoint: &api::kubernetes::Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}
