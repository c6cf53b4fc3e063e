//! [`ImportSide`]: the end that asks another cluster what it exports.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use api::keys::IdentityKey;
use api::member_record::SignedRecord;
use api::time::Instant;

use super::Ended;
use super::pulse::Pulse;
use crate::advertisement::{Advertisement, ContentHash, ItemChange};
use crate::message::{Message, VERSIONS};
use crate::recall::Remembered;
use crate::remote::Token;
use crate::validity::Bounds;

/// Items a peer may send each second in the long run, and at once after a pause: a snapshot of the largest cluster in
/// 25 s, and no peer can keep a core busy.
const ITEMS_A_SECOND: u64 = 4_000;
const ITEMS_AT_ONCE: u64 = 20_000;

/// Exports in one message about what is remembered: 256 bytes each at most, so half a frame.
const REMEMBERED_A_MESSAGE: usize = 500;

/// What a record counts for among items: its signature is verified, which costs as much as a hundred items.
const RECORD_COST: usize = 100;

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
        /// For how long the peer had known of them when it sent them.
        age: Duration,
    },
    Records(Vec<SignedRecord>),
    Alive,
}

/// The end that asks another cluster what it exports.
#[derive(Debug)]
pub struct ImportSide {
    pulse: Pulse,
    first: VecDeque<Message>,
    stage: Stage,
    epoch: String,
    holding: Option<ContentHash>,
    /// The generation of the peer's record that is in force here.
    record: Option<u64>,
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
            first: [Message::Ask { versions: VERSIONS, resume, record }].into(),
            stage: Stage::Asked,
            epoch: String::new(),
            holding,
            record: None,
            bounds,
            allowance: ITEMS_AT_ONCE,
            refilled: now,
        }
    }

    /// The next message to send; `None` when there is nothing to say now.
    pub fn next_message(&mut self, now: Instant) -> Result<Option<Message>, Ended> {
        self.pulse.check(now)?;
        let message = self.first.pop_front().or_else(|| {
            self.pulse.is_due(now).then_some(Message::Alive { holding: self.holding, record: self.record })
        });
        if message.is_some() {
            self.pulse.speaks(now);
        }
        Ok(message)
    }

    /// Which generation of the peer's record is in force here: the peer is told with the next heartbeat.
    pub fn set_record(&mut self, generation: Option<u64>) {
        self.record = generation;
    }

    /// Tells the peer which of its exports are older than it says.
    pub fn remember(&mut self, exports: &[Remembered]) {
        let messages = exports.chunks(REMEMBERED_A_MESSAGE);
        self.first.extend(messages.map(|exports| Message::Remember { exports: exports.to_vec() }));
    }

    /// Tells the peer which identities are trusted to speak for it.
    pub fn trust(&mut self, identities: Vec<IdentityKey>) {
        self.first.push_back(Message::Trust { identities });
    }

    /// Whether heartbeats of the peer are missing: another connection, where one waits, may do better.
    pub fn is_overdue(&mut self, now: Instant) -> bool {
        self.pulse.is_overdue(now)
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
        self.pulse.hears(now);
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
            (Message::Delta { changes, hash, age }, Stage::Live) => {
                self.holding = hash.or(self.holding);
                let token = hash.map(|hash| Token { epoch: self.epoch.clone(), hash });
                Ok(ImportHeard::Changes { changes, token, age: Duration::from_millis(age) })
            }
            (Message::Records { records }, Stage::Snapshot(_) | Stage::Live) => Ok(ImportHeard::Records(records)),
            (Message::Alive { .. }, Stage::Snapshot(_) | Stage::Live) => Ok(ImportHeard::Alive),
            (Message::Refuse { reason }, _) => Err(Ended::Refused(reason.chars().take(200).collect())),
            (other, _) => Err(Ended::OutOfTurn(other.name())),
        }
    }
}
