//! [`Session`]: a controller's conversation with one agent whose seat is given.

use std::sync::Arc;
use std::task::Poll;

use serde_json::Value;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connection::next_message;
use super::frame::Decoder;
use super::message::{Answer, Failure, KindSaid, Request, ToAgent, ToController, decode, encode};
use super::requests::{Outcome, Requests};
use super::server::Server;
use super::{Agent, Refusal, SILENCE_LIMIT};
use crate::backend::{Backend, KindName};
use crate::manifest::Key;
use crate::watch::RawWatch;
use crate::{Event, Store};

/// Bytes of objects put into one part: small enough that a ping is not held up by it.
const PART_BYTES: usize = 256 * 1024;
/// A kind an agent follows.
struct Watched {
    kind: KindName,
    said: KindSaid,
    events: RawWatch,
}

/// One agent's conversation. One task reads, answers and tells, so that an answer to a write never comes before the
/// events of that write: who has written and then watches, sees what it wrote.
pub(super) struct Session {
    server: Server,
    backend: Arc<dyn Backend>,
    requests: Requests,
    name: String,
    outbox: mpsc::Sender<Vec<u8>>,
    watches: Vec<Watched>,
}

impl Session {
    pub(super) fn new(server: Server, store: &Store, agent: Agent, outbox: mpsc::Sender<Vec<u8>>) -> Self {
        let (backend, name) = (Arc::clone(&store.backend), agent.name.clone());
        let requests = Requests::new(server.clone(), Arc::clone(&backend), agent);
        Self { server, backend, requests, name, outbox, watches: Vec::new() }
    }

    /// Until the agent hangs up, falls silent or breaks the protocol.
    pub(super) async fn run<R: AsyncRead + Unpin>(
        mut self,
        reader: &mut R,
        decoder: &mut Decoder,
    ) -> Result<(), Refusal> {
        self.say(&ToAgent::Welcome).await;
        let mut heard = Instant::now();
        loop {
            let message = tokio::select! {
                // What was said while this end was busy counts before its silence does.
                biased;
                message = next_message(reader, decoder) => message,
                (kind, event) = next_event(&mut self.watches) => {
                    self.tell(kind, event).await;
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
                ToController::Watch(kind) => self.watch(kind).await,
                // One at a time: who asks faster than the store answers, waits.
                ToController::Ask { id, request } => self.answer(id, request).await,
            }
            // The time an answer took is not the agent's silence.
            heard = Instant::now();
        }
    }

    async fn say(&self, message: &ToAgent) {
        match encode(message) {
            // A closed outbox ends the session elsewhere.
            Ok(bytes) => drop(self.outbox.send(bytes).await),
            Err(error) => tracing::warn!(agent = self.name, %error, "an object cannot be sent: split it"),
        }
    }

    async fn watch(&mut self, said: KindSaid) {
        let kind = match self.requests.watchable(&said) {
            Ok(kind) => kind,
            Err(error) => return self.say(&ToAgent::WatchRefused { kind: said, failure: error.into() }).await,
        };
        if self.watches.iter().all(|watched| watched.kind != kind) {
            self.watches.push(Watched { kind, said, events: self.backend.watch(kind) });
        }
    }

    /// Tells the agent of one event, as far as it may see it.
    async fn tell(&self, said: KindSaid, event: Event<Value>) {
        let Some(kind) = said.known() else { return };
        let visible = |object: &Value| self.requests.may_see(kind, &Key::of(kind, object).object);
        if kind.kind == "Lease" {
            self.note_tenures(kind, &event);
        }
        match event {
            Event::Reset(objects) => {
                let objects = objects.into_iter().filter(visible).collect();
                for part in parts(objects, |objects, last| ToAgent::Part { kind: said.clone(), objects, last }) {
                    self.say(&part).await;
                }
            }
            Event::Applied(object) if visible(&object) => self.say(&ToAgent::Applied { kind: said, object }).await,
            Event::Deleted(object) if visible(&object) => self.say(&ToAgent::Deleted { kind: said, object }).await,
            _ => {}
        }
    }

    /// A gateway counts a Lease's time from when it hears of it, so it is never later noted here.
    fn note_tenures(&self, kind: KindName, event: &Event<Value>) {
        let (now, key) = (Instant::now(), |object| Key::of(kind, object).object);
        let mut tenures = self.server.tenures();
        match event {
            Event::Reset(leases) => {
                for lease in leases {
                    tenures.see(&key(lease), lease, now);
                }
            }
            Event::Applied(lease) => {
                tenures.see(&key(lease), lease, now);
            }
            Event::Deleted(lease) => tenures.forget(&key(lease)),
        }
    }

    /// Tells what there is to tell already.
    async fn tell_pending(&mut self) {
        while let Some((said, event)) =
            self.watches.iter_mut().find_map(|watched| Some((watched.said.clone(), watched.events.try_recv().ok()?)))
        {
            self.tell(said, event).await;
        }
    }

    async fn answer(&mut self, id: u64, request: Request) {
        let answer = match self.requests.act(request).await {
            Ok(Outcome::Answer(answer)) => answer,
            Ok(Outcome::List(objects)) => {
                for part in parts(objects, |objects, last| ToAgent::ListPart { id, objects, last }) {
                    self.say(&part).await;
                }
                return;
            }
            Err(error) => Answer::Failed(Failure::from(error)),
        };
        self.tell_pending().await;
        self.say(&ToAgent::Answer { id, answer }).await;
    }
}

/// The next event of any watch; never, without one. Cancel safe.
async fn next_event(watches: &mut [Watched]) -> (KindSaid, Event<Value>) {
    std::future::poll_fn(|context| {
        for watched in watches.iter_mut() {
            // A watch that ended with its backend stays silent.
            if let Poll::Ready(Some(event)) = watched.events.poll_recv(context) {
                return Poll::Ready((watched.said.clone(), event));
            }
        }
        Poll::Pending
    })
    .await
}

/// Objects in parts of about [`PART_BYTES`]; at least one part, the last one marked.
fn parts(objects: Vec<Value>, part: impl Fn(Vec<Value>, bool) -> ToAgent) -> Vec<ToAgent> {
    let mut parts = Vec::new();
    let (mut current, mut size) = (Vec::new(), 0);
    for object in objects {
        let bytes = serde_json::to_vec(&object).map_or(0, |bytes| bytes.len());
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
