//! Whole clusters in one pretend world: gateways, node agents, controllers and DNS servers, each the thinking part that
//! also runs in the product, on a pretend network, clock, disk and kernel. No socket, no thread, no real second passes.
//!
//! A [`Schedule`] says what happens, from a seed: what operators do and what goes wrong. [`live`] lives through it. An
//! oracle knows from the schedule alone what must be reachable and what must not; where a world disagrees, the
//! [`Failure`] is shrunk to the shortest schedule that still shows it.
//!
//! | module | holds |
//! |---|---|
//! | [`happening`], [`schedule`], [`story`] | what happens, when, and how a story is lived and shortened |
//! | `world` | the line of time; who wakes when |
//! | `cluster`, [`Shape`], `site` | one cluster's parts, how many of them; its names and addresses, its operator's manifests |
//! | `objects`, `object`, `follower` | the store, and what each part has seen of it |
//! | `controller`, `process`, `gateway`, `host`, `names` | the processes around the cores |
//! | `replicas`, `lease` | a controller that sleeps, another that takes its place, and which of them writes |
//! | `stream`, `segment`, `relay` | control connections, as TCP segments through the tunnels |
//! | `transit` | ways by a hub, for clusters that cannot reach each other |
//! | `overlap` | as what a cluster sees pods that have the addresses of others |
//! | `probing` | agents ask gateways for health |
//! | `kernel`, `walk` | what kernels do with packets; the way of each packet |
//! | `operator` | introduces clusters, gives orders |
//! | `parts`, `feed` | parts start, are killed, and see what is in the store |
//! | `network`, `underlay`, `trouble` | how datagrams fare; what a happening does |
//! | `truth`, `standing`, `oracle`, `attempt` | what must be, by whose word, and whether it is |
//!
//! What is not here: cryptography, sockets, TLS and HTTP/2, the real kernel. Those are in the tests of the crates that
//! touch them, and in `netns-tests`.
#![forbid(unsafe_code)]

mod attempt;
mod cluster;
mod controller;
mod feed;
mod follower;
mod gateway;
pub mod happening;
mod host;
mod kernel;
mod lease;
mod names;
mod network;
mod object;
mod objects;
mod operator;
mod oracle;
mod overlap;
mod parts;
mod probing;
mod process;
mod relay;
mod replicas;
pub mod schedule;
mod segment;
mod shape;
mod site;
mod standing;
pub mod story;
mod stream;
mod transit;
mod trouble;
mod truth;
mod underlay;
mod walk;
mod world;

// The gateway's own simulation made these; both stay one.
#[path = "../../gateway/core/tests/simulation/packets.rs"]
#[allow(dead_code, reason = "whole segments are made here, in the module segment")]
mod packets;
#[path = "../../gateway/core/tests/simulation/pretend.rs"]
mod pretend;
#[path = "../../gateway/core/tests/simulation/random.rs"]
mod random;

pub use attempt::Tally;
pub use follower::Disk;
pub use happening::{Happening, Order, Part};
pub use network::Weather;
pub use schedule::{Sabotage, Schedule};
pub use shape::{Families, Shape};
pub use site::Name;
pub use story::{Failure, live};
