//! An agent's store: what the controller says, and where it says nothing, what it said last.
//!
//! One task, the [`Feeder`], owns everything; [`Feed`] sends it commands.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use api::Prefix;
use async_trait::async_trait;
use identity::Identity;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use super::Role;
use super::cache::Cache;
use super::feeder::{Asked, Command, Feeder, Reply};
use super::message::{KindSaid, Request};
use crate::backend::{Backend, Interruption, KindName, ObjectKey, Preconditions};
use crate::watch::RawWatch;
use crate::{Error, Store};

/// How an agent reaches its cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// `host:port`, or `unix:` and a path; any of them will do.
    pub controllers: Vec<String>,
    /// The enrolment file, copied from a controller's state folder. With a token it need not hold the secret.
    pub enrolment: PathBuf,
    /// The ServiceAccount token that this agent shows instead of having the secret, on Kubernetes.
    pub token: Option<PathBuf>,
    /// The agent's own key; made when it is not there.
    pub identity: PathBuf,
    /// The folder the last state is kept in; made when it is not there. One process, one folder.
    pub cache: PathBuf,
    pub role: Role,
    /// The name of this node.
    pub name: String,
    /// The node's addresses inside the cluster.
    pub addresses: Vec<IpAddr>,
    /// The prefixes of the node's pods.
    pub pod_prefixes: Vec<Prefix>,
}

/// A store that takes the controllers' feed. Returns at once: what is in the cache is served until a controller
/// answers, and [`Store::interruption`] says since when and why none does.
///
/// Fails when the identity or the cache folder cannot be used. Call it inside a tokio runtime.
pub fn connect(config: Config) -> Result<Store, Error> {
    let path = config.identity.display().to_string();
    let identity =
        Identity::load_or_create(&config.identity).map_err(|error| Error::Disk { path, detail: error.to_string() })?;
    if config.controllers.is_empty() {
        return Err(Error::Unavailable("no controller is named: say where one listens".into()));
    }
    let (commands, inbox) = mpsc::unbounded_channel();
    let waiting = Interruption { since: SystemTime::now(), reason: "no controller has answered yet".into() };
    let (interruption, interruption_out) = watch::channel(Some(waiting));
    let kept = Cache::open(&config.cache)?;
    tokio::spawn(Feeder::new(config, identity, kept, interruption).run(inbox));
    Ok(Store::new(Arc::new(Feed { commands, interruption: interruption_out })))
}

struct Feed {
    commands: mpsc::UnboundedSender<Command>,
    interruption: watch::Receiver<Option<Interruption>>,
}

impl Feed {
    async fn ask<T>(&self, asked: impl FnOnce(Reply<T>) -> Asked) -> Result<T, Error> {
        let stopped = || Error::Unavailable("the feed has stopped with its runtime".into());
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Ask(asked(reply))).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    async fn write(&self, kind: KindName, request: Request) -> Result<Value, Error> {
        let written = self.ask(|reply| Asked::Object(kind, request, reply)).await?;
        written.ok_or_else(|| Error::Unavailable("the controller's answer does not fit the question".into()))
    }
}

#[async_trait]
impl Backend for Feed {
    async fn get(&self, kind: KindName, key: &ObjectKey) -> Result<Option<Value>, Error> {
        let request = Request::Get { kind: KindSaid::of(kind), key: key.clone() };
        self.ask(|reply| Asked::Object(kind, request, reply)).await
    }

    async fn list(&self, kind: KindName) -> Result<Vec<Value>, Error> {
        self.ask(|reply| Asked::List(kind, reply)).await
    }

    fn watch(&self, kind: KindName) -> RawWatch {
        let (events, watch) = mpsc::unbounded_channel();
        // A feed that has stopped drops the sender, and the watch ends.
        let _ = self.commands.send(Command::Watch(kind, events));
        watch
    }

    async fn create(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        self.write(kind, Request::Create { kind: KindSaid::of(kind), object }).await
    }

    async fn update(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        self.write(kind, Request::Update { kind: KindSaid::of(kind), object }).await
    }

    async fn update_status(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        self.write(kind, Request::UpdateStatus { kind: KindSaid::of(kind), object }).await
    }

    async fn delete(&self, kind: KindName, key: &ObjectKey, only_if: Preconditions) -> Result<(), Error> {
        let request = Request::Delete { kind: KindSaid::of(kind), key: key.clone(), only_if };
        self.ask(|reply| Asked::Delete(kind, request, reply)).await
    }

    fn interruption(&self) -> Option<Interruption> {
        self.interruption.borrow().clone()
    }
}
