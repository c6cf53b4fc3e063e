//! [`Kind`]: what every stored object can say of itself.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// One reason why an object is refused: where in the object, what is wrong, what to write in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// A path as kubectl shows it: `spec.tiers[1].clusters`.
    pub path: String,
    /// What is wrong and what to do, in one sentence.
    pub message: String,
}

impl Violation {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// An object that a store can hold.
pub trait Kind:
    kube::Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + fmt::Debug + PartialEq + Send + Sync + 'static
{
    const SCOPE: Scope;

    /// Every rule this object breaks that its schema alone cannot express; empty when it is good.
    fn violations(&self) -> Vec<Violation> {
        Vec::new()
    }
}

impl Kind for Service {
    const SCOPE: Scope = Scope::Namespaced;
}
impl Kind for EndpointSlice {
    const SCOPE: Scope = Scope::Namespaced;
}
impl Kind for Namespace {
    const SCOPE: Scope = Scope::Cluster;
}
impl Kind for Node {
    const SCOPE: Scope = Scope::Cluster;
}
impl Kind for Secret {
    const SCOPE: Scope = Scope::Namespaced;
}
impl Kind for ConfigMap {
    const SCOPE: Scope = Scope::Namespaced;
}
impl Kind for Lease {
    const SCOPE: Scope = Scope::Namespaced;
}

/// The schema of a list of conditions: a map by `type`, as the API server merges them.
///
/// Bounded, for the API server refuses validation rules over unbounded lists.
pub(crate) fn conditions_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": { "type": "string", "maxLength": 316 },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "reason": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
                },
                "message": { "type": "string", "maxLength": 32768 }
            }
        }
    })
}
