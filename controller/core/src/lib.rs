//! What the controller decides: indexes, merge, plan, the sync conversation.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
