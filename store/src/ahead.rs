//! [`Ahead`]: a store that shows some objects as they are about to be, before they are written, or while they cannot be.
//!
//! A controller's agents follow what its API server says, and of imported EndpointSlices what the controller itself knows
//! already: so a change of another cluster reaches them without the API server (decision 14). What is shown is laid over
//! what is there, object by object, until the controller finds both the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use api::Kind;
use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::backend::{self, Backend, Interruption, KindName, ObjectKey, Preconditions, TokenOwner};
use crate::manifest::Key;
use crate::watch::RawWatch;
use crate::{Error, Event, Store};

/// Says what is shown of one kind. Cheap to clone.
pub struct Ahead<K> {
    shared: Arc<Mutex<Overlay>>,
    kind: std::marker::PhantomData<fn(K)>,
}

/// The store behind `store`, and what is laid over its objects of one kind. Call it inside a tokio runtime.
pub fn open<K: Kind>(store: &Store) -> (Store, Ahead<K>) {
    let kind = KindName::of::<K>();
    let shared = Arc::new(Mutex::new(Overlay::new(kind)));
    tokio::spawn(follow(store.backend.watch(kind), Arc::downgrade(&shared)));
    let front = Front { behind: Arc::clone(&store.backend), shared: Arc::clone(&shared), kind };
    (Store::new(Arc::new(front)), Ahead { shared, kind: std::marker::PhantomData })
}

impl<K: Kind> Ahead<K> {
    /// Shows these objects of a group, and no others of it any more; `None` where an object shall not be there.
    pub fn show(&self, group: &str, objects: Vec<(ObjectKey, Option<K>)>) {
        let mut shown = BTreeMap::new();
        for (key, object) in objects {
            match object.as_ref().map(backend::raw).transpose() {
                Ok(object) => drop(shown.insert(key, object)),
                Err(error) => tracing::warn!(%error, "object not shown"),
            }
        }
        lock(&self.shared).show(group, shown);
    }
}

/// Takes in what is there until the source or everybody who is shown it is gone.
async fn follow(mut events: RawWatch, shared: Weak<Mutex<Overlay>>) {
    while let Some(event) = events.recv().await {
        let Some(shared) = shared.upgrade() else { return };
        lock(&shared).take(event);
    }
}

fn lock(shared: &Mutex<Overlay>) -> MutexGuard<'_, Overlay> {
    // A panic inside is a bug of this module; what was kept is still whole objects.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is there and what is laid over it.
struct Overlay {
    kind: KindName,
    /// `None` until the source said it once.
    there: Option<BTreeMap<ObjectKey, Value>>,
    shown: BTreeMap<ObjectKey, Option<Value>>,
    groups: BTreeMap<String, BTreeSet<ObjectKey>>,
    watchers: Vec<mpsc::UnboundedSender<Event<Value>>>,
}

impl Overlay {
    fn new(kind: KindName) -> Self {
        Self { kind, there: None, shown: BTreeMap::new(), groups: BTreeMap::new(), watchers: Vec::new() }
    }

    fn seen(&self, key: &ObjectKey) -> Option<&Value> {
        match self.shown.get(key) {
            Some(shown) => shown.as_ref(),
            None => self.there.as_ref()?.get(key),
        }
    }

    fn all(&self) -> Option<Vec<Value>> {
        let there = self.there.as_ref()?;
        let keys: BTreeSet<&ObjectKey> = there.keys().chain(self.shown.keys()).collect();
        Some(keys.into_iter().filter_map(|key| self.seen(key).cloned()).collect())
    }

    fn watch(&mut self) -> RawWatch {
        let (events, watch) = mpsc::unbounded_channel();
        if let Some(all) = self.all() {
            let _ = events.send(Event::Reset(all));
        }
        self.watchers.push(events);
        watch
    }

    fn tell(&mut self, event: &Event<Value>) {
        self.watchers.retain(|watcher| watcher.send(event.clone()).is_ok());
    }

    /// Makes a change, and tells what it changes for those who look.
    fn change(&mut self, keys: &BTreeSet<ObjectKey>, change: impl FnOnce(&mut Self)) {
        let before: Vec<Option<Value>> = keys.iter().map(|key| self.seen(key).cloned()).collect();
        change(self);
        if self.there.is_none() {
            return;
        }
        for (key, before) in keys.iter().zip(before) {
            match (before, self.seen(key).cloned()) {
                (before, Some(now)) if before.as_ref() != Some(&now) => self.tell(&Event::Applied(now)),
                (Some(before), None) => self.tell(&Event::Deleted(before)),
                _ => {}
            }
        }
    }

    fn take(&mut self, event: Event<Value>) {
        let kind = self.kind;
        let key = |object: &Value| Key::of(kind, object).object;
        match event {
            Event::Reset(all) => {
                let all: BTreeMap<ObjectKey, Value> = all.into_iter().map(|object| (key(&object), object)).collect();
                let Some(before) = &self.there else {
                    self.there = Some(all);
                    let everything = Event::Reset(self.all().unwrap_or_default());
                    self.tell(&everything);
                    return;
                };
                let keys: BTreeSet<ObjectKey> = before.keys().chain(all.keys()).cloned().collect();
                self.change(&keys, |overlay| overlay.there = Some(all));
            }
            Event::Applied(object) => {
                let key = key(&object);
                self.change(&[key.clone()].into(), |overlay| {
                    overlay.there.get_or_insert_default().insert(key, object);
                });
            }
            Event::Deleted(object) => {
                let key = key(&object);
                self.change(&[key.clone()].into(), |overlay| {
                    overlay.there.get_or_insert_default().remove(&key);
                });
            }
        }
    }

    fn show(&mut self, group: &str, shown: BTreeMap<ObjectKey, Option<Value>>) {
        let before = self.groups.remove(group).unwrap_or_default();
        if before.is_empty() && shown.is_empty() {
            return;
        }
        let fresh: BTreeSet<ObjectKey> = shown.keys().cloned().collect();
        let keys: BTreeSet<ObjectKey> = before.union(&fresh).cloned().collect();
        if !fresh.is_empty() {
            self.groups.insert(group.to_owned(), fresh);
        }
        self.change(&keys, |overlay| {
            before.iter().for_each(|key| drop(overlay.shown.remove(key)));
            overlay.shown.extend(shown);
        });
    }
}

/// The store as those see it who are shown it.
struct Front {
    behind: Arc<dyn Backend>,
    shared: Arc<Mutex<Overlay>>,
    kind: KindName,
}

#[async_trait]
impl Backend for Front {
    async fn get(&self, kind: KindName, key: &ObjectKey) -> Result<Option<Value>, Error> {
        if kind == self.kind {
            let overlay = lock(&self.shared);
            if overlay.there.is_some() {
                return Ok(overlay.seen(key).cloned());
            }
        }
        self.behind.get(kind, key).await
    }

    async fn list(&self, kind: KindName) -> Result<Vec<Value>, Error> {
        if kind == self.kind
            && let Some(all) = lock(&self.shared).all()
        {
            return Ok(all);
        }
        self.behind.list(kind).await
    }

    fn watch(&self, kind: KindName) -> RawWatch {
        if kind == self.kind { lock(&self.shared).watch() } else { self.behind.watch(kind) }
    }

    async fn create(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        self.behind.create(kind, object).await
    }

    async fn update(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        self.behind.update(kind, object).await
    }

    async fn update_status(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        self.behind.update_status(kind, object).await
    }

    async fn delete(&self, kind: KindName, key: &ObjectKey, only_if: Preconditions) -> Result<(), Error> {
        self.behind.delete(kind, key, only_if).await
    }

    fn interruption(&self) -> Option<Interruption> {
        self.behind.interruption()
    }

    async fn review_token(&self, token: &str) -> Result<TokenOwner, Error> {
        self.behind.review_token(token).await
    }
}

#[cfg(test)]
mod tests {
    use api::kubernetes::EndpointSlice;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(Some("shop"), name)
    }

    fn object(name: &str, address: u8) -> Value {
        json!({"metadata": {"namespace": "shop", "name": name}, "endpoints": [{"addresses": [format!("10.0.0.{address}")]}]})
    }

    /// What somebody knows who hears every event.
    #[derive(Default)]
    struct Follower(Option<BTreeMap<ObjectKey, Value>>);

    impl Follower {
        fn hear(&mut self, watch: &mut RawWatch) {
            let kind = KindName::of::<EndpointSlice>();
            let key = |object: &Value| Key::of(kind, object).object;
            while let Ok(event) = watch.try_recv() {
                match event {
                    Event::Reset(all) => self.0 = Some(all.into_iter().map(|one| (key(&one), one)).collect()),
                    Event::Applied(one) => drop(self.0.as_mut().unwrap().insert(key(&one), one)),
                    Event::Deleted(one) => assert!(self.0.as_mut().unwrap().remove(&key(&one)).is_some(), "{one}"),
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reset(Vec<(u8, u8)>),
        Applied(u8, u8),
        Deleted(u8),
        Show(u8, Vec<(u8, Option<u8>)>),
        Watch,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let entries = prop::collection::vec((0..4_u8, 0..3_u8), 0..4);
        let shown = prop::collection::vec((0..4_u8, prop::option::of(0..3_u8)), 0..3);
        let step = prop_oneof![
            entries.prop_map(Step::Reset),
            (0..4_u8, 0..3_u8).prop_map(|(name, address)| Step::Applied(name, address)),
            (0..4_u8).prop_map(Step::Deleted),
            (0..2_u8, shown).prop_map(|(group, shown)| Step::Show(group, shown)),
            Just(Step::Watch),
        ];
        prop::collection::vec(step, 0..30)
    }

    proptest! {
        #[test]
        fn who_follows_from_any_moment_on_knows_what_is_there_with_what_is_shown_over_it(steps in steps()) {
            let mut overlay = Overlay::new(KindName::of::<EndpointSlice>());
            let (mut there, mut groups) = (None::<BTreeMap<u8, u8>>, BTreeMap::<u8, BTreeMap<u8, Option<u8>>>::new());
            let name = |number: u8| format!("slice-{number}");
            let mut followers = Vec::new();
            for step in steps {
                match step {
                    Step::Reset(all) => {
                        let all: BTreeMap<u8, u8> = all.into_iter().collect();
                        overlay.take(Event::Reset(all.iter().map(|(n, a)| object(&name(*n), *a)).collect()));
                        there = Some(all);
                    }
                    // Sources say everything first.
                    Step::Applied(n, a) if there.is_some() => {
                        overlay.take(Event::Applied(object(&name(n), a)));
                        there.as_mut().unwrap().insert(n, a);
                    }
                    Step::Deleted(n) if there.as_ref().is_some_and(|there| there.contains_key(&n)) => {
                        let a = there.as_mut().unwrap().remove(&n).unwrap();
                        overlay.take(Event::Deleted(object(&name(n), a)));
                    }
                    Step::Show(group, shown) => {
                        // A slice belongs to one service.
                        let shown: BTreeMap<u8, Option<u8>> = shown.into_iter().filter(|(n, _)| n % 2 == group).collect();
                        let objects = shown.iter().map(|(n, a)| (key(&name(*n)), a.map(|a| object(&name(*n), a))));
                        overlay.show(&group.to_string(), objects.collect());
                        groups.insert(group, shown);
                    }
                    Step::Watch => followers.push((Follower::default(), overlay.watch())),
                    _ => {}
                }
                let Some(there) = &there else { continue };
                let mut wanted: BTreeMap<u8, u8> = there.clone();
                for (n, a) in groups.values().flatten() {
                    match a {
                        Some(a) => drop(wanted.insert(*n, *a)),
                        None => drop(wanted.remove(n)),
                    }
                }
                let wanted: BTreeMap<ObjectKey, Value> =
                    wanted.into_iter().map(|(n, a)| (key(&name(n)), object(&name(n), a))).collect();
                for (follower, watch) in &mut followers {
                    follower.hear(watch);
                    prop_assert_eq!(follower.0.as_ref(), Some(&wanted));
                }
                prop_assert_eq!(overlay.all().unwrap(), wanted.into_values().collect::<Vec<_>>());
            }
        }
    }
}
