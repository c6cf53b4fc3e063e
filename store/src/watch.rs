//! [`Watch`]: everything that is there, then each change.

use std::marker::PhantomData;

use api::Kind;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::backend;

/// One step of a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<K> {
    /// Everything that is there now; forget what was known before. First event, and again after an interruption.
    Reset(Vec<K>),
    /// New or changed.
    Applied(K),
    /// Gone; the object as it was last.
    Deleted(K),
}

/// What backends send.
pub type RawWatch = mpsc::UnboundedReceiver<Event<Value>>;

/// A typed watch. An object that does not have the kind's shape is left out and logged: it must not stop the others.
pub struct Watch<K> {
    pub(crate) raw: RawWatch,
    pub(crate) kind: PhantomData<K>,
}

impl<K: Kind> Watch<K> {
    /// The next event; `None` when the backend is gone.
    ///
    /// Cancel safe: an event is either returned or still there for the next call.
    pub async fn next(&mut self) -> Option<Event<K>> {
        loop {
            let typed = match self.raw.recv().await? {
                Event::Reset(values) => Some(Event::Reset(values.into_iter().filter_map(readable).collect())),
                Event::Applied(value) => readable(value).map(Event::Applied),
                Event::Deleted(value) => readable(value).map(Event::Deleted),
            };
            if typed.is_some() {
                return typed;
            }
        }
    }
}

fn readable<K: Kind>(value: Value) -> Option<K> {
    backend::typed(value).map_err(|error| tracing::warn!(%error, "object left out")).ok()
}
