//! Carries out the writes that were planned, and tells what became of each. Only while this replica may write.

use std::sync::Arc;

use api::Kind;
use controller_core::plan::{Object, Outcome, Verb, Write};
use store::{Error, Preconditions, Store};
use tokio::sync::Semaphore;

use crate::lease::Leadership;

/// Writes under way at once: the folder commits many together, an API server is not flooded.
const AT_ONCE: usize = 64;

#[derive(Clone)]
pub(crate) struct Writer {
    store: Store,
    leadership: Leadership,
    permits: Arc<Semaphore>,
}

/// What became of a write, and the name of its error for counters.
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    pub(crate) error: Option<(&'static str, &'static str)>,
}

macro_rules! each {
    ($writer:expr, $verb:expr, $object:expr; $($kind:ident)+) => {
        match $object { $(Object::$kind(object) => $writer.one($verb, *object).await),+ }
    };
}

impl Writer {
    pub(crate) fn new(store: Store, leadership: Leadership) -> Self {
        Self { store, leadership, permits: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Carries out the writes of one subject, one after the other.
    pub(crate) async fn carry_out(&self, writes: Vec<Write>) -> Vec<Done> {
        let mut done = Vec::with_capacity(writes.len());
        for write in writes {
            done.push(each!(self, write.verb, write.object;
                ServiceImport EndpointSlice ServiceExport ClusterPeer ClusterMember TunnelGateway RoutingPolicy
                ClusterRoutingPolicy LocalCluster Node));
        }
        done
    }

    async fn one<K: Kind + Into<Object>>(&self, verb: Verb, object: K) -> Done {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        if !self.leadership.may_write() {
            let reason = "another replica writes now".to_owned();
            return Done { outcome: Outcome::Failed { object: object.into(), reason }, error: None };
        }
        let (namespace, name) = (object.meta().namespace.clone(), object.meta().name.clone().unwrap_or_default());
        let result = match verb {
            Verb::Create => self.store.create(&object).await.map(Some),
            Verb::Update => self.store.update(&object).await.map(Some),
            Verb::UpdateStatus => self.store.update_status(&object).await.map(Some),
            Verb::Delete => {
                let meta = object.meta();
                let only_if = Preconditions { uid: meta.uid.clone(), resource_version: meta.resource_version.clone() };
                self.store.delete::<K>(namespace.as_deref(), &name, only_if).await.map(|()| None)
            }
        };
        tracing::debug!(kind = %K::kind(&()), name, verb = verb.as_str(), error = result.as_ref().err().map(ToString::to_string), "written");
        let error = match result {
            Ok(Some(written)) => return Done { outcome: Outcome::Written(written.into()), error: None },
            Ok(None) => return Done { outcome: Outcome::Deleted(object.into()), error: None },
            Err(error) => error,
        };
        let label = Some((verb.as_str(), code(&error)));
        let outcome = match &error {
            error if error.is_conflict() => match self.store.get::<K>(namespace.as_deref(), &name).await {
                Ok(now) => Outcome::Conflict { attempted: object.into(), now: now.map(Into::into) },
                Err(error) => Outcome::Failed { object: object.into(), reason: error.to_string() },
            },
            Error::Invalid { .. } | Error::Forbidden(_) | Error::Malformed { .. } => {
                tracing::warn!(%error, verb = verb.as_str(), "a write is refused");
                Outcome::Refused { object: object.into(), reason: error.to_string() }
            }
            error => {
                tracing::warn!(%error, verb = verb.as_str(), "a write failed and will be tried again");
                Outcome::Failed { object: object.into(), reason: error.to_string() }
            }
        };
        Done { outcome, error: label }
    }
}

/// A metric label.
pub(crate) fn code(error: &Error) -> &'static str {
    match error {
        Error::NotFound(_) => "NotFound",
        Error::AlreadyExists(_) => "AlreadyExists",
        Error::Conflict { .. } => "Conflict",
        Error::Invalid { .. } => "Invalid",
        Error::Forbidden(_) => "Forbidden",
        Error::Unavailable(_) => "Unavailable",
        Error::Malformed { .. } => "Malformed",
        Error::Disk { .. } => "Disk",
    }
}
