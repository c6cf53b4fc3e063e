//! [`Backend`]: what a place for objects must be able to do. Objects are JSON values here; [`Store`](crate::Store)
//! gives them their types.

use std::fmt;
use std::time::SystemTime;

use api::{Kind, Scope};
use async_trait::async_trait;
use serde_json::Value;

use crate::Error;
use crate::watch::RawWatch;

/// A kind as a backend knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KindName {
    /// `tombolo.dev`; empty for the core group.
    pub group: &'static str,
    /// `tombolo.dev/v1alpha1`, `v1`.
    pub api_version: &'static str,
    pub kind: &'static str,
    /// As it stands in the API server's paths: `serviceexports`.
    pub plural: &'static str,
    pub namespaced: bool,
}

impl KindName {
    pub fn of<K: Kind>() -> Self {
        // kube's static kinds borrow their names; an owned one would be a kind made at run time, which `Kind` excludes.
        fn fixed(text: std::borrow::Cow<'static, str>) -> &'static str {
            match text {
                std::borrow::Cow::Borrowed(text) => text,
                std::borrow::Cow::Owned(_) => "",
            }
        }
        Self {
            group: fixed(K::group(&())),
            api_version: fixed(K::api_version(&())),
            kind: fixed(K::kind(&())),
            plural: fixed(K::plural(&())),
            namespaced: K::SCOPE == Scope::Namespaced,
        }
    }
}

/// An object's place among those of its kind. `namespace` is empty for kinds that have none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(namespace: Option<&str>, name: &str) -> Self {
        Self { namespace: namespace.unwrap_or_default().to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// What must still be true of an object for a delete to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

/// Whose a ServiceAccount token is, as the API server says (TokenReview, `authentication.k8s.io/v1`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOwner {
    pub namespace: String,
    pub service_account: String,
    /// Where the pod runs that the token is bound to; none where it is bound to no pod.
    pub node: Option<String>,
}

/// A backend without its source.
#[derive(Clone, Debug)]
pub struct Interruption {
    pub since: SystemTime,
    pub reason: String,
}

#[async_trait]
pub trait Backend: Send + Sync {
    async fn get(&self, kind: KindName, key: &ObjectKey) -> Result<Option<Value>, Error>;
    async fn list(&self, kind: KindName) -> Result<Vec<Value>, Error>;
    fn watch(&self, kind: KindName) -> RawWatch;
    async fn create(&self, kind: KindName, object: Value) -> Result<Value, Error>;
    async fn update(&self, kind: KindName, object: Value) -> Result<Value, Error>;
    async fn update_status(&self, kind: KindName, object: Value) -> Result<Value, Error>;
    async fn delete(&self, kind: KindName, key: &ObjectKey, only_if: Preconditions) -> Result<(), Error>;
    fn interruption(&self) -> Option<Interruption>;

    /// Whose a token is. [`Error::Forbidden`] says that it is nobody's, [`Error::Unavailable`] that nobody can say now.
    async fn review_token(&self, _token: &str) -> Result<TokenOwner, Error> {
        Err(Error::Forbidden(
            "this cluster has no API server that could know it: enrol with the file agents.key".into(),
        ))
    }
}

/// `ServiceExport shop/web`, for messages.
pub(crate) fn described<K: Kind>(object: &K) -> String {
    let meta = object.meta();
    let key = ObjectKey::new(meta.namespace.as_deref(), meta.name.as_deref().unwrap_or_default());
    format!("{} {key}", KindName::of::<K>().kind)
}

pub(crate) fn raw<K: Kind>(object: &K) -> Result<Value, Error> {
    serde_json::to_value(object)
        .map_err(|error| Error::Malformed { object: described(object), detail: error.to_string() })
}

pub(crate) fn typed<K: Kind>(value: Value) -> Result<K, Error> {
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    serde_json::from_value(value).map_err(|error| Error::Malformed {
        object: format!("{} {name}", KindName::of::<K>().kind),
        detail: error.to_string(),
    })
}
