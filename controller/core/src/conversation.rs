//! The sync conversation as two state machines, one for each end. No socket, no clock: messages and the time go in,
//! messages and what was learned come out.
//!
//! ```text
//! import side                         export side
//! Ask {token, own record}      ──▶
//!                              ◀──   Answer {own record, resumed}
//!                              ◀──   Page, Page, Page last      (a snapshot, unless resumed)
//!                              ◀──   Delta, Delta, Records, …
//! Alive {what it holds}        ◀─▶   Alive
//! ```

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use api::member_record::SignedRecord;
use api::time::Instant;

use crate::advertisement::{Advertisement, ContentHash, ItemChange, ItemKey};
use crate::ledger::{Batch, Resumption};
use crate::message::{Message, PAGE_BYTES, VERSIONS};
use crate::remote::Token;
use crate::validity::Bounds;

/// An end that has nothing to say says so as often.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

/// An end that heard nothing for so long ends the conversation: four heartbeats, so that one lost path change of a
/// gateway does not.
pub const SILENT_AFTER: Duration = Duration::from_secs(8);

/// Batches waiting for a slow peer before it is told to start over from what it has.
const MAX_WAITING: usize = 1_024;

/// Records in one message: each has at most 32 KiB, 44 as base64 of the base64 that people copy.
const RECORDS_A_MESSAGE: usize = 2;

/// Items a peer may send each second in the long run, and at once after a pause: a snapshot of the largest cluster in
/// 25 s, and no peer can keep a core busy.
const ITEMS_A_SECOND: u64 = 4_000;
const ITEMS_AT_ONCE: u64 = 20_000;

/// What a record counts for among items: its signature is verified, which costs as much as a hundred items.
const RECORD_COST: usize = 100;

/// Why an end of the conversation ends it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("the peer speaks versions {0} to {1} of the sync protocol, this program {ours_low} to {ours_high}: update the older one", ours_low = VERSIONS.0, ours_high = VERSIONS.1)]
    NoCommonVersion(u16, u16),
    #[error("the peer sent '{0}' where the protocol has no place for it")]
    OutOfTurn(&'static str),
    #[error("the peer's snapshot is more than twice what it may say in all")]
    SnapshotTooLarge,
    #[error("nothing was heard of the peer for {} s", SILENT_AFTER.as_secs())]
    Silent,
    #[error("the peer ended the conversation: {0}")]
    Refused(String),
}

impl Ended {
    /// A label for counters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoCommonVersion(..) => "NoCommonVersion",
            Self::OutOfTurn(_) => "OutOfTurn",
            Self::SnapshotTooLarge => "SnapshotTooLarge",
            Self::Silent => "Silent",
            Self::Refused(_) => "Refused",
        }
    }
}

/// The highest version both speak.
fn common_version(theirs: (u16, u16)) -> Option<u16> {
    let highest = theirs.1.min(VERSIONS.1);
    (highest >= theirs.0.max(VERSIONS.0)).then_some(highest)
}

/// When an end spoke and heard last.
#[derive(Debug)]
struct Pulse {
    spoke: Instant,
    heard: Instant,
}

impl Pulse {
    fn new(now: Instant) -> Self {
        Self { spoke: now, heard: now }
    }
    fn is_due(&self, now: Instant) -> bool {
        now.since(self.spoke) >= HEARTBEAT
    }
    fn check(&self, now: Instant) -> Result<(), Ended> {
        if now.since(self.heard) >= SILENT_AFTER { Err(Ended::Silent) } else { Ok(()) }
    }
}

/// What the export side learned.
#[derive(Clone, Debug, PartialEq)]
pub enum ExportHeard {
    /// The peer asks; answer with [`ExportSide::answer`].
    Asked { record: SignedRecord },
    /// What the peer has applied, where it says so.
    Alive { holding: Option<ContentHash> },
}

/// The end that tells what this cluster exports.
#[derive(Debug)]
pub struct ExportSide {
    pulse: Pulse,
    version: Option<u16>,
    /// Where the peer is, as far as was sent: its token.
    sent: Option<Token>,
    needs_resumption: bool,
    snapshot: Option<(Arc<Advertisement>, Option<ItemKey>)>,
    waiting: VecDeque<Arc<Batch>>,
    /// Changes of the first waiting batch that were sent already.
    offset: usize,
    epoch: String,
    first: VecDeque<Message>,
    records: VecDeque<SignedRecord>,
}

impl ExportSide {
    pub fn new(epoch: String, now: Instant) -> Self {
        Self {
            pulse: Pulse::new(now),
            version: None,
            sent: None,
            needs_resumption: false,
            snapshot: None,
            waiting: VecDeque::new(),
            offset: 0,
            epoch,
            first: VecDeque::new(),
            records: VecDeque::new(),
        }
    }

    pub fn receive(&mut self, message: Message, now: Instant) -> Result<ExportHeard, Ended> {
        self.pulse.heard = now;
        match message {
            Message::Ask { versions, resume, record } if self.version.is_none() => {
                let version = common_version(versions).ok_or(Ended::NoCommonVersion(versions.0, versions.1))?;
                self.version = Some(version);
                self.sent = resume;
                self.needs_resumption = true;
                Ok(ExportHeard::Asked { record })
            }
            Message::Alive { holding } if self.version.is_some() => Ok(ExportHeard::Alive { holding }),
            Message::Refuse { reason } => Err(Ended::Refused(reason.chars().take(200).collect())),
            other => Err(Ended::OutOfTurn(other.name())),
        }
    }

    /// The token to call [`Ledger::resume`](crate::ledger::Ledger::resume) with, when this side needs to know what to
    /// send: at the start, and again when the peer is too slow for every change.
    pub fn wants_resumption(&self) -> Option<Option<&Token>> {
        self.needs_resumption.then_some(self.sent.as_ref())
    }

    /// What to send, from the ledger. Every batch recorded after it goes to [`ExportSide::changed`].
    pub fn answer(&mut self, resumption: Resumption, record: &SignedRecord) {
        let resumed = matches!(resumption, Resumption::Deltas(_));
        self.needs_resumption = false;
        self.offset = 0;
        self.waiting.clear();
        self.snapshot = None;
        match resumption {
            Resumption::Deltas(batches) => self.waiting.extend(batches),
            Resumption::Snapshot(all) => self.snapshot = Some((all, None)),
        }
        self.first.push_back(Message::Answer {
            version: self.version.unwrap_or(VERSIONS.1),
            epoch: self.epoch.clone(),
            record: record.clone(),
            resumed,
        });
    }

    /// The ledger recorded a batch.
    pub fn changed(&mut self, batch: Arc<Batch>) {
        if self.needs_resumption || self.version.is_none() {
            return;
        }
        if self.waiting.len() >= MAX_WAITING {
            self.needs_resumption = true;
            self.waiting.clear();
            return;
        }
        self.waiting.push_back(batch);
    }

    /// Batches may have been missed: what the peer has is found out anew.
    pub fn missed(&mut self) {
        self.needs_resumption = self.version.is_some();
        self.waiting.clear();
    }

    /// Records to pass on, or our own when it changed.
    pub fn pass_on(&mut self, records: impl IntoIterator<Item = SignedRecord>) {
        self.records.extend(records);
    }

    /// The next message, when there is room to send one; `None` when there is nothing to say now.
    pub fn next_message(&mut self, now: Instant) -> Result<Option<Message>, Ended> {
        self.pulse.check(now)?;
        let message = self
            .next_content()
            .or_else(|| (self.version.is_some() && self.pulse.is_due(now)).then_some(Message::Alive { holding: None }));
        if message.is_some() {
            self.pulse.spoke = now;
        }
        Ok(message)
    }

    fn next_content(&mut self) -> Option<Message> {
        if let Some(first) = self.first.pop_front() {
            return Some(first);
        }
        if self.needs_resumption || self.version.is_none() {
            return None;
        }
        if let Some((all, after)) = self.snapshot.take() {
            let mut page = Page::default();
            let mut rest = all.after(after.as_ref()).peekable();
            while let Some((key, item)) = rest.next_if(|_| page.has_room()) {
                page.add(ItemChange { key: key.clone(), item: Some(item.clone()) });
            }
            let is_last = rest.peek().is_none();
            drop(rest);
            if is_last {
                self.sent = Some(Token { epoch: self.epoch.clone(), hash: all.hash() });
                return Some(Message::Page { items: page.items, last: Some(all.hash()) });
            }
            self.snapshot = Some((all, page.items.last().map(|change| change.key.clone())));
            return Some(Message::Page { items: page.items, last: None });
        }
        if !self.records.is_empty() {
            let count = self.records.len().min(RECORDS_A_MESSAGE);
            return Some(Message::Records { records: self.records.drain(..count).collect() });
        }
        let batch = self.waiting.front()?.clone();
        let mut page = Page::default();
        let mut rest = batch.changes[self.offset.min(batch.changes.len())..].iter();
        while page.has_room()
            && let Some(change) = rest.next()
        {
            page.add(change.clone());
        }
        self.offset += page.items.len();
        let whole = rest.len() == 0;
        if whole {
            self.waiting.pop_front();
            self.offset = 0;
            self.sent = Some(Token { epoch: self.epoch.clone(), hash: batch.hash });
        }
        Some(Message::Delta { changes: page.items, hash: whole.then_some(batch.hash) })
    }
}

/// Items until a page is full.
#[derive(Default)]
struct Page {
    items: Vec<ItemChange>,
    bytes: usize,
}

impl Page {
    fn has_room(&self) -> bool {
        self.bytes < PAGE_BYTES
    }
    fn add(&mut self, change: ItemChange) {
        self.bytes += serde_json::to_vec(&change).map(|bytes| bytes.len()).unwrap_or(PAGE_BYTES);
        self.items.push(change);
    }
}

/// What the import side learned.
#[derive(Clone, Debug, PartialEq)]
pub enum ImportHeard {
    Answered {
        record: SignedRecord,
        resumed: bool,
    },
    /// All the peer says; it replaces what it said before.
    Snapshot {
        items: Advertisement,
        token: Token,
    },
    /// Changes; the token stands at the end of what belongs together.
    Changes {
        changes: Vec<ItemChange>,
        token: Option<Token>,
    },
    Records(Vec<SignedRecord>),
    Alive,
}

/// The end that asks another cluster what it exports.
#[derive(Debug)]
pub struct ImportSide {
    pulse: Pulse,
    ask: Option<Message>,
    stage: Stage,
    epoch: String,
    holding: Option<ContentHash>,
    bounds: Bounds,
    allowance: u64,
    refilled: Instant,
}

#[derive(Debug)]
enum Stage {
    Asked,
    Snapshot(Advertisement),
    Live,
}

impl ImportSide {
    pub fn new(resume: Option<Token>, record: SignedRecord, bounds: Bounds, now: Instant) -> Self {
        let holding = resume.as_ref().map(|token| token.hash);
        Self {
            pulse: Pulse::new(now),
            ask: Some(Message::Ask { versions: VERSIONS, resume, record }),
            stage: Stage::Asked,
            epoch: String::new(),
            holding,
            bounds,
            allowance: ITEMS_AT_ONCE,
            refilled: now,
        }
    }

    /// The next message to send; `None` when there is nothing to say now.
    pub fn next_message(&mut self, now: Instant) -> Result<Option<Message>, Ended> {
        self.pulse.check(now)?;
        let message =
            self.ask.take().or_else(|| self.pulse.is_due(now).then_some(Message::Alive { holding: self.holding }));
        if message.is_some() {
            self.pulse.spoke = now;
        }
        Ok(message)
    }

    /// How long not to read from the peer, which sends faster than it may. TCP tells it.
    pub fn pause(&mut self, now: Instant) -> Option<Duration> {
        let earned =
            u64::try_from(now.since(self.refilled).as_millis()).unwrap_or(u64::MAX).saturating_mul(ITEMS_A_SECOND)
                / 1_000;
        if earned > 0 {
            self.allowance = self.allowance.saturating_add(earned).min(ITEMS_AT_ONCE);
            self.refilled = now;
        }
        (self.allowance == 0).then_some(Duration::from_millis(100))
    }

    pub fn receive(&mut self, message: Message, now: Instant) -> Result<ImportHeard, Ended> {
        self.pulse.heard = now;
        let items = match &message {
            Message::Page { items, .. } => items.len(),
            Message::Delta { changes, .. } => changes.len(),
            Message::Records { records } => 1 + records.len() * RECORD_COST,
            _ => 1,
        };
        self.allowance = self.allowance.saturating_sub(items as u64);
        match (message, &mut self.stage) {
            // An export side that could not keep up answers a second time.
            (Message::Answer { version, epoch, record, resumed }, _) => {
                if !(VERSIONS.0..=VERSIONS.1).contains(&version) {
                    return Err(Ended::NoCommonVersion(version, version));
                }
                self.epoch = epoch.chars().take(128).collect();
                self.stage = if resumed { Stage::Live } else { Stage::Snapshot(Advertisement::default()) };
                Ok(ImportHeard::Answered { record, resumed })
            }
            (Message::Page { items, last }, Stage::Snapshot(all)) => {
                items.iter().for_each(|change| {
                    all.apply(change);
                });
                let over = |held: usize, bound: usize| held > bound.saturating_mul(2);
                if over(all.services(), self.bounds.services)
                    || over(all.endpoints(), self.bounds.endpoints)
                    || over(all.bytes(), self.bounds.bytes)
                    || over(all.len(), self.bounds.services + self.bounds.endpoints)
                {
                    return Err(Ended::SnapshotTooLarge);
                }
                let Some(hash) = last else { return Ok(ImportHeard::Alive) };
                let items = core::mem::take(all);
                self.stage = Stage::Live;
                self.holding = Some(hash);
                Ok(ImportHeard::Snapshot { items, token: Token { epoch: self.epoch.clone(), hash } })
            }
            (Message::Delta { changes, hash }, Stage::Live) => {
                self.holding = hash.or(self.holding);
                let token = hash.map(|hash| Token { epoch: self.epoch.clone(), hash });
                Ok(ImportHeard::Changes { changes, token })
            }
            (Message::Records { records }, Stage::Snapshot(_) | Stage::Live) => Ok(ImportHeard::Records(records)),
            (Message::Alive { .. }, Stage::Snapshot(_) | Stage::Live) => Ok(ImportHeard::Alive),
            (Message::Refuse { reason }, _) => Err(Ended::Refused(reason.chars().take(200).collect())),
            (other, _) => Err(Ended::OutOfTurn(other.name())),
        }
    }
}

#[cfg(test)]
mod tests;
