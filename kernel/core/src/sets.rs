//! The elements of our table's sets: who is a member, what is exported, what lives here.

use alloc::collections::BTreeSet;
use core::net::IpAddr;

use ipnet::IpNet;

use crate::{DeviceName, Protocol};

/// An endpoint of this node that other clusters may open connections to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Exported {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

/// All sets. The prefix sets may hold prefixes that cover each other; the kernel is given the fewest that say the same.
/// In a partial state a prefix set is given whole on both sides, or left empty on both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// Prefixes of all other clusters.
    pub remote: BTreeSet<IpNet>,
    /// Prefixes of this cluster that its members may see: pods, infrastructure addresses, advertised node networks.
    pub local: BTreeSet<IpNet>,
    /// Ranges of clusterset addresses. Leave empty where another service proxy translates them.
    pub clusterset: BTreeSet<IpNet>,
    /// What lives on this host: its pods, its infrastructure addresses. On a gateway host all else is transit.
    pub here: BTreeSet<IpNet>,
    /// Sources that may speak to this host itself out of a tunnel without being exported to: control addresses of peers'
    /// gateways.
    pub control: BTreeSet<IpNet>,
    /// Outer addresses of the nodes of this cluster: only they may send to the VXLAN port.
    pub nodes: BTreeSet<IpAddr>,
    /// Endpoints on this node that are also clients of their own service: their packets to themselves must come back
    /// by way of the host.
    pub hairpin: BTreeSet<IpAddr>,
    /// Endpoints of this node that other clusters may open connections to.
    pub exported: BTreeSet<Exported>,
    /// Addresses of this node that other clusters may ping: something on them is exported.
    pub echo: BTreeSet<IpAddr>,
    /// Devices by which packets of other clusters arrive: a gateway's tunnel devices, the VXLAN device.
    pub tunnels: BTreeSet<DeviceName>,
}

/// One element of one set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    Remote(IpNet),
    Local(IpNet),
    Clusterset(IpNet),
    Here(IpNet),
    Control(IpNet),
    Node(IpAddr),
    Hairpin(IpAddr),
    Exported(Exported),
    Echo(IpAddr),
    Tunnel(DeviceName),
}

impl Sets {
    /// Adds one element; false when it was there.
    pub fn insert(&mut self, element: Element) -> bool {
        match element {
            Element::Remote(net) => self.remote.insert(net),
            Element::Local(net) => self.local.insert(net),
            Element::Clusterset(net) => self.clusterset.insert(net),
            Element::Here(net) => self.here.insert(net),
            Element::Control(net) => self.control.insert(net),
            Element::Node(address) => self.nodes.insert(address),
            Element::Hairpin(address) => self.hairpin.insert(address),
            Element::Exported(exported) => self.exported.insert(exported),
            Element::Echo(address) => self.echo.insert(address),
            Element::Tunnel(device) => self.tunnels.insert(device),
        }
    }

    /// Removes one element; false when it was not there.
    pub fn remove(&mut self, element: &Element) -> bool {
        match element {
            Element::Remote(net) => self.remote.remove(net),
            Element::Local(net) => self.local.remove(net),
            Element::Clusterset(net) => self.clusterset.remove(net),
            Element::Here(net) => self.here.remove(net),
            Element::Control(net) => self.control.remove(net),
            Element::Node(address) => self.nodes.remove(address),
            Element::Hairpin(address) => self.hairpin.remove(address),
            Element::Exported(exported) => self.exported.remove(exported),
            Element::Echo(address) => self.echo.remove(address),
            Element::Tunnel(device) => self.tunnels.remove(device),
        }
    }

    /// The same sets with the fewest prefixes that say the same: none covers or completes another.
    #[must_use]
    pub fn normalized(&self) -> Self {
        Self {
            remote: fewest(&self.remote),
            local: fewest(&self.local),
            clusterset: fewest(&self.clusterset),
            here: fewest(&self.here),
            control: fewest(&self.control),
            ..self.clone()
        }
    }
}

pub(crate) fn fewest(prefixes: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
    IpNet::aggregate(&prefixes.iter().map(IpNet::trunc).collect()).into_iter().collect()
}
