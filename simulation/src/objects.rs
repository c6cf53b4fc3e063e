//! [`Objects`]: a cluster's objects on the disk that survives everything, with uids, versions and preconditions as a
//! real store has them.

use std::collections::BTreeMap;

use api::time::WallTime;
use controller_core::condition::object_time;
use controller_core::plan::{Outcome, Verb, Write};

use crate::object::{Held, Key, Object};

/// What happened to one object.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Applied(Object),
    Deleted(Object),
}

#[derive(Debug, Default)]
pub(crate) struct Objects {
    held: BTreeMap<Key, Object>,
    log: Vec<Change>,
    version: u64,
    /// Nothing can be written now: the API server is away.
    pub(crate) is_away: bool,
}

impl Objects {
    /// What an operator or another part writes, whatever is there.
    pub(crate) fn put(&mut self, object: impl Into<Object>, wall: WallTime) {
        self.keep(object.into(), true, wall);
    }

    /// What changes nothing that is wished, a status or an annotation: a new version, and no new generation.
    pub(crate) fn put_beside(&mut self, object: impl Into<Object>, wall: WallTime) {
        self.keep(object.into(), false, wall);
    }

    /// What an operator deletes.
    pub(crate) fn delete<K: Held>(&mut self, namespace: &str, name: &str) {
        if let Some(object) = self.held.remove(&(K::KIND, namespace.into(), name.into())) {
            self.log.push(Change::Deleted(object));
        }
    }

    pub(crate) fn get<K: Held>(&self, namespace: &str, name: &str) -> Option<&K> {
        K::of(self.held.get(&(K::KIND, namespace.into(), name.into()))?)
    }

    pub(crate) fn all<K: Held>(&self) -> impl Iterator<Item = &K> {
        self.held.values().filter_map(K::of)
    }

    pub(crate) fn held(&self) -> &BTreeMap<Key, Object> {
        &self.held
    }

    pub(crate) fn log(&self) -> &[Change] {
        &self.log
    }

    /// A write of the controller, with its preconditions.
    pub(crate) fn write(&mut self, Write { verb, object }: Write, wall: WallTime) -> Outcome {
        if self.is_away {
            return Outcome::Failed { object, reason: "the store is away".into() };
        }
        let wanted = Object::from(object.clone());
        let found = self.held.get(&wanted.key());
        let fits = match verb {
            Verb::Create => found.is_none(),
            _ => found.is_some_and(|held| {
                let (held, wanted) = (held.meta(), wanted.meta());
                held.resource_version == wanted.resource_version && held.uid == wanted.uid
            }),
        };
        if !fits {
            let now = found.cloned().and_then(Object::into_planned);
            return Outcome::Conflict { attempted: object, now };
        }
        if verb == Verb::Delete {
            let deleted = self.held.remove(&wanted.key());
            self.log.extend(deleted.map(Change::Deleted));
            return Outcome::Deleted(object);
        }
        let written = self.keep(wanted, verb != Verb::UpdateStatus, wall);
        written.into_planned().map_or_else(|| unreachable!("what was planned is planned"), Outcome::Written)
    }

    fn keep(&mut self, mut object: Object, is_new_wish: bool, wall: WallTime) -> Object {
        self.version += 1;
        let version = self.version;
        let before = self.held.get(&object.key()).map(Object::meta);
        let (uid, created, generation) =
            before.map(|meta| (meta.uid.clone(), meta.creation_timestamp.clone(), meta.generation)).unwrap_or_default();
        let meta = object.meta_mut();
        meta.uid = uid.or_else(|| Some(format!("uid-{version}")));
        meta.resource_version = Some(version.to_string());
        meta.creation_timestamp = created.or_else(|| Some(object_time(wall)));
        meta.generation = Some(generation.unwrap_or(0) + i64::from(is_new_wish));
        self.held.insert(object.key(), object.clone());
        self.log.push(Change::Applied(object.clone()));
        object
    }
}
