use serde_json::json;
use tokio::sync::mpsc;

use super::*;

fn kind() -> KindName {
    KindName::of::<api::kubernetes::Service>()
}

fn service(name: &str, version: u64) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name, "resourceVersion": version.to_string()}})
}

fn inner(objects: Vec<Value>) -> (Inner, mpsc::UnboundedSender<Event<Value>>) {
    let (events, watch) = mpsc::unbounded_channel();
    events.send(Event::Reset(objects)).unwrap();
    let mut inner = Inner {
        kind: kind(),
        events: watch,
        memory: None,
        changes: VecDeque::new(),
        bytes: 0,
        first: 0,
        tenures: Arc::default(),
    };
    assert!(inner.start(None, |_| true).is_none(), "nothing is said before the store has said what there is");
    inner.drain();
    (inner, events)
}

fn digest(inner: &Inner) -> Digest {
    inner.memory.as_ref().unwrap().digest()
}

/// The names an agent is told of that comes back with `have`; `None` when it is told everything.
fn resumed(inner: &Inner, have: Digest) -> Option<Vec<String>> {
    match inner.start(Some(have), |_| true).unwrap() {
        Start::Resumed { changes, digest: said, .. } => {
            assert_eq!(said, digest(inner));
            Some(changes.into_iter().map(|change| change.key.name).collect())
        }
        Start::Everything { .. } => None,
    }
}

#[test]
fn who_comes_back_is_told_the_last_change_of_each_object_that_it_missed() {
    let (mut inner, events) = inner(vec![service("a", 1), service("b", 2)]);
    let have = digest(&inner);
    assert_eq!(resumed(&inner, have), Some(vec![]));
    for event in [
        Event::Applied(service("c", 3)),
        Event::Applied(service("a", 4)),
        Event::Deleted(service("b", 2)),
        Event::Applied(service("a", 5)),
    ] {
        events.send(event).unwrap();
    }
    inner.drain();
    assert_eq!(resumed(&inner, have), Some(vec!["c".into(), "b".into(), "a".into()]));
    assert_eq!(resumed(&inner, digest(&inner)), Some(vec![]));
    assert_eq!(resumed(&inner, Digest::of(&json!("another state"))), None);
}

#[test]
fn a_state_that_was_restored_and_went_on_otherwise_is_another_one_though_its_versions_are_the_same() {
    let (mut before, events) = inner(vec![service("a", 1)]);
    events.send(Event::Applied(service("b", 2))).unwrap();
    before.drain();
    let have = digest(&before);
    let (mut restored, events) = inner(vec![service("a", 1)]);
    events.send(Event::Applied(service("c", 2))).unwrap();
    restored.drain();
    assert_eq!(resumed(&restored, have), None);
}

#[test]
fn what_is_kept_is_bounded_and_who_is_behind_it_is_told_everything() {
    let (mut inner, events) = inner(vec![]);
    let have = digest(&inner);
    for version in 0..=MAX_CHANGES as u64 {
        events.send(Event::Applied(service("a", version))).unwrap();
    }
    inner.drain();
    assert_eq!(inner.changes.len(), MAX_CHANGES);
    assert_eq!(resumed(&inner, have), None);
    assert_eq!(inner.since(0).unwrap_err(), Behind);
    assert_eq!(inner.since(1).unwrap().0.len(), MAX_CHANGES);
    let large = "x".repeat(MAX_BYTES / 4);
    for version in 0..10 {
        let mut object = service("large", version);
        object["spec"] = json!({"filler": large});
        events.send(Event::Applied(object)).unwrap();
    }
    inner.drain();
    assert!(inner.bytes <= MAX_BYTES && inner.changes.len() < 5, "{} changes", inner.changes.len());
    assert_eq!(inner.bytes, inner.changes.iter().map(|change| change.message.len()).sum::<usize>());
}

#[test]
fn a_store_that_says_everything_again_is_news_only_where_it_differs() {
    let (mut inner, events) = inner(vec![service("a", 1), service("b", 2)]);
    events.send(Event::Reset(vec![service("b", 2), service("c", 3)])).unwrap();
    inner.drain();
    let (changes, next) = inner.since(0).unwrap();
    assert_eq!(changes.iter().map(|change| change.key.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(next, 2);
}

#[test]
fn who_sees_a_part_alone_resumes_only_with_the_very_same_part() {
    let (mut inner, events) = inner(vec![service("a", 1), service("b", 2)]);
    let a = Digest::of(&service("a", 1));
    let visible = |key: &ObjectKey| key.name == "a";
    assert!(matches!(inner.start(Some(a), visible), Some(Start::Resumed { changes, .. }) if changes.is_empty()));
    events.send(Event::Applied(service("a", 3))).unwrap();
    inner.drain();
    assert!(matches!(inner.start(Some(a), visible), Some(Start::Everything { objects, .. }) if objects.len() == 1));
}
