//! What Tombolo promises, done once: the demo shows it, the tests hold it to its limits, the benchmarks repeat it.
//!
//! Each scenario takes clusters that are up, does one thing, and returns what it measured.

pub mod clear_text;
pub mod closed;
pub mod cluster_lost;
pub mod failover;
pub mod other_programs;
pub mod promise;
pub mod propagation;
pub mod shares;
pub mod three_clusters;
pub mod two_gateways;

use std::time::Duration;

/// Measured times, shortest first.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The time within which this part of them fell, by the nearest rank: `percentile(99)`.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }

    pub fn worst(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_time_that_was_measured() {
        let times = Times::of((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!(times.percentile(50), Duration::from_millis(100));
        assert_eq!(times.percentile(99), Duration::from_millis(198));
        assert_eq!(times.worst(), Duration::from_millis(200));
        assert_eq!(Times::default().percentile(99), Duration::ZERO);
    }
}
