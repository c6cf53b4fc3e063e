//! What of each object matters to a node's kernel, read once and checked. Equal facts mean that nothing is to be done,
//! whatever else changed in the object.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::cluster_peer::PeerState;
use api::kubernetes::Node;
use api::local_cluster::LocalClusterSpec;
use api::member_record::MemberState;
use api::prefix_claims::{self, PrefixClaims, Untranslated};
use api::{ClusterId, ClusterPeer, Prefix, TunnelGateway, names};
use ipnet::IpNet;
use kernel_core::{DeviceName, Family, Mac};

use crate::problem::Problem;

/// A node of this cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Addresses inside the cluster (`InternalIP`), in the object's order.
    pub addresses: Vec<IpAddr>,
    pub pod_prefixes: BTreeSet<IpNet>,
    pub infrastructure: BTreeSet<IpAddr>,
    /// Whether an order takes its endpoints out of service.
    pub drained: bool,
}

impl NodeFacts {
    pub fn of(node: &Node) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut facts = Self { drained: api::order::is_drained(node), ..Self::default() };
        let status = node.status.as_ref();
        for address in status.and_then(|status| status.addresses.as_deref()).unwrap_or_default() {
            if address.type_ == "InternalIP" {
                read_address(&address.address, &mut problems).into_iter().for_each(|found| facts.addresses.push(found));
            }
        }
        if facts.addresses.is_empty() {
            problems.push(Problem::NodeWithoutAddress);
        }
        let spec = node.spec.as_ref();
        let several = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
        let one = spec.and_then(|spec| spec.pod_cidr.clone());
        for text in several.into_iter().chain(one) {
            match text.parse::<IpNet>() {
                Ok(net) => drop(facts.pod_prefixes.insert(net.trunc())),
                Err(_) => problems.push(Problem::BadPrefix(text)),
            }
        }
        let annotations = node.metadata.annotations.as_ref();
        let ours = annotations.and_then(|all| all.get(names::INFRASTRUCTURE_ADDRESSES)).map_or("", String::as_str);
        for text in ours.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            facts.infrastructure.extend(read_address(text, &mut problems));
        }
        (facts, problems)
    }

    /// Its address of one family that outer packets are sent to.
    pub fn address_of(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }

    pub fn infrastructure_v4(&self) -> Option<Ipv4Addr> {
        self.infrastructure.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })
    }

    pub fn infrastructure_v6(&self) -> Option<Ipv6Addr> {
        self.infrastructure.iter().find_map(|address| match address {
            IpAddr::V6(address) => Some(*address),
            IpAddr::V4(_) => None,
        })
    }

    /// What packets of a family to this node name as their next hop on the VXLAN device. It is only looked up in our
    /// static neighbours, never asked for. IPv6 takes the link-local address: the kernel refuses a next hop that another
    /// device has a route to.
    pub fn next_hop(&self, name: &str, family: Family) -> Option<IpAddr> {
        match family {
            Family::Ipv4 => self.address_of(Family::Ipv4).or(self.infrastructure_v4().map(IpAddr::V4)),
            Family::Ipv6 => Some(IpAddr::V6(link_local(mac_of(name)))),
        }
    }

    /// Where packets out of a tunnel are to be brought to this node.
    pub fn inward_prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.pod_prefixes.iter().copied().chain(self.infrastructure.iter().copied().map(IpNet::from))
    }
}

/// The link-layer address of a node on our VXLAN device: from its name, so that all nodes know it without asking.
pub fn mac_of(node: &str) -> Mac {
    let [_, _, _, bits @ ..] = routing::slots::stable_hash(node).to_be_bytes();
    Mac::local(bits)
}

/// RFC 4291, appendix A: the modified EUI-64 of a 48-bit address.
fn link_local(Mac([a, b, c, d, e, f]): Mac) -> Ipv6Addr {
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 0x02, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

/// A gateway slot and who holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayFacts {
    /// Empty while nobody holds the slot.
    pub node: String,
    /// Where its health port answers.
    pub addresses: Vec<IpAddr>,
    /// Its tunnel devices on that node, by lane.
    pub devices: Vec<DeviceName>,
}

impl GatewayFacts {
    pub fn of(gateway: &TunnelGateway) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let Some(status) = &gateway.status else { return (Self::default(), problems) };
        let addresses = status.node_addresses.iter().filter_map(|text| read_address(text, &mut problems)).collect();
        let device = |name: &String| match DeviceName::new(name) {
            Ok(device) => Some(device),
            Err(_) => {
                problems.push(Problem::BadDevice(name.clone()));
                None
            }
        };
        let devices = status.lanes.iter().map(|lane| &lane.device).filter_map(device).collect();
        (Self { node: status.node.clone(), addresses, devices }, problems)
    }
}

/// A peer cluster, as far as packets to it are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFacts {
    pub state: PeerState,
    pub labels: BTreeMap<String, String>,
    pub member: Option<MemberState>,
    /// What may be sent to it and come from it. Of a blocked peer: what nothing may be sent to.
    pub prefixes: BTreeSet<IpNet>,
    pub control: Option<IpNet>,
}

/// The facts of all peers, and what is wrong with them. Together, because what one claims another may not.
///
/// Nor may a peer claim what a node of this cluster lives on, advertised or not: the VXLAN device's outer packets, and
/// every word between our nodes, would go into its tunnel.
pub fn peers(
    local: &LocalClusterSpec,
    nodes: &BTreeMap<String, NodeFacts>,
    peers: &BTreeMap<ClusterId, ClusterPeer>,
) -> (BTreeMap<ClusterId, PeerFacts>, BTreeMap<ClusterId, Vec<Problem>>) {
    let claims = prefix_claims::judge(local, peers.values());
    let mut all = BTreeMap::new();
    let mut problems: BTreeMap<ClusterId, Vec<Problem>> = BTreeMap::new();
    for (id, peer) in peers {
        let record = peer.newest_record();
        if record.is_none() {
            problems.entry(id.clone()).or_default().push(Problem::NoRecord);
        }
        let mut facts = PeerFacts {
            state: peer.state(),
            labels: record.as_ref().map(|record| record.labels.clone()).unwrap_or_default(),
            member: record.as_ref().map(|record| record.state),
            prefixes: BTreeSet::new(),
            control: record.as_ref().map(|record| record.control_prefix.net()),
        };
        if let Some(claims) = claims.get(id) {
            facts.prefixes = claims.seen().map(|prefix| prefix.net()).collect();
            let untranslated = claims.untranslated.iter().map(Untranslated::reason);
            let refused = claims.refused.iter().cloned().chain(untranslated).map(Problem::PrefixRefused);
            problems.entry(id.clone()).or_default().extend(refused);
        } else if let (PeerState::Blocked, Some(record)) = (peer.state(), &record) {
            // Judged as the last of all, so that a blocked peer takes nothing from the others.
            let others: Vec<Prefix> = claims.values().flat_map(PrefixClaims::seen).collect();
            let is_others = |prefix: &&Prefix| others.iter().any(|other| other.overlaps(prefix));
            let is_ours = |prefix: &&Prefix| local.own_prefixes().any(|own| own.overlaps(prefix));
            // Those that were translated are seen in a range of ours, and nowhere else.
            let translated = peer.translations().iter().map(|translation| &translation.seen);
            let given = |seen: &&Prefix| local.translation_prefixes.iter().any(|pool| pool.covers(seen));
            let claimed = record.prefixes.iter().filter(|claimed| !is_ours(claimed));
            let free = claimed.chain(translated.filter(given)).filter(|prefix| !is_others(prefix));
            facts.prefixes = free.map(Prefix::net).collect();
        }
        facts.prefixes.retain(|net| match node_inside(nodes, net) {
            Some((name, address)) => {
                let problem = Problem::PrefixRefused(format!("{net} holds {address} of node {name} of this cluster"));
                problems.entry(id.clone()).or_default().push(problem);
                false
            }
            None => true,
        });
        all.insert(id.clone(), facts);
    }
    (all, problems)
}

fn node_inside<'a>(nodes: &'a BTreeMap<String, NodeFacts>, net: &IpNet) -> Option<(&'a String, IpAddr)> {
    let inside = |node: &NodeFacts| node.addresses.iter().copied().find(|address| net.contains(address));
    nodes.iter().find_map(|(name, node)| Some((name, inside(node)?)))
}

pub(crate) fn read_address(text: &str, problems: &mut Vec<Problem>) -> Option<IpAddr> {
    let address = text.parse().ok();
    if address.is_none() {
        problems.push(Problem::BadAddress(text.to_string()));
    }
    address
}
