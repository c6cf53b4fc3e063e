//! `LocalCluster`, the one named `local`: what this cluster is and owns.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::keys::IdentityKey;
use crate::{ClusterId, Kind, Prefix, Scope, Violation, names, order};

/// Written by the operator.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "tombolo.dev",
    version = "v1alpha1",
    kind = "LocalCluster",
    plural = "localclusters",
    crates(std = "core"),
    category = "tombolo",
    status = "LocalClusterStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name == 'local'").message("the one LocalCluster is named 'local'"),
    printcolumn = r#"{"name":"Cluster","type":"string","jsonPath":".spec.clusterId"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalClusterSpec {
    /// This cluster's id: unique in the clusterset, kept for as long as it is a member.
    pub cluster_id: ClusterId,
    /// The clusterset this cluster belongs to; peers of another one are refused.
    pub cluster_set_id: ClusterId,
    /// Prefixes of this cluster's pods, of both families.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub pod_prefixes: Vec<Prefix>,
    /// Each node gets one address a family out of these, for what the host itself sends to other clusters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub infrastructure_prefixes: Vec<Prefix>,
    /// Clusterset IPs are handed out of these; they mean something inside this cluster only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub cluster_set_prefixes: Vec<Prefix>,
    /// Overlapping prefixes of peers whose `ClusterPeer` has `allowOverlap` are translated into these. They mean something
    /// inside this cluster only; each peer's prefix takes a range of its own length.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub translation_prefixes: Vec<Prefix>,
    #[serde(default)]
    pub service_mode: ServiceMode,
    #[serde(default)]
    pub pod_reachability: PodReachability,
    #[serde(default)]
    pub gateways: GatewaySettings,
    /// Labels peers may select this cluster by in their routing policies: `region: eu`.
    #[serde(default, skip_serializing_if = "alloc::collections::BTreeMap::is_empty")]
    pub labels: alloc::collections::BTreeMap<String, String>,
    /// Whose datagrams this cluster passes on: it is a hub for members that cannot reach each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub transit: Vec<TransitRule>,
    #[serde(default)]
    pub dns: DnsSettings,
    #[serde(default)]
    pub state: LocalState,
}

/// Any two of these clusters may send to each other by way of this one. What is passed on is the tunnel of the two: this
/// cluster sees neither addresses nor contents.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TransitRule {
    #[schemars(length(min = 2, max = 256))]
    pub between: Vec<ClusterId>,
}

/// Whether other clusters should use this one.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
pub enum LocalState {
    #[default]
    Active,
    /// Connected, but every member is asked to give it no new connections.
    Draining,
}

/// How a connection to a clusterset IP gets its endpoint (decision 6).
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum ServiceMode {
    /// The node agent's own nftables maps: exact shares.
    #[default]
    Nftables,
    /// A derived Service, served by whatever serves Services in the cluster.
    Derived,
}

/// What other clusters' pods may reach here (decision 9).
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum PodReachability {
    /// Exported endpoints only.
    #[default]
    Exported,
    /// Every pod.
    Open,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct GatewaySettings {
    /// UDP port of lane 0; lane i listens on `port + i`.
    pub port: u16,
    /// Lanes of each gateway (decision 5).
    #[schemars(range(min = 1, max = 16))]
    pub lanes: u16,
    /// How many gateway slots there are.
    #[schemars(range(min = 1, max = 16))]
    pub slots: u16,
    /// Largest inner packet in bytes, never below 1280 (decision 11). What each path carries is measured, up to this and to
    /// 9168; where frames of 9000 bytes pass between gateways, 8920 makes use of them.
    #[schemars(range(min = 1280, max = 65455))]
    pub mtu: u16,
    /// Addresses peers dial, tried in order, where the host's own are not what the world sees: `203.0.113.9` or
    /// `[2001:db8::9]:51820`. They are for slot 0.
    #[schemars(length(max = 8), inner(length(max = 64)))]
    pub external_addresses: Vec<String>,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        // 1420 fits an IPv6 outer header (80 bytes of overhead) into 1500.
        Self { port: names::ports::TUNNEL, lanes: 1, slots: 1, mtu: 1420, external_addresses: Vec::new() }
    }
}

/// Choices where the DNS specification leaves one, or where the field disagrees with it.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DnsSettings {
    /// What `<cluster>.<service>.<namespace>.svc.clusterset.local` answers.
    pub cluster_names: ClusterNames,
    /// The answer for it while it has no records of its own.
    pub empty_cluster_name: EmptyName,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum ClusterNames {
    /// No records, as the DNS specification reserves the name (D-8).
    #[default]
    Reserved,
    /// The endpoints of that cluster alone.
    Answered,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum EmptyName {
    /// NXDOMAIN, as CoreDNS's tests have it.
    #[default]
    NameError,
    /// NOERROR without records, as RFC 8020 asks of a name that has others below it.
    NoData,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalClusterStatus {
    /// This cluster's identity key and its fingerprint, to be compared by eye.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_key: Option<IdentityKey>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fingerprint: String,
    /// While the identity is replaced: the fingerprint of the one that comes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next_fingerprint: String,
    /// This cluster's own member record as it is sent to peers: base64 of a [`SignedRecord`](crate::member_record::SignedRecord).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub record: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::kind::conditions_schema")]
    pub conditions: Vec<Condition>,
}

impl LocalState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "Active",
            Self::Draining => "Draining",
        }
    }
}

impl core::str::FromStr for LocalState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Active, Self::Draining];
        let known = all.into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| alloc::format!("'{text}' is no state of this cluster: write Draining"))
    }
}

impl LocalCluster {
    /// The state in force: what the spec says or the order of the moment ([`names::STATE`]), whichever is stricter.
    pub fn state(&self) -> LocalState {
        self.spec.state.max(self.ordered_state())
    }

    /// What the order of the moment says; `Active` where there is none.
    pub fn ordered_state(&self) -> LocalState {
        order::ordered(&self.metadata)
    }
}

impl LocalClusterSpec {
    /// The prefixes peers may send to: pods and infrastructure.
    pub fn advertised_prefixes(&self) -> impl Iterator<Item = &Prefix> {
        self.pod_prefixes.iter().chain(&self.infrastructure_prefixes)
    }

    /// Every prefix that means something in this cluster: what a peer cannot have here.
    pub fn own_prefixes(&self) -> impl Iterator<Item = &Prefix> {
        self.advertised_prefixes().chain(&self.cluster_set_prefixes).chain(&self.translation_prefixes)
    }
}

impl Kind for LocalCluster {
    const SCOPE: Scope = Scope::Cluster;

    fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        if self.metadata.name.as_deref() != Some(names::LOCAL_CLUSTER) {
            found.push(Violation::new("metadata.name", "must be 'local': a cluster has one LocalCluster"));
        }
        found.extend(order::violation::<LocalState>(&self.metadata));
        let spec = &self.spec;
        let ranges: Vec<(String, &Prefix)> = [
            ("podPrefixes", &spec.pod_prefixes),
            ("infrastructurePrefixes", &spec.infrastructure_prefixes),
            ("clusterSetPrefixes", &spec.cluster_set_prefixes),
            ("translationPrefixes", &spec.translation_prefixes),
        ]
        .into_iter()
        .flat_map(|(field, list)| list.iter().enumerate().map(move |(i, p)| (format!("spec.{field}[{i}]"), p)))
        .collect();
        for (index, (path, prefix)) in ranges.iter().enumerate() {
            if prefix.is_forbidden_to_members() {
                found.push(Violation::new(
                    path.clone(),
                    format!("{prefix} cannot belong to a cluster: choose a unicast range"),
                ));
            }
            for (other_path, other) in &ranges[..index] {
                if prefix.overlaps(other) {
                    found.push(Violation::new(
                        path.clone(),
                        format!("{prefix} overlaps {other} of {other_path}: give each its own range"),
                    ));
                }
            }
        }
        for (index, rule) in spec.transit.iter().enumerate() {
            let path = format!("spec.transit[{index}].between");
            if rule.between.len() < 2 {
                found.push(Violation::new(path, "name at least two clusters that may reach each other by this one"));
            } else if rule.between.contains(&spec.cluster_id) {
                found
                    .push(Violation::new(path, format!("{} is the hub itself: name only the others", spec.cluster_id)));
            }
        }
        let gateways = &spec.gateways;
        if gateways.mtu < 1280 {
            found.push(Violation::new(
                "spec.gateways.mtu",
                "must be at least 1280: IPv6 needs it (RFC 8200, section 5)",
            ));
        }
        if !(1..=16).contains(&gateways.lanes) || !(1..=16).contains(&gateways.slots) {
            found.push(Violation::new("spec.gateways", "lanes and slots must be 1 to 16"));
        }
        if gateways.port.checked_add(gateways.lanes).is_none() || gateways.port == 0 {
            found.push(Violation::new("spec.gateways.port", "port and the ports of all lanes must be 1 to 65535"));
        }
        found
    }
}
