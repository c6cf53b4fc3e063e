//! What a gateway decides. No socket, no thread, no lock, no clock: bytes, values and the time come in as arguments,
//! and what should happen comes back.
//!
//! A gateway process has *lanes*. A lane is a whole plain WireGuard end: its own TUN device, key, UDP port, and two
//! threads. A *link* is one lane of ours paired with one lane of a peer's gateway. Four values decide everything, and
//! each has one owner, so nothing here needs a lock:
//!
//! | value | owned by | does |
//! |---|---|---|
//! | [`Outbound`] | a lane's TUN → UDP thread | finds the link for each packet, refuses by name, seals in groups |
//! | [`Inbound`] | a lane's UDP → TUN thread | finds the session for each datagram, opens, judges what came out |
//! | [`Paths`] | the control thread | probes every link, says which are up, asks for handshakes, knows endpoints |
//! | [`HealthAnswers`] | the control thread | tells nodes and DNS which peers can be reached, to those who hold a key |
//!
//! Only [`Paths`] changes what is known; the other two read its immutable [`RouteTable`], swapped whole on change.
//! Cryptography is behind [`Session`] (one link) and [`Sessions`] (all links of a lane), which the `gateway` crate and
//! the simulation implement.
//!
//! # In which order to call
//!
//! At start and whenever the configuration changes, on the control thread:
//! 1. [`Paths::reconfigure`] with the whole [`Topology`] gives links to add and to remove: make or drop their sessions.
//! 2. [`Paths::table`] is the new [`RouteTable`]: publish it to both threads of every lane.
//!
//! TUN → UDP: clear the arenas; read packets into an [`Arena`] of [`Outgoing`]; [`Outbound::forward`]; send every
//! datagram of the [`Sealed`] arena from this lane's socket; write every packet of the answers arena to the TUN.
//!
//! UDP → TUN: apply pending [`ExportChange`]s; clear the arenas; read datagrams into an [`Arena`] of [`Received`];
//! [`Inbound::receive`]; send the replies; write each packet whose verdict is [`Verdict::Deliver`] to the TUN; pass
//! [`Inbound::notices`] to the control thread.
//!
//! Control, on every notice and at [`Paths::next_deadline`]: [`Paths::notice`] or [`Paths::poll`]; send what is in the
//! arena, each datagram from the socket of its lane; if [`Paths::take_table_change`] gives a table, publish it;
//! write [`Paths::take_events`] to the journal.
//!
//! # Where to read on
//!
//! [`packet`] is the only place that looks into foreign IP bytes, [`datagram`] into foreign WireGuard headers, [`probe`]
//! into probes; [`translation`] is the only one that changes packets. [`transit`] carries datagrams past a third cluster
//! where two cannot reach each other. [`roster`] makes the topology of the cluster's objects, [`export_index`] what peers
//! may connect to. [`refusal`] lists every reason to drop something. [`path`] is the life of one link as a state machine,
//! [`pace`] how often many of them are asked.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod arena;
pub mod datagram;
pub mod endpoints;
pub mod event;
pub mod export_index;
pub mod exports;
pub mod health_answers;
pub mod inbound;
pub mod link;
pub mod outbound;
pub mod outer_fragments;
pub mod pace;
pub mod packet;
pub mod packet_too_big;
mod pairing;
pub mod path;
mod path_mtu;
pub mod paths;
pub mod probe;
mod probe_log;
pub mod refusal;
pub mod refusal_log;
pub mod roster;
pub mod route_table;
pub mod session;
mod succession;
pub mod topology;
mod topology_check;
pub mod transit;
pub mod translation;
mod udp_checksum;

pub use arena::Arena;
pub use event::{Event, EventKind};
pub use exports::{ExportChange, ExportedEndpoint, Exports};
pub use health_answers::HealthAnswers;
pub use inbound::{Inbound, Notice, Verdict};
pub use link::{LaneNumber, Link, LinkId};
pub use outbound::{Outbound, Outgoing};
pub use path::{PathState, PathStatus};
pub use paths::{Paths, Reconfigured};
pub use refusal::Refusal;
pub use refusal_log::{RefusalLog, RefusalRecord};
pub use route_table::RouteTable;
pub use session::{OpenBatch, Opened, Received, SealBatch, Sealed, Session, Sessions};
pub use topology::{OurGateway, OurLane, PeerCluster, PeerGateway, PeerLane, Standing, Topology};
pub use translation::Translation;
