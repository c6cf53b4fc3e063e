//! The two clocks of this machine, as the numbers thinking code takes.
#![forbid(unsafe_code)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::time::{Instant, WallTime};
use nix::time::{ClockId, clock_gettime};

/// The clock that never goes back and counts through suspend: a key or a lease that ran out during sleep has run out.
pub fn now() -> Instant {
    match clock_gettime(ClockId::CLOCK_BOOTTIME) {
        Ok(time) => Instant::from_micros(u64::try_from(Duration::from(time).as_micros()).unwrap_or(u64::MAX)),
        // Linux has had this clock since 2.6.39. Without any clock nothing here can be right.
        Err(error) => unreachable!("CLOCK_BOOTTIME cannot be read: {error}"),
    }
}

/// The clock on the wall, which may jump either way. Zero before 1970.
pub fn wall() -> WallTime {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime::from_millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_that_ages_things_never_goes_back() {
        let mut last = now();
        for _ in 0..1_000 {
            let next = now();
            assert!(next >= last);
            last = next;
        }
    }
}
