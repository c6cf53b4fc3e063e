//! Promises of [`Path`](super::Path), told on a line of time in milliseconds.

use alloc::vec::Vec;

use super::*;
use crate::link::LaneNumber;

const fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

fn home() -> SocketAddr {
    "192.0.2.1:51820".parse().unwrap()
}

/// A path and the far end of it, which answers after half of `round_trip` there and half back.
struct World {
    path: Path,
    established: bool,
    round_trip: u64,
    /// Whether our packets arrive there, and theirs here.
    there: bool,
    here: bool,
    /// Answers under way: when they arrive.
    coming: Vec<(u64, u64)>,
    now: u64,
    handshakes: Vec<u64>,
    probes: Vec<u64>,
    changes: Vec<(u64, PathState, Cause)>,
}

impl World {
    fn new(round_trip: u64) -> Self {
        let mut path = Path::new(true, 1420, at(0));
        path.endpoints.replace(&[home()], &[]);
        Self {
            path,
            established: false,
            round_trip,
            there: true,
            here: true,
            coming: Vec::new(),
            now: 0,
            handshakes: Vec::new(),
            probes: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// A path that has been up for a while.
    fn up(round_trip: u64) -> Self {
        let mut world = Self::new(round_trip);
        world.run_to(3000);
        assert_eq!(world.path.state(), PathState::Up);
        world.changes.clear();
        world.handshakes.clear();
        world.probes.clear();
        world
    }

    fn run_to(&mut self, end: u64) {
        while self.now < end {
            self.now += 1;
            let now = at(self.now);
            let arrived: Vec<u64> =
                self.coming.iter().filter(|(when, _)| *when <= self.now).map(|(_, sequence)| *sequence).collect();
            self.coming.retain(|(when, _)| *when > self.now);
            for sequence in arrived {
                self.path.hear(home(), now);
                let news = self.path.take_probe(&probe(ProbeKind::Reply, sequence, true), now);
                self.note(news.changed);
            }
            let session = SessionView { established: self.established, last_handshake: None };
            let work = self.path.poll(session, now);
            self.note(work.changed);
            if let Some(sequence) = work.probe {
                self.probes.push(self.now);
                if self.there && self.here {
                    self.coming.push((self.now + self.round_trip, sequence));
                }
            }
            if work.initiate.is_some() {
                self.handshakes.push(self.now);
                if self.there && self.here {
                    self.established = true;
                    self.path.hear(home(), now);
                }
            }
        }
    }

    fn note(&mut self, changed: Option<(PathState, PathState, Cause)>) {
        if let Some((_, to, cause)) = changed {
            self.changes.push((self.now, to, cause));
        }
    }
}

fn probe(kind: ProbeKind, sequence: u64, hears_you: bool) -> Probe {
    let lane = LaneNumber(0);
    Probe {
        kind,
        draining: false,
        saw_draining: false,
        hears_you,
        idle: false,
        lane,
        incarnation: 1,
        sequence,
        held: 0,
        size: 0,
    }
}

#[test]
fn a_new_path_is_unknown_until_a_probe_is_answered() {
    let mut world = World::new(10);
    (world.there, world.here) = (false, false);
    world.run_to(10_000);
    assert_eq!(world.path.state(), PathState::Unknown, "unknown is not down");
    assert!(world.probes.is_empty(), "without a session nothing is sent but handshakes");
    (world.there, world.here) = (true, true);
    world.run_to(12_000);
    assert_eq!(world.path.state(), PathState::Up);
}

#[test]
fn handshakes_are_asked_for_at_most_once_a_second() {
    let mut world = World::new(10);
    world.there = false;
    world.run_to(10_500);
    assert_eq!(world.handshakes.len(), 11);
    assert!(world.handshakes.windows(2).all(|pair| pair[1] - pair[0] >= 1000));
}

#[test]
fn a_path_that_dies_is_down_within_the_budget_at_any_moment_it_may_die() {
    for round_trip in [0, 1, 5, 20, 60, 100] {
        for offset in 0..100 {
            let mut world = World::up(round_trip);
            world.run_to(3000 + offset);
            (world.there, world.here) = (false, false);
            world.coming.clear();
            let died = world.now;
            world.run_to(died + 600);
            let (when, state, cause) = world.changes[0];
            assert_eq!((state, cause), (PathState::Down, Cause::SilentPeer));
            assert!(when - died <= 425, "{} ms with a round trip of {round_trip} ms", when - died);
            assert!(when - died >= 250, "the last packet was at most an interval and a round trip before");
        }
    }
}

#[test]
fn one_lost_probe_neither_takes_a_path_down_nor_asks_for_new_keys() {
    let mut world = World::up(10);
    world.here = false;
    while world.probes.is_empty() {
        world.run_to(world.now + 1);
    }
    world.here = true;
    world.run_to(5000);
    assert!(world.changes.is_empty() && world.handshakes.is_empty());
    let fast = world.probes.windows(2).filter(|pair| pair[1] - pair[0] == 20).count();
    assert!(fast <= 1, "it looked again at once, and then went back to its pace");
}

#[test]
fn other_traffic_keeps_a_path_up_whose_probes_are_lost() {
    let mut world = World::up(10);
    world.there = false;
    for step in 0..20 {
        world.run_to(3000 + step * 100);
        let now = at(world.now);
        world.path.hear(home(), now);
    }
    assert!(world.changes.is_empty());
    assert!(world.probes.len() < 50, "it does not hurry for ever: {}", world.probes.len());
}

#[test]
fn a_peer_that_says_it_does_not_hear_us_takes_the_path_down_though_we_hear_it() {
    let mut world = World::up(10);
    world.there = false;
    for step in 0..60 {
        world.run_to(3000 + step * 10);
        let (now, hears) = (at(world.now), step < 25);
        world.path.hear(home(), now);
        let news = world.path.take_probe(&probe(ProbeKind::Request, step, hears), now);
        world.note(news.changed);
    }
    let (when, state, cause) = world.changes[0];
    assert_eq!((state, cause), (PathState::Down, Cause::PeerDoesNotHearUs));
    assert!(when <= 3450, "at {when}");
}

#[test]
fn a_path_that_comes_back_is_up_after_three_answers() {
    let mut world = World::up(10);
    (world.there, world.here) = (false, false);
    world.run_to(5000);
    assert_eq!(world.path.state(), PathState::Down);
    (world.there, world.here) = (true, true);
    world.run_to(5250);
    assert_eq!(world.path.state(), PathState::Up);
}

#[test]
fn a_path_is_proven_after_a_second_up_and_anew_after_a_break_or_a_restart_of_the_peer() {
    let mut world = World::new(10);
    world.run_to(200);
    assert_eq!(world.path.state(), PathState::Up);
    let since = world.changes[0].0;
    world.run_to(since + 999);
    assert!(!world.path.is_proven());
    world.run_to(since + 1_100);
    assert!(world.path.is_proven());

    let restarted = Probe { incarnation: 2, ..probe(ProbeKind::Request, 0, true) };
    assert!(world.path.take_probe(&restarted, at(world.now)).restarted);
    assert!(!world.path.is_proven() && world.path.state() == PathState::Up);

    let mut world = World::up(10);
    assert!(world.path.is_proven());
    (world.there, world.here) = (false, false);
    world.coming.clear();
    world.run_to(4_000);
    assert!(!world.path.is_proven(), "it is down");
    (world.there, world.here) = (true, true);
    world.run_to(4_500);
    assert!(!world.path.is_proven() && world.path.state() == PathState::Up, "up again, and not yet believed");
    world.run_to(6_000);
    assert!(world.path.is_proven());
}

#[test]
fn a_machine_that_was_asleep_does_not_take_its_paths_down() {
    let mut world = World::up(10);
    world.coming.clear();
    world.now += 3_600_000;
    world.run_to(world.now + 1000);
    assert!(world.changes.is_empty(), "{:?}", world.changes);
}

#[test]
fn a_restarted_peer_gets_a_handshake_within_the_budget() {
    let mut world = World::up(10);
    // The peer forgot its keys: what we send is not understood until there is a handshake.
    world.there = false;
    while world.handshakes.is_empty() {
        world.run_to(world.now + 1);
        assert!(world.now < 3300, "no handshake after 300 ms");
    }
}

#[test]
fn the_endpoint_follows_what_is_authentic() {
    let mut world = World::up(10);
    let moved = "198.51.100.9:4444".parse().unwrap();
    assert_eq!(world.path.hear(moved, at(3001)), Some(Some(home())));
    assert_eq!(world.path.status(at(3001)).endpoint, Some(moved));
}

#[test]
fn another_wireguard_program_is_up_while_handshakes_succeed_and_is_never_probed() {
    let mut path = Path::new(false, 1420, at(0));
    path.endpoints.replace(&[home()], &[]);
    let waiting = SessionView { established: false, last_handshake: None };
    assert!(path.poll(waiting, at(0)).initiate.is_some());
    let agreed = SessionView { established: true, last_handshake: Some(at(50)) };
    let work = path.poll(agreed, at(100));
    assert_eq!(work.changed, Some((PathState::Unknown, PathState::Up, Cause::HandshakeAgreed)));
    assert_eq!(work.probe, None);
    assert_eq!(path.poll(agreed, at(100_000)).initiate, None);
    assert!(path.poll(agreed, at(121_000)).initiate.is_some(), "keys are renewed after two minutes");
    let work = path.poll(agreed, at(181_000));
    assert_eq!(work.changed, Some((PathState::Up, PathState::Down, Cause::HandshakeExpired)));
}

#[test]
fn a_path_among_very_many_is_probed_at_their_pace_and_out_when_its_silence_is_over() {
    let mut world = World::up(10);
    world.path.set_pace(Pace::of(1_200, 0));
    world.run_to(9_000);
    let usual = world.probes.iter().filter(|at| (4_000..7_000).contains(*at)).count();
    assert_eq!(usual, 10, "one every 300 ms: {:?}", world.probes);
    assert_eq!(world.changes, [], "a slower pace is no loss");
    let last = world.path.status(at(9_000)).last_heard.unwrap().as_micros() / 1_000;
    world.here = false;
    world.run_to(11_000);
    let out = world.changes.first().expect("it went down").0 - last;
    assert!((600..=620).contains(&out), "out after {out} ms");
}
