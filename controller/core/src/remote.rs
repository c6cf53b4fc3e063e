//! [`RemoteIndex`]: what each other cluster advertises, and what of it is in force here.
//!
//! What was said is kept as it was said, within bounds, and judged apart from that. So a change of what we accept needs
//! no word from the other side, and a restart begins with everything that was known.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use api::ClusterId;
use api::time::{Instant, WallTime};
use serde::{Deserialize, Serialize};

use crate::advertisement::{AdvertisedService, Advertisement, ContentHash, Item, ItemChange, ItemKey, ServiceName};
use crate::recall::Remembered;
use crate::validity::{self, Bounds, Refusal, Terms};

/// A cluster silent for so long has nothing ready any more (decision 16). Its endpoints left service long before, by
/// measured health.
pub const SILENCE: Duration = Duration::from_secs(30);

/// A cluster silent for so long is forgotten, its vote with it.
pub const FORGET: Duration = Duration::from_secs(7 * 24 * 3600);

/// Where a conversation may go on: which installation said it, and the hash of all it had said (decision 15).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub epoch: String,
    pub hash: ContentHash,
}

/// What is kept on disk of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// The file's form; 1.
    pub version: u16,
    pub token: Option<Token>,
    pub items: Vec<ItemChange>,
    /// When each service was exported first, as far as was ever known: a rebuilt cluster does not flip winners.
    pub first_exported: Vec<(ServiceName, WallTime)>,
    /// When it was heard last.
    pub last_heard: Option<WallTime>,
}

#[derive(Debug, Default)]
struct RemoteCluster {
    said: Advertisement,
    usable: Advertisement,
    terms: Option<Terms>,
    token: Option<Token>,
    first_exported: BTreeMap<ServiceName, WallTime>,
    refused: BTreeMap<ItemKey, Vec<Refusal>>,
    /// Items over the bounds were not kept: what is held is not what the token stands for.
    truncated: bool,
    /// Since when no conversation is open; `None` while one is.
    silent_since: Option<Instant>,
    silent: bool,
    last_heard: Option<WallTime>,
}

/// The other clusters. Only those with terms count: a cluster that is not (or no longer) a peer contributes nothing.
#[derive(Debug)]
pub struct RemoteIndex {
    clusters: BTreeMap<ClusterId, RemoteCluster>,
    bounds: Bounds,
}

impl RemoteIndex {
    pub fn new(bounds: Bounds) -> Self {
        Self { clusters: BTreeMap::new(), bounds }
    }

    /// Sets what a cluster may contribute; `None` takes everything of it out of force and keeps it in memory.
    /// Returns the services that changed.
    pub fn set_terms(
        &mut self,
        cluster: &ClusterId,
        terms: Option<Terms>,
        now: Instant,
        wall: WallTime,
    ) -> BTreeSet<ServiceName> {
        if terms.is_none() && !self.clusters.contains_key(cluster) {
            return BTreeSet::new();
        }
        let remote = self.entry(cluster, now);
        if remote.terms == terms {
            return BTreeSet::new();
        }
        remote.terms = terms;
        let keys: Vec<ItemKey> = remote
            .said
            .iter()
            .chain(remote.usable.iter())
            .map(|(key, _)| key.clone())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        keys.iter().filter(|key| remote.judge(key, wall)).map(|key| key.service.clone()).collect()
    }

    /// Whether a cluster may say anything at all.
    pub fn has_terms(&self, cluster: &ClusterId) -> bool {
        self.clusters.get(cluster).is_some_and(|remote| remote.terms.is_some())
    }

    /// Forgets a cluster and everything it said.
    pub fn forget(&mut self, cluster: &ClusterId) -> BTreeSet<ServiceName> {
        let gone = self.clusters.remove(cluster);
        gone.iter().flat_map(|remote| remote.usable.iter()).map(|(key, _)| key.service.clone()).collect()
    }

    /// Takes back what was kept on disk.
    pub fn remember(
        &mut self,
        cluster: &ClusterId,
        memory: Memory,
        now: Instant,
        wall: WallTime,
    ) -> BTreeSet<ServiceName> {
        let bounds = self.bounds;
        let remote = self.entry(cluster, now);
        remote.first_exported = memory.first_exported.into_iter().collect();
        remote.last_heard = memory.last_heard;
        remote.token = memory.token;
        let mut said = Advertisement::default();
        for change in &memory.items {
            said.apply(change);
        }
        // A file of another making may disagree with its token: then the conversation begins anew.
        if remote.token.as_ref().is_some_and(|token| token.hash != said.hash()) {
            remote.token = None;
        }
        remote.replace(said, bounds, wall)
    }

    /// What to keep on disk of a cluster.
    pub fn memory(&self, cluster: &ClusterId) -> Option<Memory> {
        let remote = self.clusters.get(cluster)?;
        Some(Memory {
            version: 1,
            token: self.token(cluster),
            items: remote
                .said
                .iter()
                .map(|(key, item)| ItemChange { key: key.clone(), item: Some(item.clone()) })
                .collect(),
            first_exported: remote.first_exported.iter().map(|(name, time)| (name.clone(), *time)).collect(),
            last_heard: remote.last_heard,
        })
    }

    /// Its exports that are older than it says, as far as was ever known: it may have lost them and made them anew.
    pub fn remembered(&self, cluster: &ClusterId) -> Vec<Remembered> {
        let Some(remote) = self.clusters.get(cluster) else { return Vec::new() };
        let older = remote
            .first_exported
            .iter()
            .filter(|(name, time)| remote.said.service(name).is_none_or(|service| service.first_exported > **time));
        older.map(|(name, time)| Remembered { service: name.clone(), first_exported: *time }).collect()
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Where to resume; `None` for a snapshot.
    pub fn token(&self, cluster: &ClusterId) -> Option<Token> {
        let remote = self.clusters.get(cluster)?;
        remote.token.clone().filter(|_| !remote.truncated)
    }

    /// Everything a cluster says now.
    pub fn snapshot(
        &mut self,
        cluster: &ClusterId,
        items: Advertisement,
        token: Token,
        now: Instant,
        wall: WallTime,
    ) -> BTreeSet<ServiceName> {
        let bounds = self.bounds;
        let remote = self.entry(cluster, now);
        // Another epoch is a rebuilt cluster: what it exported before the loss may come back, and keeps its age.
        let same_epoch = remote.token.as_ref().is_some_and(|held| held.epoch == token.epoch);
        remote.last_heard = Some(wall);
        if same_epoch {
            items.iter().for_each(|(key, item)| remote.notice_made_anew(key, item));
        }
        let touched = remote.replace(items, bounds, wall);
        remote.settle(token);
        // A cluster that is rebuilt again and again under other names must not fill our memory.
        if same_epoch || remote.first_exported.len() > 2 * bounds.services {
            let RemoteCluster { first_exported, said, .. } = remote;
            first_exported.retain(|name, _| said.service(name).is_some());
        }
        touched
    }

    /// Some items more, other or gone; the token stands at the end of what belongs together.
    pub fn changes(
        &mut self,
        cluster: &ClusterId,
        changes: &[ItemChange],
        token: Option<Token>,
        now: Instant,
        wall: WallTime,
    ) -> BTreeSet<ServiceName> {
        let bounds = self.bounds;
        let remote = self.entry(cluster, now);
        remote.last_heard = Some(wall);
        let mut touched = BTreeSet::new();
        for change in changes {
            if let Some(item) = &change.item {
                remote.notice_made_anew(&change.key, item);
            }
            if remote.hear(change, bounds) && remote.judge(&change.key, wall) {
                touched.insert(change.key.service.clone());
            }
            if change.item.is_none() && change.key.slice.is_none() {
                remote.first_exported.remove(&change.key.service);
            }
        }
        if let Some(token) = token {
            remote.settle(token);
        }
        touched
    }

    /// Whether what is held differs from what the cluster says it holds: only a snapshot helps.
    pub fn is_astray(&self, cluster: &ClusterId) -> bool {
        self.clusters.get(cluster).is_some_and(|remote| remote.token.is_none() && !remote.said.is_empty())
    }

    /// A conversation with the cluster opened or ended.
    pub fn set_connected(&mut self, cluster: &ClusterId, connected: bool, now: Instant) -> BTreeSet<ServiceName> {
        let remote = self.entry(cluster, now);
        remote.silent_since = (!connected).then_some(remote.silent_since.unwrap_or(now));
        if connected {
            remote.silent_since = None;
        }
        self.tick(now).0
    }

    /// Lets silence take effect. Returns the services that changed and the clusters that were forgotten.
    pub fn tick(&mut self, now: Instant) -> (BTreeSet<ServiceName>, Vec<ClusterId>) {
        let mut touched = BTreeSet::new();
        let mut forgotten = Vec::new();
        for (id, remote) in &mut self.clusters {
            let silence = remote.silent_since.map_or(Duration::ZERO, |since| now.since(since));
            let silent = silence >= SILENCE;
            if silent != remote.silent {
                remote.silent = silent;
                touched.extend(remote.usable.iter().map(|(key, _)| key.service.clone()));
            }
            if silence >= FORGET && !remote.said.is_empty() {
                forgotten.push(id.clone());
            }
        }
        for id in &forgotten {
            touched.extend(self.forget(id));
        }
        (touched, forgotten)
    }

    /// The clusters that export a service, with what they say of it.
    pub fn claims<'a>(&'a self, name: &'a ServiceName) -> impl Iterator<Item = (&'a ClusterId, &'a AdvertisedService)> {
        self.clusters.iter().filter_map(move |(id, remote)| Some((id, remote.usable.service(name)?)))
    }

    /// What of a cluster's word is in force.
    pub fn usable(&self, cluster: &ClusterId) -> Option<&Advertisement> {
        self.clusters.get(cluster).map(|remote| &remote.usable)
    }

    pub fn is_silent(&self, cluster: &ClusterId) -> bool {
        self.clusters.get(cluster).is_some_and(|remote| remote.silent)
    }

    pub fn is_connected(&self, cluster: &ClusterId) -> bool {
        self.clusters.get(cluster).is_some_and(|remote| remote.silent_since.is_none())
    }

    pub fn last_heard(&self, cluster: &ClusterId) -> Option<WallTime> {
        self.clusters.get(cluster)?.last_heard
    }

    /// How many items of a cluster are refused at this moment, by reason.
    pub fn refusals(&self, cluster: &ClusterId) -> BTreeMap<Refusal, usize> {
        let mut counts = BTreeMap::new();
        for refusal in self.clusters.get(cluster).iter().flat_map(|remote| remote.refused.values()).flatten() {
            *counts.entry(*refusal).or_default() += 1;
        }
        counts
    }

    /// An example of each refusal, for people.
    pub fn refused_examples(&self, cluster: &ClusterId) -> BTreeMap<Refusal, String> {
        let mut examples = BTreeMap::new();
        for (key, refusals) in self.clusters.get(cluster).iter().flat_map(|remote| &remote.refused) {
            for refusal in refusals {
                examples.entry(*refusal).or_insert_with(|| format!("{}", key.service));
            }
        }
        examples
    }

    pub fn clusters(&self) -> impl Iterator<Item = &ClusterId> {
        self.clusters.keys()
    }

    fn entry(&mut self, cluster: &ClusterId, now: Instant) -> &mut RemoteCluster {
        self.clusters
            .entry(cluster.clone())
            .or_insert_with(|| RemoteCluster { silent_since: Some(now), ..RemoteCluster::default() })
    }
}

impl RemoteCluster {
    /// Takes the token for what is held now, if that is what it stands for.
    fn settle(&mut self, token: Token) {
        self.token = (self.truncated || token.hash == self.said.hash()).then_some(token);
    }

    /// An export that one installation calls younger than it did before was taken back and made again meanwhile: a new
    /// one, as old as it says.
    fn notice_made_anew(&mut self, key: &ItemKey, item: &Item) {
        if let Item::Service(now) = item
            && self.said.service(&key.service).is_some_and(|before| before.first_exported < now.first_exported)
        {
            self.first_exported.remove(&key.service);
        }
    }

    fn replace(&mut self, fresh: Advertisement, bounds: Bounds, wall: WallTime) -> BTreeSet<ServiceName> {
        self.truncated = false;
        let mut touched = BTreeSet::new();
        for change in self.said.changes_to(&fresh) {
            if self.hear(&change, bounds) && self.judge(&change.key, wall) {
                touched.insert(change.key.service);
            }
        }
        touched
    }

    /// Keeps what was said, within the bounds; false when nothing changed.
    fn hear(&mut self, change: &ItemChange, bounds: Bounds) -> bool {
        let Some(item) = &change.item else {
            self.refused.remove(&change.key);
            return self.said.remove(&change.key);
        };
        let before = self.said.get(&change.key).cloned();
        if !self.said.put(change.key.clone(), item.clone()) {
            return false;
        }
        let over = if self.said.services() > bounds.services {
            Refusal::TooManyServices
        } else if self.said.endpoints() > bounds.endpoints {
            Refusal::TooManyEndpoints
        } else if self.said.bytes() > bounds.bytes {
            Refusal::TooManyBytes
        } else {
            return true;
        };
        self.truncated = true;
        self.said.remove(&change.key);
        // The names of what is refused are bounded too: the count is what matters, and one example.
        if self.refused.len() < bounds.services {
            self.refused.insert(change.key.clone(), vec![over]);
        }
        before.is_some()
    }

    /// Judges one item anew; true when what is in force changed.
    fn judge(&mut self, key: &ItemKey, wall: WallTime) -> bool {
        let Some((said, terms)) = self.said.get(key).zip(self.terms.as_ref()) else {
            return self.usable.remove(key);
        };
        let (usable, refusals) = validity::judge(key, said, terms, wall);
        if refusals.is_empty() {
            self.refused.remove(key);
        } else {
            self.refused.insert(key.clone(), refusals);
        }
        match usable {
            None => self.usable.remove(key),
            Some(item) => {
                let item = self.with_first_time(key, item);
                self.usable.put(key.clone(), item)
            }
        }
    }

    /// The item with the oldest time that was ever known of its export.
    fn with_first_time(&mut self, key: &ItemKey, item: Arc<Item>) -> Arc<Item> {
        let Item::Service(service) = &*item else { return item };
        let oldest = self.first_exported.entry(key.service.clone()).or_insert(service.first_exported);
        *oldest = (*oldest).min(service.first_exported);
        if *oldest == service.first_exported {
            return item;
        }
        Arc::new(Item::Service(AdvertisedService { first_exported: *oldest, ..service.clone() }))
    }
}

#[cfg(test)]
mod tests;
