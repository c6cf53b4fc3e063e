//! `ClusterMember`: a cluster heard of from others. It is awaiting a verdict; knowing it is not trusting it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Kind, Scope};

/// Written by the controller only. Its name is the cluster's id.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "tombolo.dev",
    version = "v1alpha1",
    kind = "ClusterMember",
    plural = "clustermembers",
    crates(std = "core"),
    category = "tombolo",
    status = "ClusterMemberStatus",
    derive = "PartialEq",
    derive = "Default"
)]
pub struct ClusterMemberSpec {}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterMemberStatus {
    /// Its record: base64 of a [`SignedRecord`](crate::member_record::SignedRecord).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub record: String,
    /// The peer that passed the record on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub heard_from: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::kind::conditions_schema")]
    pub conditions: Vec<Condition>,
}

impl Kind for ClusterMember {
    const SCOPE: Scope = Scope::Cluster;
}
