//! Any bytes as a health request and as a page of an answer.
#![no_main]

use api::health::message::{MasterKey, ReplyPage, UnverifiedRequest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let key = MasterKey { id: 1, secret: [1; 32] }.agent_key("node-1");
    if let Ok(request) = UnverifiedRequest::decode(bytes) {
        let _ = request.verify(&key);
    }
    let _ = ReplyPage::decode(bytes, &key, &[0; 16]);
});
