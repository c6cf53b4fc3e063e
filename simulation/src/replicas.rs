//! The replicas of a cluster's controller: one that agents and gateways reach, and sometimes a [`Sleeper`], whose machine
//! was suspended and whose place another one took. Which of them writes, the Lease decides.

use controller_core::engine::NodeAgent;
use controller_core::plan::{Outcome, Subject, Write};

use crate::controller::Controller;
use crate::follower::Disk;
use crate::happening::Part;
use crate::parts::runs;
use crate::schedule::Sabotage;
use crate::site::NAMES;
use crate::world::{Event, MS, SECOND, World};

/// How long a replica that is to fall asleep waits for a write that is under way then: what it wakes with is the danger.
const DROWSY: u64 = SECOND;
/// How long one that woke goes on beside the other: it looks at the Lease at once, and once more.
const STAYS: u64 = 4 * SECOND;

/// A replica that nobody reaches any more.
pub(crate) struct Sleeper {
    controller: Controller,
    is_awake: bool,
    /// What it was about to write.
    writes: Vec<(Subject, Vec<Write>)>,
}

/// What becomes of a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Turn {
    /// For so many seconds.
    Asleep(u64),
    Awake,
    Gone,
}

impl World {
    /// The replica of a cluster is stopped in the middle of its next write, or soon.
    pub(crate) fn make_drowsy(&mut self, place: usize, seconds: u64) {
        self.clusters[place].drowsy = Some(seconds);
        self.at(self.now + DROWSY, Event::Slumber { cluster: place, turn: Turn::Asleep(seconds) });
    }

    pub(crate) fn slumber(&mut self, place: usize, turn: Turn) {
        match turn {
            Turn::Asleep(seconds) => self.fall_asleep(place, seconds),
            Turn::Awake => self.wake(place),
            Turn::Gone => {
                let cluster = &mut self.clusters[place];
                let now = cluster.now(self.now);
                if let Some(sleeper) = cluster.sleeper.take() {
                    cluster.lease.give_back(&sleeper.controller, cluster.objects.is_away, now);
                }
            }
        }
    }

    fn fall_asleep(&mut self, place: usize, seconds: u64) {
        let cluster = &mut self.clusters[place];
        // It was asleep before this came, or was killed.
        if cluster.drowsy.take().is_none() || !runs(cluster, Part::Controller) || cluster.sleeper.is_some() {
            return;
        }
        let other = cluster.controller.successor();
        let controller = std::mem::replace(&mut cluster.controller, other);
        self.tell(format!("  {}'s controller sleeps, and another replica takes its place", NAMES[place]));
        self.clusters[place].sleeper = Some(Sleeper { controller, is_awake: false, writes: Vec::new() });
        self.stop(place, Part::Controller);
        let starts = self.now + 100 * MS + self.random.below(300 * MS);
        self.at(starts, Event::Start { cluster: place, part: Part::Controller, disk: Disk::Kept });
        let wakes = self.now + seconds * SECOND;
        self.at(wakes, Event::Slumber { cluster: place, turn: Turn::Awake });
        self.at(wakes + STAYS, Event::Slumber { cluster: place, turn: Turn::Gone });
    }

    /// What it was about to write goes out first; then it sees what became of the world.
    fn wake(&mut self, place: usize) {
        let now = self.clusters[place].now(self.now);
        let holder = self.clusters[place].lease.holder().unwrap_or_default().to_owned();
        self.tell(format!("  {}'s controller wakes; the Lease is {holder}'s", NAMES[place]));
        let cluster = &mut self.clusters[place];
        let gone: Vec<(String, NodeAgent)> = (0..cluster.hosts.len())
            .map(|host| (cluster.hosts[host].name.clone(), cluster.agent(host, false, now.wall)))
            .collect();
        let Some(sleeper) = &mut cluster.sleeper else { return };
        sleeper.is_awake = true;
        let incarnation = sleeper.controller.incarnation;
        if let Some(process) = &mut sleeper.controller.process {
            process.lose_streams(now);
            for (name, agent) in gone {
                process.engine.observe_agent(&name, agent, now.instant);
            }
        }
        for (subject, writes) in std::mem::take(&mut sleeper.writes) {
            self.write(place, incarnation, &subject, writes);
        }
    }

    /// Time passes for whoever is awake.
    pub(crate) fn tick_controllers(&mut self, place: usize) {
        let cluster = &mut self.clusters[place];
        let now = cluster.now(self.now);
        cluster.lease.look(&mut cluster.controller, cluster.objects.is_away, now);
        cluster.controller.tick(now);
        if let Some(sleeper) = cluster.sleeper.as_mut().filter(|sleeper| sleeper.is_awake) {
            cluster.lease.look(&mut sleeper.controller, cluster.objects.is_away, now);
            let upto = cluster.objects.log().len();
            for change in sleeper.controller.follower.advance(&cluster.objects, upto) {
                sleeper.controller.take(&change, now);
            }
            sleeper.controller.tick(now);
            let due = sleeper.controller.settle(now);
            let incarnation = sleeper.controller.incarnation;
            self.begin_writes(place, incarnation, due);
        }
        self.settle_controller(place);
    }

    pub(crate) fn settle_controller(&mut self, place: usize) {
        let now = self.clusters[place].now(self.now);
        let due = self.clusters[place].controller.settle(now);
        let incarnation = self.clusters[place].controller.incarnation;
        if !due.is_empty()
            && let Some(seconds) = self.clusters[place].drowsy
        {
            self.at(self.now, Event::Slumber { cluster: place, turn: Turn::Asleep(seconds) });
        }
        self.begin_writes(place, incarnation, due);
        let Some(process) = &mut self.clusters[place].controller.process else { return };
        let (said, closed, told) = (
            std::mem::take(&mut process.outbox),
            std::mem::take(&mut process.closed),
            std::mem::take(&mut process.told),
        );
        told.iter().for_each(|what| self.tell(format!("  {}: {what}", NAMES[place])));
        for (key, bytes) in said {
            if let Some(end) = self.clusters[place].ends.get_mut(&key) {
                end.send(&bytes, self.now);
                self.flush(place, &key);
            }
        }
        closed.iter().for_each(|key| self.close(place, key));
    }

    fn begin_writes(&mut self, place: usize, incarnation: u64, due: Vec<(Subject, Vec<Write>)>) {
        for (subject, writes) in due {
            let at = self.now + MS + self.random.below(5 * MS);
            self.at(at, Event::Written { cluster: place, incarnation, subject, writes });
        }
    }

    /// Writes reach the store, if their replica may still write (controller/src/writer.rs).
    pub(crate) fn write(&mut self, place: usize, incarnation: u64, subject: &Subject, writes: Vec<Write>) {
        let is_unchecked = self.sabotage == Some(Sabotage::UncheckedWriter);
        let cluster = &mut self.clusters[place];
        let now = cluster.now(self.now);
        let sleeper = cluster.sleeper.as_mut().filter(|sleeper| sleeper.controller.incarnation == incarnation);
        let controller = match sleeper {
            Some(sleeper) if !sleeper.is_awake => return sleeper.writes.push((subject.clone(), writes)),
            Some(sleeper) => &mut sleeper.controller,
            None => &mut cluster.controller,
        };
        let replica = controller.replica();
        // What a dead process was about to write is not written.
        let Some(process) = controller.process.as_mut().filter(|_| controller.incarnation == incarnation) else {
            return;
        };
        let may = is_unchecked || process.tenancy.may_write(now.instant);
        let mut changed = Vec::new();
        let mut outcomes = Vec::new();
        for write in writes {
            let what = (write.verb, write.object.kind(), write.object.metadata().name.clone().unwrap_or_default());
            let outcome = if may {
                cluster.objects.write(write, now.wall)
            } else {
                self.attempts.tally.late += 1;
                Outcome::Failed { object: write.object, reason: "another replica writes now".into() }
            };
            if matches!(outcome, Outcome::Written(_) | Outcome::Deleted(_)) {
                changed.push(what);
            }
            outcomes.push(outcome);
        }
        process.finished(subject, outcomes, now);
        let holder = cluster.lease.holder().unwrap_or_default();
        if holder != replica {
            let of = NAMES[place];
            self.violations.extend(changed.iter().map(|(verb, kind, name)| {
                format!("{replica} did {} {kind} {name} in {of}, and the Lease is {holder}'s", verb.as_str())
            }));
        }
        self.changed(place);
        self.settle_controller(place);
    }
}
