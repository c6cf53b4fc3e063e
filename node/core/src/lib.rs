//! What one host's kernel should hold: the cluster's objects and the gateways' health in, wanted kernel state out.
//!
//! [`NodeCore`] takes [`Input`]s one by one and, when asked, gives the [`Delta`] since it was last asked: two partial
//! [`State`](kernel_core::State)s that hold only what changed. `kernel_core::difference` makes steps of them.
//!
//! | module | holds |
//! |---|---|
//! | [`input`] | everything a node is told |
//! | [`facts`] | what of each object matters here, read once and checked |
//! | [`fabric`] | links, routes, rules, sets of prefixes: small, made anew as a whole when one of its facts changes |
//! | `outward` | the part of it that leads to other clusters: routes, groups, next hops |
//! | [`catalog`] | services, endpoints and exports, indexed by whom a change touches |
//! | [`frontends`] | one service → the slots of its clusterset addresses |
//! | [`connections`] | whose endpoints are whose, for counting connections |
//! | [`check`] | when an endpoint of a plain host counts as ready |
//! | [`looks`] | when everything in the kernel is looked at, and whether what was seen still holds |
//! | [`problem`] | what is wrong with objects, by name; the rest goes on |
//! | [`shares`] | a service's traffic goes elsewhere than before, and why |
//! | [`whatif`] | where new connections would go if a cluster were drained |
//! | [`planner`] | [`NodeCore`] |
//!
//! # A worker host and a gateway host
//!
//! A **worker** has, for each prefix of another cluster, a route by way of the gateways that reach it, inside a VXLAN
//! device that joins the nodes of the cluster. A **gateway host** routes the same prefix into its tunnel devices, and
//! what comes out of them on to the endpoint's node. Behind each such route stands a blackhole. Both translate clusterset
//! addresses for the clients they host, and admit what arrives only to exported endpoints they host.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod catalog;
pub mod check;
pub mod connections;
pub mod explain;
pub mod fabric;
pub mod facts;
pub mod frontends;
pub mod input;
pub mod looks;
mod outward;
pub mod planner;
pub mod problem;
pub mod shares;
pub mod whatif;

pub use input::{Input, ObjectChange};
pub use looks::{Look, Looks};
pub use planner::{Delta, NodeCore};
pub use problem::Problem;
pub use shares::ShareChange;
