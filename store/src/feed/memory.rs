//! [`Memory`]: what an agent knows of one kind. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::digest::Digest;
use crate::backend::{KindName, ObjectKey};
use crate::manifest::Key;

struct Known {
    object: Arc<Value>,
    digest: Digest,
}

/// The objects of one kind, and the digest of all of them.
pub(crate) struct Memory {
    kind: KindName,
    objects: BTreeMap<ObjectKey, Known>,
    digest: Digest,
}

impl Memory {
    pub(crate) fn new(kind: KindName) -> Self {
        Self { kind, objects: BTreeMap::new(), digest: Digest::default() }
    }

    pub(crate) fn of(kind: KindName, objects: impl IntoIterator<Item = Arc<Value>>) -> Self {
        let mut memory = Self::new(kind);
        for object in objects {
            memory.apply(object);
        }
        memory
    }

    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    /// Every object, by namespace and name.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Arc<Value>> {
        self.objects.values().map(|known| &known.object)
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Arc<Value>> {
        self.objects.get(key).map(|known| &known.object)
    }

    /// Takes an object that is new or changed; `false` when it is neither.
    pub(crate) fn apply(&mut self, object: Arc<Value>) -> bool {
        let key = Key::of(self.kind, &object).object;
        let known = Known { digest: Digest::of(&object), object };
        let digest = known.digest;
        self.digest.add(digest);
        let Some(before) = self.objects.insert(key, known) else { return true };
        self.digest.remove(before.digest);
        before.digest != digest
    }

    /// Takes an object away; `false` when it was not there.
    pub(crate) fn remove(&mut self, key: &ObjectKey) -> bool {
        let Some(before) = self.objects.remove(key) else { return false };
        self.digest.remove(before.digest);
        true
    }
}
