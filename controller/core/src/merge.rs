//! Many clusters' word on one service → one service, and what they disagree on (KEP-1645, "Conflict resolution").
//!
//! A pure function of the claims: the order in which they arrived, and who computes it, change nothing. Every cluster
//! computes it for itself, so a conflict shows on every constituent export without anybody telling (EX-10).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use api::ClusterId;
use api::conditions::ServiceReason;
use api::service_import::{ImportPort, ImportType};
use api::time::WallTime;
use k8s_openapi::api::core::v1::SessionAffinityConfig;

use crate::advertisement::{AdvertisedService, Family};

/// The most ports a ServiceImport holds: the length its schema allows.
pub const MAX_PORTS: usize = 100;

/// What the API server fills in for `sessionAffinityConfig.clientIP.timeoutSeconds` (Kubernetes, core/v1).
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// One cluster's word.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub cluster: &'a ClusterId,
    pub service: &'a AdvertisedService,
}

/// The service as all clusters together have it.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    pub import_type: ImportType,
    pub ports: Vec<ImportPort>,
    pub session_affinity: Option<String>,
    pub session_affinity_config: Option<SessionAffinityConfig>,
    pub internal_traffic_policy: Option<String>,
    pub traffic_distribution: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Empty when no exporter shares a family with this cluster.
    pub ip_families: Vec<Family>,
    /// The exporting clusters, oldest export first.
    pub clusters: Vec<ClusterId>,
    pub first_exported: WallTime,
    /// Each disagreement with a sentence for people.
    pub conflicts: BTreeMap<ServiceReason, String>,
}

impl Merged {
    /// The reason of the `Conflict` condition: every one that applies, joined by commas (EX-9).
    pub fn conflict_reason(&self) -> String {
        if self.conflicts.is_empty() {
            return ServiceReason::NoConflicts.to_string();
        }
        self.conflicts.keys().map(|reason| reason.as_str()).collect::<Vec<_>>().join(",")
    }

    pub fn conflict_message(&self) -> String {
        self.conflicts.values().map(String::as_str).collect::<Vec<_>>().join(" ")
    }
}

/// Merges the claims on one service; `None` when nobody claims it.
///
/// The oldest export wins each field, and of equally old ones the cluster whose id comes first (CR-1). Ports are
/// united by name, then by protocol and number (CR-3). The families are those of the oldest exporter that shares one
/// with this cluster: a newcomer never takes an address away from running traffic (CR-2, IM-9).
pub fn merge(claims: &[Claim<'_>], local_families: &BTreeSet<Family>) -> Option<Merged> {
    let mut claims = claims.to_vec();
    claims.sort_by_key(|claim| (claim.service.first_exported, claim.cluster));
    claims.dedup_by_key(|claim| claim.cluster);
    let oldest = *claims.first()?;
    let winner = oldest.service;
    let mut conflicts = BTreeMap::new();
    let mut compare = |reason, what: &str, value: String, differs: &dyn Fn(&AdvertisedService) -> bool| {
        let disagree = claims.iter().filter(|claim| differs(claim.service)).count();
        if disagree > 0 {
            conflicts.insert(reason, message(what, &value, oldest.cluster, disagree, claims.len()));
        }
    };

    compare(ServiceReason::TypeConflict, "type", format!("{:?}", winner.service_type), &|other| {
        other.service_type != winner.service_type
    });
    compare(ServiceReason::SessionAffinityConflict, "session affinity", affinity(winner).to_string(), &|other| {
        affinity(other) != affinity(winner)
    });
    compare(
        ServiceReason::SessionAffinityConfigConflict,
        "session affinity config",
        affinity_timeout(winner).map_or_else(|| "none".to_string(), |seconds| format!("timeout {seconds} s")),
        // Where the affinity itself differs, its config differs with it, and saying so twice helps nobody.
        &|other| affinity(other) == affinity(winner) && affinity_timeout(other) != affinity_timeout(winner),
    );
    compare(
        ServiceReason::InternalTrafficPolicyConflict,
        "internal traffic policy",
        traffic_policy(winner).to_string(),
        &|other| traffic_policy(other) != traffic_policy(winner),
    );
    compare(
        ServiceReason::TrafficDistributionConflict,
        "traffic distribution",
        winner.traffic_distribution.clone().unwrap_or_else(|| "none".to_string()),
        &|other| other.traffic_distribution != winner.traffic_distribution,
    );
    compare(ServiceReason::LabelsConflict, "exported labels", keys(&winner.exported_labels), &|other| {
        other.exported_labels != winner.exported_labels
    });
    compare(ServiceReason::AnnotationsConflict, "exported annotations", keys(&winner.exported_annotations), &|other| {
        other.exported_annotations != winner.exported_annotations
    });
    let port_set = |service: &AdvertisedService| service.ports.iter().cloned().collect::<BTreeSet<_>>();
    let winners_ports = port_set(winner);
    compare(
        ServiceReason::PortConflict,
        "ports",
        winner.ports.iter().map(shown_port).collect::<Vec<_>>().join(", "),
        &|other| port_set(other) != winners_ports,
    );

    let shared = |service: &AdvertisedService| -> Vec<Family> {
        let mut seen = BTreeSet::new();
        service.ip_families.iter().filter(|f| local_families.contains(f) && seen.insert(**f)).copied().collect()
    };
    let ip_families =
        claims.iter().map(|claim| shared(claim.service)).find(|list| !list.is_empty()).unwrap_or_default();
    compare(
        ServiceReason::IPFamilyConflict,
        "IP families",
        ip_families.iter().map(|family| family.as_str()).collect::<Vec<_>>().join(", "),
        &|other| !ip_families.iter().all(|family| other.ip_families.contains(family)),
    );

    Some(Merged {
        import_type: winner.service_type,
        ports: union_of_ports(claims.iter().map(|claim| claim.service)),
        session_affinity: winner.session_affinity.clone(),
        session_affinity_config: winner.session_affinity_config.clone(),
        internal_traffic_policy: winner.internal_traffic_policy.clone(),
        traffic_distribution: winner.traffic_distribution.clone(),
        labels: winner.exported_labels.clone(),
        annotations: winner.exported_annotations.clone(),
        ip_families,
        clusters: claims.iter().map(|claim| claim.cluster.clone()).collect(),
        first_exported: winner.first_exported,
        conflicts,
    })
}

/// The names of a cluster's ports that traffic for the merged ports may use: name, number and protocol must all be
/// the same, else a client would reach something it did not ask for (CR-4).
///
/// Headless services keep every port: their clients read the endpoints' ports themselves (CR-8).
pub fn served_ports(merged: &Merged, service: &AdvertisedService) -> BTreeSet<String> {
    let all = service.ports.iter();
    let same = |port: &&ImportPort| {
        merged.ports.iter().any(|m| m.name == port.name && m.port == port.port && m.protocol == port.protocol)
    };
    match merged.import_type {
        ImportType::Headless => all.map(|port| port.name.clone()).collect(),
        ImportType::ClusterSetIP => all.filter(same).map(|port| port.name.clone()).collect(),
    }
}

fn union_of_ports<'a>(oldest_first: impl Iterator<Item = &'a AdvertisedService>) -> Vec<ImportPort> {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut united = Vec::new();
    for port in oldest_first.flat_map(|service| &service.ports) {
        let number = (port.protocol.as_str(), port.port);
        if united.len() < MAX_PORTS && !names.contains(port.name.as_str()) && !numbers.contains(&number) {
            names.insert(port.name.as_str());
            numbers.insert(number);
            united.push(port.clone());
        }
    }
    united
}

/// In the words of the KEP's own example.
fn message(what: &str, value: &str, winner: &ClusterId, disagree: usize, all: usize) -> String {
    format!(
        "Conflicting {what}. Using \"{value}\" from oldest service export in \"{winner}\". {disagree}/{all} clusters disagree."
    )
}

fn shown_port(port: &ImportPort) -> String {
    let name = if port.name.is_empty() { String::new() } else { format!("{} ", port.name) };
    format!("{name}{}/{}", port.port, port.protocol)
}

fn keys(map: &BTreeMap<String, String>) -> String {
    map.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn affinity(service: &AdvertisedService) -> &str {
    service.session_affinity.as_deref().unwrap_or("None")
}

fn affinity_timeout(service: &AdvertisedService) -> Option<i32> {
    if affinity(service) != "ClientIP" {
        return None;
    }
    let config = service.session_affinity_config.as_ref();
    let seconds = config.and_then(|config| config.client_ip.as_ref()).and_then(|client| client.timeout_seconds);
    Some(seconds.unwrap_or(DEFAULT_AFFINITY_SECONDS))
}

fn traffic_policy(service: &AdvertisedService) -> &str {
    service.internal_traffic_policy.as_deref().unwrap_or("Cluster")
}

#[cfg(test)]
mod tests;
