//! Clusters on one machine.
//!
//! A test asks for a world, gets clusters, nodes and pods as values, starts programs in them, and looks at what
//! happens. Nothing needs root, nothing is left behind, and tests run beside each other with equal addresses.
//!
//! ```text
//!                    internet
//!          ┌────────────┼────────────┐
//!     amber-router  birch-router  cedar-router       172.30.<cluster>.0/24
//!          │ lan        │            │               172.31.<cluster>.0/24
//!     ┌────┴────┐    ┌──┴──┐      ┌──┴──┐
//!  gateway    worker                                 default route: the router
//!   cni0       cni0                                  10.<cluster>.<node>.0/24
//!    │ │        │ │
//!   pods       pods
//! ```
//!
//! [`world_test`] has an example; [`sandbox`] says how a world is kept apart.

pub mod addresses;
pub mod capture;
pub mod cluster;
pub mod cluster_table;
pub mod control_plane;
pub mod demo;
pub mod deployment;
pub mod doctor;
pub mod evidence;
pub mod failover_table;
pub mod firewall;
pub mod host;
pub mod impair;
pub mod kubelet;
pub mod link;
pub mod manifest;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod process;
pub mod recording;
pub mod sandbox;
pub mod scenario;
pub mod soak;
pub mod terminal;
pub mod traffic;
pub mod wireguard_go;
pub mod world;

pub use capture::Capture;
pub use cluster::{Cluster, ClusterPlan};
pub use host::Host;
pub use node::Node;
pub use pod::Pod;
pub use process::Process;
pub use world::{World, world_test, world_test_with};
