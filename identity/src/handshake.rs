//! Handshakes over any transport, with a limit in time and refusals by name.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use api::keys::IdentityKey;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, OtherError, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::tls::UntrustedKey;
use crate::{Error, TlsStream, peer_key};

/// How long a handshake may take. Two round trips across the world take half a second; a stranger who opens a
/// connection and says nothing should not hold it for long.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Who is at the other end, and what was agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The key the other end proved to own.
    pub key: IdentityKey,
    /// The protocol both speak (ALPN, RFC 7301); empty where none was configured.
    pub protocol: Vec<u8>,
}

/// The server's half of a handshake over `transport`. Any client key passes: decide by [`Peer::key`].
pub async fn accept<IO>(
    transport: IO,
    config: &Arc<ServerConfig>,
    limit: Duration,
) -> Result<(TlsStream<IO>, Peer), Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let wanted = !config.alpn_protocols.is_empty();
    let shaken = TlsAcceptor::from(Arc::clone(config)).accept(transport);
    let stream = within(limit, shaken).await?.into();
    agreed(stream, wanted)
}

/// The client's half of a handshake over `transport`. The server proved one of the keys `config` expects.
pub async fn connect<IO>(
    transport: IO,
    config: &Arc<ClientConfig>,
    limit: Duration,
) -> Result<(TlsStream<IO>, Peer), Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let wanted = !config.alpn_protocols.is_empty();
    // Asked for by the library, sent to nobody: the key is the name.
    let name = ServerName::try_from("tombolo").map_err(|error| Error::Handshake(error.to_string()))?;
    let shaken = TlsConnector::from(Arc::clone(config)).connect(name, transport);
    let stream = within(limit, shaken).await?.into();
    agreed(stream, wanted)
}

/// 32 bytes that both ends of this one connection know and nobody else (RFC 8446, section 7.5).
pub fn exporter<IO>(stream: &TlsStream<IO>, label: &[u8]) -> Result<[u8; 32], Error> {
    let bytes = [0; 32];
    match stream {
        TlsStream::Client(stream) => stream.get_ref().1.export_keying_material(bytes, label, None),
        TlsStream::Server(stream) => stream.get_ref().1.export_keying_material(bytes, label, None),
    }
    .map_err(|error| Error::Handshake(error.to_string()))
}

async fn within<T>(limit: Duration, handshake: impl Future<Output = std::io::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(limit, handshake).await {
        Err(_) => Err(Error::TimedOut(limit)),
        Ok(result) => result.map_err(|error| named(&error)),
    }
}

fn agreed<IO>(stream: TlsStream<IO>, protocol_wanted: bool) -> Result<(TlsStream<IO>, Peer), Error> {
    let connection = stream.get_ref().1;
    let key = peer_key(connection).ok_or(Error::NoIdentity)?;
    let protocol = connection.alpn_protocol().map(<[u8]>::to_vec).unwrap_or_default();
    if protocol_wanted && protocol.is_empty() {
        return Err(Error::NoCommonProtocol);
    }
    Ok((stream, Peer { key, protocol }))
}

/// What an operator should hear of a failed handshake.
fn named(error: &std::io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other)))) => {
            match other.downcast_ref::<UntrustedKey>() {
                Some(UntrustedKey(got)) => Error::UntrustedIdentity { got: *got },
                None => Error::Handshake(error.to_string()),
            }
        }
        Some(
            rustls::Error::InvalidCertificate(CertificateError::BadEncoding)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::PeerIncompatible(
                rustls::PeerIncompatible::IncorrectCertificateTypeExtension
                | rustls::PeerIncompatible::UnsolicitedCertificateTypeExtension,
            ),
        ) => Error::NoIdentity,
        Some(
            rustls::Error::PeerIncompatible(
                rustls::PeerIncompatible::Tls12NotOfferedOrEnabled
                | rustls::PeerIncompatible::SupportedVersionsExtensionRequired
                | rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13,
            )
            | rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion),
        ) => Error::OlderTls,
        Some(rustls::Error::NoApplicationProtocol)
        | Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)) => {
            Error::NoCommonProtocol
        }
        _ => Error::Handshake(error.to_string()),
    }
}
