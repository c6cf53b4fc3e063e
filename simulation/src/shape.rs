//! [`Shape`]: what a cluster of a story is made of.

use std::fmt;

use crate::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Each on a host of its own; one host more has none.
    pub gateways: u16,
    /// Of each gateway.
    pub lanes: u16,
}

impl Shape {
    /// One gateway with one lane.
    pub const PLAIN: Self = Self { gateways: 1, lanes: 1 };

    pub(crate) fn any(random: &mut Random) -> Self {
        Self { gateways: 1 + u16::from(random.permille(300)), lanes: 1 + u16::from(random.permille(400)) }
    }

    pub(crate) fn hosts(self) -> usize {
        usize::from(self.gateways) + 1
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count: u16| if count == 1 { "" } else { "s" };
        let Self { gateways, lanes } = *self;
        write!(f, "{gateways} gateway{} of {lanes} lane{}", plural(gateways), plural(lanes))
    }
}
