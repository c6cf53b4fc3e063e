//! What agents are shown before it is written.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use api::kubernetes::EndpointSlice;

use super::world::World;
use crate::advertisement::Advertisement;
use crate::testing::cluster;

/// What somebody knows who was shown everything: by service, the addresses of its slices; `None` where one is taken away.
type Shown = BTreeMap<String, Vec<Option<Vec<String>>>>;

fn shown(world: &mut World) -> Shown {
    let addresses = |slice: EndpointSlice| {
        slice.endpoints.into_iter().flatten().flat_map(|endpoint| endpoint.addresses).collect::<Vec<_>>()
    };
    let ahead = world.engine.ahead().into_iter();
    ahead
        .map(|(name, slices)| {
            let slices = slices.into_iter().map(|(_, slice)| slice.map(addresses));
            (alloc::format!("{name}"), slices.collect())
        })
        .collect()
}

fn web(slices: &[Option<&str>]) -> Shown {
    let slices = slices.iter().map(|address| address.map(|address| alloc::vec![address.into()]));
    [("shop/web".into(), slices.collect())].into()
}

#[test]
fn a_change_of_another_cluster_is_shown_before_it_is_written_and_no_more_once_it_is() {
    let mut world = World::new();
    world.engine.go_ahead();
    world.hears("birch", 1, &["10.2.0.1"]);
    // A new import has no address yet: only who writes can give it one.
    assert_eq!(shown(&mut world), web(&[]));
    world.settle();
    assert_eq!(shown(&mut world), web(&[]));

    world.hears("birch", 1, &["10.2.0.2"]);
    assert_eq!(shown(&mut world), web(&[Some("10.2.0.2")]));
    // Nobody writes, and another change comes.
    assert_eq!(shown(&mut world), Shown::new());
    world.hears("birch", 1, &["10.2.0.3"]);
    assert_eq!(shown(&mut world), web(&[Some("10.2.0.3")]));
    // Back to what the store says: nothing is ahead of it any more.
    world.hears("birch", 1, &["10.2.0.1"]);
    assert_eq!(shown(&mut world), web(&[]));

    world.hears_all(&cluster("birch"), Advertisement::default());
    assert_eq!(shown(&mut world), web(&[None]));
    world.settle();
    assert_eq!(shown(&mut world), web(&[]));
}

#[test]
fn nothing_is_kept_for_nobody() {
    let mut world = World::new();
    world.hears("birch", 1, &["10.2.0.1"]);
    world.settle();
    assert_eq!(shown(&mut world), Shown::new());
}
