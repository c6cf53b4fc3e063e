//! The oracle sees what it is there for: a part that is broken on purpose is found out, and told as a short story.

use simulation::{Failure, Happening, Sabotage, Schedule, live};

/// Two clusters with one gateway each; birch alone has an endpoint of `shop/web`, and both know of it.
fn schedule(sabotage: Option<Sabotage>, trouble: &[(u64, Happening)]) -> Schedule {
    let (cluster, service) = (1, simulation::Name::Web);
    let endpoint = Happening::Endpoint { cluster, service, host: 0, place: 0, ready: Some(true) };
    let mut happenings = vec![(0, endpoint), (0, Happening::Export { cluster, service })];
    happenings.extend_from_slice(trouble);
    happenings.push((9_000, Happening::Calm));
    Schedule { seed: 1, gateways: vec![1, 1], happenings, sabotage }
}

fn isolated() -> Vec<(u64, Happening)> {
    vec![(3_000, Happening::Isolate { cluster: 1 })]
}

fn told(sabotage: Sabotage, trouble: &[(u64, Happening)]) -> Failure {
    match live(&schedule(Some(sabotage), trouble)) {
        Ok(tally) => panic!("{sabotage:?} went unseen: {tally:?}"),
        Err(failure) => failure,
    }
}

#[test]
fn the_same_story_is_well_where_nothing_is_broken() {
    let tally = live(&schedule(None, &isolated())).unwrap_or_else(|failure| panic!("{}", failure.describe(true)));
    assert!(tally.answered > 20 && tally.unserved > 20, "{tally:?}");
}

#[test]
fn filters_that_let_everything_in_are_found_out() {
    let failure = told(Sabotage::OpenFilters, &[]);
    assert!(failure.wrong[0].contains("after it was to be closed"), "{}", failure.describe(true));
}

#[test]
fn health_that_hides_a_lost_cluster_is_found_out() {
    let failure = told(Sabotage::RosyHealth, &isolated());
    assert!(failure.wrong[0].contains("which is lost since"), "{}", failure.describe(true));
}

#[test]
fn a_missing_blackhole_is_found_out_when_the_tunnel_dies() {
    let killed = Happening::Kill { cluster: 0, part: simulation::Part::Gateway(0) };
    let failure = told(Sabotage::NoBlackholes, &[(3_000, killed)]);
    assert!(failure.wrong.iter().any(|wrong| wrong.contains("in clear")), "{}", failure.describe(true));
}

#[test]
fn a_failing_story_loses_what_has_nothing_to_do_with_it() {
    let mut trouble = isolated();
    let clock = Happening::SetClock { cluster: 0, by: 600 };
    trouble.extend([(1_000, clock.clone()), (3_500, Happening::BackUp { cluster: 0 })]);
    let shrunk = told(Sabotage::RosyHealth, &trouble).shrink();
    let left = &shrunk.schedule.happenings;
    assert!(left.iter().any(|(_, happening)| matches!(happening, Happening::Isolate { .. })), "{left:?}");
    assert!(left.iter().all(|(_, happening)| *happening != clock), "{left:?}");
    assert!(shrunk.describe(false).contains("birch is cut off from the world"));
}
