//! [`Shape`]: what a cluster of a story is made of.

use std::fmt;

use kernel_core::Family;

use crate::random::Random;
use crate::site::NAMES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Each on a host of its own; one host more has none.
    pub gateways: u16,
    /// Of each gateway.
    pub lanes: u16,
    /// Of pods and clusterset addresses.
    pub families: Families,
    /// The cluster whose pods have the same addresses: its place.
    pub pods_like: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    Ipv4,
    Ipv6,
    Both,
}

impl Families {
    pub(crate) fn all(self) -> &'static [Family] {
        match self {
            Self::Ipv4 => &[Family::Ipv4],
            Self::Ipv6 => &[Family::Ipv6],
            Self::Both => &[Family::Ipv4, Family::Ipv6],
        }
    }
}

impl Shape {
    /// One gateway with one lane, IPv4, and pods with addresses of their own.
    pub const PLAIN: Self = Self { gateways: 1, lanes: 1, families: Families::Ipv4, pods_like: None };

    pub(crate) fn any(random: &mut Random) -> Self {
        let gateways = 1 + u16::from(random.permille(300));
        let lanes = 1 + u16::from(random.permille(400));
        let families = [Families::Ipv4, Families::Ipv4, Families::Ipv6, Families::Both, Families::Both];
        Self { gateways, lanes, families: families[random.below(5) as usize], pods_like: None }
    }

    pub(crate) fn hosts(self) -> usize {
        usize::from(self.gateways) + 1
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count: u16| if count == 1 { "" } else { "s" };
        let Self { gateways, lanes, families, pods_like } = *self;
        let families = match families {
            Families::Ipv4 => "IPv4",
            Families::Ipv6 => "IPv6",
            Families::Both => "both families",
        };
        write!(f, "{gateways} gateway{} of {lanes} lane{} and {families}", plural(gateways), plural(lanes))?;
        pods_like.map_or(Ok(()), |like| write!(f, " and the pod addresses of {}", NAMES[like]))
    }
}
