//! Static neighbours and forwarding entries of our VXLAN device: nothing is learned, so nothing can be injected.

use core::fmt;
use core::net::IpAddr;

use crate::DeviceName;

/// A link-layer address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered unicast address made of 40 bits the caller chose; the other bits are set as they must be.
    pub const fn local(bits: [u8; 5]) -> Self {
        Self([0x02, bits[0], bits[1], bits[2], bits[3], bits[4]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The address a neighbour is known by, on one device. Its value in [`crate::State`] is its link-layer address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighbourKey {
    pub device: DeviceName,
    pub address: IpAddr,
}

/// A destination of frames on one VXLAN device. Its value in [`crate::State`] is the address of the node that frames
/// to `mac` are sent to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForwardingKey {
    pub device: DeviceName,
    pub mac: Mac,
}
