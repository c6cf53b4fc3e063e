//! Promises of [`PathMtu`](super::PathMtu), told on a line of time in milliseconds.

use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

const fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

/// A path that passes packets up to a size, with small probes every 100 ms beside.
struct World {
    mtu: PathMtu,
    passes: u16,
    round_trip: u64,
    /// Whether small probes come through, and large ones with them; and whether the path is thought to be up.
    alive: bool,
    up: bool,
    answered: Option<Instant>,
    /// Of a thousand packets so many are lost, by a sequence that a seed gives.
    loss_permille: u16,
    seed: u64,
    coming: Vec<(u64, SizeProbe)>,
    sent: Vec<(u64, u16)>,
    told: Vec<(u64, u16)>,
    now: u64,
}

impl World {
    fn new(ceiling: u16, passes: u16) -> Self {
        let mtu = PathMtu::new(ceiling);
        Self {
            told: Vec::from([(0, mtu.in_force())]),
            mtu,
            passes,
            round_trip: 10,
            alive: true,
            up: true,
            answered: None,
            loss_permille: 0,
            seed: 1,
            coming: Vec::new(),
            sent: Vec::new(),
            now: 0,
        }
    }

    /// A path whose size is known.
    fn settled(ceiling: u16, passes: u16) -> Self {
        let mut world = Self::new(ceiling, passes);
        world.run(8_000);
        assert_eq!(
            (world.mtu.in_force(), world.mtu.measured_since().is_some()),
            (passes.min(ceiling).max(LEAST), true)
        );
        world
    }

    fn is_lost(&mut self) -> bool {
        // Numbers of a linear congruence (Knuth's MMIX), of which the upper bits are good.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % 1000 < u64::from(self.loss_permille)
    }

    fn run(&mut self, millis: u64) {
        for _ in 0..millis {
            self.now += 1;
            let now = at(self.now);
            if self.now.is_multiple_of(100) && self.alive && !self.is_lost() {
                self.answered = Some(now);
            }
            let arrived: Vec<SizeProbe> =
                self.coming.iter().filter(|(when, _)| *when <= self.now).map(|(_, probe)| *probe).collect();
            self.coming.retain(|(when, _)| *when > self.now);
            for SizeProbe { sequence, size } in arrived {
                self.mtu.answer(sequence, size, now);
            }
            let small = SmallProbes {
                up: self.up,
                answered: self.answered,
                patience: Duration::from_millis(90),
                loss_permille: self.loss_permille,
            };
            if let Some(probe) = self.mtu.poll(&small, now) {
                self.sent.push((self.now, probe.size));
                if self.alive && probe.size <= self.passes && !self.is_lost() {
                    self.coming.push((self.now + self.round_trip, probe));
                }
            }
            assert!((LEAST..=self.mtu.ceiling).contains(&self.mtu.in_force()));
            if self.told.last().is_some_and(|(_, told)| *told != self.mtu.in_force()) {
                self.told.push((self.now, self.mtu.in_force()));
            }
        }
    }

    /// How long until this is told.
    fn until(&mut self, size: u16, limit: u64) -> u64 {
        let begin = self.now;
        while self.mtu.in_force() != size {
            assert!(self.now - begin < limit, "{} after {limit} ms, not {size}", self.mtu.in_force());
            self.run(1);
        }
        self.now - begin
    }
}

#[test]
fn a_path_that_carries_what_is_configured_is_measured_by_one_probe() {
    let mut world = World::new(1420, 9000);
    world.run(900);
    assert_eq!(world.sent.len(), 1, "{:?}", world.sent);
    assert!(world.mtu.measured_since().is_some() && world.told.len() == 1);
    world.run(10_000);
    assert!(world.sent.len() <= 11, "one probe a second proves it anew");
}

#[test]
fn a_narrower_path_is_measured_to_the_byte_within_seconds_and_told_once() {
    for (ceiling, passes) in [(1420, 1419), (1420, 1340), (1420, 1281), (1420, 1280), (8920, 1420), (8920, 8919)] {
        let mut world = World::new(ceiling, passes);
        world.run(6_000);
        assert_eq!(world.mtu.in_force(), passes);
        assert_eq!(world.told.len(), 2, "{:?}", world.told);
    }
}

#[test]
fn less_than_1280_is_never_told_and_such_a_path_is_called_too_narrow() {
    let mut world = World::new(1420, 1200);
    world.run(3_000);
    assert_eq!((world.mtu.in_force(), world.mtu.is_too_narrow()), (1280, true));
    // Every raise asks whether it still is.
    world.passes = 1300;
    assert!(world.until(1300, 15_000) > 0);
    assert!(!world.mtu.is_too_narrow());
}

#[test]
fn a_path_that_shrinks_is_noticed_within_three_seconds_without_any_icmp() {
    for offset in (0..1_000).step_by(50) {
        let mut world = World::settled(8920, 8920);
        world.run(offset);
        world.passes = 1340;
        let safe = world.until(1280, 3_000);
        assert!(safe >= 900, "a burst of losses is no smaller path: {safe} ms");
        world.until(1340, 6_000);
    }
}

#[test]
fn a_path_that_grows_is_used_after_the_raise_timer() {
    let mut world = World::settled(8920, 1340);
    world.passes = 8000;
    assert!(world.until(8000, 15_000) <= 13_000);
    assert_eq!(world.told.last().map(|(_, size)| *size), Some(8000));
}

#[test]
fn while_nothing_changes_a_narrow_path_costs_three_lost_probes_in_ten_seconds() {
    let mut world = World::settled(1420, 1340);
    world.run(20_000);
    world.sent.clear();
    world.run(100_000);
    let lost = world.sent.iter().filter(|(_, size)| *size > 1340).count();
    assert!(lost <= 30, "{lost} lost probes in 100 s");
    assert_eq!(world.told.len(), 2);
}

#[test]
fn a_dead_path_says_nothing_of_its_size() {
    let mut world = World::settled(1420, 1420);
    // That small probes are silent too is noticed later.
    world.alive = false;
    world.run(4_000);
    world.up = false;
    world.run(10_000);
    assert_eq!((world.mtu.in_force(), world.told.len()), (1420, 1));
    (world.alive, world.up) = (true, true);
    world.run(5_000);
    assert_eq!(world.told.len(), 1, "{:?}", world.told);
}

#[test]
fn loss_of_a_fifth_each_way_shrinks_no_path_in_ten_minutes() {
    for seed in 1..=5 {
        let mut world = World::settled(1420, 1420);
        // What a round trip loses.
        (world.loss_permille, world.seed) = (360, seed);
        world.run(600_000);
        assert_eq!(world.told.len(), 1, "seed {seed}: {:?}", world.told);
    }
}

#[test]
fn another_path_is_measured_at_once() {
    let mut world = World::settled(1420, 1340);
    world.run(1_000);
    world.passes = 1420;
    world.mtu.doubt(at(world.now));
    assert!(world.until(1420, 3_000) <= 2_500);
}

#[test]
fn a_peer_that_moves_with_every_packet_draws_no_storm_of_probes_and_hides_no_smaller_path() {
    let mut world = World::settled(8920, 8920);
    world.sent.clear();
    for _ in 0..10_000 {
        world.mtu.doubt(at(world.now));
        world.run(1);
    }
    assert!(world.sent.len() <= 12, "{} probes in 10 s", world.sent.len());
    world.passes = 1340;
    let begin = world.now;
    while world.mtu.in_force() != 1280 {
        assert!(world.now - begin < 4_000, "still {}", world.mtu.in_force());
        world.mtu.doubt(at(world.now));
        world.run(1);
    }
}

#[test]
fn answers_to_what_was_not_asked_change_nothing() {
    let mut world = World::settled(8920, 1300);
    for sequence in 0..100 {
        world.mtu.answer(sequence, 8920, at(world.now));
        world.mtu.answer(u64::MAX - sequence, 1301, at(world.now));
    }
    assert_eq!(world.mtu.in_force(), 1300);
}

#[test]
fn a_smaller_bound_is_kept_at_once_and_a_larger_one_searched() {
    let mut world = World::settled(8920, 8000);
    world.mtu.set_ceiling(1420);
    assert_eq!(world.mtu.in_force(), 1420);
    world.run(1_000);
    world.mtu.set_ceiling(8920);
    world.run(6_000);
    assert_eq!(world.mtu.in_force(), 8000);
}

proptest! {
    #[test]
    fn whatever_the_path_does_the_size_is_found_when_it_stays(
        ceiling in LEAST..=LARGEST, sizes in proptest::collection::vec(1000u16..10_000, 1..5), pause in 0u64..3_000,
    ) {
        let mut world = World::new(ceiling, 0);
        for size in &sizes {
            world.passes = *size;
            world.run(pause);
        }
        let last = *sizes.last().unwrap();
        world.run(25_000);
        prop_assert_eq!(world.mtu.in_force(), last.clamp(LEAST, ceiling));
        prop_assert_eq!(world.mtu.is_too_narrow(), last < LEAST);
    }
}
