//! Rules that say which packets ask our routing table.

use crate::{DeviceName, Family, RouteTable};

/// The default priority. Below 512: the AWS CNI's rules begin at 512 and send pods' traffic to tables of its own.
pub const PRIORITY: u32 = 300;

/// The first priority that is too late.
pub const LAST_PRIORITY: u32 = 511;

/// One rule. Its action is to look into one of our tables: [`Rule::table`].
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
    /// Only packets that arrive by this device; they ask [`RouteTable::Inward`].
    From(DeviceName),
}

/// Asked before [`PRIORITY`]: what arrives from another cluster first looks for its way inside this one.
pub const INWARD_PRIORITY: u32 = PRIORITY - 1;

impl Rule {
    /// The table its packets ask.
    pub const fn table(&self) -> RouteTable {
        match self.selector {
            Selector::From(_) => RouteTable::Inward,
            Selector::Everything | Selector::NotMarked { .. } => RouteTable::Outward,
        }
    }

    /// The rule of a gateway host for what comes out of a tunnel device.
    pub const fn arriving(family: Family, device: DeviceName) -> Self {
        Self { family, priority: INWARD_PRIORITY, selector: Selector::From(device) }
    }

    /// The rule every host has: everything but the tunnels' own outer packets.
    pub const fn unless_marked(family: Family, mark: u32, mask: u32) -> Self {
        Self { family, priority: PRIORITY, selector: Selector::NotMarked { mark, mask } }
    }
}
