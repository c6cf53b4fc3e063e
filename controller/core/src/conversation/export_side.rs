//! [`ExportSide`]: the end that tells what this cluster exports.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use api::keys::IdentityKey;
use api::member_record::SignedRecord;
use api::time::Instant;

use super::pulse::Pulse;
use super::{Ended, common_version};
use crate::advertisement::{Advertisement, ContentHash, ItemChange, ItemKey};
use crate::ledger::{Batch, Resumption};
use crate::message::{Message, PAGE_BYTES, VERSIONS};
use crate::recall::Remembered;
use crate::remote::Token;

/// Batches waiting for a slow peer before it is told to start over from what it has.
pub(super) const MAX_WAITING: usize = 1_024;

/// Exports a peer may remember in one conversation: twice the services it may keep of us by default, for that many it
/// remembers of a cluster that was rebuilt.
const MAX_REMEMBERED: usize = 20_000;

/// Identities a peer may trust at once: four that its operator wrote down, and two that the record names.
const MAX_TRUSTED: usize = 8;

/// Records in one message: each has at most 32 KiB, 44 as base64 of the base64 that people copy.
const RECORDS_A_MESSAGE: usize = 2;

/// What the export side learned.
#[derive(Clone, Debug, PartialEq)]
pub enum ExportHeard {
    /// The peer asks; answer with [`ExportSide::answer`].
    Asked { record: SignedRecord },
    /// Exports of ours are older than we say.
    Remembered(Vec<Remembered>),
    /// The identities it trusts to speak for us.
    Trusts(Vec<IdentityKey>),
    /// What the peer has applied, where it says so.
    Alive { holding: Option<ContentHash>, record: Option<u64> },
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
    pub(super) waiting: VecDeque<Arc<Batch>>,
    /// Changes of the first waiting batch that were sent already.
    offset: usize,
    epoch: String,
    first: VecDeque<Message>,
    records: VecDeque<SignedRecord>,
    /// Exports the peer said to remember.
    remembered: usize,
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
            remembered: 0,
        }
    }

    pub fn receive(&mut self, message: Message, now: Instant) -> Result<ExportHeard, Ended> {
        self.pulse.hears(now);
        match message {
            Message::Ask { versions, resume, record } if self.version.is_none() => {
                let version = common_version(versions).ok_or(Ended::NoCommonVersion(versions.0, versions.1))?;
                self.version = Some(version);
                self.sent = resume;
                self.needs_resumption = true;
                Ok(ExportHeard::Asked { record })
            }
            Message::Alive { holding, record } if self.version.is_some() => Ok(ExportHeard::Alive { holding, record }),
            Message::Remember { exports } if self.version.is_some() => {
                self.remembered += exports.len();
                if self.remembered > MAX_REMEMBERED {
                    return Err(Ended::RemembersTooMuch);
                }
                Ok(ExportHeard::Remembered(exports))
            }
            Message::Trust { identities } if self.version.is_some() => {
                if identities.len() > MAX_TRUSTED {
                    return Err(Ended::TrustsTooMany);
                }
                Ok(ExportHeard::Trusts(identities))
            }
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
        let message = self.next_content(now).or_else(|| {
            (self.version.is_some() && self.pulse.is_due(now)).then_some(Message::Alive { holding: None, record: None })
        });
        if message.is_some() {
            self.pulse.speaks(now);
        }
        Ok(message)
    }

    fn next_content(&mut self, now: Instant) -> Option<Message> {
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
        let age = u64::try_from(now.since(batch.known).as_millis()).unwrap_or(u64::MAX);
        Some(Message::Delta { changes: page.items, hash: whole.then_some(batch.hash), age })
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
