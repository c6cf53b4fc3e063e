//! Where objects live: one typed list-and-watch, several backends.
//!
//! Nothing above this crate knows which backend it has. [`folder`] keeps a folder of manifests with its state beside
//! it and belongs to one controller process; [`feed`] is the same objects taken from that controller over mutual TLS,
//! with the last state on the taker's own disk; [`kubernetes`] is a Kubernetes API server. One contract suite (`tests/contract.rs`) runs against every backend.
//!
//! | to | call |
//! |---|---|
//! | follow a kind | [`Store::watch`]: first everything that is there, then each change |
//! | read once | [`Store::get`], [`Store::list`] |
//! | write | [`Store::create`], [`Store::update`], [`Store::update_status`], [`Store::delete`] |
//!
//! [`ahead`] shows some objects before they are written.
//! [`journal`] beside them keeps what changed state, when and why; [`state_file`] writes a small file whole or not at all.
//!
//! Writes carry preconditions: an update names the uid and resourceVersion it read, a create fails when the object is
//! there, a delete may name both. A write that changes nothing makes no new version and no event.

pub mod ahead;
pub mod backend;
pub mod damage;
pub mod error;
pub mod feed;
mod field_line;
pub mod folder;
pub mod journal;
mod kinds;
pub mod kubernetes;
mod line_log;
pub mod manifest;
pub mod state_file;
pub mod watch;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::SystemTime;

pub use api::Kind;
use api::report::FeedReport;
pub use backend::{Backend, KindName, ObjectKey, Preconditions, TokenOwner};
pub use error::Error;
pub use watch::{Event, Watch};

/// A handle on a backend; cheap to clone.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
}

impl Store {
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend }
    }

    /// The object, or `None` when there is none of that name.
    pub async fn get<K: Kind>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>, Error> {
        let key = ObjectKey::new(namespace, name);
        self.backend.get(KindName::of::<K>(), &key).await?.map(backend::typed).transpose()
    }

    /// Every object of the kind, by namespace and name.
    pub async fn list<K: Kind>(&self) -> Result<Vec<K>, Error> {
        self.backend.list(KindName::of::<K>()).await?.into_iter().map(backend::typed).collect()
    }

    /// What is there now as one [`Event::Reset`], then every change. Never ends while the backend lives: a backend
    /// that lost its source and missed something meanwhile tells the changes it missed when it has it again, or sends
    /// a new `Reset` where it cannot. Nothing comes
    /// before the kind is known once, and nothing at all of a kind this agent's role may not see.
    pub fn watch<K: Kind>(&self) -> Watch<K> {
        Watch { raw: self.backend.watch(KindName::of::<K>()), kind: PhantomData }
    }

    /// Makes the object. Fails with [`Error::AlreadyExists`] when one of that name is there.
    pub async fn create<K: Kind>(&self, object: &K) -> Result<K, Error> {
        let violations = object.violations();
        if !violations.is_empty() {
            return Err(Error::Invalid { object: backend::described(object), violations });
        }
        backend::typed(self.backend.create(KindName::of::<K>(), backend::raw(object)?).await?)
    }

    /// Replaces everything but the status. The object names the uid and resourceVersion it was read with, else
    /// [`Error::Conflict`].
    pub async fn update<K: Kind>(&self, object: &K) -> Result<K, Error> {
        let violations = object.violations();
        if !violations.is_empty() {
            return Err(Error::Invalid { object: backend::described(object), violations });
        }
        backend::typed(self.backend.update(KindName::of::<K>(), backend::raw(object)?).await?)
    }

    /// Replaces the status alone, under the same preconditions.
    pub async fn update_status<K: Kind>(&self, object: &K) -> Result<K, Error> {
        backend::typed(self.backend.update_status(KindName::of::<K>(), backend::raw(object)?).await?)
    }

    /// Removes the object and, after it, those it owns. Absent objects are no error.
    pub async fn delete<K: Kind>(
        &self,
        namespace: Option<&str>,
        name: &str,
        only_if: Preconditions,
    ) -> Result<(), Error> {
        self.backend.delete(KindName::of::<K>(), &ObjectKey::new(namespace, name), only_if).await
    }

    /// Since when the backend has been without its source, and why; `None` while it is in touch with it.
    /// A folder is always in touch.
    pub fn interruption(&self) -> Option<backend::Interruption> {
        self.backend.interruption()
    }

    /// Whose a ServiceAccount token is. [`Error::Forbidden`] says that it is nobody's, [`Error::Unavailable`] that nobody
    /// can say now.
    pub async fn review_token(&self, token: &str) -> Result<TokenOwner, Error> {
        self.backend.review_token(token).await
    }

    /// The same as every part reports it.
    pub fn feed_report(&self) -> FeedReport {
        let Some(backend::Interruption { since, reason }) = self.interruption() else { return FeedReport::default() };
        // A clock that was set back since then makes it new.
        let age = SystemTime::now().duration_since(since).unwrap_or_default();
        FeedReport { interrupted_for: Some(age.as_secs_f64()), reason }
    }
}
