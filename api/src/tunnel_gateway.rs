//! `TunnelGateway`: one gateway slot of this cluster and who holds it now.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::keys::TunnelKey;
use crate::local_cluster::LocalState;
use crate::{ClusterId, Kind, Scope, order};

/// So many paths are listed in the status: an object may not grow without bound, and the gateway's own report has all.
pub const MOST_PATHS: usize = 1024;

/// In Tombolo's own namespace. The spec is the controller's, the status that gateway's.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "tombolo.dev",
    version = "v1alpha1",
    kind = "TunnelGateway",
    plural = "tunnelgateways",
    crates(std = "core"),
    category = "tombolo",
    namespaced,
    status = "TunnelGatewayStatus",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
pub struct TunnelGatewaySpec {
    pub slot: u16,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TunnelGatewayStatus {
    /// The node the gateway runs on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Addresses of that node inside the cluster, where its health port answers; one a family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), inner(length(max = 45)))]
    pub node_addresses: Vec<String>,
    /// Addresses peers may dial, in order of preference; the port is the lane's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 64)))]
    pub endpoints: Vec<String>,
    /// Its lanes: lane i is entry i.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub lanes: Vec<LaneStatus>,
    /// What the paths to peers were found to carry, by the peers' names, at most [`MOST_PATHS`] of them. A peer that is
    /// missing was not measured yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub paths: Vec<PeerPath>,
    /// How far the change of its keys has come; absent while they do not rotate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<KeyRotation>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::kind::conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// The keys of a slot on their way to be replaced.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRotation {
    /// The next key of each lane that has one: which rotation this is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub next_keys: Vec<TunnelKey>,
    /// Clusters that still need the old keys. Empty: nothing passes under those any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 63)))]
    pub waiting_for: Vec<String>,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LaneStatus {
    pub public_key: TunnelKey,
    pub port: u16,
    /// The TUN device on the node.
    pub device: String,
}

/// What reaches a peer from this gateway.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerPath {
    pub cluster: ClusterId,
    /// The largest packet inside the tunnel, bytes, that passes by all of this gateway's paths.
    pub mtu: u16,
    /// Not even that many bytes arrive whole by one of the paths: datagrams are cut.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub too_narrow: bool,
    /// When this was found.
    #[schemars(with = "String")]
    pub since: Time,
}

impl TunnelGateway {
    /// Whether an order ([`STATE`](crate::names::STATE): `Draining`) asks it to give its traffic to the other gateways.
    pub fn is_drained(&self) -> bool {
        order::ordered::<LocalState>(&self.metadata) == LocalState::Draining
    }
}

impl Kind for TunnelGateway {
    const SCOPE: Scope = Scope::Namespaced;
}
