//! A cluster's Ed25519 identity: its key file, its signatures, its TLS.
//!
//! One key does two things: it signs the cluster's member record, and it is the key of every TLS connection (raw
//! public keys, RFC 7250), so nothing here expires and nothing here needs a clock. Agents on plain hosts have an
//! identity of their own in the same kind of file.
//!
//! | to | call |
//! |---|---|
//! | have an identity | [`Identity::load_or_create`] |
//! | sign | [`Identity::sign_record`], [`Identity::succeeded_by`] |
//! | listen | [`server_config`], [`accept`] |
//! | dial | [`client_config`], [`client_config_of_any`], [`connect`] |
//! | know who is at the other end | [`Peer::key`], [`peer_key`] |

mod handshake;
mod key_file;
mod tls;

use api::ClusterId;
use api::keys::IdentityKey;
use api::member_record::{MemberRecord, SignedRecord, bytes_to_sign};
use api::succession::{Succession, succession_to_sign};
use ed25519_dalek::{Signer, SigningKey};

pub use handshake::{HANDSHAKE_LIMIT, Peer, accept, connect, exporter};
pub use tls::{client_config, client_config_of_any, peer_key, server_config};

/// What a TLS stream is here: either end, over any transport.
pub type TlsStream<IO> = tokio_rustls::TlsStream<IO>;

/// Why an identity or a connection is refused, in words an operator can act on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {detail}")]
    KeyFile { path: String, detail: String },
    #[error("this identity's key cannot be used for TLS: {0}")]
    Unusable(String),
    /// The other end proved a key, but not one that was asked for.
    #[error(
        "the other end is {got}, which is not among the trusted identities: check the address, or trust its new identity"
    )]
    UntrustedIdentity { got: IdentityKey },
    #[error("the other end shows no Ed25519 key: it does not speak Tombolo's protocol (raw public keys, RFC 7250)")]
    NoIdentity,
    #[error(
        "the other end speaks none of our protocols: its Tombolo is of another version, or this port is not meant for it"
    )]
    NoCommonProtocol,
    #[error("the other end offers TLS 1.2 or older; only TLS 1.3 is spoken here")]
    OlderTls,
    #[error("no TLS handshake within {0:?}: the other end is overloaded, or does not speak TLS")]
    TimedOut(std::time::Duration),
    #[error("TLS handshake failed: {0}")]
    Handshake(String),
}

/// An Ed25519 private key and what may be done with it. The key never leaves this crate and is wiped when dropped.
pub struct Identity {
    key: SigningKey,
}

impl Identity {
    /// The public half, as others know this identity.
    pub fn public(&self) -> IdentityKey {
        IdentityKey(self.key.verifying_key().to_bytes())
    }

    /// The record's bytes as they will travel, and this identity's signature over them.
    pub fn sign_record(&self, record: &MemberRecord) -> SignedRecord {
        // Strings, numbers and lists only, with string keys: serialisation cannot fail.
        let bytes = serde_json::to_vec(record).unwrap_or_default();
        let signature = self.key.sign(&bytes_to_sign(&bytes)).to_bytes().to_vec();
        SignedRecord { record: bytes, key: self.public(), signature }
    }
}

impl Identity {
    /// Says that `next` comes after this identity in `cluster`, signed by both.
    pub fn succeeded_by(&self, next: &Self, cluster: &ClusterId) -> Succession {
        let (from, to) = (self.public(), next.public());
        let bytes = succession_to_sign(cluster, &from, &to);
        let sign = |identity: &Self| identity.key.sign(&bytes).to_bytes().to_vec();
        Succession { cluster: cluster.clone(), from, to, named: sign(self), accepted: sign(next) }
    }
}

impl std::fmt::Debug for Identity {
    /// The public half alone: a private key must not reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.public())
    }
}
