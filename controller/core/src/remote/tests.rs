use super::*;
use crate::testing::{cluster, service, slice, time};

const T0: Instant = Instant::from_millis(0);

fn web() -> ServiceName {
    ServiceName::new("shop", "web")
}

fn terms() -> Option<Terms> {
    Some(Terms { prefixes: vec!["10.2.0.0/16".parse().unwrap()], ..Terms::default() })
}

fn said(second: u64, addresses: &[&str]) -> Advertisement {
    let mut said = Advertisement::default();
    said.put(ItemKey::service(web()), service(second));
    said.put(ItemKey::slice(web(), "a"), slice(addresses));
    said
}

fn token(epoch: &str, said: &Advertisement) -> Token {
    Token { epoch: epoch.into(), hash: said.hash() }
}

fn heard(epoch: &str, second: u64) -> RemoteIndex {
    let mut index = RemoteIndex::new(Bounds::default());
    index.set_terms(&cluster("birch"), terms(), T0, time(50));
    let said = said(second, &["10.2.0.1"]);
    index.snapshot(&cluster("birch"), said.clone(), token(epoch, &said), T0, time(50));
    index
}

#[test]
fn a_cluster_without_terms_contributes_nothing_until_it_has_some() {
    let mut index = RemoteIndex::new(Bounds::default());
    let said = said(1, &["10.2.0.1"]);
    let birch = cluster("birch");
    assert!(index.snapshot(&birch, said.clone(), token("e", &said), T0, time(50)).is_empty());
    assert_eq!(index.claims(&web()).count(), 0);
    assert_eq!(index.set_terms(&birch, terms(), T0, time(50)), [web()].into());
    assert_eq!(index.claims(&web()).count(), 1);
    assert_eq!(index.set_terms(&birch, None, T0, time(50)), [web()].into());
    assert_eq!(index.claims(&web()).count(), 0);
}

#[test]
fn narrower_terms_take_effect_without_a_word_from_the_cluster() {
    let mut index = heard("e", 1);
    let birch = cluster("birch");
    let other = Some(Terms { prefixes: vec!["10.3.0.0/16".parse().unwrap()], ..Terms::default() });
    assert_eq!(index.set_terms(&birch, other, T0, time(50)), [web()].into());
    assert_eq!(index.usable(&birch).unwrap().endpoints(), 0);
    assert_eq!(index.refusals(&birch), [(Refusal::EndpointOutsidePrefixes, 1)].into());
}

#[test]
fn a_rebuilt_cluster_keeps_the_age_of_its_exports() {
    let mut index = heard("first", 1);
    let birch = cluster("birch");
    let empty = Advertisement::default();
    index.snapshot(&birch, empty.clone(), token("second", &empty), T0, time(60));
    let again = said(55, &["10.2.0.1"]);
    index.snapshot(&birch, again.clone(), token("second", &again), T0, time(60));
    assert_eq!(index.claims(&web()).next().unwrap().1.first_exported, time(1));
}

#[test]
fn a_rebuilt_cluster_is_told_what_is_remembered_of_it_until_it_says_so_itself() {
    let mut index = heard("first", 1);
    let birch = cluster("birch");
    assert!(index.remembered(&birch).is_empty());
    let remembered = [Remembered { service: web(), first_exported: time(1) }];
    for says in [Advertisement::default(), said(55, &["10.2.0.1"])] {
        index.snapshot(&birch, says.clone(), token("second", &says), T0, time(60));
        let expected: &[Remembered] = &remembered;
        assert_eq!(index.remembered(&birch), expected);
        // The first is not lost by being told: the conversation may have broken.
        index = again_from_disk(&index);
        assert_eq!(index.remembered(&birch), expected);
    }
    let says = said(1, &["10.2.0.1"]);
    index.snapshot(&birch, says.clone(), token("second", &says), T0, time(60));
    assert!(index.remembered(&birch).is_empty());
}

fn again_from_disk(index: &RemoteIndex) -> RemoteIndex {
    let birch = cluster("birch");
    let mut again = RemoteIndex::new(Bounds::default());
    again.set_terms(&birch, terms(), T0, time(60));
    again.remember(&birch, index.memory(&birch).unwrap(), T0, time(60));
    again
}

#[test]
fn an_export_made_anew_while_its_cluster_was_away_is_as_old_as_it_says() {
    let mut index = heard("e", 1);
    let again = said(55, &["10.2.0.1"]);
    index.snapshot(&cluster("birch"), again.clone(), token("e", &again), T0, time(60));
    assert_eq!(index.claims(&web()).next().unwrap().1.first_exported, time(55));
    assert!(index.remembered(&cluster("birch")).is_empty());
}

#[test]
fn an_export_taken_back_and_made_again_is_as_old_as_it_says() {
    let mut index = heard("e", 1);
    let birch = cluster("birch");
    let token = |_: &RemoteIndex| None;
    let gone = [ItemChange { key: ItemKey::service(web()), item: None }];
    index.changes(&birch, &gone, token(&index), T0, time(60));
    let again = [ItemChange { key: ItemKey::service(web()), item: Some(service(55)) }];
    index.changes(&birch, &again, token(&index), T0, time(60));
    assert_eq!(index.claims(&web()).next().unwrap().1.first_exported, time(55));
}

#[test]
fn a_silent_cluster_keeps_its_vote_and_is_forgotten_at_last() {
    let mut index = heard("e", 1);
    let birch = cluster("birch");
    index.set_connected(&birch, true, T0);
    index.set_connected(&birch, false, Instant::from_millis(1_000));
    assert!(index.tick(Instant::from_millis(30_999)).0.is_empty());
    assert_eq!(index.tick(Instant::from_millis(31_000)).0, [web()].into());
    assert!(index.is_silent(&birch) && index.claims(&web()).count() == 1);
    assert_eq!(index.set_connected(&birch, true, Instant::from_millis(32_000)), [web()].into());
    index.set_connected(&birch, false, Instant::from_millis(33_000));
    let (touched, forgotten) = index.tick(Instant::from_millis(33_000) + FORGET);
    assert_eq!((touched, forgotten), ([web()].into(), vec![birch]));
}

#[test]
fn what_is_kept_on_disk_comes_back_with_its_token() {
    let index = heard("e", 1);
    let birch = cluster("birch");
    let text = serde_json::to_string(&index.memory(&birch).unwrap()).unwrap();
    let mut again = RemoteIndex::new(Bounds::default());
    again.set_terms(&birch, terms(), T0, time(60));
    assert_eq!(again.remember(&birch, serde_json::from_str(&text).unwrap(), T0, time(60)), [web()].into());
    assert_eq!(again.token(&birch), index.token(&birch));
    assert_eq!(again.usable(&birch), index.usable(&birch));
}

#[test]
fn what_is_over_the_bounds_is_refused_and_the_rest_stays_and_the_next_talk_begins_anew() {
    let mut index = RemoteIndex::new(Bounds { services: 1, ..Bounds::default() });
    let birch = cluster("birch");
    index.set_terms(&birch, terms(), T0, time(50));
    let mut two = said(1, &["10.2.0.1"]);
    two.put(ItemKey::service(ServiceName::new("shop", "zebra")), service(1));
    index.snapshot(&birch, two.clone(), token("e", &two), T0, time(50));
    assert_eq!(index.claims(&web()).count(), 1);
    assert_eq!(index.refusals(&birch), [(Refusal::TooManyServices, 1)].into());
    assert_eq!(index.token(&birch), None);
}

#[test]
fn content_that_is_not_what_the_token_stands_for_is_noticed() {
    let mut index = heard("e", 1);
    let birch = cluster("birch");
    assert!(!index.is_astray(&birch));
    let wrong = Token { epoch: "e".into(), hash: ContentHash::default() };
    index.changes(&birch, &[], Some(wrong), T0, time(60));
    assert!(index.is_astray(&birch) && index.token(&birch).is_none());
}
