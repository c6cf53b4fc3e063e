//! [`Network`]: how the world between clusters treats datagrams.

use std::collections::BTreeSet;

use crate::random::Random;

/// How datagrams fare that are not cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    pub loss_permille: u64,
    pub duplicate_permille: u64,
    /// Milliseconds; and up to that many more, so that one may overtake another.
    pub delay: u64,
    pub jitter: u64,
}

impl Weather {
    pub const FAIR: Self = Self { loss_permille: 0, duplicate_permille: 0, delay: 5, jitter: 2 };
}

/// A lane, by cluster, slot and number.
pub(crate) type Lane = (usize, u16, u16);

#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) weather: Weather,
    /// `cut[a][b]`: nothing gets from cluster a to cluster b.
    pub(crate) cut: [[bool; 4]; 4],
    /// Lanes whose port a firewall shuts.
    pub(crate) shut: BTreeSet<Lane>,
    /// Two clusters between which nothing ever passes.
    pub(crate) apart: Option<(usize, usize)>,
}

impl Network {
    pub(crate) fn new() -> Self {
        Self { weather: Weather::FAIR, cut: [[false; 4]; 4], shut: BTreeSet::new(), apart: None }
    }

    /// All trouble ends; firewalls stay.
    pub(crate) fn calm(&mut self) {
        *self = Self { shut: std::mem::take(&mut self.shut), apart: self.apart, ..Self::new() };
    }

    /// When copies of a datagram arrive, in microseconds from now; none when it is lost.
    pub(crate) fn flights(&self, from: Lane, to: Lane, random: &mut Random) -> Vec<u64> {
        let weather = self.weather;
        let pair = (from.0.min(to.0), from.0.max(to.0));
        if self.apart == Some(pair) {
            return Vec::new();
        }
        if self.cut[from.0][to.0]
            || self.shut.contains(&from)
            || self.shut.contains(&to)
            || random.permille(weather.loss_permille)
        {
            return Vec::new();
        }
        let copies = if random.permille(weather.duplicate_permille) { 2 } else { 1 };
        (0..copies).map(|_| weather.delay * 1000 + random.below(weather.jitter * 1000 + 1)).collect()
    }
}
