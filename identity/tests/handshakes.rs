//! What TLS with raw public keys promises, over an in-memory transport.

use std::sync::Arc;
use std::time::Duration;

use api::keys::IdentityKey;
use identity::{Error, HANDSHAKE_LIMIT, Identity, accept, client_config, connect, exporter, server_config};
use proptest::prelude::*;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

const ALPN: &[&[u8]] = &[b"tombolo-test/1"];

fn identity() -> Identity {
    Identity::generate().unwrap()
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is_and_talk() {
    let (server, client) = (identity(), identity());
    let (a, b) = duplex(4096);
    let server_config = server_config(&server, ALPN).unwrap();
    let client_config = client_config(&client, ALPN, [identity().public(), server.public()]).unwrap();
    let (accepted, connected) =
        tokio::join!(accept(a, &server_config, HANDSHAKE_LIMIT), connect(b, &client_config, HANDSHAKE_LIMIT));
    let (mut at_server, seen_by_server) = accepted.unwrap();
    let (mut at_client, seen_by_client) = connected.unwrap();
    assert_eq!(seen_by_server.key, client.public());
    assert_eq!(seen_by_client.key, server.public());
    assert_eq!(seen_by_server.protocol, ALPN[0]);
    assert_eq!(exporter(&at_server, b"test").unwrap(), exporter(&at_client, b"test").unwrap());

    at_client.write_all(b"ping").await.unwrap();
    at_client.flush().await.unwrap();
    let mut heard = [0; 4];
    at_server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"ping");
}

#[tokio::test]
async fn a_server_with_another_key_is_refused_by_name() {
    let (server, client, expected) = (identity(), identity(), identity());
    let (a, b) = duplex(4096);
    let server_config = server_config(&server, ALPN).unwrap();
    let client_config = client_config(&client, ALPN, [expected.public()]).unwrap();
    let (accepted, connected) =
        tokio::join!(accept(a, &server_config, HANDSHAKE_LIMIT), connect(b, &client_config, HANDSHAKE_LIMIT));
    assert!(accepted.is_err());
    let Err(Error::UntrustedIdentity { got }) = connected.map(|_| ()) else { panic!("not refused by name") };
    assert_eq!(got, server.public());
}

#[tokio::test]
async fn ends_without_a_protocol_in_common_part() {
    let (server, client) = (identity(), identity());
    let server_config = server_config(&server, ALPN).unwrap();
    for offered in [&[b"other/1".as_slice()][..], &[]] {
        let (a, b) = duplex(4096);
        let client_config = client_config(&client, offered, [server.public()]).unwrap();
        let (accepted, _) =
            tokio::join!(accept(a, &server_config, HANDSHAKE_LIMIT), connect(b, &client_config, HANDSHAKE_LIMIT));
        assert!(matches!(accepted, Err(Error::NoCommonProtocol)), "{:?}", accepted.map(|_| ()));
    }
}

/// Accepts whatever a server shows, as a careless client would.
#[derive(Debug)]
struct Careless;

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

async fn refusal_of(versions: &[&'static rustls::SupportedProtocolVersion]) -> Error {
    let server_config = server_config(&identity(), &[]).unwrap();
    let stranger = Arc::new(
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Careless))
            .with_no_client_auth(),
    );
    let (a, b) = duplex(4096);
    let (accepted, _) =
        tokio::join!(accept(a, &server_config, HANDSHAKE_LIMIT), connect(b, &stranger, HANDSHAKE_LIMIT));
    accepted.map(|_| ()).unwrap_err()
}

#[tokio::test]
async fn tls_1_2_is_refused_by_name() {
    let refusal = refusal_of(&[&rustls::version::TLS12]).await;
    assert!(matches!(refusal, Error::OlderTls), "{refusal}");
}

#[tokio::test]
async fn a_client_without_a_raw_key_is_refused_by_name() {
    let refusal = refusal_of(&[&rustls::version::TLS13]).await;
    assert!(matches!(refusal, Error::NoIdentity), "{refusal}");
}

#[tokio::test]
async fn a_silent_client_is_let_go_after_the_limit() {
    let server_config = server_config(&identity(), ALPN).unwrap();
    let (a, b) = duplex(4096);
    let refusal = accept(a, &server_config, Duration::from_millis(20)).await.map(|_| ()).unwrap_err();
    assert!(matches!(refusal, Error::TimedOut(_)), "{refusal}");
    drop(b);
}

fn refused_after(bytes: &[u8]) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let server_config = server_config(&identity(), ALPN).unwrap();
        let (a, mut b) = duplex(64 * 1024);
        b.write_all(bytes).await.unwrap();
        b.shutdown().await.unwrap();
        accept(a, &server_config, HANDSHAKE_LIMIT).await.is_err()
    })
}

/// A real ClientHello as this crate sends it.
fn hello() -> Vec<u8> {
    let config = client_config(&identity(), ALPN, [IdentityKey([0; 32])]).unwrap();
    let mut connection = rustls::ClientConnection::new(config, ServerName::try_from("tombolo").unwrap()).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_truncated_hello_is_refused(cut in 0..200usize) {
        let hello = hello();
        prop_assert!(refused_after(&hello[..cut.min(hello.len() - 1)]));
    }

    #[test]
    fn a_garbled_hello_is_refused(at in 0..200usize, flip in 1..=255u8, garbage in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut hello = hello();
        let at = at % hello.len();
        hello[at] ^= flip;
        prop_assert!(refused_after(&hello));
        prop_assert!(refused_after(&garbage));
    }
}
