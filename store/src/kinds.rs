//! The kinds a store knows, and the door every object comes in by: its shape, its unknown fields, its rules.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use api::kubernetes::{ConfigMap, EndpointSlice, Lease, Namespace, Node, Secret, Service};
use api::{
    ClusterMember, ClusterPeer, ClusterProperty, ClusterRoutingPolicy, Kind, LocalCluster, RoutingPolicy,
    ServiceExport, ServiceImport, TunnelGateway, Violation,
};
use serde_json::{Map, Value, json};

use crate::backend::KindName;

/// One kind and how its objects are checked.
pub(crate) struct Known {
    pub(crate) name: KindName,
    /// Every `apiVersion` a manifest may say; the first is what the object gets.
    pub(crate) versions: &'static [&'static str],
    /// Whether an unknown field is a mistake. In Kubernetes kinds it is a newer Kubernetes.
    pub(crate) strict: bool,
    /// Whether somebody other than the spec's writer writes a status.
    pub(crate) has_status: bool,
    typed: fn(Value) -> Result<Typed, String>,
    located: fn(&str) -> Option<(u64, String)>,
}

/// An object that has its kind's shape.
struct Typed {
    value: Value,
    unknown: BTreeSet<String>,
    violations: Vec<Violation>,
}

/// Why an object is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It does not have the kind's shape.
    Shape(String),
    /// It breaks these rules.
    Rules(Vec<Violation>),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shape(detail) => f.write_str(detail),
            Self::Rules(violations) => {
                for (index, violation) in violations.iter().enumerate() {
                    write!(f, "{}{violation}", if index == 0 { "" } else { "; " })?;
                }
                Ok(())
            }
        }
    }
}

/// Every kind.
pub(crate) fn all() -> &'static [Known] {
    static ALL: OnceLock<Vec<Known>> = OnceLock::new();
    ALL.get_or_init(|| {
        const OURS: &[&str] = &["tombolo.dev/v1alpha1"];
        // The standard renamed the version, not the objects: manifests of both are about.
        const SERVICES: &[&str] = &["multicluster.x-k8s.io/v1beta1", "multicluster.x-k8s.io/v1alpha1"];
        vec![
            known::<LocalCluster>(OURS, true, true),
            known::<ClusterPeer>(OURS, true, true),
            known::<ClusterMember>(OURS, true, true),
            known::<TunnelGateway>(OURS, true, true),
            known::<RoutingPolicy>(OURS, true, true),
            known::<ClusterRoutingPolicy>(OURS, true, true),
            known::<ServiceExport>(SERVICES, true, true),
            known::<ServiceImport>(SERVICES, true, true),
            known::<ClusterProperty>(&["about.k8s.io/v1beta1", "about.k8s.io/v1alpha1"], true, false),
            known::<Service>(&["v1"], false, true),
            known::<EndpointSlice>(&["discovery.k8s.io/v1"], false, true),
            known::<Namespace>(&["v1"], false, true),
            known::<Node>(&["v1"], false, true),
            known::<Secret>(&["v1"], false, false),
            known::<ConfigMap>(&["v1"], false, false),
            known::<Lease>(&["coordination.k8s.io/v1"], false, false),
        ]
    })
}

fn known<K: Kind>(versions: &'static [&'static str], strict: bool, has_status: bool) -> Known {
    Known { name: KindName::of::<K>(), versions, strict, has_status, typed: typed::<K>, located: located::<K> }
}

/// The kind of that name in that group, when there is one.
pub(crate) fn find(group: &str, kind: &str) -> Option<&'static Known> {
    all().iter().find(|known| known.name.kind == kind && known.name.group == group)
}

pub(crate) fn of(kind: KindName) -> Option<&'static Known> {
    find(kind.group, kind.kind)
}

fn typed<K: Kind>(value: Value) -> Result<Typed, String> {
    let mut unknown = BTreeSet::new();
    let object: K = serde_ignored::deserialize(value, |path| {
        let path = path.to_string().replace(".?.", ".");
        // What kube's types keep elsewhere than in a field.
        if path != "apiVersion" && path != "kind" {
            unknown.insert(path);
        }
    })
    .map_err(|error| error.to_string())?;
    let value = serde_json::to_value(&object).map_err(|error| error.to_string())?;
    Ok(Typed { value, unknown, violations: object.violations() })
}

/// Where a document does not have its kind's shape: line from 1, and what is wrong.
fn located<K: Kind>(document: &str) -> Option<(u64, String)> {
    crate::manifest::parse::<K>(document).err()
}

impl Known {
    /// The object with the fields its type has, whatever rules it breaks.
    pub(crate) fn shape(&self, object: Value) -> Result<Value, String> {
        (self.typed)(object).map(|typed| typed.value)
    }

    /// The object as it is kept: its kind's shape, its `apiVersion`, nothing unknown, no rule broken.
    pub(crate) fn admit(&self, mut object: Value) -> Result<Value, Refusal> {
        let Some(fields) = object.as_object_mut() else {
            return Err(Refusal::Shape("is not an object: start it with apiVersion, kind and metadata".into()));
        };
        fields.insert("apiVersion".into(), self.name.api_version.into());
        fields.insert("kind".into(), self.name.kind.into());
        self.fill_in(fields);
        let Typed { mut value, unknown, violations } = (self.typed)(object).map_err(Refusal::Shape)?;
        let mut rules: Vec<Violation> = Vec::new();
        if self.strict {
            rules.extend(unknown.into_iter().map(|path| {
                Violation::new(path, "is not a field of this kind: check its spelling, or update Tombolo")
            }));
        }
        rules.extend(violations);
        rules.extend(name_violations(self.name, &value));
        if !rules.is_empty() {
            return Err(Refusal::Rules(rules));
        }
        if let Some(fields) = value.as_object_mut() {
            fields.insert("apiVersion".into(), self.name.api_version.into());
            fields.insert("kind".into(), self.name.kind.into());
            tidy(fields);
        }
        Ok(value)
    }

    /// What the API server would add where the author left it out.
    pub(crate) fn fill_in(&self, fields: &mut Map<String, Value>) {
        match self.name.kind {
            // Their specs may be empty, and people leave empty specs out.
            "ServiceExport" | "ClusterMember" => {
                let spec = fields.entry("spec").or_insert(Value::Null);
                if spec.is_null() {
                    *spec = json!({});
                }
            }
            "Secret" => encode_string_data(fields),
            _ => {}
        }
        let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        if self.name.namespaced && metadata.get("namespace").and_then(Value::as_str).is_none_or(str::is_empty) {
            metadata.insert("namespace".into(), "default".into());
        }
        if self.name.kind == "Namespace"
            && let Some(name) = metadata.get("name").cloned()
            && let Some(labels) = metadata.entry("labels").or_insert_with(|| json!({})).as_object_mut()
        {
            labels.insert("kubernetes.io/metadata.name".into(), name);
        }
    }

    /// Where in a document's text its shape is wrong, when the text shows it.
    pub(crate) fn locate(&self, document: &str) -> Option<(u64, String)> {
        (self.located)(document)
    }
}

/// A Secret's `stringData` is `data` for people to write: it moves there, encoded, and wins.
fn encode_string_data(fields: &mut Map<String, Value>) {
    use base64::Engine;
    let Some(Value::Object(plain)) = fields.remove("stringData") else { return };
    let data = fields.entry("data").or_insert_with(|| json!({}));
    if data.is_null() {
        *data = json!({});
    }
    let Some(data) = data.as_object_mut() else { return };
    for (name, value) in plain {
        // A value that is no text stays as it is, to be refused for its shape.
        let encoded = match value.as_str() {
            Some(text) => Value::from(base64::engine::general_purpose::STANDARD.encode(text)),
            None => value,
        };
        data.insert(name, encoded);
    }
}

/// Leaves out maps and lists of the metadata that say nothing, and what only an API server's bookkeeping means.
fn tidy(fields: &mut Map<String, Value>) {
    let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    for bookkeeping in ["managedFields", "selfLink", "generateName"] {
        metadata.remove(bookkeeping);
    }
    metadata.retain(|_, value| match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Null => false,
        _ => true,
    });
}

/// Names become parts of keys, files and DNS names, so they are what Kubernetes allows and nothing else.
fn name_violations(kind: KindName, object: &Value) -> Vec<Violation> {
    let text = |field: &str| object.pointer(field).and_then(Value::as_str).unwrap_or_default();
    let (name, namespace) = (text("/metadata/name"), text("/metadata/namespace"));
    let mut found = Vec::new();
    let label = |text: &str| api::cluster_id::is_dns_label(text);
    if name.is_empty() {
        found.push(Violation::new("metadata.name", "is missing: every object has a name"));
    } else if name.len() > 253 || !name.split('.').all(label) {
        found.push(Violation::new(
            "metadata.name",
            "must be labels of a-z, 0-9 and '-' joined by dots, at most 253 characters (RFC 1123)",
        ));
    }
    if kind.namespaced && !label(namespace) {
        found.push(Violation::new("metadata.namespace", "must be one label of a-z, 0-9 and '-' (RFC 1123)"));
    }
    if !kind.namespaced && !namespace.is_empty() {
        found.push(Violation::new("metadata.namespace", format!("a {} has no namespace: remove it", kind.kind)));
    }
    found
}
