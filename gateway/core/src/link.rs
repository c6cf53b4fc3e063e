//! [`Link`]: one lane of ours paired with one lane of a peer's gateway.

use core::fmt;

use api::ClusterId;
use api::keys::TunnelKey;

/// Number of a lane within its gateway: the first is 0, and listens on the first port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneNumber(pub u8);

/// A link, by a number that is unique in this process while the link exists. Numbers are small and used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(u32);

impl LinkId {
    /// A WireGuard index has 32 bits; a session keeps the low 8 for its own key generations.
    pub const MAX: u32 = (1 << 24) - 1;

    /// `None` when the number does not fit into 24 bits.
    pub const fn new(number: u32) -> Option<Self> {
        if number <= Self::MAX { Some(Self(number)) } else { None }
    }

    /// The link a datagram's receiver index belongs to: its upper 24 bits.
    pub const fn from_receiver_index(index: u32) -> Self {
        Self(index >> 8)
    }

    /// The upper 24 bits of every receiver index the link's session must hand out.
    pub const fn number(self) -> u32 {
        self.0
    }

    pub(crate) const fn slot(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link {}", self.0)
    }
}

/// One WireGuard peer of one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub id: LinkId,
    /// Our lane, whose key and socket the link uses.
    pub lane: LaneNumber,
    /// Whose gateway is at the other end.
    pub cluster: ClusterId,
    /// Which of that cluster's gateways.
    pub slot: u16,
    /// Which of that gateway's lanes.
    pub remote_lane: LaneNumber,
    /// Our lane's WireGuard static key.
    pub own_key: TunnelKey,
    /// The other end's WireGuard static key.
    pub public_key: TunnelKey,
    /// A second secret both ends hold, where the operator gave one (WireGuard whitepaper, 5.2).
    pub preshared_key: Option<[u8; 32]>,
}
