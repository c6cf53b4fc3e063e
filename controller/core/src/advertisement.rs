//! [`Advertisement`]: what one cluster says it exports. Small items under ordered keys, so that a change is one item,
//! and a content hash over all of them, so that two ends can tell in 32 bytes whether they agree.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use api::service_import::{ImportPort, ImportType};
use api::time::WallTime;
use k8s_openapi::api::core::v1::SessionAffinityConfig;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// Namespace and name: the same in every cluster (EX-2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

impl ServiceName {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An address family, spelled as Kubernetes does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "IPv4" => Some(Self::V4),
            "IPv6" => Some(Self::V6),
            _ => None,
        }
    }
}

/// What a service is, as its Service and ServiceExport say (EX-7). No endpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdvertisedService {
    pub service_type: ImportType,
    pub ports: Vec<ImportPort>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_annotations: BTreeMap<String, String>,
    pub ip_families: Vec<Family>,
    /// When it was exported first: the oldest export wins conflicts (CR-1).
    pub first_exported: WallTime,
}

/// Endpoints of one service that share ports and family: at most [`MAX_SLICE_ENDPOINTS`](crate::slices::MAX_SLICE_ENDPOINTS).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvertisedSlice {
    pub family: Family,
    pub ports: Vec<TargetPort>,
    pub endpoints: Vec<AdvertisedEndpoint>,
}

/// A port as the endpoints have it: the name joins it to the service's port, the number is the endpoints' own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetPort {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub protocol: String,
    pub port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AdvertisedEndpoint {
    pub address: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The node in the exporting cluster; means nothing elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Endpoints that are not ready travel too: policies count them (`spillBelow.percent`).
    pub ready: bool,
    /// Not ready for new connections, and goes on with those it has (`serving` of `EndpointConditions`): its node is
    /// drained, or its pod ends in good order.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub finishing: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Item {
    Service(AdvertisedService),
    Slice(AdvertisedSlice),
}

impl Item {
    pub fn endpoints(&self) -> usize {
        match self {
            Self::Service(_) => 0,
            Self::Slice(slice) => slice.endpoints.len(),
        }
    }
}

/// Orders a service before its slices, and all of one service together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ItemKey {
    pub service: ServiceName,
    /// The slice's id within the service; absent for the service itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice: Option<String>,
}

impl ItemKey {
    pub fn service(service: ServiceName) -> Self {
        Self { service, slice: None }
    }
    pub fn slice(service: ServiceName, id: impl Into<String>) -> Self {
        Self { service, slice: Some(id.into()) }
    }
}

/// One item put, or taken away when `item` is `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ItemChange {
    pub key: ItemKey,
    #[serde(with = "shared_item")]
    pub item: Option<Arc<Item>>,
}

/// The sum of the hashes of all items, whatever their order. It tells two states apart; it does not defend against a
/// cluster that lies about its own state, for that hurts nobody else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    fn of(key: &ItemKey, item: &Item) -> (Self, usize) {
        // Strings, numbers and maps with string keys: encoding cannot fail.
        let key = serde_json::to_vec(key).unwrap_or_default();
        let item = serde_json::to_vec(item).unwrap_or_default();
        let digest = Sha256::new().chain_update(&key).chain_update([0]).chain_update(&item).finalize();
        (Self(digest.into()), key.len() + item.len())
    }
    fn toggle(&mut self, other: Self) {
        for (ours, theirs) in self.0.iter_mut().zip(other.0) {
            *ours ^= theirs;
        }
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || serde::de::Error::custom("a content hash is 64 hexadecimal digits");
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

#[derive(Clone, Debug)]
struct Entry {
    item: Arc<Item>,
    hash: ContentHash,
    bytes: usize,
}

/// Everything one cluster exports. Cloning copies pointers, not items.
#[derive(Clone, Debug, Default)]
pub struct Advertisement {
    entries: BTreeMap<ItemKey, Entry>,
    hash: ContentHash,
    bytes: usize,
    endpoints: usize,
    services: usize,
}

impl Advertisement {
    /// Puts an item; false when exactly this item was there.
    pub fn put(&mut self, key: ItemKey, item: Arc<Item>) -> bool {
        if self.entries.get(&key).is_some_and(|entry| *entry.item == *item) {
            return false;
        }
        self.remove(&key);
        let (hash, bytes) = ContentHash::of(&key, &item);
        self.hash.toggle(hash);
        self.bytes += bytes;
        self.endpoints += item.endpoints();
        self.services += usize::from(key.slice.is_none());
        self.entries.insert(key, Entry { item, hash, bytes });
        true
    }

    /// Takes an item away; false when there was none.
    pub fn remove(&mut self, key: &ItemKey) -> bool {
        let Some(entry) = self.entries.remove(key) else { return false };
        self.hash.toggle(entry.hash);
        self.bytes -= entry.bytes;
        self.endpoints -= entry.item.endpoints();
        self.services -= usize::from(key.slice.is_none());
        true
    }

    /// Applies a change; false when it changed nothing.
    pub fn apply(&mut self, change: &ItemChange) -> bool {
        match &change.item {
            Some(item) => self.put(change.key.clone(), item.clone()),
            None => self.remove(&change.key),
        }
    }

    pub fn get(&self, key: &ItemKey) -> Option<&Arc<Item>> {
        self.entries.get(key).map(|entry| &entry.item)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ItemKey, &Arc<Item>)> {
        self.entries.iter().map(|(key, entry)| (key, &entry.item))
    }

    /// Items with keys after `key`, in order; from the start without one.
    pub fn after<'a>(&'a self, key: Option<&ItemKey>) -> impl Iterator<Item = (&'a ItemKey, &'a Arc<Item>)> + use<'a> {
        use core::ops::Bound;
        let start = key.map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()));
        self.entries.range((start, Bound::Unbounded)).map(|(key, entry)| (key, &entry.item))
    }

    pub fn service(&self, name: &ServiceName) -> Option<&AdvertisedService> {
        match self.get(&ItemKey::service(name.clone())).map(|item| &**item) {
            Some(Item::Service(service)) => Some(service),
            _ => None,
        }
    }

    /// The slices of a service by id.
    pub fn slices<'a>(&'a self, name: &'a ServiceName) -> impl Iterator<Item = (&'a str, &'a AdvertisedSlice)> {
        self.entries
            .range(ItemKey::service(name.clone())..)
            .take_while(move |(key, _)| key.service == *name)
            .filter_map(|(key, entry)| match (&key.slice, &*entry.item) {
                (Some(id), Item::Slice(slice)) => Some((id.as_str(), slice)),
                _ => None,
            })
    }

    /// What turns this advertisement into `other`.
    pub fn changes_to(&self, other: &Self) -> Vec<ItemChange> {
        let gone = self.entries.keys().filter(|key| !other.entries.contains_key(*key));
        let put = other
            .entries
            .iter()
            .filter(|(key, entry)| self.entries.get(*key).is_none_or(|ours| ours.hash != entry.hash));
        gone.map(|key| ItemChange { key: key.clone(), item: None })
            .chain(put.map(|(key, entry)| ItemChange { key: key.clone(), item: Some(entry.item.clone()) }))
            .collect()
    }

    pub fn hash(&self) -> ContentHash {
        self.hash
    }
    /// Items of both kinds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    /// Size of all items as they travel.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    pub fn endpoints(&self) -> usize {
        self.endpoints
    }
    pub fn services(&self) -> usize {
        self.services
    }
}

impl PartialEq for Advertisement {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.entries.keys().eq(other.entries.keys())
    }
}

mod shared_item {
    use super::{Arc, Deserialize, Deserializer, Item, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(item: &Option<Arc<Item>>, serializer: S) -> Result<S::Ok, S::Error> {
        item.as_deref().serialize(serializer)
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<Item>>, D::Error> {
        Ok(Option::<Item>::deserialize(deserializer)?.map(Arc::new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn the_hash_does_not_depend_on_the_order_and_forgets_what_was_taken_away() {
        let items = [
            (ItemKey::service(ServiceName::new("shop", "web")), testing::service(1)),
            (ItemKey::slice(ServiceName::new("shop", "web"), "a"), testing::slice(&["10.2.0.1"])),
        ];
        let (mut forward, mut backward) = (Advertisement::default(), Advertisement::default());
        for (key, item) in &items {
            assert!(forward.put(key.clone(), item.clone()));
        }
        for (key, item) in items.iter().rev() {
            backward.put(key.clone(), item.clone());
        }
        assert_eq!(forward.hash(), backward.hash());
        assert!(!forward.put(items[0].0.clone(), items[0].1.clone()), "putting the same again changes nothing");
        for (key, _) in &items {
            assert!(forward.remove(key));
        }
        assert_eq!(
            (forward.hash(), forward.bytes(), forward.endpoints(), forward.services()),
            (ContentHash::default(), 0, 0, 0)
        );
    }

    #[test]
    fn changes_from_one_advertisement_to_another_lead_to_the_other() {
        let web = ServiceName::new("shop", "web");
        let (mut from, mut to) = (Advertisement::default(), Advertisement::default());
        from.put(ItemKey::service(web.clone()), testing::service(1));
        from.put(ItemKey::slice(web.clone(), "a"), testing::slice(&["10.2.0.1"]));
        to.put(ItemKey::service(web.clone()), testing::service(1));
        to.put(ItemKey::slice(web, "b"), testing::slice(&["10.2.0.2"]));
        let changes = from.changes_to(&to);
        assert_eq!(changes.len(), 2);
        changes.iter().for_each(|change| assert!(from.apply(change)));
        assert_eq!(from, to);
    }
}
