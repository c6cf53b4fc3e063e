//! Endpoints, policy and health in; shares and reasons out.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
