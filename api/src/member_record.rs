//! [`MemberRecord`]: what a cluster says of itself, signed by its identity (decision 15).
//!
//! Anybody may pass a record on; only the identity can change it. The signature is over the very bytes that were
//! received, so a newer writer's unknown fields survive an older relay.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::keys::{IdentityKey, TunnelKey};
use crate::succession::{self, Succession};
use crate::{ClusterId, Prefix};

/// The largest record that is read, in bytes: 16 slots of 16 lanes fit many times.
pub const MAX_RECORD_BYTES: usize = 32 * 1024;

/// Said before the record's bytes when signing, so that a signature means this and nothing else.
const SIGNED_CONTEXT: &[u8] = b"tombolo member record v1\0";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberRecord {
    pub cluster_set_id: ClusterId,
    pub cluster_id: ClusterId,
    /// The identities that speak for this cluster: current first, then the next one where a rotation is under way.
    pub identity_keys: Vec<IdentityKey>,
    /// How this cluster came to its newest identity, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub successions: Vec<Succession>,
    /// Random per installation: a rebuilt cluster is noticed by it.
    pub epoch: String,
    /// Grows with each change within an epoch.
    pub generation: u64,
    /// From the first identity key; survives its rotation (decision 13).
    pub control_prefix: Prefix,
    pub slots: Vec<SlotRecord>,
    /// What peers may send to: pods and infrastructure.
    pub prefixes: Vec<Prefix>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Lowest and highest protocol version spoken.
    pub protocol: (u16, u16),
    pub state: MemberState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotRecord {
    pub slot: u16,
    /// Addresses to dial in order, with port of lane 0 where one is named: `203.0.113.9` or `[2001:db8::1]:51820`.
    pub endpoints: Vec<String>,
    pub lanes: Vec<LaneRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaneRecord {
    pub key: TunnelKey,
    /// Announced before it is used (decision 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_key: Option<TunnelKey>,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberState {
    Active,
    Draining,
    Left,
}

impl MemberRecord {
    /// The identities that others took the place of. Nothing they sign counts any more.
    pub fn left_behind(&self) -> BTreeSet<IdentityKey> {
        let gone = self.successions.iter().map(|succession| succession.from);
        gone.filter(|key| !self.identity_keys.contains(key)).collect()
    }
}

/// A record's bytes and the identity's signature over them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRecord {
    #[serde(with = "base64_bytes")]
    pub record: Vec<u8>,
    pub key: IdentityKey,
    #[serde(with = "base64_bytes")]
    pub signature: Vec<u8>,
}

/// Why a record is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("is not a member record: copy the whole text that 'tombolo peers export' printed")]
    Malformed,
    #[error("is larger than {MAX_RECORD_BYTES} bytes")]
    TooLarge,
    #[error("is signed by {0}, which is not among the trusted identities")]
    UntrustedIdentity(IdentityKey),
    #[error("has a signature that does not match: it was changed after signing")]
    BadSignature,
    #[error("does not name the identity that signed it")]
    IdentityNotNamed,
    #[error("claims {0}, which no member may claim")]
    ForbiddenPrefix(Prefix),
    #[error("claims the control prefix {0}, which is not a unique local /64")]
    BadControlPrefix(Prefix),
}

/// The bytes that an identity signs for `record`.
pub fn bytes_to_sign(record: &[u8]) -> Vec<u8> {
    [SIGNED_CONTEXT, record].concat()
}

impl SignedRecord {
    /// Reads what [`SignedRecord::to_base64`] wrote.
    pub fn from_base64(text: &str) -> Result<Self, RecordError> {
        let compact: String =
            text.chars().filter(|c| !c.is_ascii_whitespace()).take(4 * MAX_RECORD_BYTES + 1).collect();
        if compact.len() > 4 * MAX_RECORD_BYTES {
            return Err(RecordError::TooLarge);
        }
        let bytes = STANDARD.decode(compact).map_err(|_| RecordError::Malformed)?;
        serde_json::from_slice(&bytes).map_err(|_| RecordError::Malformed)
    }

    pub fn to_base64(&self) -> String {
        // Strings, byte lists and keys only: this cannot fail.
        STANDARD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// The record, when one of `trusted` signed it, or an identity that came after one of them, and it names that key and
    /// nothing forbidden.
    pub fn verify(&self, trusted: &[IdentityKey]) -> Result<MemberRecord, RecordError> {
        if self.record.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLarge);
        }
        // Only its own signature makes the successions in it worth a look.
        let is_trusted = trusted.contains(&self.key);
        if !is_trusted && trusted.is_empty() {
            return Err(RecordError::UntrustedIdentity(self.key));
        }
        let untrusted = |error| if is_trusted { error } else { RecordError::UntrustedIdentity(self.key) };
        let key = VerifyingKey::from_bytes(&self.key.0).map_err(|_| untrusted(RecordError::BadSignature))?;
        let signature = Signature::from_slice(&self.signature).map_err(|_| untrusted(RecordError::BadSignature))?;
        key.verify_strict(&bytes_to_sign(&self.record), &signature)
            .map_err(|_| untrusted(RecordError::BadSignature))?;
        let record: MemberRecord =
            serde_json::from_slice(&self.record).map_err(|_| untrusted(RecordError::Malformed))?;
        if !is_trusted && !succession::reached(trusted, &record.successions, &record.cluster_id).contains(&self.key) {
            return Err(RecordError::UntrustedIdentity(self.key));
        }
        if !record.identity_keys.contains(&self.key) {
            return Err(RecordError::IdentityNotNamed);
        }
        let local: Prefix = Prefix::truncating(ipnet::IpNet::V6(ipnet::Ipv6Net::new_assert(
            core::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0),
            8,
        )));
        if !local.covers(&record.control_prefix) || record.control_prefix.net().prefix_len() != 64 {
            return Err(RecordError::BadControlPrefix(record.control_prefix));
        }
        if let Some(bad) = record.prefixes.iter().find(|prefix| prefix.is_forbidden_to_members()) {
            return Err(RecordError::ForbiddenPrefix(*bad));
        }
        Ok(record)
    }
}

pub(crate) mod base64_bytes {
    use alloc::string::String;
    use alloc::vec::Vec;

    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};
    use proptest::prelude::*;

    use super::*;

    fn record(key: &SigningKey) -> MemberRecord {
        let identity = IdentityKey(key.verifying_key().to_bytes());
        MemberRecord {
            cluster_set_id: ClusterId::new("demo").unwrap(),
            cluster_id: ClusterId::new("birch").unwrap(),
            identity_keys: vec![identity],
            successions: vec![],
            epoch: "e1".into(),
            generation: 1,
            control_prefix: identity.control_prefix(),
            slots: vec![],
            prefixes: vec!["10.2.0.0/16".parse().unwrap()],
            labels: BTreeMap::new(),
            protocol: (1, 1),
            state: MemberState::Active,
        }
    }

    fn signed(key: &SigningKey, record: &MemberRecord) -> SignedRecord {
        let bytes = serde_json::to_vec(record).unwrap();
        let signature = key.sign(&bytes_to_sign(&bytes)).to_bytes().to_vec();
        SignedRecord { record: bytes, key: IdentityKey(key.verifying_key().to_bytes()), signature }
    }

    #[test]
    fn a_record_is_read_back_when_a_trusted_identity_signed_it() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let signed = signed(&key, &record(&key));
        let again = SignedRecord::from_base64(&signed.to_base64()).unwrap();
        assert_eq!(again.verify(&[signed.key]).unwrap(), record(&key));
    }

    #[test]
    fn a_record_signed_by_a_stranger_or_changed_after_signing_is_refused_by_name() {
        let (key, other) = (SigningKey::from_bytes(&[3; 32]), SigningKey::from_bytes(&[4; 32]));
        let mut signed = signed(&key, &record(&key));
        let trusted = signed.key;
        let stranger = IdentityKey(other.verifying_key().to_bytes());
        assert_eq!(signed.verify(&[stranger]), Err(RecordError::UntrustedIdentity(trusted)));
        signed.record[10] ^= 1;
        assert_eq!(signed.verify(&[trusted]), Err(RecordError::BadSignature));
    }

    #[test]
    fn a_record_may_not_claim_everything() {
        let key = SigningKey::from_bytes(&[3; 32]);
        let mut greedy = record(&key);
        greedy.prefixes = vec!["0.0.0.0/0".parse().unwrap()];
        let signed = signed(&key, &greedy);
        assert!(matches!(signed.verify(&[signed.key]), Err(RecordError::ForbiddenPrefix(_))));
    }

    proptest! {
        #[test]
        fn no_text_and_no_signed_bytes_make_the_reader_panic(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = SignedRecord::from_base64(&text);
            let key = SigningKey::from_bytes(&[3; 32]);
            let signature = key.sign(&bytes_to_sign(&bytes)).to_bytes().to_vec();
            let identity = IdentityKey(key.verifying_key().to_bytes());
            let _ = SignedRecord { record: bytes, key: identity, signature }.verify(&[identity]);
        }
    }
}
