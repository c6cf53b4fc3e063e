//! An enrolment file.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = store::feed::Enrolment::parse(text);
});
