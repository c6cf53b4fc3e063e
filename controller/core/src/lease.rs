//! [`Tenancy`]: which replica writes, the holder of the Lease `controller` (decision 12).
//!
//! The holder may write until a deadline that lies before the moment at which others may take over, by the clock that
//! counts through suspend. Others take the Lease when they have not seen it change for its whole duration: nobody's
//! wall clock decides. So whatever a replica sleeps through, two never write at one time.

use alloc::string::String;
use core::time::Duration;

use api::kubernetes::{Lease, MicroTime};
use api::names::{CONTROLLER_LEASE, SYSTEM_NAMESPACE};
use api::time::{Instant, WallTime};

use crate::condition::object_time;

/// How long a Lease holds: what Kubernetes' own controllers use.
pub const DURATION: Duration = Duration::from_secs(15);
/// How long before the Lease runs out its holder stops to write: a write under way must land before another begins.
pub const MARGIN: Duration = Duration::from_secs(3);
/// How often it is renewed: twice more before the holder has to stop.
pub const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How often a replica that does not hold it looks.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What to ask of the store. Either is refused where another replica was faster.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Create(Lease),
    Update(Lease),
    /// Another one holds it.
    Wait,
}

/// One replica's view of the Lease.
#[derive(Debug)]
pub struct Tenancy {
    replica: String,
    /// The version seen last, and since when: another version is a sign of life.
    seen: Option<(Option<String>, Instant)>,
    until: Option<Instant>,
}

impl Tenancy {
    pub fn new(replica: String) -> Self {
        Self { replica, seen: None, until: None }
    }

    /// What to do, the Lease being as it was `found`.
    pub fn step(&mut self, found: Option<Lease>, now: Instant, wall: WallTime) -> Step {
        let Some(mut lease) = found else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(CONTROLLER_LEASE.into());
            lease.metadata.namespace = Some(SYSTEM_NAMESPACE.into());
            self.fill(&mut lease, wall);
            return Step::Create(lease);
        };
        let version = lease.metadata.resource_version.clone();
        if self.seen.as_ref().is_none_or(|(held, _)| *held != version) {
            self.seen = Some((version, now));
        }
        let spec = lease.spec.get_or_insert_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let unchanged = self.seen.as_ref().map(|(_, since)| now.since(*since)).unwrap_or_default();
        let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let expired = unchanged >= duration.map_or(DURATION, Duration::from_secs);
        if holder != self.replica && !holder.is_empty() && !expired {
            self.until = None;
            return Step::Wait;
        }
        self.fill(&mut lease, wall);
        Step::Update(lease)
    }

    /// Whether the store took the step that was begun at `asked`, before the Lease was read.
    pub fn stepped(&mut self, taken: bool, asked: Instant) {
        self.until = taken.then(|| asked + (DURATION - MARGIN));
    }

    /// Until when this replica may write; `None` when it may not.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    pub fn may_write(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// How long until the next look, after one that succeeded.
    pub fn pause(&self) -> Duration {
        if self.until.is_some() { RENEW_EVERY } else { LOOK_EVERY }
    }

    /// The Lease given back, when it is ours.
    pub fn given_back(&self, found: Option<Lease>) -> Option<Lease> {
        let mut lease = found?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.replica) {
            return None;
        }
        spec.holder_identity = Some(String::new());
        Some(lease)
    }

    fn fill(&self, lease: &mut Lease, wall: WallTime) {
        let now = Some(MicroTime(object_time(wall).0));
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.replica) {
            spec.holder_identity = Some(self.replica.clone());
            spec.acquire_time = now.clone();
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(1));
        }
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        spec.renew_time = now;
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::time;

    /// A store with one Lease in it: a version for each write, and no write on the past.
    #[derive(Default)]
    struct Shelf {
        lease: Option<Lease>,
        version: u64,
    }

    impl Shelf {
        fn take(&mut self, step: Step) -> bool {
            let version = |lease: &Lease| lease.metadata.resource_version.clone();
            let (mut lease, fits) = match step {
                Step::Create(lease) => (lease, self.lease.is_none()),
                Step::Update(lease) => {
                    let fits = self.lease.as_ref().map(version) == Some(version(&lease));
                    (lease, fits)
                }
                Step::Wait => return false,
            };
            if fits {
                self.version += 1;
                lease.metadata.resource_version = Some(format!("{}", self.version));
                self.lease = Some(lease);
            }
            fits
        }
    }

    fn at(second: u64) -> Instant {
        Instant::from_millis(second * 1_000)
    }

    fn turn(replica: &mut Tenancy, shelf: &mut Shelf, second: u64) {
        let step = replica.step(shelf.lease.clone(), at(second), time(second));
        let taken = shelf.take(step);
        replica.stepped(taken, at(second));
    }

    fn may_write(replica: &Tenancy, second: u64) -> bool {
        replica.may_write(at(second))
    }

    #[test]
    fn a_holder_that_slept_past_its_deadline_finds_another_one_and_may_not_write() {
        let (mut first, mut second, mut shelf) = (Tenancy::new("a".into()), Tenancy::new("b".into()), Shelf::default());
        turn(&mut first, &mut shelf, 0);
        // The first one is stopped. The second looks every two seconds.
        for now in (0..=14).step_by(2) {
            turn(&mut second, &mut shelf, now);
            assert!(!may_write(&second, now), "at second {now} the first may still write");
        }
        assert!(may_write(&first, 11) && !may_write(&first, 12), "by its own clock it stops before the other begins");
        turn(&mut second, &mut shelf, 16);
        assert!(may_write(&second, 16) && !may_write(&first, 16));
        assert_eq!(shelf.lease.as_ref().unwrap().spec.as_ref().unwrap().lease_transitions, Some(2));
        turn(&mut first, &mut shelf, 17);
        assert!(!may_write(&first, 17) && may_write(&second, 17), "awake again, it waits");
    }

    #[test]
    fn a_lease_that_is_given_back_is_taken_at_once_and_nobody_gives_back_what_is_not_his() {
        let (mut first, mut second, mut shelf) = (Tenancy::new("a".into()), Tenancy::new("b".into()), Shelf::default());
        turn(&mut first, &mut shelf, 0);
        assert_eq!(second.given_back(shelf.lease.clone()), None);
        let back = first.given_back(shelf.lease.clone()).unwrap();
        assert!(shelf.take(Step::Update(back)));
        turn(&mut second, &mut shelf, 1);
        assert!(may_write(&second, 1));
    }

    proptest! {
        #[test]
        fn two_replicas_never_write_at_one_time_whatever_each_sleeps_through(
            awake in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 1..200)
        ) {
            let mut replicas: Vec<Tenancy> = ["a", "b", "c"].map(|name| Tenancy::new(name.into())).into();
            let mut shelf = Shelf::default();
            for (second, awake) in (0..).zip(awake) {
                for (replica, awake) in replicas.iter_mut().zip([awake.0, awake.1, awake.2]) {
                    if awake {
                        turn(replica, &mut shelf, second);
                    }
                }
                prop_assert!(replicas.iter().filter(|replica| may_write(replica, second)).count() <= 1);
            }
        }
    }
}
