//! Any bytes as an inner packet: parsed, read as a probe, answered as too big.
#![no_main]

use gateway_core::packet::Packet;
use gateway_core::{packet_too_big, probe::Probe};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(packet) = Packet::parse(bytes) {
        assert!(packet.len <= bytes.len() && packet.transport <= packet.len);
        let _ = Probe::read(&packet, bytes);
        let mut room = [0u8; 1280];
        if let Some(len) = packet_too_big::write(&packet, bytes, 1280, &mut room) {
            assert!(Packet::parse(&room[..len]).is_ok(), "what we say must be a packet itself");
        }
    }
});
