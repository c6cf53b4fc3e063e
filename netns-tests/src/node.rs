//! A node: a host on its cluster's LAN with a bridge for its pods and, as every node has, a default route.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::addresses::{Addresses, ClusterRanges, Ranges};
use crate::host::{Host, Hosts};
use crate::link::{Port, add_switch, allow_hairpin, join, plug_into_switch, set_default_routes, set_routes};
use crate::pod::Pod;

/// The interface towards the cluster's LAN.
pub const UNDERLAY: &str = "underlay";
/// The bridge that the pods are behind, named as the usual bridge plugin names it.
pub const POD_BRIDGE: &str = "cni0";
/// The first node's place in the LAN; the router has 1.
const FIRST_PLACE: u8 = 10;
/// How far a changed address is from the one before.
const CHANGE_OF_PLACE: u8 = 50;
/// The first pod's place on its node; the bridge has 1.
const FIRST_POD_PLACE: u8 = 2;

/// A node of a cluster. Everything a [`Host`] can do, it can do. Clones mean the same node.
#[derive(Clone, Debug)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hosts: Hosts,
    host: Host,
    name: String,
    cluster: String,
    number: u8,
    ranges: ClusterRanges,
    underlay: Port,
    /// The router's end of the cable to this node.
    router_port: Port,
    bridge: Port,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    place: u8,
    pods: Vec<String>,
}

impl Deref for Node {
    type Target = Host;
    fn deref(&self) -> &Host {
        &self.0.host
    }
}

impl Node {
    pub(crate) fn create(
        cluster: &str,
        name: &str,
        number: u8,
        ranges: ClusterRanges,
        hosts: &Hosts,
        router: &Host,
        lan: &Port,
    ) -> Result<Self> {
        let host = hosts.add(&format!("{cluster}-{name}"))?;
        let (underlay, router_port) = join(&host, UNDERLAY, router, name)?;
        plug_into_switch(&router_port, lan)?;
        // A Kubernetes node forwards: its network plugin saw to that before we came.
        host.set("net/ipv4/ip_forward", "1")?;
        host.set("net/ipv6/conf/all/forwarding", "1")?;
        let bridge = add_switch(&host, POD_BRIDGE)?;
        bridge.add_addresses(ranges.pods_of_node(number).at(1), ranges.pods_of_node(number))?;
        let place = FIRST_PLACE + number;
        underlay.add_addresses(ranges.underlay().at(place), ranges.underlay())?;
        set_default_routes(&host, ranges.underlay().at(1))?;
        let state = Mutex::new(State { place, pods: Vec::new() });
        let (name, cluster) = (name.to_owned(), cluster.to_owned());
        Ok(Self(Arc::new(Inner {
            hosts: hosts.clone(),
            host,
            name,
            cluster,
            number,
            ranges,
            underlay,
            router_port,
            bridge,
            state,
        })))
    }

    /// Its name inside the cluster; [`Host::name`] has the cluster's in front.
    pub fn node_name(&self) -> &str {
        &self.0.name
    }

    pub fn cluster_name(&self) -> &str {
        &self.0.cluster
    }

    /// The ranges of its cluster.
    pub fn cluster_ranges(&self) -> ClusterRanges {
        self.0.ranges
    }

    /// Its place in the cluster, from 0; the gateway node is 0.
    pub fn number(&self) -> u8 {
        self.0.number
    }

    /// Its addresses in the LAN, as they are now.
    pub fn addresses(&self) -> Addresses {
        self.0.ranges.underlay().at(self.state().place)
    }

    /// The range of its pods.
    pub fn pod_ranges(&self) -> Ranges {
        self.0.ranges.pods_of_node(self.0.number)
    }

    /// The addresses it may use as its infrastructure addresses; nothing has them until Tombolo gives them.
    pub fn infrastructure(&self) -> Addresses {
        self.0.ranges.infrastructure().at(self.0.number + 1)
    }

    /// Its interface towards the LAN.
    pub fn underlay(&self) -> &Port {
        &self.0.underlay
    }

    /// The router's end of that cable: where to unplug it without the node losing its addresses.
    pub fn router_port(&self) -> &Port {
        &self.0.router_port
    }

    /// Makes a pod with a name that is new on this node.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let mut state = self.state();
        ensure!(state.pods.iter().all(|taken| taken != name), "{} has a pod {name} already", self.name());
        let index = u8::try_from(state.pods.len()).ok().filter(|&index| index < 250);
        let index = index.with_context(|| format!("{} is full of pods", self.name()))?;
        let host = self.0.hosts.add(&format!("{}-{name}", self.0.cluster))?;
        let (port, node_end) = join(&host, "eth0", self, &format!("pod{index}"))?;
        plug_into_switch(&node_end, &self.0.bridge)?;
        allow_hairpin(&node_end)?;
        let addresses = self.pod_ranges().at(FIRST_POD_PLACE + index);
        port.add_addresses(addresses, self.pod_ranges())?;
        set_default_routes(&host, self.pod_ranges().at(1))?;
        state.pods.push(name.into());
        Ok(Pod { host, name: name.into(), node: self.clone(), addresses, port, node_end })
    }

    /// Gives the node other addresses in its LAN, as a new DHCP lease would. Its own default route is renewed; routes
    /// of other nodes are for [`crate::cluster::Cluster::change_address`], which calls this.
    pub(crate) fn move_in_lan(&self) -> Result<Addresses> {
        let mut state = self.state();
        let (range, before) = (self.0.ranges.underlay(), state.place);
        let after =
            if before < FIRST_PLACE + CHANGE_OF_PLACE { before + CHANGE_OF_PLACE } else { before - CHANGE_OF_PLACE };
        // Removed first: the kernel takes a range's second address along when its first goes.
        self.0.underlay.remove_addresses(range.at(before), range)?;
        self.0.underlay.add_addresses(range.at(after), range)?;
        state.place = after;
        set_default_routes(self, range.at(1))?;
        Ok(range.at(after))
    }

    /// Teaches this node the way to another node's pods, as a network plugin with direct routes does.
    pub(crate) fn learn(&self, other: &Self) -> Result<()> {
        set_routes(self, other.pod_ranges(), other.addresses())
    }

    /// The node checks that a packet comes from where its answer would go (RFC 3704, strict): IPv4 only, as the kernel.
    pub fn check_reverse_path_strictly(&self) -> Result<()> {
        for setting in ["all", "default", UNDERLAY, POD_BRIDGE] {
            self.set(&format!("net/ipv4/conf/{setting}/rp_filter"), "1")?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
