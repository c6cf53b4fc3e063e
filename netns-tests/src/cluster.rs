//! A cluster: a LAN with a router, a gateway node, worker nodes, and direct routes between their pods.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::addresses::{Addresses, ClusterRanges};
use crate::host::{Host, Hosts};
use crate::link::{Port, add_switch, join, set_default_routes, set_routes};
use crate::node::Node;

/// The router's interface towards the internet.
pub const UPLINK: &str = "internet";

/// What a cluster is made of.
#[derive(Clone, Copy, Debug)]
pub struct ClusterPlan {
    /// Nodes that gateways run on: `gateway`, `gateway2`, …
    pub gateways: u8,
    /// Further nodes: `worker`, `worker2`, …
    pub workers: u8,
    /// How many of those nodes, from the first, run a DNS server.
    pub name_servers: u8,
    /// The number of the cluster whose pod ranges this one uses too; for tests of overlapping ranges.
    pub pods_like: Option<u8>,
}

impl Default for ClusterPlan {
    fn default() -> Self {
        Self { gateways: 1, workers: 1, name_servers: 1, pods_like: None }
    }
}

/// A cluster of the world. Clones mean the same cluster.
#[derive(Clone, Debug)]
pub struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    number: u8,
    gateways: usize,
    name_servers: usize,
    ranges: ClusterRanges,
    router: Host,
    uplink: Port,
    internet_port: Port,
    nodes: Vec<Node>,
}

impl Cluster {
    pub(crate) fn create(name: &str, number: u8, plan: ClusterPlan, hosts: &Hosts, internet: &Host) -> Result<Self> {
        // Places in the LAN and the second byte of pod ranges; a test needs a handful.
        ensure!(plan.gateways.saturating_add(plan.workers) <= 40, "a cluster has at most 40 nodes");
        let ranges = ClusterRanges::new(number, plan.pods_like.unwrap_or(number));
        let router = hosts.add(&format!("{name}-router"))?;
        router.set("net/ipv4/ip_forward", "1")?;
        router.set("net/ipv6/conf/all/forwarding", "1")?;
        let (uplink, internet_port) = join(&router, UPLINK, internet, name)?;
        uplink.add_addresses(ranges.transit().at(2), ranges.transit())?;
        internet_port.add_addresses(ranges.transit().at(1), ranges.transit())?;
        set_default_routes(&router, ranges.transit().at(1))?;
        set_routes(internet, ranges.underlay(), ranges.transit().at(2))?;
        let lan = add_switch(&router, "lan")?;
        lan.add_addresses(ranges.underlay().at(1), ranges.underlay())?;

        let names = numbered("gateway", plan.gateways).chain(numbered("worker", plan.workers));
        let nodes = (0..)
            .zip(names)
            .map(|(number, node)| Node::create(name, &node, number, ranges, hosts, &router, &lan))
            .collect::<Result<Vec<_>>>()?;
        let (gateways, name_servers) = (plan.gateways.into(), plan.name_servers.into());
        let name = name.into();
        let cluster = Self(Arc::new(Inner {
            name,
            number,
            gateways,
            name_servers,
            ranges,
            router,
            uplink,
            internet_port,
            nodes,
        }));
        for node in cluster.nodes() {
            cluster.teach_others(node)?;
        }
        Ok(cluster)
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its number in the world, from 1: the number in all its addresses.
    pub fn number(&self) -> u8 {
        self.0.number
    }

    pub fn ranges(&self) -> ClusterRanges {
        self.0.ranges
    }

    /// Every node, gateways first.
    pub fn nodes(&self) -> &[Node] {
        &self.0.nodes
    }

    pub fn gateways(&self) -> &[Node] {
        &self.0.nodes[..self.0.gateways]
    }

    pub fn workers(&self) -> &[Node] {
        &self.0.nodes[self.0.gateways..]
    }

    /// The nodes that are planned to run a DNS server.
    pub fn name_servers(&self) -> &[Node] {
        &self.0.nodes[..self.0.name_servers.min(self.0.nodes.len())]
    }

    /// The first gateway node. Errors when the plan has none.
    pub fn gateway(&self) -> Result<&Node> {
        self.gateways().first().with_context(|| format!("{} was planned without a gateway", self.name()))
    }

    /// The first worker node. Errors when the plan has none.
    pub fn worker(&self) -> Result<&Node> {
        self.workers().first().with_context(|| format!("{} was planned without a worker", self.name()))
    }

    /// The router between the LAN and the internet.
    pub fn router(&self) -> &Host {
        &self.0.router
    }

    /// The router's end of the cable to the internet.
    pub fn uplink(&self) -> &Port {
        &self.0.uplink
    }

    /// The internet's end of that cable.
    pub fn internet_port(&self) -> &Port {
        &self.0.internet_port
    }

    /// Sets the largest packet, in bytes, between this cluster and the internet.
    pub fn set_internet_mtu(&self, bytes: u32) -> Result<()> {
        self.0.uplink.set_mtu(bytes)?;
        self.0.internet_port.set_mtu(bytes)
    }

    /// Lets at most this many megabits a second into and out of the cluster.
    pub fn limit_internet_rate(&self, megabits: u32) -> Result<()> {
        self.0.uplink.limit_rate(megabits)?;
        self.0.internet_port.limit_rate(megabits)
    }

    /// Gives a node other addresses in the LAN; the network plugin of the other nodes follows. Returns the new ones.
    pub fn change_address(&self, node: &Node) -> Result<Addresses> {
        let addresses = node.move_in_lan()?;
        self.teach_others(node)?;
        for other in self.nodes().iter().filter(|other| other.number() != node.number()) {
            node.learn(other)?;
        }
        Ok(addresses)
    }

    fn teach_others(&self, node: &Node) -> Result<()> {
        self.nodes().iter().filter(|other| other.number() != node.number()).try_for_each(|other| other.learn(node))
    }
}

/// `gateway`, `gateway2`, `gateway3`, …
fn numbered(kind: &str, count: u8) -> impl Iterator<Item = String> {
    (1..=count).map(move |number| if number == 1 { kind.to_owned() } else { format!("{kind}{number}") })
}
