//! The export side of sync: HTTP/2 over a peer's TLS connection, one conversation a request.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use api::ClusterId;
use api::keys::IdentityKey;
use controller_core::conversation::{ExportHeard, ExportSide};
use controller_core::engine::Taken;
use controller_core::message::Message as Said;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast;

use crate::body::{Messages, Outgoing, SYNC_PATH, Sender, outgoing};
use crate::connections::{Message, Shared, Told};

/// Conversations on one connection: one is had, the next may begin before the first is known to have ended.
const MAX_CONVERSATIONS: u32 = 2;
/// A connection whose other end is gone is noticed by this.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How often a conversation looks at its clock.
const TICK: Duration = Duration::from_millis(500);

/// Serves a peer's connection until it ends.
pub(crate) async fn serve<S>(stream: S, (peer, key): (ClusterId, IdentityKey), shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stop = shared.stop.clone();
    let for_requests = (peer.clone(), shared);
    let service = service_fn(move |request: Request<Incoming>| {
        let (peer, shared) = for_requests.clone();
        async move { Ok::<_, Infallible>(answer(request, (peer, key), &shared)) }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_CONVERSATIONS)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        result = connection => if let Err(error) = result {
            tracing::debug!(%peer, %error, "a peer's connection ended");
        },
        () = stop.cancelled() => {}
    }
}

fn answer(
    request: Request<Incoming>,
    (peer, key): (ClusterId, IdentityKey),
    shared: &Arc<Shared>,
) -> Response<Outgoing> {
    let (sender, body) = outgoing();
    let mut response = Response::new(body);
    if request.method() != Method::POST || request.uri().path() != SYNC_PATH {
        *response.status_mut() = StatusCode::NOT_FOUND;
        shared.refusals.count("UnknownRequest", peer.as_str(), request.uri().path());
        return response;
    }
    let shared = shared.clone();
    shared.tasks.clone().spawn(async move {
        let reason = converse(Messages::new(request.into_body()), &sender, (&peer, &key), &shared).await;
        told_taken(&shared, &peer, None);
        // The peer may be gone; then nobody needs to know why.
        let _ = sender.send(&Said::Refuse { reason: reason.clone() }).await;
        tracing::info!(%peer, reason, "stopped telling a peer what this cluster exports");
    });
    response
}

/// Tells the owner what the peer has taken of what we say. Where two conversations are had, the next heartbeat corrects it.
fn told_taken(shared: &Shared, peer: &ClusterId, taken: Option<Taken>) {
    let _ = shared.inbox.send(Message::Taken { peer: peer.clone(), taken });
}

/// Talks until something ends it; why.
async fn converse(
    mut messages: Messages,
    sender: &Sender,
    (peer, key): (&ClusterId, &IdentityKey),
    shared: &Shared,
) -> String {
    let mut side = ExportSide::new(shared.epoch.clone(), clock::now());
    let mut told: Option<broadcast::Receiver<Told>> = None;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if let Some(token) = side.wants_resumption() {
            let (token, peer) = (token.cloned(), peer.clone());
            let start = shared.ask(|reply| Message::Resume { peer, token, reply }).await.flatten();
            let Some(start) = start else { return "the gateways' keys are not made yet: ask again later".into() };
            side.answer(start.resumption, &start.record);
            side.pass_on(start.pass_on);
            told = Some(start.told);
        }
        loop {
            match side.next_message(clock::now()) {
                Ok(Some(message)) => {
                    if let Err(reason) = sender.send(&message).await {
                        return reason;
                    }
                }
                Ok(None) => break,
                Err(ended) => return ended.to_string(),
            }
        }
        if side.wants_resumption().is_some() {
            continue;
        }
        let next_told = async {
            match &mut told {
                Some(told) => told.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = messages.next() => match message {
                Some(Ok(message)) => match side.receive(message, clock::now()) {
                    Ok(ExportHeard::Asked { record }) => {
                        tracing::info!(%peer, "a peer asks what this cluster exports");
                        let _ = shared.inbox.send(Message::Record { from: peer.clone(), signed: record });
                        told_taken(shared, peer, Some(Taken::default()));
                    }
                    Ok(ExportHeard::Remembered(exports)) => {
                        let _ = shared.inbox.send(Message::Remembered { from: peer.clone(), exports });
                    }
                    Ok(ExportHeard::Trusts(identities)) => {
                        let _ = shared.inbox.send(Message::Trusts { peer: peer.clone(), identities });
                    }
                    Ok(ExportHeard::Alive { holding, record }) => {
                        told_taken(shared, peer, Some(Taken { holding, record }));
                    }
                    Err(ended) => {
                        shared.refusals.count(ended.name(), peer.as_str(), "");
                        return ended.to_string();
                    }
                },
                Some(Err(broken)) => {
                    let reason = broken.to_string();
                    if let Some(refusal) = broken.refusal() {
                        shared.refusals.count(refusal, peer.as_str(), &reason);
                    }
                    return reason;
                }
                None => return "the peer ended the conversation".into(),
            },
            told = next_told => match told {
                Ok(Told::Batch(batch)) => side.changed(batch),
                Ok(Told::Records(records)) => side.pass_on(records),
                Err(broadcast::error::RecvError::Lagged(_)) => side.missed(),
                Err(broadcast::error::RecvError::Closed) => return "the controller stops".into(),
            },
            _ = tick.tick() => if !shared.speaks_for(key, peer) {
                return "this cluster is not a peer any more, or not by that identity".into();
            },
            () = shared.stop.cancelled() => return "the controller stops".into(),
        }
    }
}
