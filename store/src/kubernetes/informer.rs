//! [`Informer`]: one list and watch of a kind, for everybody who follows it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use kube::Api;
use kube::api::{DynamicObject, ListParams};
use kube::runtime::watcher::{self, Event as Heard};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;

use super::remembered::Remembered;
use super::{PAGE, WATCH_SECONDS, answer, value};
use crate::Event;
use crate::backend::{Interruption, KindName};

/// How long to wait after a failure, doubled with each, and half of it by chance: an API server that comes back is not
/// asked by everybody at once, and is asked within seconds.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How often an API server that failed is asked whether it answers again, where nothing else would tell.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Which kinds cannot be followed now, since when, and why.
#[derive(Clone, Default)]
pub(super) struct Troubles(Arc<Mutex<BTreeMap<KindName, Interruption>>>);

impl Troubles {
    fn all(&self) -> MutexGuard<'_, BTreeMap<KindName, Interruption>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that lasts longest.
    pub(super) fn first(&self) -> Option<Interruption> {
        self.all().values().min_by_key(|interruption| interruption.since).cloned()
    }

    fn begin(&self, kind: KindName, reason: String) {
        let since = SystemTime::now();
        let mut all = self.all();
        if all.get(&kind).is_none_or(|known| known.reason != reason) {
            tracing::warn!(kind = kind.kind, %reason, "a kind cannot be followed");
        }
        all.entry(kind).or_insert(Interruption { since, reason: String::new() }).reason = reason;
    }

    fn has(&self, kind: KindName) -> bool {
        self.all().contains_key(&kind)
    }

    fn end(&self, kind: KindName) {
        if self.all().remove(&kind).is_some() {
            tracing::info!(kind = kind.kind, "a kind is followed again");
        }
    }
}

/// What the task and those who begin to follow share. Held for moments only.
#[derive(Default)]
struct Shared {
    remembered: Remembered,
    followers: Vec<UnboundedSender<Event<Value>>>,
}

impl Shared {
    fn tell(&mut self, event: &Event<Value>) {
        self.followers.retain(|follower| follower.send(event.clone()).is_ok());
    }
}

/// Ends when dropped.
pub(super) struct Informer {
    shared: Arc<Mutex<Shared>>,
    task: AbortHandle,
}

impl Informer {
    /// Lists and watches from now on, in the runtime that calls this.
    pub(super) fn start(kind: KindName, api: Api<DynamicObject>, troubles: Troubles) -> Self {
        let shared = Arc::<Mutex<Shared>>::default();
        let task = tokio::spawn(run(kind, api, Arc::clone(&shared), troubles));
        Self { shared, task: task.abort_handle() }
    }

    /// Tells this follower everything that is known, and each change from then on.
    pub(super) fn follow(&self, follower: UnboundedSender<Event<Value>>) {
        let mut shared = lock(&self.shared);
        if let Some(everything) = shared.remembered.everything() {
            // The receiver is in the caller's hands.
            let _ = follower.send(everything);
        }
        shared.followers.push(follower);
    }
}

impl Drop for Informer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(kind: KindName, api: Api<DynamicObject>, shared: Arc<Mutex<Shared>>, troubles: Troubles) {
    let config = watcher::Config::default().page_size(PAGE).timeout(WATCH_SECONDS);
    let mut stream = Box::pin(watcher::watcher(api.clone(), config));
    let mut pause = FIRST_PAUSE;
    loop {
        // A watch that goes on where it broke off says nothing until something changes.
        let heard = tokio::select! {
            heard = stream.next() => heard,
            () = tokio::time::sleep(LOOK_EVERY), if troubles.has(kind) => {
                if api.list(&ListParams::default().limit(1)).await.is_ok() {
                    troubles.end(kind);
                }
                continue;
            }
        };
        let Some(heard) = heard else { return };
        let heard = match heard {
            Ok(heard) => heard,
            Err(error) => {
                troubles.begin(kind, answer::trouble(kind, &error));
                tokio::time::sleep(jittered(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        };
        // The beginning of a list proves nothing: it is what a failure is followed by.
        if !matches!(heard, Heard::Init) {
            pause = FIRST_PAUSE;
            troubles.end(kind);
        }
        let mut shared = lock(&shared);
        let readable = |object: &DynamicObject| {
            value(kind, object).map_err(|error| tracing::warn!(%error, "object left out")).ok()
        };
        let events: Vec<Event<Value>> = match heard {
            Heard::Init => {
                shared.remembered.begin();
                Vec::new()
            }
            Heard::InitApply(object) => {
                if let Some(object) = readable(&object) {
                    shared.remembered.listed(object);
                }
                Vec::new()
            }
            Heard::InitDone => shared.remembered.end(),
            Heard::Apply(object) => {
                readable(&object).and_then(|object| shared.remembered.applied(object)).into_iter().collect()
            }
            Heard::Delete(object) => {
                readable(&object).and_then(|object| shared.remembered.deleted(&object)).into_iter().collect()
            }
        };
        events.iter().for_each(|event| shared.tell(event));
    }
}

/// Between half of it and all of it.
fn jittered(pause: Duration) -> Duration {
    let chance = getrandom::u64().map_or(0.5, |number| number as f64 / u64::MAX as f64);
    pause.mul_f64(0.5 + chance / 2.0)
}
