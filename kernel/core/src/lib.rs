//! Wanted kernel state against observed kernel state: the difference.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
