//! This machine's clocks, as the numbers thinking code takes.

use std::time::{Duration, SystemTime};

use api::time::{Instant, WallTime};
use nix::time::{ClockId, clock_gettime};

/// The clock that never goes back and counts through suspend.
pub(crate) fn now() -> Instant {
    match clock_gettime(ClockId::CLOCK_BOOTTIME) {
        Ok(time) => Instant::from_micros(u64::try_from(Duration::from(time).as_micros()).unwrap_or(u64::MAX)),
        // Linux has had this clock since 2.6.39. Without any clock nothing here can be right.
        Err(error) => unreachable!("CLOCK_BOOTTIME cannot be read: {error}"),
    }
}

/// The time of day; for people.
pub(crate) fn wall_time() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    WallTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
