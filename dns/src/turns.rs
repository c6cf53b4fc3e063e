//! Numbers that nobody outside can guess.

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
