//! A member that holds a valid identity and lies: what it may not say is refused by name, and what others say goes on.

mod clusters;

use api::member_record::{MemberState, SignedRecord};
use api::time::WallTime;
use api::{ClusterPeer, LocalCluster};
use clusters::besieged::{Besieged, PLAUSIBLE, honest, named, service, slice, slice_of, words};
use clusters::eventually;
use clusters::liar::{answer, framed, snapshot};
use controller_core::advertisement::{ContentHash, ItemChange};
use controller_core::message::Message;
use serde_json::json;

/// Where it is cut off it has named twice 10,000 services of some kilobytes each, and all tests here are one process.
const MOST_KILOBYTES: u64 = 256 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_member_may_not_say_is_refused_by_name_and_the_rest_of_what_it_says_is_taken() {
    let clusters = Besieged::with(|_, record| {
        let mut items = honest();
        items.extend([
            (named("kube-system", "dns"), service(PLAUSIBLE)),
            (named("shop", "Not A Name"), service(PLAUSIBLE)),
            (named("shop", "ancient"), service(WallTime::from_millis(1))),
            (named("shop", "tomorrow"), service(WallTime::from_millis(PLAUSIBLE.as_millis() * 2))),
            (named("shop", "stolen"), service(PLAUSIBLE)),
            // Of amber, of cedar, of nobody, of the host itself.
            (slice_of("stolen"), slice(&["10.1.0.1", "10.3.0.1", "192.0.2.1", "127.0.0.1", "10.2.0.2"])),
        ]);
        words(vec![answer(record, "one"), snapshot(&items)])
    })
    .await;
    for reason in
        ["NamespaceNotAccepted", "InvalidName", "ImplausibleTimestamp", "FutureTimestamp", "EndpointOutsidePrefixes"]
    {
        clusters.until_refused(reason).await;
    }
    let taken = || async { (clusters.imported_from_birch().await.len() == 2).then_some(()) };
    eventually("what is true is taken", taken, || json!(null)).await;
    assert_eq!(clusters.imported_from_birch().await, ["10.2.0.1".to_owned(), "10.2.0.2".to_owned()].into());
    clusters.the_honest_one_is_heard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_ends_the_conversation_by_name_and_each_next_one_is_judged_anew() {
    let clusters = Besieged::with(|number, record| {
        let answered = answer(record, "one");
        let deep = format!(r#"{{"say":"page","items":{}{}}}"#, "[".repeat(50_000), "]".repeat(50_000));
        words(match number % 7 {
            0 => vec![answered, u32::MAX.to_be_bytes().to_vec()],
            1 => vec![answered, framed(b"{\"say\":\"page\",\"items\":7}")],
            2 => vec![answered, framed(deep.as_bytes())],
            3 => vec![answered, framed(br#"{"say":"delta","changes":[{"key":{"service":{"namespace":"shop","name":"web"}},"item":{"service":{"ports":"eighty"}}}],"hash":null,"age":-1}"#)],
            // A change of what was never told.
            4 => vec![Message::Delta { changes: Vec::new(), hash: None, age: 0 }.to_frame().unwrap()],
            5 => vec![framed(&[0xff; 64])],
            _ => vec![answered, snapshot(&honest())],
        })
    })
    .await;
    clusters.until_refused("BadMessage").await;
    clusters.until_refused("OutOfTurn").await;
    let taken = || async { (clusters.imported_from_birch().await.len() == 1).then_some(()) };
    eventually("once it says what is right it is heard", taken, || json!(null)).await;
    clusters.the_honest_one_is_heard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_names_services_without_end_is_cut_off_and_costs_bounded_memory() {
    let clusters = Besieged::with(|_, record| {
        let page = |number: usize| {
            let item = |index| {
                let key = named("shop", &format!("service-{}", number * 300 + index));
                ItemChange { key, item: Some(service(PLAUSIBLE).into()) }
            };
            Message::Page { items: (0..300).map(item).collect(), last: None }.to_frame().unwrap()
        };
        Box::new(std::iter::once(answer(record, "one")).chain((0..).map(page)))
    })
    .await;
    let before = resident_kilobytes();
    clusters.the_honest_one_is_heard().await;
    clusters.until_refused("SnapshotTooLarge").await;
    clusters.the_honest_one_is_heard().await;
    let grown = resident_kilobytes().saturating_sub(before);
    println!("{grown} kB more than before");
    assert!(grown < MOST_KILOBYTES, "{grown} kB more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_hash_is_a_lie_is_asked_again_and_one_that_is_new_each_time_too() {
    let clusters = Besieged::with(|number, record| {
        let epoch = format!("epoch-{number}");
        let empty = Message::Delta { changes: Vec::new(), hash: Some(ContentHash::default()), age: 0 };
        words(vec![answer(record, &epoch), snapshot(&honest()), empty.to_frame().unwrap()])
    })
    .await;
    clusters.until_refused("Astray").await;
    let again = || async { (clusters.liar.conversations() > 2).then_some(()) };
    eventually("it is asked again", again, || json!(clusters.liar.conversations())).await;
    clusters.the_honest_one_is_heard().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_answers_and_then_says_nothing_holds_nobody_up_and_is_asked_again() {
    let clusters = Besieged::with(|number, record| match number {
        0 => words(Vec::new()),
        1 => words(vec![answer(record, "one")]),
        // Half a frame.
        2 => words(vec![answer(record, "one"), snapshot(&honest())[..40].to_vec()]),
        _ => words(vec![answer(record, "one"), snapshot(&honest())]),
    })
    .await;
    clusters.the_honest_one_is_heard().await;
    let taken = || async { (clusters.imported_from_birch().await.len() == 1).then_some(()) };
    eventually("it is heard once it speaks", taken, || json!(clusters.liar.conversations())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_another_cluster_would_have_to_sign_is_refused_by_name() {
    let clusters = Besieged::with(|_, record| {
        let mut forged = record.clone();
        // One byte of what is signed.
        if let Some(byte) = forged.record.iter_mut().find(|byte| byte.is_ascii_lowercase()) {
            *byte ^= 1;
        }
        let records = Message::Records { records: vec![forged.clone(), record.clone()] }.to_frame().unwrap();
        words(vec![answer(record, "one"), snapshot(&honest()), records])
    })
    .await;
    let refused = || async {
        let status = clusters.amber.surface().answer("status")?;
        status.to_string().contains("Invalid: cluster birch sent a record that is not signed as it says").then_some(())
    };
    let shown = || clusters.amber.surface().answer("status").unwrap_or_default();
    eventually("the record is refused", refused, shown).await;
    clusters.the_honest_one_is_heard().await;
}

/// A record is signed for ever; only its generation says that it is not the last word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_was_true_once_does_not_undo_what_its_cluster_said_since() {
    let clusters = Besieged::with(|_, record| words(vec![answer(record, "one"), snapshot(&honest())])).await;
    let signed = |local: Option<LocalCluster>| SignedRecord::from_base64(&local?.status?.record).ok();
    let active = clusters.cedar.until::<LocalCluster, _>(None, "local", signed).await;
    let state = |peer: Option<ClusterPeer>| Some(peer?.newest_record()?.state);
    let is_active = |peer| state(peer).filter(|state| *state == MemberState::Active);
    clusters.amber.until::<ClusterPeer, _>(None, "cedar", is_active).await;

    let manifest = std::fs::read_to_string(clusters.cedar.path("manifests/local.yaml")).unwrap();
    clusters.cedar.put("local.yaml", &manifest.replacen("spec:\n", "spec:\n  state: Draining\n", 1));
    let is_draining = |peer| state(peer).filter(|state| *state == MemberState::Draining);
    clusters.amber.until::<ClusterPeer, _>(None, "cedar", is_draining).await;

    let heard = || async { (clusters.imported_from_birch().await.len() == 1).then_some(()) };
    eventually("the liar is heard", heard, || json!(clusters.liar.conversations())).await;
    clusters.liar.say(&Message::Records { records: vec![active] }.to_frame().unwrap());
    let late = [(named("shop", "late"), service(PLAUSIBLE)), (slice_of("late"), slice(&["10.2.0.9"]))];
    let changes = late.into_iter().map(|(key, item)| ItemChange { key, item: Some(item.into()) }).collect();
    clusters.liar.say(&Message::Delta { changes, hash: None, age: 0 }.to_frame().unwrap());
    let taken = || async { clusters.imported_from_birch().await.contains("10.2.0.9").then_some(()) };
    eventually("what came after the old record is taken", taken, || json!(clusters.liar.conversations())).await;
    let cedar = clusters.amber.store().get::<ClusterPeer>(None, "cedar").await.unwrap();
    assert_eq!(state(cedar), Some(MemberState::Draining));
    clusters.the_honest_one_is_heard().await;
}

/// The most memory this process held so far.
fn resident_kilobytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
