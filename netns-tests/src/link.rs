//! Links between hosts, and what lies on them: addresses and routes.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nlink::Rate;
use nlink::netlink::addr::{Ipv4Address, Ipv6Address};
use nlink::netlink::link::{BridgeLink, VethLink};
use nlink::netlink::route::{Ipv4Route, Ipv6Route};
use nlink::netlink::tc::TbfConfig;
use nlink::{Bytes, TcHandle};

use crate::addresses::{Addresses, Ranges};
use crate::host::Host;

/// The kernel's IFNAMSIZ is 16 with the closing zero.
const LONGEST_NAME: usize = 15;

/// One end of a link: an interface of a host, named after what is at the other end.
#[derive(Clone, Debug)]
pub struct Port {
    host: Host,
    name: String,
}

impl Port {
    pub(crate) fn new(host: &Host, name: &str) -> Self {
        Self { host: host.clone(), name: name.into() }
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives the interface an address in each family.
    pub fn add_addresses(&self, addresses: Addresses, range: Ranges) -> Result<()> {
        let (v4, v6) = self.address_messages(addresses, range);
        self.host.links("adding addresses", async |links| {
            links.add_address(v4).await?;
            links.add_address(v6).await
        })
    }

    /// Takes the addresses away again.
    pub fn remove_addresses(&self, addresses: Addresses, range: Ranges) -> Result<()> {
        self.host.links("removing addresses", async |links| {
            links.del_address(&self.name, addresses.v4.into(), range.v4.prefix_len()).await?;
            links.del_address(&self.name, addresses.v6.into(), range.v6.prefix_len()).await
        })
    }

    /// Sends a range out of this interface, without a next hop: for tunnels.
    pub fn set_route(&self, to: IpNet) -> Result<()> {
        self.host.links("setting a route to an interface", async |links| match to {
            IpNet::V4(to) => links.replace_route(v4_route(to).dev(&self.name)).await,
            IpNet::V6(to) => links.replace_route(v6_route(to).dev(&self.name)).await,
        })
    }

    fn address_messages(&self, addresses: Addresses, range: Ranges) -> (Ipv4Address, Ipv6Address) {
        (
            Ipv4Address::new(&self.name, addresses.v4, range.v4.prefix_len()),
            Ipv6Address::new(&self.name, addresses.v6, range.v6.prefix_len()).nodad(),
        )
    }

    /// Largest packet in bytes, without the Ethernet header. A link carries what its smaller end allows.
    pub fn set_mtu(&self, bytes: u32) -> Result<()> {
        self.host.links("setting an MTU", async |links| links.set_link_mtu(&self.name, bytes).await)
    }

    /// Pulls the cable: both ends lose their carrier and can see it.
    pub fn unplug(&self) -> Result<()> {
        self.host.links("unplugging a link", async |links| links.set_link_down(&self.name).await)
    }

    /// Puts the cable back. IPv6 addresses and routes on this end, which the kernel drops with the carrier, are the
    /// caller's to restore; the far end keeps its own.
    pub fn plug_in(&self) -> Result<()> {
        self.host.links("plugging in a link", async |links| links.set_link_up(&self.name).await)
    }

    /// Lets at most `megabits` a second out of this end. Packets wait up to 50 ms, then are dropped.
    pub fn limit_rate(&self, megabits: u32) -> Result<()> {
        let rate = Rate::mbit(u64::from(megabits));
        // 10 ms of traffic, and never less than a few full packets; 50 ms may wait behind it.
        let burst = (u64::from(megabits) * 1_250).max(10_000);
        let bucket = TbfConfig::new().rate(rate).burst(Bytes::new(burst)).limit(Bytes::new(burst * 6));
        self.host.links("limiting a rate", async |links| links.replace_qdisc(&self.name, bucket).await)
    }

    /// Lifts [`Self::limit_rate`].
    pub fn unlimit_rate(&self) -> Result<()> {
        self.host.links("lifting a rate limit", async |links| {
            links.del_qdisc_if_exists(&self.name, TcHandle::ROOT).await.map(|_| ())
        })
    }
}

/// Joins two hosts by a cable (a veth pair), both ends up.
pub(crate) fn join(one: &Host, one_name: &str, other: &Host, other_name: &str) -> Result<(Port, Port)> {
    for name in [one_name, other_name] {
        ensure!(
            !name.is_empty() && name.len() <= LONGEST_NAME,
            "an interface name has 1 to {LONGEST_NAME} bytes: {name:?}"
        );
    }
    let cable = VethLink::new(one_name, other_name).peer_netns_fd(other.namespace().network());
    one.links("making a veth pair", async |links| {
        links.add_link(cable).await?;
        links.set_link_up(one_name).await
    })?;
    other.links("starting a veth end", async |links| links.set_link_up(other_name).await)?;
    Ok((Port::new(one, one_name), Port::new(other, other_name)))
}

/// Makes a switch (a bridge) inside a host.
pub(crate) fn add_switch(host: &Host, name: &str) -> Result<Port> {
    host.links("making a bridge", async |links| {
        links.add_link(BridgeLink::new(name).stp(false).forward_delay_ms(0)).await?;
        links.set_link_up(name).await
    })?;
    Ok(Port::new(host, name))
}

/// Makes `port` a port of the switch.
pub(crate) fn plug_into_switch(port: &Port, switch: &Port) -> Result<()> {
    port.host.links("adding a port to a bridge", async |links| links.set_link_master(&port.name, &switch.name).await)
}

/// Lets a bridge send a frame back out of the port it came in by, as bridge plugins do with `hairpinMode`: a pod that
/// asks for a service may be given itself.
pub(crate) fn allow_hairpin(port: &Port) -> Result<()> {
    let hairpin = nlink::netlink::link::BridgePortConfig::new().hairpin(true);
    port.host.links("allowing hairpin", async |links| links.set_bridge_port(port.name.as_str(), hairpin).await)
}

/// Adds or replaces a route of the main table.
pub(crate) fn set_route(host: &Host, to: IpNet, by: IpAddr) -> Result<()> {
    host.links("setting a route", async |links| match (to, by) {
        (IpNet::V4(to), IpAddr::V4(by)) => links.replace_route(v4_route(to).gateway(by)).await,
        (IpNet::V6(to), IpAddr::V6(by)) => links.replace_route(v6_route(to).gateway(by)).await,
        _ => Err(nlink::Error::invalid_message(format!("{to} cannot be reached by way of {by}: two families"))),
    })
}

/// Sets routes in both families.
pub(crate) fn set_routes(host: &Host, to: Ranges, by: Addresses) -> Result<()> {
    set_route(host, to.v4.into(), by.v4.into())?;
    set_route(host, to.v6.into(), by.v6.into())
}

/// Sends everything without a better route to `by`.
pub(crate) fn set_default_routes(host: &Host, by: Addresses) -> Result<()> {
    set_routes(host, Ranges { v4: Ipv4Net::default(), v6: Ipv6Net::default() }, by)
}

fn v4_route(to: Ipv4Net) -> Ipv4Route {
    Ipv4Route::from_addr(to.network(), to.prefix_len())
}

fn v6_route(to: Ipv6Net) -> Ipv6Route {
    Ipv6Route::from_addr(to.network(), to.prefix_len())
}
