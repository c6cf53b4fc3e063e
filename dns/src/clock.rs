//! This machine's clock, as the numbers thinking code takes, and numbers that nobody outside can guess.

use std::time::Duration;

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

/// A number for each answer: where its addresses begin. xorshift64*: quick, and even enough to spread load.
#[derive(Clone, Debug)]
pub(crate) struct Turns(u64);

impl Turns {
    /// Starts from `seed`, so that two workers do not go in step.
    pub(crate) fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed | 1)
    }

    /// Starts from the kernel's random numbers.
    pub(crate) fn random() -> anyhow::Result<Self> {
        Ok(Self::new(getrandom::u64().map_err(|error| anyhow::anyhow!("no random numbers from the kernel: {error}"))?))
    }

    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}
