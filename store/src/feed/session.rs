//! [`Session`]: a controller's conversation with one agent whose seat is given.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connection::next_message;
use super::digest::Digest;
use super::frame::Decoder;
use super::message::{Answer, Failure, KindSaid, Request, ToAgent, ToController, decode, encode};
use super::requests::{Outcome, Requests};
use super::server::Server;
use super::window::{Behind, Change, Start, Window};
use super::{Agent, Refusal, SILENCE_LIMIT};
use crate::Store;
use crate::backend::KindName;

/// Bytes of objects put into one part: small enough that a ping is not held up by it.
const PART_BYTES: usize = 256 * 1024;

/// How far an agent is told of a kind.
enum Told {
    /// Nothing yet; it says that it has this much.
    Nothing(Option<Digest>),
    /// Every change before this one.
    Until(u64),
}

/// A kind an agent follows.
struct Watched {
    kind: KindName,
    window: Arc<Window>,
    told: Told,
}

/// One agent's conversation. One task reads, answers and tells, so that an answer to a write never comes before the
/// events of that write: who has written and then watches, sees what it wrote.
pub(super) struct Session {
    server: Server,
    requests: Requests,
    name: String,
    outbox: mpsc::Sender<Bytes>,
    watches: Vec<Watched>,
}

impl Session {
    pub(super) fn new(server: Server, store: &Store, agent: Agent, outbox: mpsc::Sender<Bytes>) -> Self {
        let name = agent.name.clone();
        let requests = Requests::new(server.clone(), Arc::clone(&store.backend), agent);
        Self { server, requests, name, outbox, watches: Vec::new() }
    }

    /// Until the agent hangs up, falls silent or breaks the protocol.
    pub(super) async fn run<R: AsyncRead + Unpin>(
        mut self,
        reader: &mut R,
        decoder: &mut Decoder,
    ) -> Result<(), Refusal> {
        self.say(&ToAgent::<()>::Welcome).await;
        let mut changed = self.server.windows().changed();
        let mut heard = Instant::now();
        loop {
            let message = tokio::select! {
                // What was said while this end was busy counts before its silence does.
                biased;
                message = next_message(reader, decoder) => message,
                // The sender lives as long as the server, which this session holds.
                Ok(()) = changed.changed() => {
                    self.tell().await;
                    continue;
                }
                () = tokio::time::sleep_until(heard + SILENCE_LIMIT) => return Ok(()),
            };
            let bytes = match message {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Ok(()),
                Err(error) => return Err(Refusal::BadMessage(error)),
            };
            match decode(&bytes).map_err(Refusal::BadMessage)? {
                ToController::Ping => {}
                ToController::Hello { .. } => return Err(Refusal::BadMessage("a second greeting".into())),
                ToController::Watch { kind, have } => self.watch(kind, have).await,
                // One at a time: who asks faster than the store answers, waits.
                ToController::Ask { id, request } => self.answer(id, request).await,
            }
            // The time an answer took is not the agent's silence.
            heard = Instant::now();
        }
    }

    async fn say<O: Serialize>(&self, message: &ToAgent<O>) {
        match encode(message) {
            // A closed outbox ends the session elsewhere.
            Ok(bytes) => drop(self.outbox.send(Bytes::from(bytes)).await),
            Err(error) => tracing::warn!(agent = self.name, %error, "an object cannot be sent: split it"),
        }
    }

    async fn watch(&mut self, said: KindSaid, have: Option<Digest>) {
        let kind = match self.requests.watchable(&said) {
            Ok(kind) => kind,
            Err(error) => {
                let failure = error.into();
                return self.say(&ToAgent::<()>::WatchRefused { kind: said, failure }).await;
            }
        };
        // Who asks again begins again.
        self.watches.retain(|watched| watched.kind != kind);
        let window = self.server.windows().of(kind);
        self.watches.push(Watched { kind, window, told: Told::Nothing(have) });
        self.tell().await;
    }

    /// Tells what there is to tell.
    async fn tell(&mut self) {
        let mut watches = std::mem::take(&mut self.watches);
        for watched in &mut watches {
            if let Told::Until(position) = watched.told {
                match watched.window.since(position) {
                    Ok((changes, next)) => {
                        self.tell_changes(watched.kind, changes).await;
                        watched.told = Told::Until(next);
                    }
                    // It takes less than changes: it is told everything when it has taken what it was told.
                    Err(Behind) => watched.told = Told::Nothing(None),
                }
            }
            if let Told::Nothing(have) = watched.told {
                let start = watched.window.start(have, |key| self.requests.may_see(watched.kind, key));
                // Before the store has said what there is, there is nothing to tell.
                let Some(start) = start else { continue };
                watched.told = Told::Until(self.begin(watched.kind, start).await);
            }
        }
        self.watches = watches;
    }

    /// Begins to tell of a kind; returns the number of the first change that was not told.
    async fn begin(&self, kind: KindName, start: Start) -> u64 {
        let said = KindSaid::of(kind);
        match start {
            Start::Resumed { changes, digest, next } => {
                self.tell_changes(kind, changes).await;
                self.say(&ToAgent::<()>::Resumed { kind: said, digest }).await;
                next
            }
            Start::Everything { objects, next } => {
                let part = |objects, last| ToAgent::Part { kind: said.clone(), objects, last };
                for part in parts(objects.iter().map(|object| &**object), part) {
                    self.say(&part).await;
                }
                next
            }
        }
    }

    async fn tell_changes(&self, kind: KindName, changes: Vec<Change>) {
        for change in changes.into_iter().filter(|change| self.requests.may_see(kind, &change.key)) {
            // A closed outbox ends the session elsewhere.
            drop(self.outbox.send(change.message).await);
        }
    }

    async fn answer(&mut self, id: u64, request: Request) {
        let answer = match self.requests.act(request).await {
            Ok(Outcome::Answer(answer)) => answer,
            Ok(Outcome::List(objects)) => {
                for part in parts(objects.iter(), |objects, last| ToAgent::ListPart { id, objects, last }) {
                    self.say(&part).await;
                }
                return;
            }
            Err(error) => Answer::Failed(Failure::from(error)),
        };
        self.watches.iter().for_each(|watched| watched.window.catch_up());
        self.tell().await;
        self.say(&ToAgent::<()>::Answer { id, answer }).await;
    }
}

/// Objects in parts of about [`PART_BYTES`]; at least one part, the last one marked.
fn parts<'o>(
    objects: impl Iterator<Item = &'o Value>,
    part: impl Fn(Vec<&'o Value>, bool) -> ToAgent<&'o Value>,
) -> Vec<ToAgent<&'o Value>> {
    let mut parts = Vec::new();
    let (mut current, mut size) = (Vec::new(), 0);
    for object in objects {
        let bytes = object.to_string().len();
        if size + bytes > PART_BYTES && !current.is_empty() {
            parts.push(part(std::mem::take(&mut current), false));
            size = 0;
        }
        size += bytes;
        current.push(object);
    }
    parts.push(part(current, true));
    parts
}
