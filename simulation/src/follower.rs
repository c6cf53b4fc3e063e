//! [`Follower`]: what one part has seen of its cluster's objects, and what it keeps of that on its own disk.

use std::collections::BTreeMap;

use crate::object::{Key, Object};
use crate::objects::{Change, Objects};

/// What a part finds on its disk when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// What it knew last.
    Kept,
    /// What it knew some time ago: a backup was restored.
    Old,
    Empty,
}

#[derive(Debug, Default)]
pub(crate) struct Follower {
    seen: BTreeMap<Key, Object>,
    old: BTreeMap<Key, Object>,
    /// How much of the log of changes it was shown.
    shown: usize,
    pub(crate) is_connected: bool,
}

impl Follower {
    /// The feed is there: everything as it is now, and from now on every change.
    pub(crate) fn connect(&mut self, objects: &Objects) -> Vec<Object> {
        self.is_connected = true;
        self.seen = objects.held().clone();
        self.shown = objects.log().len();
        self.seen.values().cloned().collect()
    }

    /// Changes up to this place of the log, in order. None while it is not connected.
    pub(crate) fn advance(&mut self, objects: &Objects, upto: usize) -> Vec<Change> {
        if !self.is_connected || upto <= self.shown {
            return Vec::new();
        }
        let changes = objects.log()[self.shown..upto].to_vec();
        self.shown = upto;
        for change in &changes {
            match change {
                Change::Applied(object) => drop(self.seen.insert(object.key(), object.clone())),
                Change::Deleted(object) => drop(self.seen.remove(&object.key())),
            }
        }
        changes
    }

    /// Its disk as it is now will be found by a start from an old one.
    pub(crate) fn back_up(&mut self) {
        self.old = self.seen.clone();
    }

    /// What it knows when it starts; none where it knows nothing.
    pub(crate) fn start(&mut self, disk: Disk) -> Option<Vec<Object>> {
        self.is_connected = false;
        match disk {
            Disk::Kept => {}
            Disk::Old => self.seen = self.old.clone(),
            Disk::Empty => self.seen.clear(),
        }
        (!self.seen.is_empty()).then(|| self.seen.values().cloned().collect())
    }
}
