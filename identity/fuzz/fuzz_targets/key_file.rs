//! An identity's key file.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = identity::Identity::from_pem(text);
});
