//! [`Requests`]: what one agent asks, done where its role may.

use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use super::message::{Answer, KindSaid, Request};
use super::permission::{
    Denial, Verb, holds_slot, lease_of, may_measure, may_see, may_take_slot, may_watch, may_write,
};
use super::server::Server;
use super::{Agent, Role};
use crate::Error;
use crate::backend::{Backend, KindName, ObjectKey, Preconditions};
use crate::folder::metadata_text;
use crate::kinds;
use crate::manifest::Key;

/// Why a request was not done.
enum Failed {
    Denied(Denial),
    Store(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<Denial> for Failed {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

/// What comes of a request.
pub(super) enum Outcome {
    Answer(Answer),
    /// Everything of a kind; it is said in parts.
    List(Vec<Value>),
}

pub(super) struct Requests {
    server: Server,
    backend: Arc<dyn Backend>,
    agent: Agent,
}

impl Requests {
    pub(super) fn new(server: Server, backend: Arc<dyn Backend>, agent: Agent) -> Self {
        Self { server, backend, agent }
    }

    /// The kind, when the agent may follow it.
    pub(super) fn watchable(&self, said: &KindSaid) -> Result<KindName, Error> {
        let kind = known(said)?;
        may_watch(self.agent.role, kind).map_err(|denial| self.denied(denial))?;
        Ok(kind)
    }

    /// Whether the agent may see the object.
    pub(super) fn may_see(&self, kind: KindName, key: &ObjectKey) -> bool {
        may_see(self.agent.role, &self.agent.name, kind, key)
    }

    pub(super) async fn act(&self, request: Request) -> Result<Outcome, Error> {
        self.try_to(request).await.map_err(|failed| match failed {
            Failed::Store(error) => error,
            Failed::Denied(denial) => self.denied(denial),
        })
    }

    /// Counts a denial and puts it as the agent hears it.
    fn denied(&self, denial: Denial) -> Error {
        self.server.deny(&self.agent, &denial);
        match denial {
            // Not for ever: whoever reads again may find it free.
            Denial::SlotTaken(detail) => Error::Conflict { object: "the slot's Lease".into(), detail },
            denial => Error::Forbidden(denial.to_string()),
        }
    }

    async fn try_to(&self, request: Request) -> Result<Outcome, Failed> {
        let kind = known(request.kind())?;
        let object = |object| Ok(Outcome::Answer(Answer::Object(Some(object))));
        match request {
            Request::Get { key, .. } => {
                may_watch(self.agent.role, kind)?;
                if !self.may_see(kind, &key) {
                    let Agent { role, name, .. } = &self.agent;
                    let why = format!("the {role} agent of {name} may not see {} {key}", kind.kind);
                    return Err(Denial::NotVisible(why).into());
                }
                Ok(Outcome::Answer(Answer::Object(self.backend.get(kind, &key).await?)))
            }
            Request::List { .. } => {
                may_watch(self.agent.role, kind)?;
                let mut objects = self.backend.list(kind).await?;
                objects.retain(|object| self.may_see(kind, &Key::of(kind, object).object));
                Ok(Outcome::List(objects))
            }
            Request::Create { object: wanted, .. } => {
                self.check(Verb::Create, kind, &Key::of(kind, &wanted).object, Some(&wanted)).await?;
                object(self.backend.create(kind, wanted).await?)
            }
            Request::Update { object: wanted, .. } => {
                self.check(Verb::Update, kind, &Key::of(kind, &wanted).object, Some(&wanted)).await?;
                object(self.backend.update(kind, wanted).await?)
            }
            Request::UpdateStatus { object: wanted, .. } => {
                // A kind without a status refuses one whoever writes it: that answer helps more than 'not allowed'.
                if kinds::of(kind).is_some_and(|known| known.has_status) {
                    self.check(Verb::UpdateStatus, kind, &Key::of(kind, &wanted).object, Some(&wanted)).await?;
                }
                object(self.backend.update_status(kind, wanted).await?)
            }
            Request::Delete { key, mut only_if, .. } => {
                let now = self.check(Verb::Delete, kind, &key, None).await?;
                if let Some(now) = now {
                    // What was looked at is what goes.
                    let version = metadata_text(&now, "resourceVersion").to_owned();
                    only_if = Preconditions { resource_version: only_if.resource_version.or(Some(version)), ..only_if };
                }
                self.backend.delete(kind, &key, only_if).await?;
                Ok(Outcome::Answer(Answer::Done))
            }
        }
    }

    /// Whether the agent may write this object now; returns the object as it is, where that decided.
    ///
    /// A write that was allowed because of what the object was names the version it was read with, so the store
    /// refuses it when the object changes in between.
    async fn check(
        &self,
        verb: Verb,
        kind: KindName,
        key: &ObjectKey,
        wanted: Option<&Value>,
    ) -> Result<Option<Value>, Failed> {
        let name = &self.agent.name;
        may_write(self.agent.role, name, verb, kind, key)?;
        // Who read another version than there is now hears so from the store.
        let is_late = |now: &Value| {
            let version = wanted.map(|wanted| metadata_text(wanted, "resourceVersion"));
            version.is_some_and(|version| version != metadata_text(now, "resourceVersion"))
        };
        match (self.agent.role, kind.kind) {
            (Role::Gateway, "Lease") => {
                let now = self.backend.get(kind, key).await?;
                let unchanged =
                    now.as_ref().map(|now| self.server.tenures().see(key, now, Instant::now())).unwrap_or_default();
                if !now.as_ref().is_some_and(is_late) {
                    may_take_slot(name, key, now.as_ref(), unchanged, wanted)?;
                }
                Ok(now)
            }
            (Role::Gateway, "TunnelGateway") => {
                let now = self.backend.get(kind, key).await?;
                let lease = now.as_ref().and_then(lease_of);
                let lease = match (kinds::find("coordination.k8s.io", "Lease"), lease) {
                    (Some(leases), Some(lease)) => self.backend.get(leases.name, &lease).await?,
                    _ => None,
                };
                // Who writes to what is not there hears so from the store.
                if now.as_ref().is_some_and(|now| !is_late(now)) {
                    holds_slot(name, key, lease.as_ref())?;
                }
                Ok(now)
            }
            (Role::Node, "EndpointSlice") => {
                let now = self.backend.get(kind, key).await?;
                if let (Some(now), Some(wanted)) = (&now, wanted) {
                    may_measure(name, now, wanted)?;
                }
                Ok(now)
            }
            _ => Ok(None),
        }
    }
}

fn known(said: &KindSaid) -> Result<KindName, Error> {
    said.known().ok_or_else(|| {
        let kind: String = said.kind.chars().take(80).collect();
        Error::Forbidden(format!("this controller keeps no objects of kind '{}'", kind.escape_debug()))
    })
}
