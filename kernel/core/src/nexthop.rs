//! Next hops as objects of the kernel: replacing one moves every route that uses it in one step.

use alloc::collections::BTreeMap;
use core::net::IpAddr;

use crate::{DeviceName, Family};

/// First of the 65,536 numbers reserved for our single next hops.
pub const FIRST_NEXTHOP: u32 = 0x746d_0000;
/// First of the 65,536 numbers reserved for our groups. The kernel cannot turn a next hop into a group, so the two
/// never share a number.
pub const FIRST_GROUP: u32 = 0x746e_0000;

/// A single next hop, by its place in our range. Not to be reused for the other family while routes point at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NexthopId(pub u16);

/// A group of next hops, by its place in our range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u16);

impl NexthopId {
    /// The number the kernel knows it by.
    pub const fn number(self) -> u32 {
        FIRST_NEXTHOP + self.0 as u32
    }
    /// The place in our range, if `number` is in it.
    pub fn from_number(number: u32) -> Option<Self> {
        u16::try_from(number.checked_sub(FIRST_NEXTHOP)?).ok().map(Self)
    }
}

impl GroupId {
    /// The number the kernel knows it by.
    pub const fn number(self) -> u32 {
        FIRST_GROUP + self.0 as u32
    }
    /// The place in our range, if `number` is in it.
    pub fn from_number(number: u32) -> Option<Self> {
        u16::try_from(number.checked_sub(FIRST_GROUP)?).ok().map(Self)
    }
}

/// One way on: out of a device, to an address or to whoever is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nexthop {
    pub family: Family,
    /// Must exist and be up, or the kernel refuses the next hop; when the device goes, it takes the next hop along.
    pub device: DeviceName,
    /// The router's address; none for a tunnel device. Taken as reachable on the device without asking (`onlink`).
    pub via: Option<IpAddr>,
}

/// A weighted group. Flows are spread over its members by hash in proportion to their weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Weight of each member, 1 to 256.
    members: BTreeMap<NexthopId, u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGroup {
    #[error("a next hop group needs at least one member; want a blackhole instead")]
    Empty,
    #[error("weight {0} of a next hop is outside 1 to 256")]
    Weight(u16),
}

/// The kernel keeps a weight in eight bits, as weight less one.
pub const HEAVIEST: u16 = 256;

impl Group {
    /// Checks members and weights.
    pub fn new(members: BTreeMap<NexthopId, u16>) -> Result<Self, InvalidGroup> {
        if members.is_empty() {
            return Err(InvalidGroup::Empty);
        }
        match members.values().find(|weight| **weight == 0 || **weight > HEAVIEST) {
            Some(weight) => Err(InvalidGroup::Weight(*weight)),
            None => Ok(Self { members }),
        }
    }

    /// All members with weight 1.
    pub fn equal(members: impl IntoIterator<Item = NexthopId>) -> Result<Self, InvalidGroup> {
        Self::new(members.into_iter().map(|id| (id, 1)).collect())
    }

    pub fn members(&self) -> &BTreeMap<NexthopId, u16> {
        &self.members
    }
}
