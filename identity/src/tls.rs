//! TLS 1.3 with raw public keys (RFC 7250) and nothing else: no certificates, no resumption, no older version.
//!
//! Resumption is off because a resumed session proves that a key was trusted once, not that it still is.

use std::sync::Arc;

use api::keys::IdentityKey;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, OtherError, PeerMisbehaved,
    ServerConfig, SignatureScheme,
};

use crate::{Error, Identity};

/// What stands before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A listener's configuration: the client must prove a key, and TLS accepts any. The caller decides by
/// [`peer_key`] what that key may do.
///
/// `alpn` lists the protocols (RFC 7301) in order of preference.
pub fn server_config(identity: &Identity, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
    let provider = provider();
    let verifier = Arc::new(KeyVerifier { expected: None, algorithms: provider.signature_verification_algorithms });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::Unusable(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified_key(identity)?)));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A dialler's configuration: the server must prove one of the `expected` keys.
pub fn client_config(
    identity: &Identity,
    alpn: &[&[u8]],
    expected: impl IntoIterator<Item = IdentityKey>,
) -> Result<Arc<ClientConfig>, Error> {
    client_config_of(identity, alpn, Some(expected.into_iter().collect()))
}

/// A dialler's configuration: the server must prove a key, and TLS accepts any. The caller says nothing before it has
/// decided by [`Peer::key`](crate::Peer::key) whether to trust the server.
pub fn client_config_of_any(identity: &Identity, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
    client_config_of(identity, alpn, None)
}

fn client_config_of(
    identity: &Identity,
    alpn: &[&[u8]],
    expected: Option<Vec<IdentityKey>>,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier = Arc::new(KeyVerifier { expected, algorithms: provider.signature_verification_algorithms });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::Unusable(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified_key(identity)?)));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    // The key is the name; a server name would only tell listeners on the way who is called.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// The key the other end proved; `None` before the handshake is done.
pub fn peer_key(connection: &CommonState) -> Option<IdentityKey> {
    key_of(connection.peer_certificates()?.first()?)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certified_key(identity: &Identity) -> Result<Arc<CertifiedKey>, Error> {
    let pkcs8 = identity.pkcs8();
    let key = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))
        .map_err(|error| Error::Unusable(error.to_string()))?;
    let spki = [SPKI_HEAD.as_slice(), &identity.public().0].concat();
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key)))
}

/// The Ed25519 key in a SubjectPublicKeyInfo.
///
/// Keys of small order are none: anybody can make signatures that fit them.
pub(crate) fn key_of(spki: &[u8]) -> Option<IdentityKey> {
    let bytes: [u8; 32] = spki.strip_prefix(&SPKI_HEAD)?.try_into().ok()?;
    let key = ed25519_dalek::VerifyingKey::from_bytes(&bytes).ok()?;
    (!key.is_weak()).then_some(IdentityKey(bytes))
}

/// The other end's key is not among the expected ones.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not among the trusted identities")]
pub(crate) struct UntrustedKey(pub(crate) IdentityKey);

/// Checks that the other end owns an Ed25519 key, and where `expected` is set, that it is one of those.
#[derive(Debug)]
struct KeyVerifier {
    expected: Option<Vec<IdentityKey>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl KeyVerifier {
    fn check(&self, spki: &[u8]) -> Result<(), rustls::Error> {
        let key = key_of(spki).ok_or(CertificateError::BadEncoding)?;
        match &self.expected {
            Some(expected) if !expected.contains(&key) => {
                Err(CertificateError::Other(OtherError(Arc::new(UntrustedKey(key)))).into())
            }
            _ => Ok(()),
        }
    }
}

/// What rustls asks of the verifiers of both ends in the same words, by two traits.
macro_rules! raw_ed25519_over_tls13 {
    () => {
        /// Never reached: no configuration here offers TLS 1.2.
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(PeerMisbehaved::SelectedUnofferedCipherSuite.into())
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let spki = SubjectPublicKeyInfoDer::from(cert.as_ref());
            verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms)
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }
    raw_ed25519_over_tls13!();
}

impl ClientCertVerifier for KeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }
    raw_ed25519_over_tls13!();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_of_small_order_is_no_identity() {
        let neutral = {
            let mut point = [0; 32];
            point[0] = 1;
            point
        };
        assert_eq!(key_of(&[SPKI_HEAD.as_slice(), &neutral].concat()), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_key_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60), tail in any::<[u8; 32]>()) {
            let _ = key_of(&bytes);
            let _ = key_of(&[SPKI_HEAD.as_slice(), &tail].concat());
        }
    }
}
