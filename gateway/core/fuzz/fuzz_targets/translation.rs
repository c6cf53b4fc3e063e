//! Any bytes as a packet from a peer and to one, with half of all addresses translated: rewritten within their length.
#![no_main]

use api::TranslatedPrefix;
use gateway_core::packet::Packet;
use gateway_core::translation::Translation;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let pairs = [("0.0.0.0/1", "128.0.0.0/1"), ("::/1", "8000::/1")];
    let pairs = pairs.map(|(real, seen)| TranslatedPrefix { real: real.parse().unwrap(), seen: seen.parse().unwrap() });
    let translation = Translation::new(&pairs);
    if let Ok(packet) = Packet::parse(bytes) {
        let mut rewritten = bytes.to_vec();
        translation.rewrite_inbound(&packet, &mut rewritten);
        translation.rewrite_outbound(&packet, &mut rewritten);
        assert_eq!(rewritten[packet.len..], bytes[packet.len..], "padding is not part of the packet");
        assert_eq!(Packet::parse(&rewritten).map(|packet| packet.len), Ok(packet.len), "it is a packet still");
    }
});
