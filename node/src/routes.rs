//! Where this host's kernel sends packets for a peer, and what is amiss, for `tombolo explain path`.

use std::net::IpAddr;

use api::ClusterId;
use api::health::{PathReason, Reachability};
use api::report::{HopReport, RouteReport};
use ipnet::IpNet;
use kernel::core::{Family, INWARD_TABLE, TABLE};
use kernel::{Hop, Kernel, Path};
use node_core::NodeCore;

/// Prefixes asked about in one answer: a peer rarely has more than one a family and kind.
const MOST: usize = 32;

/// One entry a prefix; none for a cluster that is no peer of this one.
pub(crate) fn report(core: &NodeCore, kernel: &mut Kernel, peer: &ClusterId) -> Option<Vec<RouteReport>> {
    let prefixes = core.prefixes_of(peer)?;
    Some(prefixes.iter().take(MOST).map(|net| judged(core, net, kernel.path(net.addr()), peer)).collect())
}

fn judged(core: &NodeCore, net: &IpNet, path: Result<Path, kernel::Error>, peer: &ClusterId) -> RouteReport {
    let mut report = RouteReport { prefix: net.to_string(), ..RouteReport::default() };
    let (reason, remedy) = match path {
        Err(error) => ("NotAnswered", format!("the kernel did not say: {error}; does the agent have CAP_NET_ADMIN?")),
        Ok(Path::NoRoute) => {
            ("NoRoute", "look at the log of this host's node agent: the kernel refused a route".into())
        }
        Ok(Path::Dropped) => ("Blackhole", no_gateway(core, peer)),
        Ok(Path::Routed(routed)) => {
            report.table = Some(routed.table);
            report.metric = Some(routed.metric);
            report.mtu = routed.mtu;
            report.hops = routed.hops.iter().map(|hop| shown(core, hop)).collect();
            let lost = routed.hops.iter().find(|hop| hop.by_vxlan && hop.node.is_none());
            let health = core.cluster_healths().get(peer).map(|health| (health.reachability, health.reason));
            match (lost, health) {
                // All IPv6 routes with one next hop share the kernel's cache, and it answers with any of them: that for
                // packets which arrive here leads the same way.
                _ if ![TABLE, INWARD_TABLE].contains(&routed.table) => ("ForeignRoute", foreign(net, routed.table)),
                (Some(hop), _) => ("NoNeighbour", unknown_node(hop.via)),
                (None, Some((Reachability::Up, _))) => ("", String::new()),
                (None, Some((Reachability::Down, reason))) => ("PeerDown", peer_down(peer, reason)),
                (None, Some((Reachability::Unknown, _)) | None) => (RouteReport::PEER_UNKNOWN, peer_unknown(peer)),
            }
        }
    };
    report.reason = reason.to_owned();
    report.remedy = remedy;
    report
}

fn shown(core: &NodeCore, hop: &Hop) -> HopReport {
    HopReport {
        device: hop.device.clone(),
        via: hop.via.map(|address| address.to_string()),
        node: hop.node.map(|address| address.to_string()),
        gateway: core.gateway_at(hop.node, &hop.device),
    }
}

/// Why only the blackhole is left.
fn no_gateway(core: &NodeCore, peer: &ClusterId) -> String {
    match core.cluster_healths().get(peer) {
        Some(_) => "this cluster has no gateway, so that nothing leaves in clear; run: tombolo status".to_owned(),
        None => format!(
            "{peer} is blocked here, by spec.state of its ClusterPeer or by an order: tombolo peers block {peer} --undo"
        ),
    }
}

/// The way that open connections keep, though nobody has seen it work.
fn peer_down(peer: &ClusterId, reason: PathReason) -> String {
    format!(
        "no gateway of this cluster reaches {peer} ({reason:?}): open connections keep this way, new ones go elsewhere; on a gateway's host run: tombolo explain path {peer}"
    )
}

/// The agent, its gateways or the peer have just begun.
fn peer_unknown(peer: &ClusterId) -> String {
    format!(
        "no gateway of this cluster has said yet whether it reaches {peer}: does one run? ask again, or run: tombolo status"
    )
}

fn foreign(net: &IpNet, table: u32) -> String {
    let family = if Family::of_net(net) == Family::Ipv4 { 4 } else { 6 };
    format!(
        "table {table} answers before ours ({TABLE}), and packets may leave in clear; run: ip -{family} rule, and look for one before priority {}",
        kernel::core::rule::PRIORITY
    )
}

fn unknown_node(via: Option<IpAddr>) -> String {
    let via = via.map(|via| format!(" of {via}")).unwrap_or_default();
    format!(
        "the gateway's node{via} is not known to the VXLAN device: does its Node have an InternalIP of the family VXLAN uses?"
    )
}
