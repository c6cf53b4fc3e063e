//! Rules that say which packets ask our routing table.

use crate::{DeviceName, Family};

/// The default priority. Below 512: the AWS CNI's rules begin at 512 and send pods' traffic to tables of its own.
pub const PRIORITY: u32 = 300;

/// The first priority that is too late.
pub const LAST_PRIORITY: u32 = 511;

/// One rule. Its action is always to look into [`crate::TABLE`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub family: Family,
    /// 1 to 511; smaller is asked earlier.
    pub priority: u32,
    pub selector: Selector,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    Everything,
    /// All but packets whose mark, under the mask, is this value: the outer packets of tunnels, which must not be
    /// routed into themselves.
    NotMarked {
        mark: u32,
        mask: u32,
    },
    /// Only packets that arrive by this device.
    From(DeviceName),
}

impl Rule {
    /// The rule every host has: everything but the tunnels' own outer packets.
    pub const fn unless_marked(family: Family, mark: u32, mask: u32) -> Self {
        Self { family, priority: PRIORITY, selector: Selector::NotMarked { mark, mask } }
    }
}
