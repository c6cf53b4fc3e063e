//! [`Declarations`]: what all files of the folder say together: which file defines which object, and what is wrong.
//! Nothing here touches a file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::objects::Objects;
use super::report::Report;
use crate::manifest::{Document, Key, Manifest};

#[derive(Default)]
pub(crate) struct Declarations {
    /// By path inside the folder, in its order: of two files that define an object the first decides.
    files: BTreeMap<String, Arc<Manifest>>,
    /// Where each object is defined: file and place in it.
    places: BTreeMap<Key, BTreeSet<(String, usize)>>,
    /// Objects that some refused document names, by how many.
    refused: BTreeMap<Key, usize>,
}

/// What the files want of one object.
#[derive(Debug, PartialEq)]
pub(crate) enum Wanted<'a> {
    /// As this document of this file says.
    Declared(&'a str, &'a Document),
    /// As it was: what would say something of it cannot be read.
    Kept,
    /// Nobody defines it.
    Undeclared,
}

impl Declarations {
    /// Takes what a file says now (`None`: it is gone) and returns the objects this concerns: those whose document is
    /// another one than before.
    pub(crate) fn set(&mut self, file: &str, manifest: Option<Manifest>, objects: &Objects) -> BTreeSet<Key> {
        let old = self.files.remove(file).unwrap_or_default();
        let new = manifest.as_ref().map(|manifest| manifest.documents.as_slice()).unwrap_or_default();
        let touched = differences(&old.documents, new, objects.of_file(file));
        for (index, document) in old.documents.iter().enumerate() {
            if let Some(places) = self.places.get_mut(&document.key) {
                places.remove(&(file.to_owned(), index));
                if places.is_empty() {
                    self.places.remove(&document.key);
                }
            }
        }
        for (index, document) in new.iter().enumerate() {
            self.places.entry(document.key.clone()).or_default().insert((file.to_owned(), index));
        }
        let mut touched: BTreeSet<Key> = touched.into_iter().cloned().collect();
        for key in old.problems.iter().filter_map(|problem| problem.key.as_ref()) {
            touched.insert(key.clone());
            if let Some(count) = self.refused.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.refused.remove(key);
                }
            }
        }
        if let Some(manifest) = manifest {
            for key in manifest.problems.iter().filter_map(|problem| problem.key.as_ref()) {
                touched.insert(key.clone());
                *self.refused.entry(key.clone()).or_default() += 1;
            }
            self.files.insert(file.to_owned(), Arc::new(manifest));
        }
        touched
    }

    /// What a file says.
    pub(crate) fn file(&self, file: &str) -> Option<&Arc<Manifest>> {
        self.files.get(file)
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &String> {
        self.files.keys()
    }

    /// What the files want of `key`, which `file` defined last.
    pub(crate) fn wanted(&self, key: &Key, file: Option<&str>) -> Wanted<'_> {
        if let Some((file, index)) = self.places.get(key).and_then(BTreeSet::first)
            && let Some((file, manifest)) = self.files.get_key_value(file)
            && let Some(document) = manifest.documents.get(*index)
        {
            return Wanted::Declared(file, document);
        }
        let opaque = file.and_then(|file| self.files.get(file)).is_some_and(|manifest| manifest.is_opaque());
        if opaque || self.refused.contains_key(key) { Wanted::Kept } else { Wanted::Undeclared }
    }

    /// Everything that is wrong, by file and line.
    pub(crate) fn reports(&self, objects: &Objects) -> Vec<Report> {
        let mut reports = Vec::new();
        for (file, manifest) in &self.files {
            for problem in &manifest.problems {
                let kept = match &problem.key {
                    Some(key) => objects.get(key).is_some_and(|record| record.file().is_some()),
                    None => objects
                        .of_file(file)
                        .any(|key| !self.places.contains_key(key) && !self.refused.contains_key(key)),
                };
                reports.push(Report {
                    file: file.clone(),
                    line: problem.line,
                    object: problem.key.as_ref().map(ToString::to_string),
                    reason: problem.reason.clone(),
                    last_good_in_force: kept,
                });
            }
        }
        for (key, places) in self.places.iter().filter(|(_, places)| places.len() > 1) {
            let at = |place: &(String, usize)| {
                self.files
                    .get(&place.0)
                    .and_then(|manifest| manifest.documents.get(place.1))
                    .map(|document| document.line)
            };
            let mut places = places.iter();
            let Some(first) = places.next() else { continue };
            let line = at(first).unwrap_or(1);
            reports.extend(places.map(|place| Report {
                file: place.0.clone(),
                line: at(place),
                object: Some(key.to_string()),
                reason: format!(
                    "{key} is defined in {} line {line} already: that one counts; remove one of both",
                    first.0
                ),
                last_good_in_force: false,
            }));
        }
        reports.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        reports
    }
}

/// The objects that another document defines than before, or none, and those that came from the file before its
/// documents were known.
fn differences<'a>(old: &'a [Document], new: &'a [Document], kept: impl Iterator<Item = &'a Key>) -> BTreeSet<&'a Key> {
    // Of two documents for one object in a file the first counts.
    let first = |documents: &'a [Document]| -> BTreeMap<&'a Key, &'a Arc<Value>> {
        documents.iter().rev().map(|document| (&document.key, &document.object)).collect()
    };
    let (old, new) = (first(old), first(new));
    let same = |key: &Key| match (old.get(key), new.get(key)) {
        (Some(old), Some(new)) => Arc::ptr_eq(old, new) || old == new,
        _ => false,
    };
    old.keys().chain(new.keys()).copied().chain(kept).filter(|key| !same(key)).collect()
}
