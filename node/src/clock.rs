//! This machine's clocks, as the numbers thinking code takes.

use std::time::{Duration, SystemTime};

use api::time::Instant;
use nix::time::{ClockId, clock_gettime};

/// The clock that never goes back and counts through suspend.
pub(crate) fn now() -> Instant {
    match clock_gettime(ClockId::CLOCK_BOOTTIME) {
        Ok(time) => Instant::from_micros(u64::try_from(Duration::from(time).as_micros()).unwrap_or(u64::MAX)),
        // Linux has had this clock since 2.6.39. Without any clock nothing here can be right.
        Err(error) => unreachable!("CLOCK_BOOTTIME cannot be read: {error}"),
    }
}

/// Milliseconds since 1970-01-01 UTC; for people.
pub(crate) fn wall_milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
