//! [`Record`]: what is kept of one object: the object as everybody sees it, and who may change which part of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Where an object comes from, and so who owns its spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Origin {
    /// The user's file, by its path inside the manifests folder.
    Manifest(String),
    /// A part of Tombolo made it.
    Tombolo,
    /// A Namespace that is there because objects in it are.
    Implied,
}

/// What Tombolo adds to an object that a user's file owns. Kept here, so that the file is never written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Overlay {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    /// Of an EndpointSlice: the measured conditions of each endpoint, by its addresses.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) endpoint_conditions: BTreeMap<String, Value>,
    /// Whether a status was written; until then one in the manifest counts.
    pub(crate) status_written: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) origin: Origin,
    #[serde(default)]
    pub(crate) overlay: Overlay,
    pub(crate) object: Value,
}

/// What an object gets at birth.
#[derive(Clone, Debug)]
pub(crate) struct Birth {
    pub(crate) uid: String,
    /// RFC 3339, to the second.
    pub(crate) time: String,
}

impl Record {
    pub(crate) fn uid(&self) -> &str {
        metadata_text(&self.object, "uid")
    }
    pub(crate) fn resource_version(&self) -> &str {
        metadata_text(&self.object, "resourceVersion")
    }
    /// The uids of its owners.
    pub(crate) fn owners(&self) -> Vec<String> {
        owners(&self.object)
    }
    /// The file that defines it, where one does.
    pub(crate) fn file(&self) -> Option<&str> {
        match &self.origin {
            Origin::Manifest(file) => Some(file),
            _ => None,
        }
    }
    /// The labels or annotations that are the user's own.
    pub(crate) fn declared(&self, field: &str, overlay: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut declared = texts(&self.object, field);
        declared.retain(|name, _| !overlay.contains_key(name));
        declared
    }
}

pub(crate) fn metadata_text<'v>(object: &'v Value, field: &str) -> &'v str {
    object.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn owners(object: &Value) -> Vec<String> {
    let references = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    references.into_iter().flatten().filter_map(|reference| Some(reference.get("uid")?.as_str()?.to_owned())).collect()
}

/// The labels or annotations of an object.
pub(crate) fn texts(object: &Value, field: &str) -> BTreeMap<String, String> {
    let map = object.pointer(&format!("/metadata/{field}")).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

pub(crate) fn metadata_of(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object.as_object_mut()?.entry("metadata").or_insert_with(|| json!({})).as_object_mut()
}

pub(crate) fn set_texts(object: &mut Value, field: &str, texts: &BTreeMap<String, String>) {
    let Some(metadata) = metadata_of(object) else { return };
    if texts.is_empty() {
        metadata.remove(field);
    } else {
        metadata.insert(field.to_owned(), json!(texts));
    }
}

pub(crate) fn set_status(object: &mut Value, status: Option<Value>) {
    let Some(fields) = object.as_object_mut() else { return };
    match status.filter(|status| !status.is_null()) {
        Some(status) => fields.insert("status".into(), status),
        None => fields.remove("status"),
    };
}

/// Whether two objects ask for the same: everything but metadata and status.
pub(crate) fn same_spec(one: &Value, other: &Value) -> bool {
    let (Some(one), Some(other)) = (one.as_object(), other.as_object()) else { return one == other };
    let spec = |map: &Map<String, Value>| {
        map.iter().filter(|(name, _)| !matches!(name.as_str(), "metadata" | "status")).count()
    };
    spec(one) == spec(other)
        && one
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "metadata" | "status"))
            .all(|(name, value)| other.get(name) == Some(value))
}

/// What names an endpoint of a slice: its addresses.
fn endpoint_name(endpoint: &Value) -> Option<String> {
    let addresses = endpoint.get("addresses")?.as_array()?;
    let mut addresses: Vec<_> = addresses.iter().filter_map(Value::as_str).collect();
    addresses.sort_unstable();
    Some(addresses.join(","))
}

/// The conditions of each endpoint that has some.
pub(crate) fn endpoint_conditions(slice: &Value) -> BTreeMap<String, Value> {
    let endpoints = slice.get("endpoints").and_then(Value::as_array);
    endpoints
        .into_iter()
        .flatten()
        .filter_map(|endpoint| Some((endpoint_name(endpoint)?, endpoint.get("conditions")?.clone())))
        .collect()
}

/// Writes measured conditions over those in the slice; endpoints that were not measured keep theirs.
pub(crate) fn set_endpoint_conditions(slice: &mut Value, conditions: &BTreeMap<String, Value>) {
    let Some(endpoints) = slice.get_mut("endpoints").and_then(Value::as_array_mut) else { return };
    for endpoint in endpoints {
        let measured = endpoint_name(endpoint).and_then(|name| conditions.get(&name));
        if let (Some(measured), Some(fields)) = (measured, endpoint.as_object_mut()) {
            fields.insert("conditions".into(), measured.clone());
        }
    }
}
