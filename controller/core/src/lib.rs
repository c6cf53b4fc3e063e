//! What the controller decides: indexes, merge, plan, the sync conversation.
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
extern crate alloc;

pub mod addresses;
pub mod advertisement;
pub mod agents;
pub mod condition;
pub mod conversation;
pub mod index;
pub mod ledger;
pub mod local;
pub mod membership;
pub mod merge;
pub mod message;
pub mod policy;
pub mod remote;
pub mod slices;
#[cfg(test)]
mod testing;
pub mod validity;
