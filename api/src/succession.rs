//! [`Succession`]: one identity of a cluster names the one that comes after it.
//!
//! A member record carries every succession of its cluster, so whoever trusts any of the identities on the way can
//! follow them to the one that signed the record, whoever passed it on.
//!
//! | signed by | closes |
//! |---|---|
//! | the identity that goes | anybody else naming a successor |
//! | the identity that comes | a cluster naming another one's key as its own, and so being taken for that one |
//! | over the cluster's id | a succession of one cluster being shown as another's |

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::ClusterId;
use crate::keys::IdentityKey;
use crate::member_record::base64_bytes;

/// As many as a record may carry, the newest: a change every month for more than two years. Each takes some 350 bytes of the
/// record's 32 KiB, and two signatures to check.
pub const MAX_SUCCESSIONS: usize = 32;

/// Said before what is signed, so that a signature means this and nothing else.
const SIGNED_CONTEXT: &[u8] = b"tombolo identity succession v1\0";

/// One step from an identity to the next one of the same cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Succession {
    pub cluster: ClusterId,
    pub from: IdentityKey,
    pub to: IdentityKey,
    /// By `from`: it wants `to` after itself.
    #[serde(with = "base64_bytes")]
    pub named: Vec<u8>,
    /// By `to`: it is there, and of the same cluster.
    #[serde(with = "base64_bytes")]
    pub accepted: Vec<u8>,
}

/// The bytes that both identities sign.
pub fn succession_to_sign(cluster: &ClusterId, from: &IdentityKey, to: &IdentityKey) -> Vec<u8> {
    // The keys have a fixed length, so no two clusters give the same bytes.
    [SIGNED_CONTEXT, &from.0, &to.0, cluster.as_str().as_bytes()].concat()
}

impl Succession {
    /// Whether both identities signed it for this cluster.
    pub fn is_valid(&self, cluster: &ClusterId) -> bool {
        let bytes = succession_to_sign(cluster, &self.from, &self.to);
        self.cluster == *cluster
            && self.from != self.to
            && signed(&self.from, &bytes, &self.named)
            && signed(&self.to, &bytes, &self.accepted)
    }
}

fn signed(key: &IdentityKey, bytes: &[u8], signature: &[u8]) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(&key.0) else { return false };
    Signature::from_slice(signature).is_ok_and(|signature| key.verify_strict(bytes, &signature).is_ok())
}

/// The identities that can be reached from `trusted`, these among them. Successions are in the order they happened.
///
/// A succession that is not valid leads nowhere; one that begins at nobody's costs no signature check.
pub fn reached(trusted: &[IdentityKey], successions: &[Succession], cluster: &ClusterId) -> BTreeSet<IdentityKey> {
    let mut reached: BTreeSet<IdentityKey> = trusted.iter().copied().collect();
    for succession in successions.iter().take(MAX_SUCCESSIONS) {
        if reached.contains(&succession.from) && !reached.contains(&succession.to) && succession.is_valid(cluster) {
            reached.insert(succession.to);
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> (SigningKey, IdentityKey) {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let identity = IdentityKey(key.verifying_key().to_bytes());
        (key, identity)
    }

    fn succession(cluster: &ClusterId, from: u8, to: u8) -> Succession {
        let (from, to) = (key(from), key(to));
        let bytes = succession_to_sign(cluster, &from.1, &to.1);
        let sign = |key: &SigningKey| key.sign(&bytes).to_bytes().to_vec();
        Succession { cluster: cluster.clone(), from: from.1, to: to.1, named: sign(&from.0), accepted: sign(&to.0) }
    }

    fn birch() -> ClusterId {
        ClusterId::new("birch").unwrap()
    }

    #[test]
    fn successions_are_followed_from_any_identity_on_the_way_and_only_forwards() {
        let all = [succession(&birch(), 1, 2), succession(&birch(), 2, 3)];
        let from = |seed: u8| reached(&[key(seed).1], &all, &birch());
        assert_eq!(from(1), [key(1).1, key(2).1, key(3).1].into());
        assert_eq!(from(2), [key(2).1, key(3).1].into());
        assert_eq!(from(3), [key(3).1].into());
        assert_eq!(from(9), [key(9).1].into());
    }

    #[test]
    fn a_succession_leads_nowhere_without_both_signatures_or_in_another_cluster() {
        let good = succession(&birch(), 1, 2);
        assert!(good.is_valid(&birch()));
        let cedar = ClusterId::new("cedar").unwrap();
        assert!(!good.is_valid(&cedar));
        assert!(!Succession { cluster: cedar.clone(), ..good.clone() }.is_valid(&cedar));
        // The key that is named did not agree; the key that goes did not; both are one.
        let unwilling = Succession { accepted: good.named.clone(), ..good.clone() };
        let usurped = Succession { named: good.accepted.clone(), ..good };
        for bad in [unwilling, usurped, succession(&birch(), 1, 1)] {
            assert!(!bad.is_valid(&birch()));
            assert_eq!(reached(&[key(1).1], &[bad], &birch()), [key(1).1].into());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_succession_valid(named in proptest::collection::vec(any::<u8>(), 0..80), accepted in any::<[u8; 64]>()) {
            let forged = Succession { cluster: birch(), from: key(1).1, to: key(2).1, named, accepted: accepted.to_vec() };
            prop_assert!(!forged.is_valid(&birch()));
        }
    }
}
