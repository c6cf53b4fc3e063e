//! [`Objects`]: every object of the folder, and what a write would change. Nothing here touches a file or a clock.
//!
//! A write is planned first, as a list of [`Change`]s; the caller makes the plan safe on disk and then
//! [commits](Objects::commit) it. So a failed disk changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::record::{Birth, Record};
use crate::backend::KindName;
use crate::manifest::Key;

#[derive(Default)]
pub(crate) struct Objects {
    records: BTreeMap<Key, Arc<Record>>,
    by_uid: BTreeMap<String, Key>,
    /// By the owner's uid.
    dependents: BTreeMap<String, BTreeSet<Key>>,
    /// By the file that defines them.
    by_file: BTreeMap<String, BTreeSet<Key>>,
    /// How many objects each namespace has.
    population: BTreeMap<String, usize>,
    /// The newest resourceVersion given out. One counter for all kinds, so that versions order events.
    version: u64,
}

/// One step of a plan.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) key: Key,
    pub(crate) before: Option<Arc<Record>>,
    pub(crate) after: Option<Arc<Record>>,
}

impl Change {
    /// Whether anybody but the store itself can see it.
    pub(crate) fn is_visible(&self) -> bool {
        self.before.as_ref().map(|record| &record.object) != self.after.as_ref().map(|record| &record.object)
    }
}

impl Objects {
    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Record>> {
        self.records.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<Record>)> {
        self.records.iter()
    }

    /// Every object of a kind, by namespace and name.
    pub(crate) fn list(&self, kind: KindName) -> Vec<Value> {
        let first = Key { kind, object: crate::ObjectKey::new(None, "") };
        self.records
            .range(first..)
            .take_while(|(key, _)| key.kind == kind)
            .map(|(_, record)| record.object.clone())
            .collect()
    }

    /// The objects that `file` defines.
    pub(crate) fn of_file(&self, file: &str) -> impl Iterator<Item = &Key> {
        self.by_file.get(file).into_iter().flatten()
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &String> {
        self.by_file.keys()
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Takes over a record as it was kept on disk.
    pub(crate) fn restore(&mut self, version: u64, key: Key, record: Option<Record>) {
        let change = Change { version, before: self.records.get(&key).cloned(), after: record.map(Arc::new), key };
        self.commit(&[change]);
    }

    /// Forgets every object, but not which versions were given out.
    pub(crate) fn clear(&mut self) {
        *self = Self { version: self.version, ..Self::default() };
    }

    /// Goes on counting from at least `version`.
    pub(crate) fn advance(&mut self, version: u64) {
        self.version = self.version.max(version);
    }

    /// Makes a plan true.
    pub(crate) fn commit(&mut self, plan: &[Change]) {
        for change in plan {
            self.version = self.version.max(change.version);
            if let Some(before) = self.records.remove(&change.key) {
                self.unindex(&change.key, &before);
            }
            if let Some(after) = &change.after {
                self.index(&change.key, after);
                self.records.insert(change.key.clone(), Arc::clone(after));
            }
        }
    }

    fn index(&mut self, key: &Key, record: &Record) {
        self.by_uid.insert(record.uid().to_owned(), key.clone());
        for owner in record.owners() {
            self.dependents.entry(owner).or_default().insert(key.clone());
        }
        if let Some(file) = record.file() {
            self.by_file.entry(file.to_owned()).or_default().insert(key.clone());
        }
        if key.kind.namespaced {
            *self.population.entry(key.object.namespace.clone()).or_default() += 1;
        }
    }

    fn unindex(&mut self, key: &Key, record: &Record) {
        self.by_uid.remove(record.uid());
        for owner in record.owners() {
            remove_from(&mut self.dependents, &owner, key);
        }
        if let Some(file) = record.file() {
            remove_from(&mut self.by_file, file, key);
        }
        if key.kind.namespaced
            && let Some(count) = self.population.get_mut(&key.object.namespace)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.population.remove(&key.object.namespace);
            }
        }
    }
}

fn remove_from(index: &mut BTreeMap<String, BTreeSet<Key>>, under: &str, key: &Key) {
    if let Some(keys) = index.get_mut(under) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(under);
        }
    }
}

/// A plan in the making: the objects as they would be.
pub(crate) struct Planned<'a> {
    objects: &'a Objects,
    staged: BTreeMap<Key, Change>,
    version: u64,
    births: &'a dyn Fn() -> Birth,
}

impl<'a> Planned<'a> {
    /// `births` gives each new object its uid and time.
    pub(crate) fn new(objects: &'a Objects, births: &'a dyn Fn() -> Birth) -> Self {
        Self { objects, staged: BTreeMap::new(), version: objects.version, births }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Record>> {
        match self.staged.get(key) {
            Some(change) => change.after.as_ref(),
            None => self.objects.get(key),
        }
    }

    /// The object as it was before this plan.
    pub(crate) fn before(&self, key: &Key) -> Option<Arc<Record>> {
        self.objects.get(key).cloned()
    }

    pub(crate) fn birth(&self) -> Birth {
        (self.births)()
    }

    /// Whether an object of that uid is there.
    pub(crate) fn is_alive(&self, uid: &str) -> bool {
        self.key_of(uid).is_some()
    }

    fn key_of(&self, uid: &str) -> Option<Key> {
        let alive = |key: &Key| self.get(key).is_some_and(|record| record.uid() == uid);
        self.objects
            .by_uid
            .get(uid)
            .filter(|key| alive(key))
            .cloned()
            .or_else(|| self.staged.keys().find(|key| alive(key)).cloned())
    }

    /// The version the next visible change gets.
    pub(crate) fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    pub(crate) fn put(&mut self, key: Key, record: Record) {
        self.stage(key, Some(Arc::new(record)));
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        if self.get(key).is_some() {
            self.next_version();
            self.stage(key.clone(), None);
        }
    }

    fn stage(&mut self, key: Key, after: Option<Arc<Record>>) {
        let before = self.objects.get(&key).cloned();
        self.staged.insert(key.clone(), Change { version: self.version, key, before, after });
    }

    /// The finished plan: with dependents of what goes, and namespaces that come and go with their objects.
    pub(crate) fn finish(mut self) -> Vec<Change> {
        self.imply_namespaces();
        self.collect_dependents();
        // What was collected may have been a namespace's last.
        self.imply_namespaces();
        let mut changes: Vec<Change> =
            self.staged.into_values().filter(|change| change.before != change.after).collect();
        changes.sort_by_key(|change| change.version);
        changes
    }

    /// Removes what Tombolo made for an owner that is gone, when no other owner is left.
    fn collect_dependents(&mut self) {
        let mut gone: Vec<String> = self.staged.values().filter_map(replaced_uid).collect();
        while let Some(owner) = gone.pop() {
            let known = self.objects.dependents.get(&owner).into_iter().flatten();
            let new = self
                .staged
                .values()
                .filter(|change| change.after.as_ref().is_some_and(|record| record.owners().contains(&owner)));
            let dependents: BTreeSet<Key> = known.chain(new.map(|change| &change.key)).cloned().collect();
            for key in dependents {
                let Some(record) = self.get(&key) else { continue };
                let owners = record.owners();
                let orphaned = owners.contains(&owner) && !owners.iter().any(|owner| self.is_alive(owner));
                if orphaned && record.origin == super::record::Origin::Tombolo {
                    gone.push(record.uid().to_owned());
                    self.remove(&key);
                }
            }
        }
    }

    /// A namespace is there while an object of it is.
    fn imply_namespaces(&mut self) {
        let Some(known) = crate::kinds::find("", "Namespace") else { return };
        let mut balance: BTreeMap<String, isize> = BTreeMap::new();
        for change in self.staged.values() {
            if change.key.kind.namespaced {
                *balance.entry(change.key.object.namespace.clone()).or_default() +=
                    isize::from(change.after.is_some()) - isize::from(change.before.is_some());
            } else if change.key.kind == known.name {
                balance.entry(change.key.object.name.clone()).or_default();
            }
        }
        for (namespace, change) in balance {
            let population =
                self.objects.population.get(&namespace).copied().unwrap_or(0).saturating_add_signed(change);
            let key = Key { kind: known.name, object: crate::ObjectKey::new(None, &namespace) };
            let present = self.get(&key).cloned();
            match (population, present) {
                (1.., None) => super::writes::imply_namespace(self, key),
                (0, Some(record)) if record.origin == super::record::Origin::Implied => self.remove(&key),
                _ => {}
            }
        }
    }
}

/// The uid that a change ends, if it ends one.
fn replaced_uid(change: &Change) -> Option<String> {
    let before = change.before.as_ref()?.uid();
    (change.after.as_ref().map(|record| record.uid()) != Some(before)).then(|| before.to_owned())
}
