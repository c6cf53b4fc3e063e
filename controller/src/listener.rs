//! Where connections come in: agents, peers, and gateways that offer a way to a peer. Their first byte tells which.
//!
//! | first bytes | who | what follows |
//! |---|---|---|
//! | `0x16` (a TLS handshake) | an agent, or a peer through the gateways | TLS; its protocol (ALPN) says `tombolo-feed/1` or `h2` |
//! | `TOMBOLO IMPORT <cluster>\n` | a gateway of ours | this side is the TLS client of that cluster's controller |
//!
//! The preamble proves nothing and needs to prove nothing: TLS asks the other end for the peer's identity.

use std::io::Cursor;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use api::ClusterId;
use store::feed;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::connections::Shared;
use crate::{export, import};

/// The protocol of sync in TLS (ALPN, RFC 7301): HTTP/2 (RFC 9113).
pub(crate) const SYNC_PROTOCOL: &[u8] = b"h2";

/// Connections at once: every agent of the largest cluster, and peers.
const MAX_CONNECTIONS: usize = 20_480;
/// How long a connection may take to say what it is.
const FIRST_WORD_LIMIT: Duration = Duration::from_secs(5);
/// A TLS record of a handshake begins with this (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// A cluster id has at most 63 characters.
const MAX_PREAMBLE: usize = "TOMBOLO IMPORT \n".len() + 63;

pub(crate) async fn bind(listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}: is another controller running, or the address not this host's?")
    })
}

/// A unix socket that its owner's processes alone may use. What an earlier process left is removed.
pub(crate) fn bind_unix(path: &Path) -> Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Takes connections until the controller stops.
pub(crate) async fn listen(tcp: TcpListener, unix: Option<UnixListener>, shared: Arc<Shared>) -> Result<()> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let unix_accept = async {
            match &unix {
                Some(unix) => unix.accept().await,
                None => std::future::pending().await,
            }
        };
        let place = || places.clone().try_acquire_owned();
        tokio::select! {
            () = shared.stop.cancelled() => return Ok(()),
            accepted = tcp.accept() => match accepted {
                Ok((stream, from)) => {
                    let Ok(place) = place() else { shared.refusals.count("TooManyConnections", "", &from.to_string()); continue };
                    if let Err(error) = prepare(&stream) {
                        tracing::debug!(%from, %error, "a connection broke at once");
                        continue;
                    }
                    let shared = shared.clone();
                    shared.tasks.clone().spawn(async move {
                        take(stream, from.to_string(), shared).await;
                        drop(place);
                    });
                }
                Err(error) => breathe(&error).await,
            },
            accepted = unix_accept => match accepted {
                Ok((stream, _)) => {
                    let Ok(place) = place() else { shared.refusals.count("TooManyConnections", "", "unix"); continue };
                    let shared = shared.clone();
                    shared.tasks.clone().spawn(async move {
                        take(stream, "unix".into(), shared).await;
                        drop(place);
                    });
                }
                Err(error) => breathe(&error).await,
            },
        }
    }
}

/// Out of file descriptors, for example: going round at once would only burn a core.
async fn breathe(error: &std::io::Error) {
    tracing::warn!(%error, "cannot take a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn prepare(stream: &tokio::net::TcpStream) -> std::io::Result<()> {
    // Changes are small and must not wait for each other.
    stream.set_nodelay(true)
}

async fn take<S>(mut stream: S, from: String, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let first_word = tokio::select! {
        word = tokio::time::timeout(FIRST_WORD_LIMIT, first_word(&mut stream)) => word,
        () = shared.stop.cancelled() => return,
    };
    match first_word {
        Ok(Ok(FirstWord::Tls)) => {
            let (reader, writer) = tokio::io::split(stream);
            let whole = tokio::io::join(Cursor::new([TLS_HANDSHAKE]).chain(reader), writer);
            take_tls(whole, from, shared).await;
        }
        Ok(Ok(FirstWord::Import(peer))) => import::offered(stream, peer, shared).await,
        Ok(Ok(FirstWord::Unknown)) => shared.refusals.count("UnknownProtocol", "", &from),
        // Gateways and probes of liveness may open a connection and leave.
        Ok(Err(_)) => {}
        Err(_) => shared.refusals.count("SaidNothing", "", &from),
    }
}

enum FirstWord {
    Tls,
    Import(ClusterId),
    Unknown,
}

async fn first_word<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<FirstWord> {
    let first = stream.read_u8().await?;
    if first == TLS_HANDSHAKE {
        return Ok(FirstWord::Tls);
    }
    let mut line = vec![first];
    while line.len() < MAX_PREAMBLE && line.last() != Some(&b'\n') {
        line.push(stream.read_u8().await?);
    }
    let peer =
        std::str::from_utf8(&line).ok().and_then(|line| line.strip_suffix('\n')?.strip_prefix("TOMBOLO IMPORT "));
    Ok(peer.and_then(|peer| ClusterId::new(peer).ok()).map_or(FirstWord::Unknown, FirstWord::Import))
}

async fn take_tls<S>(stream: S, from: String, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (stream, other) = match identity::accept(stream, &shared.keys.shown().tls, identity::HANDSHAKE_LIMIT).await {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::debug!(from, %error, "no TLS connection");
            shared.refusals.count("HandshakeFailed", "", &from);
            return;
        }
    };
    if other.protocol == feed::PROTOCOL {
        let served = tokio::select! {
            served = shared.feed.serve(stream) => served,
            () = shared.stop.cancelled() => Ok(()),
        };
        if let Err(refusal) = served {
            tracing::warn!(from, %refusal, "an agent was turned away");
            shared.refusals.count(refusal.name(), "", &from);
        }
        return;
    }
    match shared.peer_of(&other.key) {
        Some(peer) => export::serve(stream, (peer, other.key), shared).await,
        None => {
            tracing::warn!(from, identity = %other.key.fingerprint(), "a stranger asked what this cluster exports");
            shared.refusals.count("UnknownIdentity", "", &format!("{from} {}", other.key.fingerprint()));
        }
    }
}
