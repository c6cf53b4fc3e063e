//! What happens to the clusters, and when: from a seed alone.

use std::time::Duration;

use crate::scenario::failover::Event;
use crate::soak::attribution::Servers;

/// Something done to running clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// To one gateway of two, or to a whole cluster.
    Gateway(Event),
    /// The controller of the clients' cluster, by SIGKILL.
    ControllerKilled,
    /// `tombolo drain gateway` in the clients' cluster.
    GatewayDrained,
    /// `tombolo peers drain` in the clients' cluster.
    PeerDrained,
    /// `tombolo drain` in a cluster that serves.
    ClusterDrained,
    /// A cluster that serves loses its way to all others.
    ClusterCutOff,
}

impl Blow {
    /// Every one of them, once.
    pub fn all() -> Vec<Self> {
        let others = [
            Self::ControllerKilled,
            Self::GatewayDrained,
            Self::PeerDrained,
            Self::ClusterDrained,
            Self::ClusterCutOff,
        ];
        Event::ALL.into_iter().map(Self::Gateway).chain(others).collect()
    }

    /// What a table calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway(event) => event.name(),
            Self::ControllerKilled => "controller SIGKILL, clients' side",
            Self::GatewayDrained => "gateway drained",
            Self::PeerDrained => "peer drained",
            Self::ClusterDrained => "cluster drained",
            Self::ClusterCutOff => "cluster cut off",
        }
    }

    /// For how long after it clients may notice; zero where they must not notice at all.
    pub const fn noticed_for(self) -> Duration {
        match self {
            Self::Gateway(event) if event.is_graceful() => Duration::ZERO,
            Self::Gateway(_) => Duration::from_secs(1),
            Self::ClusterCutOff => Duration::from_secs(2),
            _ => Duration::ZERO,
        }
    }
}

impl Blow {
    /// Which of the clients' DNS servers it takes away: there is one on each gateway host.
    pub const fn servers(self) -> Servers {
        use Event::{CutOff, Deaf, Mute, RestartedHere, Unplugged};
        match self {
            Self::Gateway(Unplugged | CutOff | Mute | Deaf) => Servers::One,
            Self::Gateway(RestartedHere) => Servers::All,
            _ => Servers::None,
        }
    }
}

/// One entry of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Quiet before it.
    pub after: Duration,
    pub blow: Blow,
    /// How long it stays before it is undone.
    pub lasts: Duration,
}

/// An endless schedule. Every blow comes once before any comes again.
pub struct Schedule {
    random: fastrand::Rng,
    left: Vec<Blow>,
}

impl Schedule {
    pub fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), left: Vec::new() }
    }
}

impl Iterator for Schedule {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        if self.left.is_empty() {
            self.left = Blow::all();
            self.random.shuffle(&mut self.left);
        }
        let mut between = |least, most| Duration::from_millis(self.random.u64(least..=most));
        // Shorter than a detection, and long enough that everything has come to rest.
        let (after, lasts) = (between(500, 2_000), between(200, 4_000));
        Some(Entry { after, blow: self.left.pop()?, lasts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_schedule_and_every_blow_comes_before_any_comes_again() {
        let all = Blow::all();
        let first: Vec<Entry> = Schedule::new(7).take(2 * all.len()).collect();
        assert_eq!(first, Schedule::new(7).take(2 * all.len()).collect::<Vec<_>>());
        assert_ne!(first, Schedule::new(8).take(2 * all.len()).collect::<Vec<_>>());
        for round in first.chunks(all.len()) {
            assert!(all.iter().all(|blow| round.iter().any(|entry| entry.blow == *blow)), "{round:?}");
        }
    }
}
