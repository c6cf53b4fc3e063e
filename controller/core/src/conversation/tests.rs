use alloc::vec::Vec;

use api::member_record::SignedRecord;
use api::time::Instant;
use proptest::prelude::*;

use super::export_side::MAX_WAITING;
use super::*;
use crate::advertisement::{ItemChange, ItemKey, ServiceName};
use crate::ledger::Ledger;
use crate::message::Message;
use crate::recall::Remembered;
use crate::remote::RemoteIndex;
use crate::testing::{cluster, service, slice, time};
use crate::validity::{Bounds, Terms};

const T0: Instant = Instant::from_millis(0);

fn record() -> SignedRecord {
    SignedRecord { record: vec![1], key: api::keys::IdentityKey([0; 32]), signature: vec![2] }
}

fn put(n: usize) -> ItemChange {
    ItemChange { key: ItemKey::service(ServiceName::new("shop", &format!("s{n:05}"))), item: Some(service(1)) }
}

/// Both ends, the ledger of one and the index of the other, joined by nothing but messages.
struct Pair {
    ledger: Ledger,
    index: RemoteIndex,
    export: ExportSide,
    import: ImportSide,
    pages: usize,
    deltas: usize,
}

impl Pair {
    fn new(ledger: Ledger, mut index: RemoteIndex) -> Self {
        let birch = cluster("birch");
        let terms = Terms { prefixes: vec!["10.2.0.0/16".parse().unwrap()], ..Terms::default() };
        index.set_terms(&birch, Some(terms), T0, time(50));
        let import = ImportSide::new(index.token(&birch), record(), Bounds::default(), T0);
        let export = ExportSide::new(ledger.epoch().into(), T0);
        Self { ledger, index, export, import, pages: 0, deltas: 0 }
    }

    fn change(&mut self, changes: Vec<ItemChange>) {
        if let Some(batch) = self.ledger.record(changes, T0) {
            self.export.changed(batch);
        }
    }

    /// Lets everything that is to be said be said.
    fn talk(&mut self) {
        while let Some(message) = self.import.next_message(T0).unwrap() {
            self.export.receive(through_bytes(message), T0).unwrap();
        }
        loop {
            if let Some(token) = self.export.wants_resumption() {
                let resumption = self.ledger.resume(token);
                self.export.answer(resumption, &record());
            }
            let Some(message) = self.export.next_message(T0).unwrap() else { break };
            self.pages += usize::from(matches!(message, Message::Page { .. }));
            self.deltas += usize::from(matches!(message, Message::Delta { .. }));
            let birch = cluster("birch");
            match self.import.receive(through_bytes(message), T0).unwrap() {
                ImportHeard::Snapshot { items, token } => {
                    self.index.snapshot(&birch, items, token, T0, time(50));
                }
                ImportHeard::Changes { changes, token, .. } => {
                    self.index.changes(&birch, &changes, token, T0, time(50));
                }
                _ => {}
            }
        }
    }

    fn agree(&self) -> bool {
        self.index.token(&cluster("birch")) == Some(self.ledger.token())
            && self.index.usable(&cluster("birch")) == Some(self.ledger.current())
    }
}

fn through_bytes(message: Message) -> Message {
    let mut reader = crate::message::FrameReader::default();
    reader.push(&message.to_frame().unwrap());
    reader.next_message().unwrap().unwrap()
}

fn talked(count: usize) -> Pair {
    let mut ledger = Ledger::new("e".into());
    ledger.record((0..count).map(put).collect(), T0);
    let mut pair = Pair::new(ledger, RemoteIndex::new(Bounds::default()));
    pair.talk();
    pair
}

#[test]
fn a_stranger_to_the_content_gets_a_snapshot_in_pages_and_then_deltas() {
    let mut ledger = Ledger::new("e".into());
    // Recorded in an order from which the history cannot be resumed.
    ledger.record((0..crate::ledger::HISTORY + 1).map(put).collect(), T0);
    ledger.record((5_000..crate::ledger::HISTORY + 1).map(|n| ItemChange { item: None, ..put(n) }).collect(), T0);
    let mut pair = Pair::new(ledger, RemoteIndex::new(Bounds::default()));
    pair.talk();
    assert!(pair.pages > 5 && pair.agree(), "{} pages", pair.pages);
    pair.change(vec![put(99_999)]);
    pair.talk();
    assert!(pair.deltas == 1 && pair.agree());
}

#[test]
fn a_conversation_that_is_taken_up_again_costs_only_what_changed() {
    let mut pair = talked(1_000);
    pair.ledger.record(vec![put(5_000)], T0);
    let mut again = Pair::new(pair.ledger, pair.index);
    again.talk();
    assert!(again.agree());
    assert_eq!((again.pages, again.deltas), (0, 1));
}

#[test]
fn a_restarted_exporter_with_the_same_content_sends_no_snapshot() {
    let pair = talked(500);
    let mut other_replica = Ledger::new("e".into());
    other_replica.record((0..500).rev().map(put).collect(), T0);
    let mut again = Pair::new(other_replica, pair.index);
    again.talk();
    assert!(again.agree() && again.pages == 0 && again.deltas == 0);
}

#[test]
fn a_rebuilt_exporter_is_noticed_and_sends_everything() {
    let pair = talked(500);
    let mut rebuilt = Ledger::new("other".into());
    rebuilt.record(vec![put(1)], T0);
    let mut again = Pair::new(rebuilt, pair.index);
    again.talk();
    assert!(again.agree() && again.pages == 1);
}

#[test]
fn a_peer_too_slow_for_every_change_is_brought_up_to_date_and_its_queue_stays_bounded() {
    let mut pair = talked(10);
    for n in 0..3 * MAX_WAITING {
        pair.change(vec![put(n)]);
        assert!(pair.export.waiting.len() <= MAX_WAITING);
    }
    pair.talk();
    assert!(pair.agree());
}

#[test]
fn a_delta_before_the_snapshot_ends_the_conversation_by_name() {
    let mut import = ImportSide::new(None, record(), Bounds::default(), T0);
    let delta = Message::Delta { changes: vec![put(1)], hash: None, age: 0 };
    assert_eq!(import.receive(delta.clone(), T0), Err(Ended::OutOfTurn("delta")));
    import.receive(Message::Answer { version: 1, epoch: "e".into(), record: record(), resumed: false }, T0).unwrap();
    assert_eq!(import.receive(delta, T0), Err(Ended::OutOfTurn("delta")));
}

#[test]
fn a_snapshot_without_end_is_cut_off() {
    let bounds = Bounds { services: 10, ..Bounds::default() };
    let mut import = ImportSide::new(None, record(), bounds, T0);
    import.receive(Message::Answer { version: 1, epoch: "e".into(), record: record(), resumed: false }, T0).unwrap();
    let page = |from: usize| Message::Page { items: (from..from + 10).map(put).collect(), last: None };
    import.receive(page(0), T0).unwrap();
    import.receive(page(10), T0).unwrap();
    assert_eq!(import.receive(page(20), T0), Err(Ended::SnapshotTooLarge));
}

#[test]
fn an_end_that_says_nothing_is_left_and_one_with_nothing_to_say_says_so() {
    let mut pair = talked(1);
    let later = Instant::from_millis(1_000);
    assert_eq!(pair.export.next_message(later), Ok(Some(Message::Alive { holding: None, record: None })));
    let holding = Some(pair.ledger.token().hash);
    pair.import.set_record(Some(7));
    assert_eq!(pair.import.next_message(later), Ok(Some(Message::Alive { holding, record: Some(7) })));
    let looks = || (3..16).map(|half| Instant::from_millis(half * 500));
    for now in looks() {
        assert!(pair.import.next_message(now).is_ok() && pair.export.next_message(now).is_ok());
        assert_eq!(pair.import.is_overdue(now), now >= Instant::from_millis(3_000));
    }
    let at_last = Instant::from_millis(8_000);
    assert_eq!(pair.import.next_message(at_last), Err(Ended::Silent));
    assert_eq!(pair.export.next_message(at_last), Err(Ended::Silent));
}

#[test]
fn an_end_that_was_held_up_itself_does_not_take_the_other_one_for_silent() {
    let mut pair = talked(1);
    for second in [20, 40] {
        let back = Instant::from_millis(second * 1_000);
        assert!(!pair.import.is_overdue(back), "what the peer said meanwhile lies unread");
        assert!(pair.import.next_message(back).is_ok() && pair.export.next_message(back).is_ok());
    }
    // From then on it listens, and hears nothing.
    let now = |half: u64| Instant::from_millis(40_000 + half * 500);
    assert!((1..6).all(|half| !pair.import.is_overdue(now(half))) && pair.import.is_overdue(now(6)));
}

#[test]
fn what_is_remembered_of_the_other_end_reaches_it_within_its_bound() {
    let mut pair = talked(1);
    let exports: Vec<Remembered> = (0..1_200)
        .map(|n| Remembered { service: ServiceName::new("shop", &format!("s{n}")), first_exported: time(1) })
        .collect();
    pair.import.remember(&exports);
    let mut heard = Vec::new();
    while let Some(message) = pair.import.next_message(T0).unwrap() {
        match pair.export.receive(through_bytes(message), T0).unwrap() {
            ExportHeard::Remembered(some) => heard.extend(some),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard, exports);
    let mut end = Ok(ExportHeard::Alive { holding: None, record: None });
    for _ in 0..20 {
        end = end.and_then(|_| pair.export.receive(Message::Remember { exports: exports.clone() }, T0));
    }
    assert_eq!(end, Err(Ended::RemembersTooMuch));
}

#[test]
fn a_change_says_for_how_long_it_was_known_before_it_went_out() {
    let mut pair = talked(1);
    pair.change(vec![put(7)]);
    let message = pair.export.next_message(Instant::from_millis(700)).unwrap().unwrap();
    let heard = pair.import.receive(through_bytes(message), Instant::from_millis(700)).unwrap();
    assert!(matches!(heard, ImportHeard::Changes { age, .. } if age.as_millis() == 700), "{heard:?}");
}

#[test]
fn versions_that_do_not_meet_are_refused_with_both_ranges() {
    let mut export = ExportSide::new("e".into(), T0);
    let ask = Message::Ask { versions: (2, 9), resume: None, record: record() };
    assert_eq!(export.receive(ask, T0), Err(Ended::NoCommonVersion(2, 9)));
}

#[test]
fn a_peer_that_sends_faster_than_it_may_is_read_more_slowly() {
    let mut pair = talked(1);
    let flood =
        |n: usize| Message::Delta { changes: (0..1_000).map(|i| put(n * 1_000 + i)).collect(), hash: None, age: 0 };
    let mut sent = 0;
    while pair.import.pause(T0).is_none() {
        pair.import.receive(flood(sent), T0).unwrap();
        sent += 1;
        assert!(sent < 50);
    }
    assert!(pair.import.pause(Instant::from_millis(200)).is_none());
}

proptest! {
    #[test]
    fn whatever_changes_and_breaks_in_between_both_ends_agree_in_the_end(
        steps in proptest::collection::vec((0..30usize, any::<bool>(), 0..4u8), 1..60)
    ) {
        let mut pair = talked(3);
        for (n, take_away, then) in steps {
            let key = ItemKey::slice(ServiceName::new("shop", &format!("s{:05}", n % 5)), format!("{n}"));
            let item = (!take_away).then(|| slice(&[&format!("10.2.0.{n}")]));
            pair.change(vec![ItemChange { key, item }]);
            match then {
                0 => pair.talk(),
                1 => pair = Pair::new(pair.ledger, pair.index),
                _ => {}
            }
        }
        pair.talk();
        prop_assert!(pair.agree());
    }
}

#[test]
fn the_import_side_says_whom_it_trusts_after_it_asked_and_no_more_than_it_may() {
    let mut import = ImportSide::new(None, record(), Bounds::default(), T0);
    let mut export = ExportSide::new("e".into(), T0);
    let key = |number: u8| api::keys::IdentityKey([number; 32]);
    import.trust(vec![key(1), key(2)]);
    let early = export.receive(Message::Trust { identities: vec![key(1)] }, T0);
    assert_eq!(early, Err(Ended::OutOfTurn("trust")));
    let ask = import.next_message(T0).unwrap().unwrap();
    assert!(matches!(export.receive(ask, T0), Ok(ExportHeard::Asked { .. })));
    let trust = import.next_message(T0).unwrap().unwrap();
    assert_eq!(export.receive(trust, T0), Ok(ExportHeard::Trusts(vec![key(1), key(2)])));
    let many = (0..9).map(key).collect();
    assert_eq!(export.receive(Message::Trust { identities: many }, T0), Err(Ended::TrustsTooMany));
}
