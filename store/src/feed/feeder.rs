//! [`Feeder`]: the one task that owns an agent's state: the link to a controller, the objects, who waits for what.
//!
//! A kind that was asked for once is followed from then on, also after a restart, so that its last state is there when
//! no controller is.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use identity::Identity;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::Agent;
use super::authority::Authority;
use super::cache::{Cache, Memories};
use super::client::Config;
use super::credential::Credentials;
use super::digest::Digest;
use super::link::{self, Link};
use super::memory::Memory;
use super::message::{Answer, Failure, KindSaid, Request, ToAgent, ToController, encode};
use crate::backend::{Interruption, KindName, ObjectKey};
use crate::manifest::Key;
use crate::{Error, Event};

/// The first and the longest pause before dialling again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A connection that lasted this long was a good one: after it, dialling starts with the first pause again.
const GOOD_CONNECTION: Duration = Duration::from_secs(5);
/// How long a request waits for a controller when none is connected: a reconnection after a restart fits in.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon a state that could not be written to disk is tried again.
const SAVE_AGAIN: Duration = Duration::from_secs(1);

/// A number below `bound`; good enough to spread agents over controllers and time.
fn random(bound: u64) -> u64 {
    let mut bytes = [0; 8];
    // Without randomness all agents choose alike, which is slower and not wrong.
    let _ = getrandom::fill(&mut bytes);
    u64::from_ne_bytes(bytes) % bound.max(1)
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What a store asks of its feeder.
pub(super) enum Command {
    Watch(KindName, mpsc::UnboundedSender<Event<Value>>),
    Ask(Asked),
}

/// A request and who waits for it.
pub(super) enum Asked {
    Object(KindName, Request, Reply<Option<Value>>),
    List(KindName, Reply<Vec<Value>>),
    Delete(KindName, Request, Reply<()>),
}

/// Who follows a kind, and what is on its way.
#[derive(Default)]
struct Followed {
    /// What came of a new everything so far.
    arriving: Vec<Arc<Value>>,
    watchers: Vec<mpsc::UnboundedSender<Event<Value>>>,
}

impl Followed {
    fn tell(&mut self, event: &Event<Value>) {
        self.watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
    }
}

fn everything(memory: &Memory) -> Event<Value> {
    Event::Reset(memory.objects().map(|object| (**object).clone()).collect())
}

enum Pending {
    Object(KindName, Option<ObjectKey>, Reply<Option<Value>>),
    List(KindName, Vec<Value>, Reply<Vec<Value>>),
    Delete(Reply<()>),
}

/// The task behind an agent's store.
pub(super) struct Feeder {
    config: Config,
    identity: Arc<Identity>,
    authority: Arc<Authority>,
    credentials: Arc<Credentials>,
    kinds: BTreeMap<KindName, Followed>,
    /// The kinds of which everything is known, of now or of before.
    memories: Memories,
    cache: Cache,
    link: Option<Link>,
    /// Since when there is a link, or none.
    since: Instant,
    /// Dials that failed in a row.
    failures: u32,
    next_controller: u64,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    /// Requests that wait for a controller, and how long they do.
    waiting: Vec<(Instant, Asked)>,
    interruption: watch::Sender<Option<Interruption>>,
}

type Dialling = Pin<Box<dyn Future<Output = Result<Link, String>> + Send>>;

impl Feeder {
    pub(super) fn new(
        config: Config,
        identity: Identity,
        (cache, memories): (Cache, Memories),
        interruption: watch::Sender<Option<Interruption>>,
    ) -> Self {
        let kinds = memories.keys().map(|kind| (*kind, Followed::default())).collect();
        Self {
            authority: Arc::new(Authority::open(&config.cache)),
            credentials: Arc::new(Credentials::new(config.enrolment.clone(), config.token.clone(), &config.cache)),
            identity: Arc::new(identity),
            kinds,
            memories,
            cache,
            link: None,
            since: Instant::now(),
            failures: 0,
            next_controller: random(config.controllers.len() as u64),
            pending: BTreeMap::new(),
            next_id: 0,
            waiting: Vec::new(),
            interruption,
            config,
        }
    }

    /// Works until nobody holds the store any more.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut dialling: Option<Dialling> = Some(self.dial(Duration::ZERO));
        let mut save_at: Option<Instant> = None;
        loop {
            let patience = self.waiting.iter().map(|(until, _)| *until).min();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Watch(kind, watcher)) => self.watch(kind, watcher),
                    Some(Command::Ask(asked)) => self.ask(asked),
                    // Nobody holds the store any more.
                    None => break,
                },
                result = dialled(&mut dialling) => {
                    dialling = None;
                    match result {
                        Ok(link) => self.linked(link),
                        Err(reason) => dialling = Some(self.failed(reason)),
                    }
                }
                message = said(&mut self.link) => match message {
                    Ok(message) => self.heard(message),
                    Err(reason) => dialling = Some(self.unlinked(reason)),
                },
                () = at(save_at) => save_at = None,
                () = at(patience) => self.lose_patience(),
            }
            if save_at.is_none() && !self.cache.compact_when_due(&self.memories) {
                save_at = Some(Instant::now() + SAVE_AGAIN);
            }
        }
    }

    fn dial(&mut self, pause: Duration) -> Dialling {
        let controllers = self.config.controllers.len();
        self.next_controller += 1;
        let index = usize::try_from(self.next_controller).unwrap_or(0) % controllers;
        let controller = self.config.controllers[index].clone();
        let agent = Agent {
            role: self.config.role,
            name: self.config.name.clone(),
            addresses: self.config.addresses.clone(),
            pod_prefixes: self.config.pod_prefixes.clone(),
        };
        let (credentials, identity) = (Arc::clone(&self.credentials), Arc::clone(&self.identity));
        let authority = Arc::clone(&self.authority);
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            link::dial(controller, credentials, identity, agent, authority).await
        })
    }

    fn failed(&mut self, reason: String) -> Dialling {
        self.interruption.send_modify(|current| match current {
            Some(known) => known.reason = reason,
            None => *current = Some(Interruption { since: SystemTime::now(), reason }),
        });
        let full = PAUSE.0.saturating_mul(1 << self.failures.min(10)).min(PAUSE.1);
        self.failures += 1;
        // Between half and all of it, so that agents that lost a controller together do not come back together.
        let half = full / 2;
        self.dial(half + Duration::from_micros(random(u64::try_from(half.as_micros()).unwrap_or(0))))
    }

    fn linked(&mut self, link: Link) {
        tracing::info!(controller = link.controller, "connected to the controller's feed");
        self.link = Some(link);
        self.since = Instant::now();
        self.interruption.send_replace(None);
        for kind in self.kinds.keys().copied().collect::<Vec<_>>() {
            self.follow(kind);
        }
        for (_, asked) in std::mem::take(&mut self.waiting) {
            self.ask(asked);
        }
    }

    fn unlinked(&mut self, reason: String) -> Dialling {
        tracing::warn!(reason, "the controller's feed is lost; the last known state stays in force");
        self.link = None;
        if self.since.elapsed() >= GOOD_CONNECTION {
            self.failures = 0;
        }
        for followed in self.kinds.values_mut() {
            followed.arriving.clear();
        }
        for pending in std::mem::take(&mut self.pending).into_values() {
            match pending {
                Pending::Object(kind, Some(key), reply) => {
                    let _ = reply.send(self.remembered(kind, &key, &reason));
                }
                // A write may have happened: only who asked can find out, by reading again.
                Pending::Object(_, None, reply) => drop(reply.send(Err(lost(&reason)))),
                Pending::Delete(reply) => drop(reply.send(Err(lost(&reason)))),
                Pending::List(kind, _, reply) => drop(reply.send(self.remembered_all(kind, &reason))),
            }
        }
        self.failed(reason)
    }

    /// Never waits: while this task waited for the controller, nobody would hear the controller.
    fn say(&self, message: &ToController) -> Result<(), String> {
        let bytes = encode(message)?;
        let Some(link) = &self.link else { return Err("no controller is connected".into()) };
        link.outbox.try_send(Bytes::from(bytes)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "too many requests wait for the controller".into(),
            // The end of the link has its own event.
            mpsc::error::TrySendError::Closed(_) => "the connection was lost".into(),
        })
    }

    fn follow(&self, kind: KindName) {
        // Without a link this happens when there is one.
        let have = self.memories.get(&kind).map(Memory::digest);
        let _ = self.say(&ToController::Watch { kind: KindSaid::of(kind), have });
    }

    /// Follows a kind from now on.
    fn followed(&mut self, kind: KindName) -> &mut Followed {
        let known = self.kinds.contains_key(&kind);
        if !known {
            self.follow(kind);
        }
        self.kinds.entry(kind).or_default()
    }

    fn watch(&mut self, kind: KindName, watcher: mpsc::UnboundedSender<Event<Value>>) {
        let known = self.memories.get(&kind).map(everything);
        let followed = self.followed(kind);
        if known.is_none_or(|everything| watcher.send(everything).is_ok()) {
            followed.watchers.push(watcher);
        }
    }

    fn ask(&mut self, asked: Asked) {
        let kind = match &asked {
            Asked::Object(kind, ..) | Asked::List(kind, _) | Asked::Delete(kind, ..) => *kind,
        };
        self.followed(kind);
        let known = self.memories.contains_key(&kind);
        if self.link.is_none() {
            let reading = matches!(&asked, Asked::List(..) | Asked::Object(_, Request::Get { .. }, _));
            // What is known is said at once; anything else may hope for a controller.
            if reading && known {
                self.answer_unconnected(asked);
            } else {
                self.waiting.push((Instant::now() + PATIENCE, asked));
            }
            return;
        }
        self.next_id += 1;
        let id = self.next_id;
        let (request, pending) = match asked {
            Asked::Object(kind, request, reply) => {
                let key = if let Request::Get { key, .. } = &request { Some(key.clone()) } else { None };
                (request, Pending::Object(kind, key, reply))
            }
            Asked::List(kind, reply) => {
                (Request::List { kind: KindSaid::of(kind) }, Pending::List(kind, Vec::new(), reply))
            }
            Asked::Delete(_, request, reply) => (request, Pending::Delete(reply)),
        };
        self.pending.insert(id, pending);
        if let Err(reason) = self.say(&ToController::Ask { id, request }) {
            self.answered(id, Answer::Failed(Failure::Unavailable(reason)));
        }
    }

    fn lose_patience(&mut self) {
        let now = Instant::now();
        let (late, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|(until, _)| *until <= now);
        self.waiting = waiting;
        for (_, asked) in Vec::<(Instant, Asked)>::from_iter(late) {
            self.answer_unconnected(asked);
        }
    }

    fn answer_unconnected(&self, asked: Asked) {
        let reason = self.interruption.borrow().as_ref().map_or_else(String::new, |why| why.reason.clone());
        match asked {
            Asked::Object(kind, Request::Get { key, .. }, reply) => {
                drop(reply.send(self.remembered(kind, &key, &reason)));
            }
            Asked::Object(_, _, reply) => drop(reply.send(Err(Error::Unavailable(reason)))),
            Asked::List(kind, reply) => drop(reply.send(self.remembered_all(kind, &reason))),
            Asked::Delete(_, _, reply) => drop(reply.send(Err(Error::Unavailable(reason)))),
        }
    }

    fn remembered(&self, kind: KindName, key: &ObjectKey, reason: &str) -> Result<Option<Value>, Error> {
        let memory = self.memories.get(&kind).ok_or_else(|| Error::Unavailable(reason.to_owned()))?;
        Ok(memory.get(key).map(|object| (**object).clone()))
    }

    fn remembered_all(&self, kind: KindName, reason: &str) -> Result<Vec<Value>, Error> {
        let memory = self.memories.get(&kind).ok_or_else(|| Error::Unavailable(reason.to_owned()))?;
        Ok(memory.objects().map(|object| (**object).clone()).collect())
    }

    fn heard(&mut self, message: ToAgent) {
        match message {
            ToAgent::Part { kind, objects, last } => self.arrived(&kind, objects, last),
            ToAgent::Applied { kind, object } => self.applied(&kind, object),
            ToAgent::Deleted { kind, object } => self.deleted(&kind, object),
            ToAgent::Resumed { kind, digest } => self.resumed(&kind, digest),
            ToAgent::WatchRefused { kind, failure } => {
                tracing::warn!(kind = kind.kind, reason = %Error::from(failure), "the controller refuses to send a kind");
            }
            ToAgent::ListPart { id, objects, last } => {
                if let Some(Pending::List(_, so_far, _)) = self.pending.get_mut(&id) {
                    so_far.extend(objects);
                }
                if last && let Some(Pending::List(_, all, reply)) = self.pending.remove(&id) {
                    let _ = reply.send(Ok(all));
                }
            }
            ToAgent::Answer { id, answer } => self.answered(id, answer),
            ToAgent::Welcome | ToAgent::Ticket(_) | ToAgent::Lineage(_) | ToAgent::Refused { .. } | ToAgent::Ping => {}
        }
    }

    fn arrived(&mut self, kind: &KindSaid, objects: Vec<Value>, last: bool) {
        let Some((kind, followed)) = kind.known().and_then(|kind| Some((kind, self.kinds.get_mut(&kind)?))) else {
            return;
        };
        followed.arriving.extend(objects.into_iter().map(Arc::new));
        if !last {
            return;
        }
        let memory = Memory::of(kind, std::mem::take(&mut followed.arriving));
        // What is as it was before the interruption is nothing new to anybody.
        if self.memories.get(&kind).is_some_and(|known| known.digest() == memory.digest()) {
            return;
        }
        self.cache.everything(kind, &memory);
        followed.tell(&everything(&memory));
        self.memories.insert(kind, memory);
    }

    fn applied(&mut self, kind: &KindSaid, object: Value) {
        let Some((kind, followed, memory)) = place(&mut self.kinds, &mut self.memories, kind) else { return };
        let object = Arc::new(object);
        if memory.apply(Arc::clone(&object)) {
            self.cache.applied(kind, &object);
            followed.tell(&Event::Applied((*object).clone()));
        }
    }

    fn deleted(&mut self, kind: &KindSaid, object: Value) {
        let Some((kind, followed, memory)) = place(&mut self.kinds, &mut self.memories, kind) else { return };
        let key = Key::of(kind, &object).object;
        // What came and went during an interruption was never here.
        if memory.remove(&key) {
            self.cache.deleted(kind, &key);
            followed.tell(&Event::Deleted(object));
        }
    }

    /// The controller has said what was missed. Were the sum another one than its own, everything is asked for.
    fn resumed(&mut self, said: &KindSaid, digest: Digest) {
        let Some(kind) = said.known() else { return };
        if self.memories.get(&kind).is_some_and(|memory| memory.digest() != digest) {
            tracing::warn!(
                kind = kind.kind,
                "the last state and what was missed do not make the controller's state: taking all of it"
            );
            let _ = self.say(&ToController::Watch { kind: KindSaid::of(kind), have: None });
        }
    }

    fn answered(&mut self, id: u64, answer: Answer) {
        let Some(pending) = self.pending.remove(&id) else { return };
        let odd = || Error::Unavailable("the controller's answer does not fit the question".into());
        match (pending, answer) {
            (Pending::Object(_, _, reply), Answer::Object(object)) => drop(reply.send(Ok(object))),
            (Pending::Delete(reply), Answer::Done) => drop(reply.send(Ok(()))),
            (Pending::Object(_, _, reply), Answer::Failed(failure)) => drop(reply.send(Err(failure.into()))),
            (Pending::Delete(reply), Answer::Failed(failure)) => drop(reply.send(Err(failure.into()))),
            (Pending::List(_, _, reply), Answer::Failed(failure)) => drop(reply.send(Err(failure.into()))),
            (Pending::Object(_, _, reply), _) => drop(reply.send(Err(odd()))),
            (Pending::Delete(reply), _) => drop(reply.send(Err(odd()))),
            (Pending::List(_, _, reply), _) => drop(reply.send(Err(odd()))),
        }
    }
}

/// What belongs to a kind that is followed and known.
fn place<'a>(
    kinds: &'a mut BTreeMap<KindName, Followed>,
    memories: &'a mut Memories,
    said: &KindSaid,
) -> Option<(KindName, &'a mut Followed, &'a mut Memory)> {
    let kind = said.known()?;
    Some((kind, kinds.get_mut(&kind)?, memories.get_mut(&kind)?))
}

fn lost(reason: &str) -> Error {
    Error::Unavailable(format!("{reason}; the write may have been made: read before writing again"))
}

/// The end of a dial; never, when none is under way.
async fn dialled(dialling: &mut Option<Dialling>) -> Result<Link, String> {
    match dialling {
        Some(dialling) => dialling.await,
        None => std::future::pending().await,
    }
}

/// What the controller says next; never, without one.
async fn said(link: &mut Option<Link>) -> Result<ToAgent, String> {
    match link {
        Some(link) => link.inbox.recv().await.unwrap_or_else(|| Err("the connection was lost".into())),
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
