//! The DNS part: answers `clusterset.local` from an immutable zone.
//!
//! | module | does |
//! |---|---|
//! | [`answer`] | a zone and a question in, an answer out: read it first |
//! | [`query`], [`name`] | read the question by hand |
//! | [`response`], [`record`] | write the answer within its limit |
//! | [`zone`], [`service`], [`mod@slice`] | what can be answered, immutable and shared between zones |
//! | [`catalog`], [`refusal`] | take objects as they come and go, hand out zones, name what was left out |
//! | [`view`], [`reach`], [`selection`] | add the gateways' reports and the routing policies: which clusters are answered |
//! | [`explain`] | says why a name is answered as it is |
//!
//! All of these think: bytes, objects and the time in, bytes and zones out. The others touch the world: [`server`]
//! starts them, `listeners` opens sockets, `udp` and `tcp` answer on them, `keeper` follows the store, `surface`
//! shows all of it to the operator.
#![forbid(unsafe_code)]

pub mod answer;
pub mod catalog;
pub mod explain;
mod keeper;
mod listeners;
pub mod name;
pub mod query;
pub mod reach;
pub mod record;
pub mod refusal;
pub mod response;
pub mod selection;
pub mod server;
pub mod service;
pub mod slice;
mod srv;
mod surface;
pub mod tally;
mod tcp;
mod turns;
mod udp;
pub mod view;
pub mod zone;

pub use server::{Config, Running, start, start_at};
pub use tcp::TcpLimits;
