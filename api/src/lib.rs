//! The words everyone shares: kinds, names, conditions, validation, the member record, the gateway's health report.
//!
//! Nothing here does anything. A part of Tombolo that wants to say something to another part says it with a type of
//! this crate, and never by importing the other part.
//!
//! | module | holds |
//! |---|---|
//! | [`kind`] | [`Kind`]: what every stored object can say of itself; [`Violation`]: why one is refused |
//! | [`names`] | every label, annotation, namespace and port, once |
//! | [`cluster_id`], [`prefix`], [`keys`] | small checked values |
//! | [`local_cluster`], [`cluster_peer`], [`cluster_member`], [`tunnel_gateway`] | this cluster, those it trusts, those it heard of, its gateways |
//! | [`service_export`], [`service_import`] | the Multi-Cluster Services API (KEP-1645) |
//! | [`cluster_property`] | what is said of a whole cluster under a well-known name (KEP-2149) |
//! | [`routing_policy`] | which cluster answers |
//! | [`conditions`] | condition types and reasons, so that a typo does not compile |
//! | [`member_record`] | what a cluster says of itself, signed |
//! | [`succession`] | one identity of a cluster names the one that comes after it |
//! | [`health`] | what a gateway tells nodes and DNS, and how it is authenticated |
//! | [`prefix_claims`] | which prefixes a peer may really use here |
//! | [`translated_prefix`] | how an overlapping prefix of a peer is seen here |
//! | [`time`] | time as plain numbers |
//! | [`surface`], [`report`] | what every part shows to its operator, and the answers it gives |
//!
//! This crate thinks: `#![no_std]`, so that a clock, a socket or a file does not compile.
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
extern crate alloc;
// kube's and schemars' derives write `std::` for what alloc has as well.
extern crate alloc as std;

pub mod cluster_id;
pub mod cluster_member;
pub mod cluster_peer;
pub mod cluster_property;
pub mod conditions;
pub mod definitions;
pub mod health;
pub mod keys;
pub mod kind;
pub mod local_cluster;
pub mod member_record;
pub mod names;
pub mod order;
pub mod prefix;
pub mod prefix_claims;
pub mod report;
pub mod routing_policy;
pub mod service_export;
pub mod service_import;
pub mod succession;
pub mod surface;
pub mod time;
pub mod translated_prefix;
pub mod tunnel_gateway;

pub use cluster_id::ClusterId;
pub use cluster_member::ClusterMember;
pub use cluster_peer::ClusterPeer;
pub use cluster_property::ClusterProperty;
pub use kind::{Kind, Scope, Violation};
pub use local_cluster::LocalCluster;
pub use prefix::Prefix;
pub use routing_policy::{ClusterRoutingPolicy, RoutingPolicy};
pub use service_export::ServiceExport;
pub use service_import::ServiceImport;
pub use translated_prefix::TranslatedPrefix;
pub use tunnel_gateway::TunnelGateway;

/// The Kubernetes kinds Tombolo reads and writes, under the names the rest of the house uses.
pub mod kubernetes {
    pub use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
    pub use k8s_openapi::api::core::v1::{
        ConfigMap, Namespace, Node, NodeAddress, NodeSpec, NodeStatus, Secret, Service, ServicePort, ServiceSpec,
    };
    pub use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
    pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, ObjectMeta, OwnerReference, Time};
}
