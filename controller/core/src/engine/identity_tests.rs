//! When the old identity may go.

use api::keys::IdentityKey;
use api::succession::Succession;
use api::time::WallTime;

use super::world::{World, local_cluster, peer};
use crate::own_identity::OwnIdentity;
use crate::rotation::LONGEST;
use crate::testing::cluster;

const SINCE: WallTime = WallTime::from_millis(1_700_000_000_000);

#[test]
fn the_old_identity_is_kept_for_those_that_have_not_said_to_trust_the_next_one() {
    let [old, new] = [1, 2].map(|seed| IdentityKey([seed; 32]));
    let mut world = World::empty();
    assert_eq!(world.engine.identity_rotation(SINCE), None);
    let succession = Succession { cluster: cluster("amber"), from: old, to: new, named: vec![], accepted: vec![] };
    world.engine.set_identity(OwnIdentity::from(old).begun(succession, SINCE).unwrap());
    // Nobody is known yet: nobody can be left out.
    let unknown = world.engine.identity_rotation(SINCE).unwrap();
    assert!(unknown.waiting_for.is_none() && !unknown.is_over());

    world.show_resets();
    world.put(local_cluster());
    let mut blocked = peer("elm", 4);
    blocked.spec.state = api::cluster_peer::PeerState::Blocked;
    for peer in [peer("birch", 2), peer("cedar", 3), blocked] {
        world.put(peer);
    }
    world.settle();
    let waiting_for = |world: &World| world.engine.identity_rotation(SINCE).unwrap().waiting_for.unwrap();
    assert_eq!(waiting_for(&world), ["birch", "cedar"]);
    world.engine.hear_trust(&cluster("birch"), vec![old, new]);
    world.engine.hear_trust(&cluster("cedar"), vec![old]);
    assert_eq!(waiting_for(&world), ["cedar"]);
    assert!(!world.engine.identity_rotation(SINCE).unwrap().is_over());
    let late = WallTime::from_millis(SINCE.as_millis() + LONGEST.as_millis() as u64);
    assert!(world.engine.identity_rotation(late).unwrap().is_over(), "nobody is waited for for ever");
    world.engine.hear_trust(&cluster("cedar"), vec![new]);
    assert!(world.engine.identity_rotation(SINCE).unwrap().is_over());
}
