//! [`Server`]: a controller's end of the feed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use api::Prefix;
use api::keys::IdentityKey;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use identity::TlsStream;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::enrolment::EXPORTER_LABEL;
use super::frame::{Decoder, FrameError, MAX_FRAME_BYTES, MAX_GREETING_BYTES, MAX_MESSAGE_BYTES};
use super::message::{Answer, Failure, KindSaid, Request, ToAgent, ToController, decode, encode};
use super::permission::{Verb, may_measure, may_see, may_watch, may_write};
use super::{Agent, Enrolment, PING_INTERVAL, Role, SILENCE_LIMIT, WRITE_LIMIT};
use crate::backend::{Backend, KindName, ObjectKey};
use crate::kinds;
use crate::manifest::Key;
use crate::watch::RawWatch;
use crate::{Error, Event, Store};

/// How long an agent may take to say who it is.
const GREETING_LIMIT: Duration = Duration::from_secs(3);
/// Messages that may wait for one agent; what fills them waits too.
const OUTBOX: usize = 256;
/// Bytes of objects put into one part: small enough that a ping is not held up by it.
const PART_BYTES: usize = 256 * 1024;
/// Most agents connected at once: 5 000 nodes with a few agents each.
const MAX_AGENTS: usize = 20_000;
/// Most addresses and pod prefixes an agent may name.
const MAX_ADDRESSES: usize = 64;

/// An agent came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSeen {
    pub role: Role,
    /// The name of its node.
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub pod_prefixes: Vec<Prefix>,
    pub connected: bool,
}

/// Why an agent was turned away. Each has a [name](Refusal::name) for metrics.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("did not say who it is: {0}")]
    BadGreeting(String),
    #[error("{0} is not enrolled: copy the controller's agents.key to its host")]
    NotEnrolled(String),
    #[error("{0} is connected with another key: two hosts have one name, or its old process still runs")]
    NameTaken(String),
    #[error("{0} agents are connected already")]
    TooMany(usize),
    #[error("broke the protocol: {0}")]
    BadMessage(String),
}

impl Refusal {
    /// The refusal's name, as a metric label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::BadGreeting(_) => "BadGreeting",
            Self::NotEnrolled(_) => "NotEnrolled",
            Self::NameTaken(_) => "NameTaken",
            Self::TooMany(_) => "TooManyAgents",
            Self::BadMessage(_) => "BadMessage",
        }
    }
}

/// Serves a store to the agents of this cluster. Cheap to clone; all clones know the same agents.
#[derive(Clone)]
pub struct Server {
    store: Store,
    enrolment: Enrolment,
    seen: mpsc::UnboundedSender<AgentSeen>,
    agents: Arc<Mutex<Agents>>,
}

#[derive(Default)]
struct Agents {
    connected: BTreeMap<(Role, String), Connected>,
    /// Tells a connection from an earlier one of the same agent.
    next: u64,
}

struct Connected {
    key: IdentityKey,
    number: u64,
    replaced: CancellationToken,
}

/// One connection's place among the agents; left when dropped.
struct Seat {
    server: Server,
    agent: Agent,
    number: u64,
    replaced: CancellationToken,
}

impl Server {
    /// `seen` hears of every agent that comes or goes.
    pub fn new(store: Store, enrolment: Enrolment, seen: mpsc::UnboundedSender<AgentSeen>) -> Self {
        Self { store, enrolment, seen, agents: Arc::default() }
    }

    /// Serves one connection that agreed on [`PROTOCOL`](super::PROTOCOL), until it ends.
    ///
    /// Set `TCP_NODELAY` on the socket below, so that changes do not wait for each other. An end of the connection is
    /// no failure; a refusal says who was turned away and why.
    pub async fn serve<IO>(&self, stream: TlsStream<IO>) -> Result<(), Refusal>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let bad = |why: &str| Refusal::BadGreeting(why.to_owned());
        let key = identity::peer_key(stream.get_ref().1).ok_or_else(|| bad("it proved no key"))?;
        let exporter =
            identity::exporter(&stream, EXPORTER_LABEL).map_err(|error| Refusal::BadGreeting(error.to_string()))?;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut decoder = Decoder::new(MAX_GREETING_BYTES);
        let greeting = timeout(GREETING_LIMIT, greeting(&mut reader, &mut decoder))
            .await
            .map_err(|_| bad("it said nothing in time"))?;
        let seat = greeting.and_then(|(agent, proof)| self.seat(agent, key, &exporter, &proof));
        let seat = match seat {
            Ok(seat) => seat,
            Err(refusal) => {
                let reason = refusal.to_string();
                if let Ok(bytes) = encode(&ToAgent::Refused { reason }) {
                    let _ = timeout(WRITE_LIMIT, async {
                        writer.write_all(&bytes).await?;
                        writer.shutdown().await
                    })
                    .await;
                }
                return Err(refusal);
            }
        };
        decoder.set_limit(MAX_MESSAGE_BYTES);
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let session = Session {
            backend: Arc::clone(&self.store.backend),
            role: seat.agent.role,
            name: seat.agent.name.clone(),
            outbox,
            watches: Vec::new(),
        };
        tokio::select! {
            () = seat.replaced.cancelled() => Ok(()),
            () = write(writer, messages) => Ok(()),
            result = session.run(&mut reader, &mut decoder) => result,
        }
    }

    fn agents(&self) -> std::sync::MutexGuard<'_, Agents> {
        // The map is whole at every moment, whatever its holder died of.
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks who it is, and gives it its place.
    fn seat(&self, agent: Agent, key: IdentityKey, exporter: &[u8; 32], proof: &[u8]) -> Result<Seat, Refusal> {
        let described = format!("the {} agent of '{}'", agent.role, agent.name.escape_debug());
        if !self.enrolment.check(&agent, key, exporter, proof) {
            return Err(Refusal::NotEnrolled(described));
        }
        let label = |part: &str| api::cluster_id::is_dns_label(part);
        if agent.name.len() > 253 || !agent.name.split('.').all(label) {
            return Err(Refusal::BadGreeting(format!("the name of {described} is no node name (RFC 1123)")));
        }
        if agent.addresses.len() > MAX_ADDRESSES || agent.pod_prefixes.len() > MAX_ADDRESSES {
            return Err(Refusal::BadGreeting(format!("{described} names more than {MAX_ADDRESSES} addresses")));
        }
        let mut agents = self.agents();
        let count = agents.connected.len();
        let place = (agent.role, agent.name.clone());
        match agents.connected.get(&place) {
            // The operator's tool may run in several terminals, each with a key of its own.
            Some(known) if known.key != key && agent.role != Role::Operator => {
                return Err(Refusal::NameTaken(described));
            }
            // The same agent again: its earlier connection is dead, whether or not that was noticed.
            Some(known) if known.key == key => known.replaced.cancel(),
            _ if count >= MAX_AGENTS => return Err(Refusal::TooMany(count)),
            _ => {}
        }
        agents.next += 1;
        let (number, replaced) = (agents.next, CancellationToken::new());
        agents.connected.insert(place, Connected { key, number, replaced: replaced.clone() });
        drop(agents);
        self.tell(&agent, true);
        Ok(Seat { server: self.clone(), agent, number, replaced })
    }

    fn tell(&self, agent: &Agent, connected: bool) {
        let Agent { role, name, addresses, pod_prefixes } = agent.clone();
        // Nobody listening is the controller's own choice.
        let _ = self.seen.send(AgentSeen { role, name, addresses, pod_prefixes, connected });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let place = (self.agent.role, self.agent.name.clone());
        let mut agents = self.server.agents();
        if agents.connected.get(&place).is_some_and(|known| known.number == self.number) {
            agents.connected.remove(&place);
            drop(agents);
            self.server.tell(&self.agent, false);
        }
    }
}

/// The first message, and the proof in it.
async fn greeting<R: AsyncRead + Unpin>(reader: &mut R, decoder: &mut Decoder) -> Result<(Agent, Vec<u8>), Refusal> {
    let bytes = match next_message(reader, decoder).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(Refusal::BadGreeting("it hung up".into())),
        Err(error) => return Err(Refusal::BadGreeting(error)),
    };
    match decode(&bytes).map_err(Refusal::BadGreeting)? {
        ToController::Hello { agent, proof } => {
            let proof = STANDARD.decode(proof).map_err(|error| Refusal::BadGreeting(error.to_string()))?;
            Ok((agent, proof))
        }
        _ => Err(Refusal::BadGreeting("its first message is no greeting".into())),
    }
}

/// The next message; `None` when the other end is done. Cancel safe: what was read stays in the decoder.
pub(crate) async fn next_message<R: AsyncRead + Unpin>(
    reader: &mut R,
    decoder: &mut Decoder,
) -> Result<Option<Vec<u8>>, String> {
    loop {
        if let Some(message) = decoder.next_message().map_err(|error: FrameError| error.to_string())? {
            return Ok(Some(message));
        }
        match reader.read_buf(decoder.room()).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            // A TLS end that vanished without a farewell is an end like any other.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Writes what is to be said, and a ping where nothing is, until the other end stops taking it.
pub(crate) async fn write<W: AsyncWrite + Unpin>(mut writer: W, mut messages: mpsc::Receiver<Vec<u8>>) {
    // Both ends' pings are the same bytes.
    let Ok(ping) = encode(&ToAgent::Ping) else { return };
    loop {
        let message = match timeout(PING_INTERVAL, messages.recv()).await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(_) => ping.clone(),
        };
        let written = timeout(WRITE_LIMIT, async {
            writer.write_all(&message).await?;
            // What else waits goes in the same packet.
            let mut size = message.len();
            while size < MAX_FRAME_BYTES
                && let Ok(more) = messages.try_recv()
            {
                size += more.len();
                writer.write_all(&more).await?;
            }
            writer.flush().await
        });
        if !matches!(written.await, Ok(Ok(()))) {
            break;
        }
    }
    let _ = timeout(WRITE_LIMIT, writer.shutdown()).await;
}

/// A kind an agent follows.
struct Watched {
    kind: KindName,
    said: KindSaid,
    events: RawWatch,
}

/// One agent's conversation. One task reads, answers and tells, so that an answer to a write never comes before the
/// events of that write: who has written and then watches, sees what it wrote.
struct Session {
    backend: Arc<dyn Backend>,
    role: Role,
    name: String,
    outbox: mpsc::Sender<Vec<u8>>,
    watches: Vec<Watched>,
}

impl Session {
    async fn run<R: AsyncRead + Unpin>(mut self, reader: &mut R, decoder: &mut Decoder) -> Result<(), Refusal> {
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
        let kind =
            match known(&said).and_then(|kind| may_watch(self.role, kind).map(|()| kind).map_err(Error::Forbidden)) {
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
        let visible = |object: &Value| may_see(self.role, &self.name, kind, &Key::of(kind, object).object);
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

    /// Tells what there is to tell already.
    async fn tell_pending(&mut self) {
        while let Some((said, event)) =
            self.watches.iter_mut().find_map(|watched| Some((watched.said.clone(), watched.events.try_recv().ok()?)))
        {
            self.tell(said, event).await;
        }
    }

    async fn answer(&mut self, id: u64, request: Request) {
        let answer = match self.act(id, request).await {
            Ok(Some(answer)) => answer,
            Ok(None) => return,
            Err(error) => Answer::Failed(Failure::from(error)),
        };
        self.tell_pending().await;
        self.say(&ToAgent::Answer { id, answer }).await;
    }

    /// Does what is asked, where the role may; `None` when the answer is given in parts.
    async fn act(&self, id: u64, request: Request) -> Result<Option<Answer>, Error> {
        let kind = known(request.kind())?;
        match request {
            Request::Get { key, .. } => {
                may_watch(self.role, kind).map_err(Error::Forbidden)?;
                if !may_see(self.role, &self.name, kind, &key) {
                    return Err(Error::Forbidden(format!(
                        "the {} agent of {} may not see {} {key}",
                        self.role, self.name, kind.kind
                    )));
                }
                Ok(Some(Answer::Object(self.backend.get(kind, &key).await?)))
            }
            Request::List { .. } => {
                may_watch(self.role, kind).map_err(Error::Forbidden)?;
                let mut objects = self.backend.list(kind).await?;
                objects.retain(|object| may_see(self.role, &self.name, kind, &Key::of(kind, object).object));
                for part in parts(objects, |objects, last| ToAgent::ListPart { id, objects, last }) {
                    self.say(&part).await;
                }
                Ok(None)
            }
            Request::Create { object, .. } => {
                self.check(Verb::Create, kind, &Key::of(kind, &object).object)?;
                Ok(Some(Answer::Object(Some(self.backend.create(kind, object).await?))))
            }
            Request::Update { object, .. } => {
                self.check(Verb::Update, kind, &Key::of(kind, &object).object)?;
                Ok(Some(Answer::Object(Some(self.backend.update(kind, object).await?))))
            }
            Request::UpdateStatus { object, .. } => {
                let key = Key::of(kind, &object).object;
                // A kind without a status refuses one whoever writes it: that answer helps more than 'not allowed'.
                if kinds::of(kind).is_some_and(|known| known.has_status) {
                    self.check(Verb::UpdateStatus, kind, &key)?;
                }
                if self.role == Role::Node
                    && kind.kind == "EndpointSlice"
                    && let Some(now) = self.backend.get(kind, &key).await?
                {
                    may_measure(&self.name, &now, &object).map_err(Error::Forbidden)?;
                }
                Ok(Some(Answer::Object(Some(self.backend.update_status(kind, object).await?))))
            }
            Request::Delete { key, only_if, .. } => {
                self.check(Verb::Delete, kind, &key)?;
                self.backend.delete(kind, &key, only_if).await?;
                Ok(Some(Answer::Done))
            }
        }
    }

    fn check(&self, verb: Verb, kind: KindName, key: &ObjectKey) -> Result<(), Error> {
        may_write(self.role, &self.name, verb, kind, key).map_err(Error::Forbidden)
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

fn known(said: &KindSaid) -> Result<KindName, Error> {
    said.known().ok_or_else(|| {
        let kind: String = said.kind.chars().take(80).collect();
        Error::Forbidden(format!("this controller keeps no objects of kind '{}'", kind.escape_debug()))
    })
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
