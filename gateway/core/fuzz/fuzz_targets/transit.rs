//! Any bytes as a transit frame: read whole or refused, and written back as they came.
#![no_main]

use gateway_core::transit::{FRAME_HEADER, Frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::parse(bytes) {
        assert_eq!(frame.header(), bytes[..FRAME_HEADER]);
        assert_eq!(frame.datagram, &bytes[FRAME_HEADER..]);
    }
});
