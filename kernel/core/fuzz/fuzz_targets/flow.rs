//! The first bytes of any packet somebody sent us.
#![no_main]

libfuzzer_sys::fuzz_target!(|packet: &[u8]| {
    let _ = kernel_core::Flow::read(packet);
});
