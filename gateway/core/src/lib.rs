//! What a gateway decides: peers, lanes, sessions, probes, refusals. No socket, no clock.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
