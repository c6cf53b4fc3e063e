//! Any bytes as a health request and as a page of an answer: as they are, and with the authenticator of somebody who has
//! the key, for what stands behind it is read only then.
#![no_main]

use api::health::message::{AgentKey, MasterKey, ReplyPage, ReplyPages, UnverifiedRequest};
use hmac::{Hmac, Mac};
use libfuzzer_sys::fuzz_target;
use sha2::Sha256;

/// Where the key's id stands in a request and in a page, and the nonce behind it.
const KEY_IDS: [(u8, usize); 2] = [(1, 8), (2, 12)];

fn read(bytes: &[u8], key: &AgentKey) {
    if let Ok(request) = UnverifiedRequest::decode(bytes)
        && let Ok(request) = request.verify(key)
    {
        assert_eq!(request.encode(key).len(), bytes.len(), "what is believed can be said again");
    }
    if let Ok(page) = ReplyPage::decode(bytes, key, &[0; 16]) {
        let mut pages = ReplyPages::default();
        let number = page.pages;
        let whole = pages.add(page.clone());
        assert_eq!(whole.is_some(), number == 1);
        let _ = pages.add(page);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let key = MasterKey { id: 1, secret: [1; 32] }.agent_key("node-1");
    read(bytes, &key);
    for (kind, at) in KEY_IDS {
        if bytes.len() < at + 20 {
            continue;
        }
        let mut signed = bytes.to_vec();
        signed[..6].copy_from_slice(&[b'T', b'm', b'b', b'H', 1, kind]);
        signed[at..at + 4].copy_from_slice(&1u32.to_be_bytes());
        signed[at + 4..at + 20].fill(0);
        let mut mac = Hmac::<Sha256>::new_from_slice(&key.secret).expect("HMAC takes a key of any length");
        mac.update(&signed);
        signed.extend_from_slice(&mac.finalize().into_bytes()[..16]);
        read(&signed, &key);
    }
});
