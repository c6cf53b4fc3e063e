//! A folder of manifests, with its state beside it.
//!
//! The user's files are read and never written. What Tombolo makes, all statuses, and what it says of users' objects
//! live in the state folder, with uid, creationTimestamp, generation and resourceVersion of every object, by its key:
//! a file that is edited, moved or renamed keeps them; an object that goes and comes again gets new ones.
//!
//! | module | does |
//! |---|---|
//! | [`crate::manifest`] | one file's bytes → objects and refusals |
//! | `declarations` | all files → what is wanted of each object |
//! | `objects`, `writes`, `record` | what each write or declaration changes |
//! | `owner` | the one thread that owns all of it |
//! | `parser` | a thread for large manifests, so that the others need not wait |
//! | `state_log`, `lock`, `files`, `watcher` | the disk |
//!
//! A broken document is [reported](Reports); what it defined before stays in force, also across a restart, and
//! everything else goes on.

mod declarations;
mod files;
mod lock;
mod objects;
mod owner;
mod parser;
mod record;
mod report;
mod state_log;
mod watcher;
mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use crate::backend::{Backend, Interruption, KindName, ObjectKey, Preconditions};
use crate::manifest::Key;
use crate::watch::RawWatch;
use crate::{Error, Store};
use owner::{Message, Notices, Owner};
pub(crate) use record::metadata_text;
pub use report::{Report, Reports};
pub(crate) use state_log::refused_lines;

/// Where a folder's two halves are.
#[derive(Clone, Debug)]
pub struct Config {
    /// The user's manifests: `.yaml`, `.yml` and `.json`, sub-folders included.
    pub manifests: PathBuf,
    /// What Tombolo keeps; made with mode 0700 when it is not there. Belongs to one process at a time.
    pub state: PathBuf,
}

/// Opens a folder: everything in it is read when this returns, and followed from then on.
///
/// Fails when the manifests folder cannot be read or watched, or the state belongs to another process. A broken
/// manifest is no failure: it is in the [`Reports`]. Blocks for as long as reading takes. The folder is closed, and
/// its state free for another process, when the last [`Store`] is dropped.
pub fn open(config: Config) -> Result<(Store, Reports), Error> {
    open_with(config, parser::Parser::start)
}

/// [`open`], with a parser that tells its inbox what it parsed.
fn open_with(
    config: Config,
    parser: impl FnOnce(Sender<Message>) -> std::io::Result<parser::Parser>,
) -> Result<(Store, Reports), Error> {
    let disk = |path: &PathBuf, detail: String| Error::Disk { path: path.display().to_string(), detail };
    let lock = lock::take(&config.state)?;
    let state = config.state.canonicalize().map_err(|error| disk(&config.state, error.to_string()))?;
    let root = config.manifests.canonicalize().map_err(|error| {
        disk(&config.manifests, format!("the manifests folder cannot be opened: {error}; make it or name another"))
    })?;
    let (log, objects, broken_state) = state_log::StateLog::open(&state)
        .map_err(|error| disk(&state, format!("the state cannot be read: {error}")))?;
    let (inbox, messages) = channel();
    let told = inbox.clone();
    let ours = root.clone();
    let watcher = watcher::Watcher::new(move |signal| {
        // The folder above is watched for this folder's sake; the rest of it is nobody's business.
        if signal.path().is_some_and(|path| !path.starts_with(&ours)) {
            return;
        }
        // The owner outlives its watcher but for the moment it ends in.
        let _ = told.send(Message::Signal(signal));
    })
    .map_err(|detail| disk(&root, detail))?;
    let parser = parser(inbox.clone()).map_err(|error| disk(&root, format!("no thread for manifests: {error}")))?;
    let (reports, reports_out) = watch::channel(Arc::new(Vec::new()));
    let (interruption, interruption_out) = watch::channel(None);
    let mut owner = Owner {
        root: root.clone(),
        state,
        watcher,
        log,
        objects,
        notices: Notices { reports, interruption },
        broken_state,
        _lock: lock,
        declarations: declarations::Declarations::default(),
        contents: BTreeMap::new(),
        parser,
        parsing: BTreeSet::new(),
        watchers: BTreeMap::new(),
        unread: BTreeMap::new(),
        leaving: BTreeMap::new(),
        unsaved: BTreeSet::new(),
        retry: None,
        root_missing: false,
        unwatched: BTreeMap::new(),
    };
    owner.load().map_err(|error| disk(&root, error.to_string()))?;
    let thread = std::thread::Builder::new()
        .name("folder".into())
        .spawn(move || owner.run(&messages))
        .map_err(|error| disk(&root, format!("no thread for the folder: {error}")))?;
    let backend = Folder { inbox, interruption: interruption_out, thread: Some(thread) };
    Ok((Store::new(Arc::new(backend)), Reports { receiver: reports_out }))
}

struct Folder {
    inbox: Sender<Message>,
    interruption: watch::Receiver<Option<Interruption>>,
    thread: Option<JoinHandle<()>>,
}

impl Folder {
    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Message) -> Result<T, Error> {
        let stopped = || Error::Unavailable("the folder's owner has stopped".into());
        let (reply, answer) = oneshot::channel();
        self.inbox.send(message(reply)).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

impl Drop for Folder {
    /// Ends the owner and waits for it, so that the state is free and on disk afterwards.
    fn drop(&mut self) {
        let _ = self.inbox.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[async_trait]
impl Backend for Folder {
    async fn get(&self, kind: KindName, key: &ObjectKey) -> Result<Option<Value>, Error> {
        let key = Key { kind, object: key.clone() };
        self.ask(|reply| Message::Get(key, reply)).await
    }

    async fn list(&self, kind: KindName) -> Result<Vec<Value>, Error> {
        self.ask(|reply| Message::List(kind, reply)).await
    }

    fn watch(&self, kind: KindName) -> RawWatch {
        let (events, watch) = mpsc::unbounded_channel();
        // An owner that has stopped drops the sender, and the watch ends.
        let _ = self.inbox.send(Message::Watch(kind, events));
        watch
    }

    async fn create(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        self.ask(|reply| Message::Create(kind, object, reply)).await
    }

    async fn update(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        self.ask(|reply| Message::Update(kind, object, reply)).await
    }

    async fn update_status(&self, kind: KindName, object: Value) -> Result<Value, Error> {
        self.ask(|reply| Message::UpdateStatus(kind, object, reply)).await
    }

    async fn delete(&self, kind: KindName, key: &ObjectKey, only_if: Preconditions) -> Result<(), Error> {
        let key = Key { kind, object: key.clone() };
        self.ask(|reply| Message::Delete(key, only_if, reply)).await
    }

    fn interruption(&self) -> Option<Interruption> {
        self.interruption.borrow().clone()
    }
}
