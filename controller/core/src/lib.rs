//! What the controller decides: indexes, merge, plan, the sync conversation.
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
extern crate alloc;

pub mod advertisement;
pub mod agents;
pub mod conversation;
pub mod index;
pub mod ledger;
pub mod local;
pub mod merge;
pub mod message;
pub mod remote;
pub mod slices;
#[cfg(test)]
mod testing;
pub mod validity;
