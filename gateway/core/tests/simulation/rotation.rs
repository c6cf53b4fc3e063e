//! Gateways change their keys while packets pass, in any order, with peers that are away.

use std::time::Duration;

use api::ClusterId;
use gateway_core::{EventKind, OurLane, PathState, Topology};

use crate::pretend::public_key;
use crate::world::{AMBER, BIRCH, CEDAR, LANES, NAMES, World, secret, topology};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Long enough for every link to be made anew and to prove itself.
const SETTLED: Duration = ms(8_000);
/// How long a gateway keeps keys that nobody needs any more, for what is under way.
const LINGER: Duration = ms(100);

/// What a record says of a cluster's keys: which pair it has, and whether the next one is announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    pair: u64,
    rotates: bool,
}

/// Clusters whose records reach each other only while a path between them is up.
struct Rotation {
    world: World,
    said: [Said; 3],
    /// `known[a][b]`: what a has heard of b.
    known: [[Said; 3]; 3],
}

fn lane_secret(cluster: usize, lane: usize, pair: u64) -> u64 {
    secret(cluster, lane) + 104_729 * pair
}

fn lane(cluster: usize, lane: usize, said: Said) -> OurLane {
    let key = |pair| public_key(lane_secret(cluster, lane, pair));
    OurLane { key: key(said.pair), next_key: said.rotates.then(|| key(said.pair + 1)) }
}

impl Rotation {
    fn joined(seed: u64) -> Self {
        Self { world: World::joined(seed), said: Default::default(), known: Default::default() }
    }

    fn configure(&mut self, cluster: usize) {
        let mut wanted: Topology = topology(cluster);
        let own = self.said[cluster];
        let lanes = usize::from(LANES[cluster]);
        wanted.ours.lanes = (0..lanes).map(|number| lane(cluster, number, own)).collect();
        for peer in &mut wanted.peers {
            let place = NAMES.iter().position(|name| *name == peer.id.as_str()).unwrap();
            for (number, theirs) in peer.gateways[0].lanes.iter_mut().enumerate() {
                let OurLane { key, next_key } = lane(place, number, self.known[cluster][place]);
                (theirs.public_key, theirs.next_key) = (key, next_key);
            }
        }
        let pairs = own.pair..=own.pair + u64::from(own.rotates);
        let secrets = (0..lanes).map(|lane| pairs.clone().map(|pair| lane_secret(cluster, lane, pair)).collect());
        self.world.configure(cluster, wanted, secrets.collect());
    }

    /// The controller makes the next keys.
    fn begin(&mut self, cluster: usize) {
        if !self.said[cluster].rotates {
            self.world.tell(format!("{} rotates its keys", NAMES[cluster]));
            self.said[cluster].rotates = true;
            self.configure(cluster);
        }
    }

    /// The controller takes the old ones away, when its gateway says that nobody needs them.
    fn end(&mut self, cluster: usize) -> bool {
        let is_free =
            |world: &mut World| world.gateway(cluster).paths.waiting_for().is_some_and(|left| left.is_empty());
        if !is_free(&mut self.world) {
            return false;
        }
        self.world.run(LINGER);
        if !is_free(&mut self.world) {
            return false;
        }
        self.world.tell(format!("{} has new keys alone", NAMES[cluster]));
        self.said[cluster] = Said { pair: self.said[cluster].pair + 1, rotates: false };
        self.configure(cluster);
        true
    }

    /// The record of one reaches the other, through the tunnel between their gateways.
    fn sync(&mut self, from: usize, to: usize) {
        let joined = |one, other| self.world.states(one, other).contains(&PathState::Up);
        if self.known[to][from] != self.said[from] && joined(from, to) && joined(to, from) {
            self.known[to][from] = self.said[from];
            self.configure(to);
        }
    }

    fn sync_all(&mut self) {
        for from in 0..3 {
            (0..3).filter(|to| *to != from).for_each(|to| self.sync(from, to));
        }
    }

    fn waiting_for(&mut self, cluster: usize) -> Option<Vec<ClusterId>> {
        let waiting = self.world.gateway(cluster).paths.waiting_for();
        waiting.map(|all| all.into_iter().collect())
    }

    /// Lets everything that is under way come to its end, and says that everybody can talk to everybody.
    fn settle(&mut self) {
        for _ in 0..3 {
            self.world.run(SETTLED);
            self.sync_all();
            self.world.run(SETTLED);
            for cluster in 0..3 {
                self.end(cluster);
            }
        }
        self.sync_all();
        self.world.run(SETTLED);
        assert!(self.said.iter().all(|said| !said.rotates), "{:?}\n{}", self.said, self.world.describe());
        assert!(self.world.all_up(), "{}", self.world.describe());
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            let number = self.world.send(from, to, true);
            self.world.run(ms(50));
            assert!(self.world.has_arrived(number), "{}", self.world.describe());
        }
        assert_eq!(self.world.violations, Vec::<String>::new(), "{}", self.world.describe());
    }
}

#[test]
fn keys_are_changed_without_a_lost_packet_and_without_a_path_that_goes_down() {
    for (seed, rotating) in [(1, &[BIRCH][..]), (2, &[CEDAR]), (3, &[AMBER, BIRCH]), (4, &[AMBER, BIRCH, CEDAR])] {
        let mut story = Rotation::joined(seed);
        // What is proven is used, so that nothing else happens while packets are counted.
        story.world.run(ms(2_000));
        story.world.chat();
        rotating.iter().for_each(|cluster| story.begin(*cluster));
        story.world.run(ms(500));
        story.sync_all();
        story.world.run(SETTLED);
        for cluster in rotating {
            assert!(story.end(*cluster), "{:?}\n{}", story.waiting_for(*cluster), story.world.describe());
        }
        // Longer than it takes for a path to be thought dead.
        story.world.run(ms(2_000));
        story.sync_all();
        story.world.run(SETTLED);
        story.world.stop_chat();
        story.world.run(ms(100));
        assert_eq!(story.world.missing(), 0, "{}", story.world.describe());
        for cluster in 0..3 {
            assert_eq!(story.world.times_down(cluster), 0, "{}", story.world.describe());
        }
        story.settle();
    }
}

#[test]
fn a_peer_that_is_away_holds_the_old_keys_until_it_is_back_and_has_taken_the_new_ones() {
    let mut story = Rotation::joined(5);
    story.world.block(AMBER, CEDAR);
    story.world.block(CEDAR, AMBER);
    story.world.run(ms(2_000));
    story.begin(AMBER);
    story.sync_all();
    story.world.run(SETTLED);
    let cedar = vec![ClusterId::new("cedar").unwrap()];
    assert_eq!(story.waiting_for(AMBER), Some(cedar), "birch has them already");
    assert!(!story.end(AMBER));
    story.world.heal();
    story.world.run(SETTLED);
    assert!(!story.world.states(AMBER, CEDAR).is_empty() && story.world.states(CEDAR, AMBER).contains(&PathState::Up));
    story.settle();
}

#[test]
fn old_keys_are_of_use_again_when_the_new_ones_stop_working() {
    let mut story = Rotation::joined(6);
    story.begin(BIRCH);
    story.sync_all();
    story.world.run(SETTLED);
    assert_eq!(story.waiting_for(BIRCH), Some(vec![]));
    // Birch forgets the next keys: as if a controller had been restored from a backup.
    story.said[BIRCH].rotates = false;
    story.configure(BIRCH);
    story.world.run(SETTLED);
    let number = story.world.send(AMBER, BIRCH, false);
    story.world.run(ms(50));
    assert!(story.world.has_arrived(number), "{}", story.world.describe());
    story.settle();
}

#[test]
fn in_any_order_of_rotations_news_cuts_and_restarts_everybody_can_talk_in_the_end() {
    for seed in 0..40 {
        let mut story = Rotation::joined(1_000 + seed);
        story.world.chat();
        for _ in 0..30 {
            let (one, other) = (story.world.random.below(3) as usize, story.world.random.below(3) as usize);
            match story.world.random.below(10) {
                0 | 1 => story.begin(one),
                2 | 3 => drop(story.end(one)),
                4..=6 if one != other => story.sync(one, other),
                7 if one != other => story.world.block(one, other),
                8 => story.world.heal(),
                9 => story.world.restart(one),
                _ => {}
            }
            let pause = ms(story.world.random.below(2_500));
            story.world.run(pause);
        }
        story.world.stop_chat();
        story.world.heal();
        story.settle();
    }
}

#[test]
fn the_end_of_old_keys_is_no_news_of_the_peer() {
    let mut story = Rotation::joined(7);
    story.begin(BIRCH);
    story.sync_all();
    story.world.run(SETTLED);
    let draining = |story: &mut Rotation, cluster| {
        let events = &story.world.gateway(cluster).events;
        events.iter().filter(|event| matches!(event.kind, EventKind::PeerDraining(_))).count()
    };
    assert!(story.end(BIRCH));
    story.world.run(SETTLED);
    for cluster in [AMBER, BIRCH, CEDAR] {
        assert_eq!((draining(&mut story, cluster), story.world.times_down(cluster)), (0, 0));
    }
}
