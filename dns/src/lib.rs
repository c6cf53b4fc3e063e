//! The DNS part: answers `clusterset.local` from an immutable zone.
//!
//! | module | does |
//! |---|---|
//! | [`answer`] | a zone and a question in, an answer out: read it first |
//! | [`query`], [`name`] | reads the question by hand |
//! | [`response`], [`record`] | writes the answer within its limit |
//! | [`zone`], [`service`], [`slice`] | what can be answered, immutable and shared between zones |
//! | [`catalog`] | takes objects as they come and go, hands out zones |
//! | [`reach`] | which clusters are in service |
//! | [`refusal`] | what was left out of the zone, by name |
//!
//! All of these think: bytes and objects in, bytes and zones out.
#![forbid(unsafe_code)]

pub mod answer;
pub mod catalog;
pub mod name;
pub mod query;
pub mod reach;
pub mod record;
pub mod refusal;
pub mod response;
pub mod service;
pub mod slice;
mod srv;
pub mod zone;
