//! A store in memory: what a controller would hand out, put there by whoever steers this program.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use serde_json::{Value, json};
use store::backend::{Backend, Interruption};
use store::watch::RawWatch;
use store::{Error, Event, KindName, ObjectKey, Preconditions};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

#[derive(Default)]
pub(crate) struct Memory {
    objects: Mutex<Objects>,
    cut_off: AtomicBool,
}

#[derive(Default)]
struct Objects {
    /// By kind, then by key.
    kinds: BTreeMap<String, BTreeMap<ObjectKey, Value>>,
    watchers: BTreeMap<String, Vec<UnboundedSender<Event<Value>>>>,
    version: u64,
}

impl Objects {
    fn tell(&mut self, kind: &str, event: &Event<Value>) {
        if let Some(watchers) = self.watchers.get_mut(kind) {
            watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
        }
    }

    fn store(&mut self, kind: &str, mut object: Value) -> Value {
        self.version += 1;
        let key = key_of(&object);
        let known = self.kinds.get(kind).and_then(|objects| objects.get(&key));
        let uid =
            known.map_or_else(|| json!(format!("uid-{}", self.version)), |known| known["metadata"]["uid"].clone());
        object["metadata"]["uid"] = uid;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.kinds.entry(kind.to_owned()).or_default().insert(key, object.clone());
        self.tell(kind, &Event::Applied(object.clone()));
        object
    }

    fn current(&self, kind: &str, key: &ObjectKey) -> Option<&Value> {
        self.kinds.get(kind)?.get(key)
    }

    fn check_version(&self, kind: KindName, object: &Value) -> Result<Value, Error> {
        let key = key_of(object);
        let known = self.current(kind.kind, &key).ok_or_else(|| Error::NotFound(key.to_string()))?;
        if known["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
            return Err(Error::Conflict { object: key.to_string(), detail: "another version is stored".into() });
        }
        Ok(known.clone())
    }
}

fn key_of(object: &Value) -> ObjectKey {
    let text = |field: &str| object["metadata"][field].as_str();
    ObjectKey::new(text("namespace"), text("name").unwrap_or_default())
}

impl Memory {
    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing can be written, as when the controller is away.
    pub(crate) fn cut_off(&self, away: bool) {
        self.cut_off.store(away, Ordering::Release);
    }

    fn check_reachable(&self) -> Result<(), Error> {
        if self.cut_off.load(Ordering::Acquire) { Err(Error::Unavailable("cut off".into())) } else { Ok(()) }
    }

    /// Stores an object whatever is there.
    pub(crate) fn put(&self, object: Value) {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        self.objects().store(&kind, object);
    }

    pub(crate) fn remove(&self, kind: &str, namespace: Option<&str>, name: &str) {
        let mut objects = self.objects();
        let key = ObjectKey::new(namespace, name);
        if let Some(object) = objects.kinds.get_mut(kind).and_then(|objects| objects.remove(&key)) {
            objects.tell(kind, &Event::Deleted(object));
        }
    }

    pub(crate) fn read(&self, kind: &str, namespace: Option<&str>, name: &str) -> Option<Value> {
        self.objects().current(kind, &ObjectKey::new(namespace, name)).cloned()
    }
}

#[async_trait]
impl Backend for Memory {
    async fn get(&self, kind: KindName, key: &ObjectKey) -> Result<Option<Value>, Error> {
        Ok(self.objects().current(kind.kind, key).cloned())
    }

    async fn list(&self, kind: KindName) -> Result<Vec<Value>, Error> {
        Ok(self.objects().kinds.get(kind.kind).into_iter().flatten().map(|(_, object)| object.clone()).collect())
    }

    fn watch(&self, kind: KindName) -> RawWatch {
        let (sender, receiver) = unbounded_channel();
        let mut objects = self.objects();
        let all = objects.kinds.get(kind.kind).into_iter().flatten().map(|(_, object)| object.clone()).collect();
        // The receiver is in our hands.
        let _ = sender.send(Event::Reset(all));
        objects.watchers.entry(kind.kind.to_owned()).or_default().push(sender);
        receiver
    }

    async fn create(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        self.check_reachable()?;
        let mut objects = self.objects();
        let key = key_of(&object);
        if objects.current(kind.kind, &key).is_some() {
            return Err(Error::AlreadyExists(key.to_string()));
        }
        Ok(objects.store(kind.kind, object))
    }

    async fn update(&self, kind: KindName, mut object: Value) -> Result<Value, Error> {
        self.check_reachable()?;
        let mut objects = self.objects();
        let known = objects.check_version(kind, &object)?;
        if let Some(status) = known.get("status") {
            object["status"] = status.clone();
        }
        Ok(objects.store(kind.kind, object))
    }

    async fn update_status(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        self.check_reachable()?;
        let mut objects = self.objects();
        let mut known = objects.check_version(kind, &object)?;
        known["status"] = object["status"].clone();
        Ok(objects.store(kind.kind, known))
    }

    async fn delete(&self, kind: KindName, key: &ObjectKey, _: Preconditions) -> Result<(), Error> {
        self.check_reachable()?;
        let namespace = Some(key.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        self.remove(kind.kind, namespace, &key.name);
        Ok(())
    }

    fn interruption(&self) -> Option<Interruption> {
        let reason = self.check_reachable().err()?.to_string();
        Some(Interruption { since: SystemTime::UNIX_EPOCH, reason })
    }
}
