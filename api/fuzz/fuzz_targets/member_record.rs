//! Any text as a member record, and any bytes as one that a trusted identity signed.
#![no_main]

use std::sync::LazyLock;

use api::keys::IdentityKey;
use api::member_record::{SignedRecord, bytes_to_sign};
use ed25519_dalek::{Signer, SigningKey};
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_bytes(&[7; 32]));

fuzz_target!(|bytes: &[u8]| {
    let identity = IdentityKey(KEY.verifying_key().to_bytes());
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(record) = SignedRecord::from_base64(text)
    {
        let _ = record.verify(&[identity, record.key]);
    }
    if let Ok(record) = serde_json::from_slice::<SignedRecord>(bytes) {
        assert_eq!(SignedRecord::from_base64(&record.to_base64()), Ok(record.clone()));
        let _ = record.verify(&[identity, record.key]);
    }
    let signature = KEY.sign(&bytes_to_sign(bytes)).to_bytes().to_vec();
    let signed = SignedRecord { record: bytes.to_vec(), key: identity, signature };
    if let Ok(record) = signed.verify(&[identity]) {
        assert!(record.prefixes.iter().all(|prefix| !prefix.is_forbidden_to_members()));
    }
});
