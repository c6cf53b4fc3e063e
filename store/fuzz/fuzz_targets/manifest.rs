//! A user's manifest, YAML and JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    store::manifest::check(bytes, false);
    store::manifest::check(bytes, true);
});
