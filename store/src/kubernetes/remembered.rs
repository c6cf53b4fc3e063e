//! [`Remembered`]: what is known of a kind, and the difference a new list makes. It thinks: objects in, events out.

use std::collections::BTreeMap;

use serde_json::Value;

use super::key_of;
use crate::Event;
use crate::backend::{KindName, ObjectKey};

/// All objects of one kind, as they were last.
#[derive(Default)]
pub(super) struct Remembered {
    /// `None` until the first list is complete.
    objects: Option<BTreeMap<ObjectKey, Value>>,
    /// What a list that is under way has brought so far.
    coming: BTreeMap<ObjectKey, Value>,
}

impl Remembered {
    /// Everything, as a new follower is told it; `None` while that is not known.
    pub(super) fn everything(&self) -> Option<Event<Value>> {
        self.objects.as_ref().map(|objects| Event::Reset(objects.values().cloned().collect()))
    }

    /// A list begins.
    pub(super) fn begin(&mut self) {
        self.coming.clear();
    }

    pub(super) fn listed(&mut self, object: Value) {
        self.coming.insert(key_of(&object), object);
    }

    /// A list is complete. The first one is told whole; of each later one what was missed, so that nobody who follows
    /// has to look at everything again.
    pub(super) fn end(&mut self) -> Vec<Event<Value>> {
        let coming = std::mem::take(&mut self.coming);
        let Some(before) = self.objects.replace(coming) else { return self.everything().into_iter().collect() };
        let now = self.objects.iter().flatten();
        let changed = now.filter(|(key, object)| before.get(key) != Some(object));
        let mut events: Vec<_> = changed.map(|(_, object)| Event::Applied(object.clone())).collect();
        let known = |key: &ObjectKey| self.objects.as_ref().is_some_and(|objects| objects.contains_key(key));
        events.extend(before.into_iter().filter(|(key, _)| !known(key)).map(|(_, object)| Event::Deleted(object)));
        events
    }

    pub(super) fn applied(&mut self, object: Value) -> Option<Event<Value>> {
        let objects = self.objects.as_mut()?;
        let before = objects.insert(key_of(&object), object.clone());
        (before.as_ref() != Some(&object)).then_some(Event::Applied(object))
    }

    /// Tells the object as it was last: the API server tells it with the version of its end.
    pub(super) fn deleted(&mut self, object: &Value) -> Option<Event<Value>> {
        self.objects.as_mut()?.remove(&key_of(object)).map(Event::Deleted)
    }
}

/// Leaves out what nobody here reads and what is large: an object is kept as often as there are who follow it.
pub(super) fn prune(kind: KindName, object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for bookkeeping in ["managedFields", "selfLink", "generateName"] {
            metadata.remove(bookkeeping);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            // The whole object once more.
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
    }
    if kind.kind == "Node"
        && let Some(status) = object.get_mut("status").and_then(Value::as_object_mut)
    {
        // By far most of a Node, and they change with every heartbeat or image.
        status.retain(|field, _| field == "addresses");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, version: u64) -> Value {
        json!({"metadata": {"name": name, "resourceVersion": version.to_string()}})
    }

    fn list(remembered: &mut Remembered, objects: &[Value]) -> Vec<Event<Value>> {
        remembered.begin();
        objects.iter().for_each(|object| remembered.listed(object.clone()));
        remembered.end()
    }

    #[test]
    fn the_first_list_is_told_whole_and_a_later_one_by_what_it_changes() {
        let mut remembered = Remembered::default();
        assert_eq!(remembered.everything(), None, "nothing is known yet");
        let first = [object("a", 1), object("b", 1)];
        assert_eq!(list(&mut remembered, &first), [Event::Reset(first.to_vec())]);
        assert_eq!(
            list(&mut remembered, &[object("b", 2), object("c", 1)]),
            [Event::Applied(object("b", 2)), Event::Applied(object("c", 1)), Event::Deleted(object("a", 1))]
        );
        assert_eq!(list(&mut remembered, &[object("b", 2), object("c", 1)]), [], "nothing was missed");
    }

    #[test]
    fn a_list_that_ends_half_way_changes_nothing() {
        let mut remembered = Remembered::default();
        list(&mut remembered, &[object("a", 1)]);
        remembered.begin();
        remembered.listed(object("b", 1));
        assert_eq!(list(&mut remembered, &[object("a", 1)]), []);
    }

    #[test]
    fn what_is_told_twice_is_one_change_and_what_is_not_known_cannot_go() {
        let mut remembered = Remembered::default();
        assert_eq!(remembered.applied(object("a", 1)), None, "before the first list nothing counts");
        list(&mut remembered, &[]);
        assert!(remembered.applied(object("a", 1)).is_some());
        assert_eq!(remembered.applied(object("a", 1)), None);
        assert_eq!(remembered.deleted(&object("a", 2)), Some(Event::Deleted(object("a", 1))));
        assert_eq!(remembered.deleted(&object("a", 2)), None);
    }
}
