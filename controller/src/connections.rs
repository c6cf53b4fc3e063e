//! What every connection of the controller has in common: how to reach the owner of the state, who is a peer, and
//! what was refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::ClusterId;
use api::keys::IdentityKey;
use api::kubernetes::{ObjectMeta, Secret};
use api::member_record::{MemberRecord, SignedRecord};
use api::report::{OrderReport, RefusalReport};
use api::time::Instant;
use controller_core::conversation::ImportHeard;
use controller_core::engine::Taken;
use controller_core::ledger::{Batch, Resumption};
use controller_core::plan::Subject;
use controller_core::recall::Remembered;
use controller_core::remote::Token;
use controller_core::validity::Bounds;
use controller_core::{Engine, membership::SlotKeys};
use store::feed::{self, AgentSeen};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::keys::KeyError;
use crate::own_keys::OwnKeys;
use crate::writer::Done;

/// Refusals that are told apart; what comes after is counted with the others of its reason.
const MAX_REFUSALS: usize = 1_024;

/// A step of the store, to be taken by the engine.
pub(crate) type Observation = Box<dyn FnOnce(&mut Engine, Instant, api::time::WallTime) + Send>;

/// What the owner of the state is told and asked.
pub(crate) enum Message {
    Observed(Observation),
    AgentSeen(AgentSeen),
    Keys {
        keys: Result<SlotKeys, KeyError>,
        made_for: (u16, u16),
    },
    /// Somebody wrote into the Secret of a slot.
    KeysChanged,
    /// What the replicas share is this now; nothing where it is gone.
    SharedState(Option<Box<Secret>>),
    /// What they share was written, with a record that was signed for it.
    Published {
        record: Option<Box<(SignedRecord, MemberRecord)>>,
        result: Result<Box<ObjectMeta>, store::Error>,
    },
    /// Agents were told which identity their controllers prove.
    AgentsTold {
        controller: IdentityKey,
        result: Result<(), store::Error>,
    },
    /// The old keys of a slot were taken away, or why not; without whom that was done.
    Retired {
        slot: u16,
        result: Result<bool, KeyError>,
        without: Vec<String>,
    },
    Finished {
        subject: Subject,
        done: Vec<Done>,
        seconds: f64,
    },
    /// A peer's record, from its own mouth or passed on by it.
    Record {
        from: ClusterId,
        signed: SignedRecord,
    },
    /// A peer asks what we export, from where on.
    Resume {
        peer: ClusterId,
        token: Option<Token>,
        reply: oneshot::Sender<Option<ExportStart>>,
    },
    /// A conversation with a peer may begin: from where on.
    ImportStart {
        reply: oneshot::Sender<Option<ImportStart>>,
        peer: ClusterId,
    },
    /// What was heard, and in how many bytes; answered with how the conversation goes on.
    Heard {
        peer: ClusterId,
        heard: ImportHeard,
        bytes: u64,
        reply: oneshot::Sender<Next>,
    },
    /// A peer remembers exports of ours from before this installation.
    Remembered {
        from: ClusterId,
        exports: Vec<Remembered>,
    },
    /// A peer says which of our identities it trusts.
    Trusts {
        peer: ClusterId,
        identities: Vec<IdentityKey>,
    },
    /// The operator wants another identity, or the old one gone; answered with what became of it.
    ChangeIdentity {
        retire: bool,
        reply: oneshot::Sender<Result<OrderReport, String>>,
    },
    ImportEnded {
        peer: ClusterId,
        reason: String,
    },
    /// What a peer has taken of what we say; none: it does not listen any more.
    Taken {
        peer: ClusterId,
        taken: Option<Taken>,
    },
}

/// What the export side needs to begin.
pub(crate) struct ExportStart {
    pub(crate) resumption: Resumption,
    pub(crate) record: SignedRecord,
    pub(crate) pass_on: Vec<SignedRecord>,
    /// Everything that changes after `resumption`.
    pub(crate) told: broadcast::Receiver<Told>,
}

/// What the import side needs to begin.
pub(crate) struct ImportStart {
    pub(crate) token: Option<Token>,
    pub(crate) record: SignedRecord,
}

/// How a conversation goes on.
pub(crate) enum Next {
    GoOn,
    /// What is held now is all the peer says; these exports of it are known here to be older than that.
    Remember(Vec<Remembered>),
    /// What is held is not what the peer says it holds.
    BeginAnew,
}

/// What every peer is told.
#[derive(Clone)]
pub(crate) enum Told {
    Batch(Arc<Batch>),
    Records(Vec<SignedRecord>),
}

/// The identities each peer is known by. Blocked ones are not in it.
pub(crate) type Roster = BTreeMap<ClusterId, Vec<IdentityKey>>;

pub(crate) struct Shared {
    pub(crate) keys: OwnKeys,
    pub(crate) epoch: String,
    pub(crate) bounds: Bounds,
    pub(crate) inbox: mpsc::UnboundedSender<Message>,
    pub(crate) roster: watch::Receiver<Arc<Roster>>,
    /// The generation of each peer's record that is in force here.
    pub(crate) records: watch::Sender<BTreeMap<ClusterId, u64>>,
    pub(crate) feed: feed::Server,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) turns: Turns,
    pub(crate) stop: CancellationToken,
    /// Every task that holds the store: when all have ended, another process may have it.
    pub(crate) tasks: TaskTracker,
}

impl Shared {
    /// The peer that a key belongs to.
    pub(crate) fn peer_of(&self, key: &IdentityKey) -> Option<ClusterId> {
        let roster = self.roster.borrow();
        roster.iter().find(|(_, keys)| keys.contains(key)).map(|(peer, _)| peer.clone())
    }

    /// Whether a key speaks for a peer now: it may have been trusted when a connection began, and be retired since.
    pub(crate) fn speaks_for(&self, key: &IdentityKey, peer: &ClusterId) -> bool {
        self.roster.borrow().get(peer).is_some_and(|keys| keys.contains(key))
    }

    /// Asks the owner; `None` when it has stopped.
    pub(crate) async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(message(reply)).ok()?;
        answer.await.ok()
    }
}

/// Whose turn it is to import from a peer: one connection at a time, others wait with theirs open, so that the next
/// takes over at once when one breaks.
#[derive(Default)]
pub(crate) struct Turns {
    peers: Mutex<BTreeMap<ClusterId, Arc<Turn>>>,
}

pub(crate) struct Turn {
    /// One permit: the turn.
    pub(crate) current: Semaphore,
    /// Connections open to this peer, the current one among them.
    pub(crate) open: Semaphore,
}

/// Import connections to one peer at most: a few gateways, and those that are not known to be dead yet.
const MAX_IMPORTS: usize = 8;

impl Turns {
    pub(crate) fn of(&self, peer: &ClusterId) -> Arc<Turn> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Turn { current: Semaphore::new(1), open: Semaphore::new(MAX_IMPORTS) });
        peers.entry(peer.clone()).or_insert_with(new).clone()
    }
}

impl Turn {
    /// Whether another connection waits for its turn.
    pub(crate) fn somebody_waits(&self) -> bool {
        self.open.available_permits() + 1 < MAX_IMPORTS
    }
}

/// Connections and messages that were refused, by name; bounded.
#[derive(Default)]
pub(crate) struct Refusals {
    counts: Mutex<BTreeMap<(String, String), Refused>>,
}

struct Refused {
    count: u64,
    last: Instant,
    source: String,
}

impl Refusals {
    pub(crate) fn count(&self, reason: &str, peer: &str, source: &str) {
        self.count_many(reason, peer, source, 1);
    }

    pub(crate) fn count_many(&self, reason: &str, peer: &str, source: &str, count: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (reason.to_owned(), peer.to_owned());
        if counts.len() >= MAX_REFUSALS && !counts.contains_key(&key) {
            key.1.clear();
        }
        let refused =
            counts.entry(key).or_insert_with(|| Refused { count: 0, last: clock::now(), source: String::new() });
        refused.count += count;
        refused.last = clock::now();
        refused.source = source.chars().take(100).collect();
        tracing::debug!(reason, peer, source, count = refused.count, "refused");
    }

    pub(crate) fn report(&self) -> Vec<RefusalReport> {
        let now = clock::now();
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let report = |((reason, peer), refused): (&(String, String), &Refused)| RefusalReport {
            reason: reason.clone(),
            peer: peer.clone(),
            source: refused.source.clone(),
            count: refused.count,
            age: now.since(refused.last).as_secs_f64(),
            ..RefusalReport::default()
        };
        counts.iter().map(report).collect()
    }
}
