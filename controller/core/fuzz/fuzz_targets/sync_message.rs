//! No bytes of another cluster make the reader of sync messages panic, and what it reads it can write.
#![no_main]

use controller_core::message::FrameReader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = FrameReader::default();
    for part in bytes.chunks(7) {
        reader.push(part);
    }
    while let Ok(Some(message)) = reader.next_message() {
        let _ = message.to_frame();
    }
    let mut framed = FrameReader::default();
    framed.push(&(bytes.len() as u32).to_be_bytes());
    framed.push(bytes);
    let _ = framed.next_message();
});
