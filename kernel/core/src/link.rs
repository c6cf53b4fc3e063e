//! The VXLAN device that joins the nodes of one cluster, and the addresses we put on devices.

use core::net::IpAddr;

use ipnet::IpNet;

use crate::{DeviceName, Mac};

/// Links we make have names that begin so; `tombolo cleanup` takes away VXLAN links of that name and of our alias.
pub const NAME_PREFIX: &str = "tombolo";

/// What stands in the alias of a link of ours.
pub const ALIAS: &str = "made by tombolo";

/// A VXLAN device. It learns nothing: who is behind it is said by [`crate::State::neighbours`] and
/// [`crate::State::forwarding`].
///
/// Changing anything but `mtu` makes the device anew; addresses, neighbours, next hops and routes on it go with the old
/// one. A whole difference makes them again; with partial states the caller has to resync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The network identifier, 24 bits.
    pub vni: u32,
    /// The UDP port outer packets are sent to and received on. 8472 and 4789 are taken by Flannel, Cilium and Calico.
    pub port: u16,
    /// The address of this node that outer packets come from; its family is the family of all remotes.
    pub local: IpAddr,
    /// The device's own link-layer address, which other nodes name in their neighbours.
    pub mac: Mac,
    /// The largest inner packet, bytes; never below 1280, or IPv6 leaves the device.
    pub mtu: u32,
}

impl Vxlan {
    /// Whether `self` can become `other` without being made anew.
    pub fn differs_only_in_mtu(&self, other: &Self) -> bool {
        Self { mtu: 0, ..self.clone() } == Self { mtu: 0, ..other.clone() }
    }
}

/// An address of ours on a device (a link of ours, or `lo`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub device: DeviceName,
    /// The address with the length of its prefix. Host bits are kept.
    pub net: IpNet,
}
