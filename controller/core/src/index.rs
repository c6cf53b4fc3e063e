//! [`Index`]: the objects of one kind as the store showed them last.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use api::Kind;

use crate::advertisement::ServiceName;

/// One step of what the store shows of a kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Observed<K> {
    /// Everything that is there; whatever else was known is gone.
    Reset(Vec<K>),
    Applied(K),
    Deleted(K),
}

/// An object's place among those of its kind; the namespace is empty for kinds that have none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn of<K: Kind>(object: &K) -> Self {
        let meta = object.meta();
        Self { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }
    pub fn named(name: &str) -> Self {
        Self { namespace: String::new(), name: name.into() }
    }
    pub fn service(&self) -> ServiceName {
        ServiceName { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl From<&ServiceName> for ObjectKey {
    fn from(name: &ServiceName) -> Self {
        Self { namespace: name.namespace.clone(), name: name.name.clone() }
    }
}

/// An object that changed, and what it was before.
#[derive(Clone, Debug)]
pub struct Touched<K> {
    pub key: ObjectKey,
    pub before: Option<K>,
}

#[derive(Clone, Debug)]
pub struct Index<K> {
    objects: BTreeMap<ObjectKey, K>,
    known: bool,
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), known: false }
    }
}

impl<K: Kind> Index<K> {
    /// Takes one step in and tells which objects are different now.
    ///
    /// An event that is older than what a write of ours already returned changes nothing: taking it would make us
    /// decide on the past and write again.
    pub fn observe(&mut self, step: Observed<K>) -> Vec<Touched<K>> {
        match step {
            Observed::Reset(list) => {
                self.known = true;
                let fresh: BTreeMap<_, _> = list.into_iter().map(|object| (ObjectKey::of(&object), object)).collect();
                let mut touched = Vec::new();
                for (key, before) in &self.objects {
                    if fresh.get(key) != Some(before) {
                        touched.push(Touched { key: key.clone(), before: Some(before.clone()) });
                    }
                }
                touched.extend(
                    fresh
                        .keys()
                        .filter(|key| !self.objects.contains_key(key))
                        .map(|key| Touched { key: key.clone(), before: None }),
                );
                self.objects = fresh;
                touched
            }
            Observed::Applied(object) => {
                let key = ObjectKey::of(&object);
                if self.objects.get(&key).is_some_and(|held| *held == object || is_older(&object, held)) {
                    return Vec::new();
                }
                let before = self.objects.insert(key.clone(), object);
                vec![Touched { key, before }]
            }
            Observed::Deleted(object) => {
                let key = ObjectKey::of(&object);
                // Deleted and made again under the same name: the news of the deletion may come after the new object.
                let another = |held: &K| held.meta().uid != object.meta().uid && object.meta().uid.is_some();
                if self.objects.get(&key).is_none_or(another) {
                    return Vec::new();
                }
                let before = self.objects.remove(&key);
                vec![Touched { key, before }]
            }
        }
    }

    /// Whether the store has shown everything once.
    pub fn is_known(&self) -> bool {
        self.known
    }
    pub fn get(&self, key: &ObjectKey) -> Option<&K> {
        self.objects.get(key)
    }
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &K)> {
        self.objects.iter()
    }
    pub fn values(&self) -> impl Iterator<Item = &K> {
        self.objects.values()
    }
    /// The objects of one namespace.
    pub fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a ObjectKey, &'a K)> {
        let start = ObjectKey { namespace: namespace.into(), name: String::new() };
        self.objects.range(start..).take_while(move |(key, _)| key.namespace == namespace)
    }
    pub fn len(&self) -> usize {
        self.objects.len()
    }
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

/// Resource versions of one object are numbers that grow (KEP-5504); where one is not, nothing is older.
fn is_older<K: Kind>(object: &K, held: &K) -> bool {
    let version = |object: &K| object.meta().resource_version.as_deref().and_then(|text| text.parse::<u128>().ok());
    object.meta().uid == held.meta().uid && matches!((version(object), version(held)), (Some(a), Some(b)) if a < b)
}

#[cfg(test)]
mod tests {
    use api::ServiceExport;

    use super::*;

    fn export(name: &str, uid: &str, version: u64) -> ServiceExport {
        let mut export = ServiceExport::default();
        export.metadata.name = Some(name.into());
        export.metadata.namespace = Some("shop".into());
        export.metadata.uid = Some(uid.into());
        export.metadata.resource_version = Some(format!("{version}"));
        export
    }

    #[test]
    fn an_event_older_than_what_is_held_changes_nothing() {
        let mut index = Index::default();
        assert_eq!(index.observe(Observed::Applied(export("web", "u", 9))).len(), 1);
        assert!(index.observe(Observed::Applied(export("web", "u", 8))).is_empty());
        assert_eq!(index.observe(Observed::Applied(export("web", "v", 3))).len(), 1, "another uid is another object");
        assert!(
            index.observe(Observed::Deleted(export("web", "u", 9))).is_empty(),
            "the old one's deletion comes late"
        );
        assert_eq!(index.observe(Observed::Deleted(export("web", "v", 3))).len(), 1);
    }

    #[test]
    fn a_reset_touches_only_what_differs() {
        let mut index = Index::default();
        index.observe(Observed::Reset(vec![export("a", "1", 1), export("b", "2", 1), export("c", "3", 1)]));
        let touched =
            index.observe(Observed::Reset(vec![export("a", "1", 1), export("b", "2", 2), export("d", "4", 1)]));
        let names: Vec<_> = touched.iter().map(|touched| touched.key.name.as_str()).collect();
        assert_eq!(names, ["b", "c", "d"]);
    }
}
