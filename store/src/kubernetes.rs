//! A Kubernetes API server as the place of objects.
//!
//! | module | does |
//! |---|---|
//! | `informer` | one list and watch a kind, kept and told to everybody who follows it |
//! | `remembered` | what an informer knows, and the difference a new list makes |
//! | `answer` | what the API server's refusals mean in this crate's words |
//! | `token` | whose a ServiceAccount token is |
//! | `difference` | what must be sent to change an object that others write too |
//!
//! Nothing here decides who may do what: that is the API server's, by the roles of whoever runs this. Writes name the
//! version they were read with, so that no other writer's change is lost. Objects that are ours alone are written whole;
//! of all others only what changed, because they have fields that nobody here knows. Reads by name and lists ask the API
//! server itself, so that a decision that follows sees what its write will be held against.

mod answer;
mod difference;
mod informer;
mod remembered;
mod token;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::names;
use async_trait::async_trait;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::backend::{Backend, Interruption, KindName, ObjectKey, Preconditions, TokenOwner};
use crate::watch::RawWatch;
use crate::{Error, Store, kinds};
use informer::{Informer, Troubles};

/// Objects of one answer to a list: an API server holds a whole page in memory, and so do we.
const PAGE: u32 = 500;

/// Kinds of which only those in the system namespace are ours: whoever runs this need not be allowed to see others'.
const OURS_ALONE: [&str; 4] = ["Secret", "ConfigMap", "Lease", "TunnelGateway"];

/// Kinds whose objects nobody else writes, but for the status. They are written whole, and so are the slices we made.
const WRITTEN_WHOLE: [&str; 6] = ["Secret", "ConfigMap", "Lease", "TunnelGateway", "ServiceImport", "ClusterMember"];

/// How long a connection to the API server may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The API server ends each watch after this, and it is begun again where it ended. A connection that died without a
/// word is noticed soon after: the client would otherwise wait five minutes for what comes next.
const WATCH_SECONDS: u32 = 30;
const READ_LIMIT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);

/// The store of an API server: that of the kubeconfig file, or, without one, that of `KUBECONFIG`, of the home folder or
/// of the service account of the pod this runs in.
///
/// # Errors
/// None of these can be read. Whether the server answers is said by [`Store::interruption`] later.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Store, Error> {
    match kubeconfig {
        Some(_) => dial(config(kubeconfig, KubeConfigOptions::default()).await?),
        None => dial(kube::Config::infer().await.map_err(|error| unreadable("kubeconfig", &error))?),
    }
}

/// The store of the API server that a context of the kubeconfig names: of that file, or, without one, of `KUBECONFIG` or
/// of the home folder.
///
/// # Errors
/// There is no such file, or no such context in it.
pub async fn connect_to(kubeconfig: Option<&Path>, context: &str) -> Result<Store, Error> {
    let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
    dial(config(kubeconfig, options).await?)
}

async fn config(kubeconfig: Option<&Path>, options: KubeConfigOptions) -> Result<kube::Config, Error> {
    let name = kubeconfig.map_or_else(|| "kubeconfig".to_owned(), |path| path.display().to_string());
    let file = kubeconfig.map_or_else(Kubeconfig::read, Kubeconfig::read_from);
    let file = file.map_err(|error| unreadable(&name, &error))?;
    kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|error| unreadable(&name, &error))
}

fn unreadable(path: &str, error: &dyn std::error::Error) -> Error {
    Error::Malformed { object: path.to_owned(), detail: answer::sentence(error) }
}

fn dial(mut config: kube::Config) -> Result<Store, Error> {
    config.connect_timeout = Some(CONNECT_LIMIT);
    config.read_timeout = Some(READ_LIMIT);
    let client = Client::try_from(config).map_err(|error| unreadable("kubeconfig", &error))?;
    Ok(open(client))
}

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
        if OURS_ALONE.contains(&kind.kind) {
            return Api::namespaced_with(self.client.clone(), names::SYSTEM_NAMESPACE, &resource(kind));
        }
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
        let refusal = |error| answer::refusal(kind, &key, &error);
        let made_here = object["metadata"]["labels"][names::kubernetes::MANAGED_BY] == names::MANAGED_BY_TOMBOLO;
        if made_here || WRITTEN_WHOLE.contains(&kind.kind) {
            let made = api.replace(&key.name, &PostParams::default(), &dynamic(kind, object)?).await;
            return value(kind, &made.map_err(refusal)?);
        }
        let current = value(kind, &api.get(&key.name).await.map_err(refusal)?)?;
        for field in ["uid", "resourceVersion"] {
            if current["metadata"][field] != object["metadata"][field] {
                let object = format!("{} {key}", kind.kind);
                return Err(Error::Conflict { object, detail: format!("another {field} is stored") });
            }
        }
        let Some(mut patch) =
            difference::merge_patch(&without_status(shaped(kind, &key, &current)?), &without_status(object))
        else {
            return Ok(current);
        };
        // Whoever writes between the read and this write makes it fail.
        patch["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
        let made = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        value(kind, &made.map_err(refusal)?)
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

    async fn review_token(&self, text: &str) -> Result<TokenOwner, Error> {
        token::review(&self.client, text).await
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

/// An object with the fields that its type here has, and no others: what a write can be told apart from.
fn shaped(kind: KindName, key: &ObjectKey, object: &Value) -> Result<Value, Error> {
    let malformed = |detail| Error::Malformed { object: format!("{} {key}", kind.kind), detail };
    let known = kinds::of(kind).ok_or_else(|| malformed("is of a kind that is not known here".to_owned()))?;
    known.shape(object.clone()).map_err(malformed)
}

fn without_status(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        for field in ["status", "apiVersion", "kind"] {
            fields.remove(field);
        }
    }
    object
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
    if let (Some(known), Some(fields)) = (kinds::of(kind), value.as_object_mut()) {
        known.fill_in(fields);
    }
    Ok(value)
}
