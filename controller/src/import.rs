//! The import side of sync: over a way that a gateway offers, this side is the TLS and HTTP/2 client of the peer's
//! controller (decision 13).
//!
//! Several gateways may offer a way to one peer. One is used; the others wait with their connection open and take over
//! at once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::ClusterId;
use api::keys::IdentityKey;
use controller_core::conversation::{Ended, ImportHeard, ImportSide};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::body::{Messages, Outgoing, SYNC_PATH, outgoing};
use crate::connections::{Message, Next, Shared, Turn};
use crate::listener::SYNC_PROTOCOL;

/// How often a conversation looks at its clock.
const TICK: Duration = Duration::from_millis(500);
/// How long the answer to the request may take.
const RESPONSE_LIMIT: Duration = Duration::from_secs(5);
/// A connection whose other end is gone is noticed by this, also while it waits for its turn.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// A gateway offers a way to a peer's controller.
pub(crate) async fn offered<S>(stream: S, peer: ClusterId, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let turn = shared.turns.of(&peer);
    let Ok(_place) = turn.open.try_acquire() else {
        shared.refusals.count("TooManyImports", peer.as_str(), "");
        return;
    };
    tokio::select! {
        result = import(stream, &peer, &shared, &turn) => if let Err(error) = result {
            let reason = format!("{error:#}");
            tracing::info!(%peer, reason, "an import ended");
        },
        () = shared.stop.cancelled() => {}
    }
}

async fn import<S>(stream: S, peer: &ClusterId, shared: &Arc<Shared>, turn: &Turn) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Some(keys) = shared.roster.borrow().get(peer).cloned() else {
        shared.refusals.count("UnknownPeer", peer.as_str(), "");
        bail!("there is no ClusterPeer {peer} that may be talked to");
    };
    let config = identity::client_config(&shared.keys.shown().identity, &[SYNC_PROTOCOL], keys)?;
    let (tls, other) = match identity::connect(stream, &config, identity::HANDSHAKE_LIMIT).await {
        Ok(connected) => connected,
        Err(error) => {
            if matches!(error, identity::Error::UntrustedIdentity { .. }) {
                shared.refusals.count("UnknownIdentity", peer.as_str(), &error.to_string());
                let reason = format!(
                    "{error}; it replaced its identity while this cluster was away, or is another: compare, and put what 'tombolo peers export' prints there into this cluster"
                );
                // While another gateway's way leads to the peer, that one says how it goes.
                if turn.current.available_permits() > 0 {
                    let _ = shared.inbox.send(Message::ImportEnded { peer: peer.clone(), reason });
                }
            }
            return Err(error.into());
        }
    };
    let (mut requests, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .handshake::<_, Outgoing>(TokioIo::new(tls))
        .await?;
    // Ends with its last request sender, or when the other end is gone.
    let mut connection = tokio::spawn(connection);
    let _turn = tokio::select! {
        turn = turn.current.acquire() => turn?,
        _ = &mut connection => return Ok(()),
    };
    let talk = async {
        let peer_id = peer.clone();
        let start = shared.ask(|reply| Message::ImportStart { peer: peer_id, reply }).await.flatten();
        let start = start.context("this cluster has no record of its own yet")?;
        let mut side = ImportSide::new(start.token, start.record, shared.bounds, clock::now());
        let (sender, body) = outgoing();
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = format!("http://{peer}{SYNC_PATH}").parse()?;
        let response = tokio::time::timeout(RESPONSE_LIMIT, requests.send_request(request))
            .await
            .context("the peer's controller did not answer in time")??;
        if response.status() != StatusCode::OK {
            bail!("the peer's controller answered {}", response.status());
        }
        converse(&mut side, Messages::new(response.into_body()), &sender, (peer, &other.key), shared, turn).await
    };
    let result = talk.await;
    connection.abort();
    let reason = result.as_ref().map_or_else(|error| format!("{error:#}"), |()| "it ended".to_owned());
    let _ = shared.inbox.send(Message::ImportEnded { peer: peer.clone(), reason });
    result
}

async fn converse(
    side: &mut ImportSide,
    mut messages: Messages,
    sender: &crate::body::Sender,
    (peer, key): (&ClusterId, &IdentityKey),
    shared: &Shared,
    turn: &Turn,
) -> Result<()> {
    let mut tick = tokio::time::interval(TICK);
    // Ticks that were missed are no looks at the clock.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut roster = shared.roster.clone();
    roster.mark_changed();
    let mut trusted = Vec::new();
    loop {
        side.set_record(shared.records.borrow().get(peer).copied());
        while let Some(message) = side.next_message(clock::now())? {
            sender.send(&message).await.map_err(anyhow::Error::msg)?;
        }
        if let Some(pause) = side.pause(clock::now()) {
            tokio::time::sleep(pause).await;
            continue;
        }
        tokio::select! {
            message = messages.next() => {
                match message {
                    Some(Ok(message)) => {
                        let bytes = std::mem::take(&mut messages.bytes);
                        take(side, message, bytes, peer, shared).await?;
                    }
                    Some(Err(broken)) => {
                        if let Some(refusal) = broken.refusal() {
                            shared.refusals.count(refusal, peer.as_str(), &broken.to_string());
                        }
                        return Err(broken.into());
                    }
                    None => bail!("the peer closed the conversation"),
                }
            }
            // It ends with the owner, and so does everything.
            Ok(()) = roster.changed() => {
                let keys = roster.borrow_and_update().get(peer).cloned().unwrap_or_default();
                if !keys.contains(key) {
                    bail!("{peer} is not a peer any more, or not by identity {}", key.fingerprint());
                }
                if keys != trusted {
                    side.trust(keys.clone());
                    trusted = keys;
                }
            }
            _ = tick.tick() => {
                if side.is_overdue(clock::now()) && turn.somebody_waits() {
                    bail!("nothing was heard, and another connection waits");
                }
            }
        }
    }
}

async fn take(
    side: &mut ImportSide,
    message: controller_core::message::Message,
    bytes: u64,
    peer: &ClusterId,
    shared: &Shared,
) -> Result<()> {
    let heard = match side.receive(message, clock::now()) {
        Ok(heard) => heard,
        Err(ended) => {
            if !matches!(ended, Ended::Refused(_)) {
                shared.refusals.count(ended.name(), peer.as_str(), "");
            }
            return Err(ended.into());
        }
    };
    match heard {
        ImportHeard::Alive => {
            // Only how long ago: the owner need not answer.
            let (reply, _) = tokio::sync::oneshot::channel();
            let _ = shared.inbox.send(Message::Heard { peer: peer.clone(), heard: ImportHeard::Alive, bytes, reply });
        }
        ImportHeard::Records(records) => {
            for signed in records {
                let _ = shared.inbox.send(Message::Record { from: peer.clone(), signed });
            }
        }
        heard => {
            // Waiting for the owner slows down a peer that says more than can be taken.
            let peer_id = peer.clone();
            match shared.ask(|reply| Message::Heard { peer: peer_id, heard, bytes, reply }).await {
                Some(Next::GoOn) => {}
                Some(Next::Remember(exports)) => side.remember(&exports),
                Some(Next::BeginAnew) => {
                    shared.refusals.count("Astray", peer.as_str(), "");
                    bail!("what was heard is not what the peer says it holds: everything is asked for again");
                }
                None => bail!("the controller stops"),
            }
        }
    }
    Ok(())
}
