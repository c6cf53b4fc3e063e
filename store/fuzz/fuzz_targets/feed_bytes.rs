//! What comes over a feed's connection: frames, and the messages of both ends in them.
#![no_main]

use store::feed::frame::{Decoder, MAX_GREETING_BYTES};
use store::feed::message::{ToAgent, ToController, decode};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut decoder = Decoder::new(MAX_GREETING_BYTES);
    decoder.push(bytes);
    while let Ok(Some(message)) = decoder.next_message() {
        let _ = decode::<ToController>(&message);
        let _ = decode::<ToAgent>(&message);
    }
});
