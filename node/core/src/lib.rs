//! What a node's kernel should hold, given the cluster's view and the gateways' health.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
