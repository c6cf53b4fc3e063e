//! Any bytes as a datagram from the world.
#![no_main]

use gateway_core::datagram::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Message::parse(bytes);
});
