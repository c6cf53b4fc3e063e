//! A Kubernetes API server as the place of objects.
//!
//! | module | does |
//! |---|---|
//! | `informer` | one list and watch a kind, kept and told to everybody who follows it |
//! | `remembered` | what an informer knows, and the difference a new list makes |
//! | `answer` | what the API server's refusals mean in this crate's words |
//!
//! Nothing here decides who may do what: that is the API server's, by the roles of whoever runs this. Writes are whole
//! objects under the version they were read with, so that no other writer's change is lost; nothing is written that
//! changes nothing, because the API server makes no version of it. Reads by name and lists ask the API server itself,
//! so that a decision that follows sees what its write will be held against.

mod answer;
mod informer;
mod remembered;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::backend::{Backend, Interruption, KindName, ObjectKey, Preconditions};
use crate::watch::RawWatch;
use crate::{Error, Store, kinds};
use informer::{Informer, Troubles};

/// Objects of one answer to a list: an API server holds a whole page in memory, and so do we.
const PAGE: u32 = 500;

/// The store behind a client. Each kind is watched once, from the first time somebody follows it, in the runtime that
/// calls this first; it ends with the last handle of the store.
pub fn open(client: Client) -> Store {
    let backend = ApiServer { client, informers: Mutex::default(), troubles: Troubles::default() };
    Store::new(Arc::new(backend))
}

struct ApiServer {
    client: Client,
    informers: Mutex<BTreeMap<KindName, Informer>>,
    troubles: Troubles,
}

impl ApiServer {
    fn informers(&self) -> MutexGuard<'_, BTreeMap<KindName, Informer>> {
        self.informers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self, kind: KindName) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &resource(kind))
    }

    fn of(&self, kind: KindName, namespace: &str) -> Api<DynamicObject> {
        if kind.namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &resource(kind))
        } else {
            self.all(kind)
        }
    }

    /// An update names what it read. Without that the API server would take it for a wish that overrides everybody.
    async fn check_named(&self, kind: KindName, key: &ObjectKey, object: &Value) -> Result<(), Error> {
        if object.pointer("/metadata/resourceVersion").and_then(Value::as_str).is_some_and(|text| !text.is_empty()) {
            return Ok(());
        }
        let object = format!("{} {key}", kind.kind);
        match self.get(kind, key).await? {
            None => Err(Error::NotFound(object)),
            Some(_) => Err(Error::Conflict { object, detail: "the write names no resourceVersion".into() }),
        }
    }
}

#[async_trait]
impl Backend for ApiServer {
    async fn get(&self, kind: KindName, key: &ObjectKey) -> Result<Option<Value>, Error> {
        let found = self.of(kind, &key.namespace).get_opt(&key.name).await;
        let found = found.map_err(|error| answer::refusal(kind, key, &error))?;
        found.map(|object| value(kind, &object)).transpose()
    }

    async fn list(&self, kind: KindName) -> Result<Vec<Value>, Error> {
        let api = self.all(kind);
        let (mut all, mut params) = (BTreeMap::new(), ListParams::default().limit(PAGE));
        loop {
            let page = api.list(&params).await;
            let page = page.map_err(|error| answer::refusal(kind, &ObjectKey::new(None, "*"), &error))?;
            for object in page.items {
                let value = value(kind, &object)?;
                all.insert(key_of(&value), value);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all.into_values().collect()),
            }
        }
    }

    fn watch(&self, kind: KindName) -> RawWatch {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut informers = self.informers();
        let informer =
            informers.entry(kind).or_insert_with(|| Informer::start(kind, self.all(kind), self.troubles.clone()));
        informer.follow(sender);
        receiver
    }

    async fn create(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        let key = key_of(&object);
        let made = self.of(kind, &key.namespace).create(&PostParams::default(), &dynamic(kind, object)?).await;
        value(kind, &made.map_err(|error| answer::refusal(kind, &key, &error))?)
    }

    async fn update(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        let key = key_of(&object);
        self.check_named(kind, &key, &object).await?;
        let api = self.of(kind, &key.namespace);
        let made = api.replace(&key.name, &PostParams::default(), &dynamic(kind, object)?).await;
        value(kind, &made.map_err(|error| answer::refusal(kind, &key, &error))?)
    }

    async fn update_status(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        let key = key_of(&object);
        if kinds::of(kind).is_some_and(|known| !known.has_status) {
            return Err(Error::Forbidden(format!("a {} has no status", kind.kind)));
        }
        self.check_named(kind, &key, &object).await?;
        let api = self.of(kind, &key.namespace);
        let made = api.replace_status(&key.name, &PostParams::default(), &dynamic(kind, object)?).await;
        value(kind, &made.map_err(|error| answer::refusal(kind, &key, &error))?)
    }

    async fn delete(&self, kind: KindName, key: &ObjectKey, only_if: Preconditions) -> Result<(), Error> {
        let preconditions = kube::api::Preconditions { uid: only_if.uid, resource_version: only_if.resource_version };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match self.of(kind, &key.namespace).delete(&key.name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(answer::refusal(kind, key, &error)),
        }
    }

    fn interruption(&self) -> Option<Interruption> {
        self.troubles.first()
    }
}

fn resource(kind: KindName) -> ApiResource {
    let version = kind.api_version.rsplit('/').next().unwrap_or(kind.api_version);
    ApiResource {
        group: kind.group.to_owned(),
        version: version.to_owned(),
        api_version: kind.api_version.to_owned(),
        kind: kind.kind.to_owned(),
        plural: kind.plural.to_owned(),
    }
}

fn key_of(object: &Value) -> ObjectKey {
    let text = |field: &str| object["metadata"][field].as_str();
    ObjectKey::new(text("namespace"), text("name").unwrap_or_default())
}

fn dynamic(kind: KindName, mut object: Value) -> Result<DynamicObject, Error> {
    let key = key_of(&object);
    if let Some(fields) = object.as_object_mut() {
        fields.insert("apiVersion".into(), kind.api_version.into());
        fields.insert("kind".into(), kind.kind.into());
    }
    serde_json::from_value(object)
        .map_err(|error| Error::Malformed { object: format!("{} {key}", kind.kind), detail: error.to_string() })
}

/// As everybody above this crate knows an object: without what only the API server's bookkeeping means.
fn value(kind: KindName, object: &DynamicObject) -> Result<Value, Error> {
    let mut value = serde_json::to_value(object).map_err(|error| Error::Malformed {
        object: format!("{} {}", kind.kind, object.metadata.name.as_deref().unwrap_or_default()),
        detail: error.to_string(),
    })?;
    remembered::prune(kind, &mut value);
    Ok(value)
}
