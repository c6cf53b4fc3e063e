//! [`Window`]: what a controller tells its agents of one kind: everything that is there, and the last changes, so that
//! an agent that comes back takes up where it left. One for all agents: each change is put into bytes once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::digest::Digest;
use super::memory::Memory;
use super::message::{KindSaid, ToAgent, encode};
use super::tenure::Tenures;
use crate::Event;
use crate::backend::{Backend, KindName, ObjectKey};
use crate::manifest::Key;
use crate::watch::RawWatch;

/// Most changes kept of a kind: some minutes of a busy cluster, so that an agent whose host restarts takes up again.
const MAX_CHANGES: usize = 8_192;
/// Most bytes of changes kept of a kind. A snapshot of ten thousand services has about this much.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// One change, as an agent is told of it.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) key: ObjectKey,
    pub(crate) message: Bytes,
    /// Of everything before this change.
    before: Digest,
}

/// How an agent begins, and from which change on it goes on.
pub(crate) enum Start {
    /// It has everything but these changes, and then what `digest` says.
    Resumed {
        changes: Vec<Change>,
        digest: Digest,
        next: u64,
    },
    Everything {
        objects: Vec<Arc<Value>>,
        next: u64,
    },
}

/// The changes that were asked for are not kept any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Behind;

struct Inner {
    kind: KindName,
    events: RawWatch,
    /// `None` until the store has said what is there.
    memory: Option<Memory>,
    changes: VecDeque<Change>,
    bytes: usize,
    /// The number of the first change kept.
    first: u64,
    tenures: Arc<Mutex<Tenures>>,
}

impl Inner {
    fn next(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    /// Takes what the store has said. `false` when it said nothing new.
    fn drain(&mut self) -> bool {
        let mut any = false;
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
            any = true;
        }
        any
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        match self.events.poll_recv(context) {
            Poll::Ready(Some(event)) => {
                self.take(event);
                self.drain();
                Poll::Ready(true)
            }
            Poll::Ready(None) => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    }

    fn take(&mut self, event: Event<Value>) {
        match event {
            Event::Reset(objects) => {
                let objects = objects.into_iter().map(Arc::new);
                let Some(memory) = &self.memory else {
                    let memory = Memory::of(self.kind, objects);
                    memory.objects().for_each(|lease| self.see_lease(lease));
                    self.memory = Some(memory);
                    return;
                };
                // Whoever follows is told the difference.
                let objects: Vec<_> = objects.collect();
                let keys: BTreeSet<ObjectKey> =
                    objects.iter().map(|object| Key::of(self.kind, object).object).collect();
                let known = memory.objects().map(|object| Key::of(self.kind, object).object);
                let gone: Vec<ObjectKey> = known.filter(|key| !keys.contains(key)).collect();
                gone.into_iter().for_each(|key| self.delete(&key));
                objects.into_iter().for_each(|object| self.apply(object));
            }
            Event::Applied(object) => self.apply(Arc::new(object)),
            Event::Deleted(object) => self.delete(&Key::of(self.kind, &object).object),
        }
    }

    fn apply(&mut self, object: Arc<Value>) {
        self.see_lease(&object);
        let key = Key::of(self.kind, &object).object;
        let Some(memory) = &mut self.memory else { return };
        let before = memory.digest();
        if memory.apply(Arc::clone(&object)) {
            self.keep(key, &ToAgent::Applied { kind: KindSaid::of(self.kind), object: &*object }, before);
        }
    }

    fn delete(&mut self, key: &ObjectKey) {
        self.tenures().forget(key);
        let Some(memory) = &mut self.memory else { return };
        let before = memory.digest();
        if let Some(object) = memory.get(key).cloned() {
            memory.remove(key);
            self.keep(key.clone(), &ToAgent::Deleted { kind: KindSaid::of(self.kind), object: &*object }, before);
        }
    }

    fn keep(&mut self, key: ObjectKey, message: &ToAgent<&Value>, before: Digest) {
        let message = match encode(message) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => {
                tracing::warn!(kind = self.kind.kind, %key, %error, "an object cannot be sent: split it");
                return;
            }
        };
        self.bytes += message.len();
        self.changes.push_back(Change { key, message, before });
        while self.changes.len() > MAX_CHANGES || (self.bytes > MAX_BYTES && self.changes.len() > 1) {
            if let Some(oldest) = self.changes.pop_front() {
                self.bytes -= oldest.message.len();
                self.first += 1;
            }
        }
    }

    fn tenures(&self) -> MutexGuard<'_, Tenures> {
        self.tenures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A gateway counts a Lease's time from when it hears of it, so it is never later noted here.
    fn see_lease(&self, object: &Value) {
        if self.kind.kind == "Lease" {
            self.tenures().see(&Key::of(self.kind, object).object, object, Instant::now());
        }
    }

    fn start(&self, have: Option<Digest>, visible: impl Fn(&ObjectKey) -> bool) -> Option<Start> {
        let (memory, next) = (self.memory.as_ref()?, self.next());
        let seen: Vec<_> =
            memory.objects().filter(|object| visible(&Key::of(self.kind, object).object)).cloned().collect();
        let everything = || Start::Everything { objects: seen.clone(), next };
        let Some(have) = have else { return Some(everything()) };
        let all = seen.len() == memory.objects().count();
        let digest = if all { memory.digest() } else { Memory::of(self.kind, seen.iter().cloned()).digest() };
        if have == digest {
            return Some(Start::Resumed { changes: Vec::new(), digest, next });
        }
        // What an agent that does not see all of it had is not written down.
        let Some(from) = self.changes.iter().rposition(|change| change.before == have).filter(|_| all) else {
            return Some(everything());
        };
        // Of several changes to one object the last one counts.
        let mut told = BTreeSet::new();
        let missed = self.changes.range(from..).rev().filter(|change| told.insert(change.key.clone()));
        let mut changes: Vec<Change> = missed.cloned().collect();
        changes.reverse();
        Some(Start::Resumed { changes, digest, next })
    }

    fn since(&self, position: u64) -> Result<(Vec<Change>, u64), Behind> {
        let from = position.checked_sub(self.first).and_then(|from| usize::try_from(from).ok()).ok_or(Behind)?;
        Ok((self.changes.iter().skip(from).cloned().collect(), self.next()))
    }
}

pub(crate) struct Window {
    inner: Mutex<Inner>,
    /// Tells every session that there is something new.
    changed: watch::Sender<()>,
    listening: OnceLock<AbortHandle>,
}

impl Drop for Window {
    fn drop(&mut self) {
        if let Some(listening) = self.listening.get() {
            listening.abort();
        }
    }
}

impl Window {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Whole at every moment, whatever its holder died of.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How an agent begins that has what `have` says, and may see what is `visible`; `None` before the store has said
    /// what there is.
    pub(crate) fn start(&self, have: Option<Digest>, visible: impl Fn(&ObjectKey) -> bool) -> Option<Start> {
        self.inner().start(have, visible)
    }

    /// The changes from number `position` on, and the number of the next one.
    pub(crate) fn since(&self, position: u64) -> Result<(Vec<Change>, u64), Behind> {
        self.inner().since(position)
    }

    /// Takes what the store has said already, so that who has written sees its own write.
    pub(crate) fn catch_up(&self) {
        if self.inner().drain() {
            self.changed.send_replace(());
        }
    }
}

/// The windows of all kinds that somebody follows. Cheap to clone; must be used inside a runtime.
#[derive(Clone)]
pub(crate) struct Windows {
    backend: Arc<dyn Backend>,
    tenures: Arc<Mutex<Tenures>>,
    kinds: Arc<Mutex<BTreeMap<KindName, Arc<Window>>>>,
    changed: watch::Sender<()>,
}

impl Windows {
    pub(crate) fn new(backend: Arc<dyn Backend>, tenures: Arc<Mutex<Tenures>>) -> Self {
        Self { backend, tenures, kinds: Arc::default(), changed: watch::Sender::new(()) }
    }

    /// Tells when any window has something new.
    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn of(&self, kind: KindName) -> Arc<Window> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.entry(kind).or_insert_with(|| self.open(kind)).clone()
    }

    fn open(&self, kind: KindName) -> Arc<Window> {
        let inner = Inner {
            kind,
            events: self.backend.watch(kind),
            memory: None,
            changes: VecDeque::new(),
            bytes: 0,
            first: 0,
            tenures: Arc::clone(&self.tenures),
        };
        let window =
            Arc::new(Window { inner: Mutex::new(inner), changed: self.changed.clone(), listening: OnceLock::new() });
        let listening = tokio::spawn(listen(Arc::downgrade(&window), self.changed.clone()));
        let _ = window.listening.set(listening.abort_handle());
        window
    }
}

/// Follows the store for as long as the window is there.
async fn listen(window: Weak<Window>, changed: watch::Sender<()>) {
    let next = |context: &mut Context<'_>| match window.upgrade() {
        Some(window) => window.inner().poll(context),
        None => Poll::Ready(false),
    };
    while std::future::poll_fn(next).await {
        changed.send_replace(());
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
