//! What the controller decides: what this cluster exports, what others may say, what of both becomes a ServiceImport,
//! and the conversation between two controllers.
//!
//! Everything here is a function of what goes in: objects as the store shows them, messages of other clusters, and the
//! time. The crate `controller` puts a store, TLS and a disk around it.
//!
//! One service followed through:
//!
//! | step | module |
//! |---|---|
//! | Service, ServiceExport, EndpointSlices → small items with a hash | [`local`], [`advertisement`], [`slices`] |
//! | a node whose agent is away keeps its endpoints back | [`agents`] |
//! | what changed, with its recent history, for every peer | [`ledger`] |
//! | the talk between two clusters | [`conversation`], [`message`] |
//! | what the other one may say, and what it said | [`validity`], [`remote`] |
//! | how old peers remember our exports to be, after a loss | [`recall`] |
//! | many clusters' word → one service and its conflicts | [`merge`] |
//! | clusterset IPs that stay | [`addresses`] |
//! | the difference between what should be and what is | [`engine`], [`service_plan`], [`host_plan`], [`plan`] |
//! | what agents are shown before it is written | [`ahead`] |
//! | which replica writes | [`lease`] |
//! | who is a member, and whose record is newer | [`membership`] |
//! | when the old keys of a gateway may go | [`rotation`] |
//! | what the operator orders for the moment, and which endpoints that takes out | [`orders`], [`drained_nodes`] |
//! | what is open on the hosts while something is drained | [`host_flows`] |
//! | conditions, and those of routing policies | [`condition`], [`policy`] |
//!
//! Start with [`engine::Engine`]: it owns all of it.
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
extern crate alloc;

pub mod addresses;
pub mod advertisement;
pub mod agents;
pub mod ahead;
pub mod condition;
pub mod conversation;
pub mod drained_nodes;
pub mod engine;
pub mod host_flows;
pub mod host_plan;
pub mod index;
pub mod lease;
pub mod ledger;
pub mod local;
pub mod membership;
pub mod merge;
pub mod message;
mod observation;
pub mod orders;
pub mod own_identity;
mod peer_plan;
pub mod plan;
pub mod policy;
pub mod recall;
pub mod remote;
pub mod rotation;
pub mod service_plan;
pub mod slices;
#[cfg(test)]
mod testing;
pub mod translations;
pub mod validity;

pub use engine::Engine;
pub use membership::cluster_peer_manifest;
