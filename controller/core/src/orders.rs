//! Orders of the moment: what the operator's tool asks of one object, and what it may.
//!
//! An order stands in an annotation ([`names::STATE`]) beside what the manifest says for good. So the folder of manifests
//! is never written, a tool that keeps specs as a repository has them takes nothing back, and the order outlives every
//! restart. It can only be stricter than the manifest.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};

use api::cluster_peer::PeerState;
use api::kubernetes::Node;
use api::local_cluster::LocalState;
use api::time::WallTime;
use api::{ClusterId, ClusterPeer, LocalCluster, TunnelGateway, names};
use k8s_openapi::jiff::Timestamp;

use crate::condition;

/// An order, as the operator's tool writes it: `peer-state?peer=birch&state=Drained&undo=true`, `local-state?undo=false`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    Peer {
        peer: ClusterId,
        state: PeerState,
        undo: bool,
    },
    Local {
        undo: bool,
    },
    /// The gateways' keys are changed: `keys?slot=0&retire=false`; without a slot those of all gateways.
    Keys {
        slot: Option<u16>,
        /// Takes the old ones away at once, whoever still needs them.
        retire: bool,
    },
    /// The cluster's identity is changed: `identity?retire=false`.
    Identity {
        /// Takes the old one away at once, whoever does not know the new one.
        retire: bool,
    },
    /// A gateway of this cluster gives its traffic to the others: `gateway-state?slot=0&undo=false`.
    Gateway {
        slot: u16,
        undo: bool,
    },
    /// The endpoints on a node of this cluster get no new connections: `node-state?node=worker&undo=false`.
    Node {
        node: String,
        undo: bool,
    },
}

/// Why an order is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderRefused {
    #[error("{0} is {1} by its manifest: change spec.state there")]
    ByManifest(String, &'static str),
    #[error("{0} is Blocked by an order: take that back first with 'tombolo peers block {0} --undo'")]
    Blocked(String),
    #[error("{0} is Drained by an order and not blocked: take that back with 'tombolo peers drain {0} --undo'")]
    OnlyDrained(String),
}

impl Order {
    pub fn parse(text: &str) -> Option<Self> {
        let (name, rest) = text.split_once('?').unwrap_or((text, ""));
        let parameters: BTreeMap<&str, &str> = rest.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let undo = parameters.get("undo").is_some_and(|undo| *undo == "true");
        match name {
            "peer-state" => {
                let state = parameters.get("state")?.parse().ok().filter(|state| *state != PeerState::Active)?;
                Some(Self::Peer { peer: ClusterId::new(parameters.get("peer")?).ok()?, state, undo })
            }
            "local-state" => Some(Self::Local { undo }),
            "keys" => {
                let slot = parameters.get("slot").map(|slot| slot.parse()).transpose().ok()?;
                Some(Self::Keys { slot, retire: parameters.get("retire").is_some_and(|retire| *retire == "true") })
            }
            "identity" => {
                Some(Self::Identity { retire: parameters.get("retire").is_some_and(|retire| *retire == "true") })
            }
            "gateway-state" => Some(Self::Gateway { slot: parameters.get("slot")?.parse().ok()?, undo }),
            "node-state" => Some(Self::Node { node: (*parameters.get("node")?).to_string(), undo }),
            _ => None,
        }
    }
}

/// The peer as the order wants it; none where it is so already.
pub fn ordered_peer(peer: &ClusterPeer, state: PeerState, undo: bool) -> Result<Option<ClusterPeer>, OrderRefused> {
    let name = || peer.metadata.name.clone().unwrap_or_default();
    let standing = peer.ordered_state();
    let before = || peer.metadata.annotations.as_ref().and_then(|all| all.get(names::STATE_BEFORE)).cloned();
    let wanted = match (undo, standing) {
        (false, PeerState::Blocked) if state != PeerState::Blocked => return Err(OrderRefused::Blocked(name())),
        (false, standing) if standing == state => return Ok(None),
        (false, _) => Some(state),
        (true, PeerState::Blocked) if state != PeerState::Blocked => return Err(OrderRefused::Blocked(name())),
        (true, PeerState::Drained) if state == PeerState::Blocked => return Err(OrderRefused::OnlyDrained(name())),
        (true, _) if peer.spec.state >= state => {
            return Err(OrderRefused::ByManifest(name(), peer.spec.state.as_str()));
        }
        (true, PeerState::Active) => return Ok(None),
        // A block lies over a drain: who takes the block back did not say that the peer is fit for work.
        (true, PeerState::Blocked) => before().and_then(|text| text.parse().ok()).filter(|below| is_below(*below)),
        (true, _) => None,
    };
    let below = (wanted == Some(PeerState::Blocked) && standing != PeerState::Active).then_some(standing.as_str());
    let mut peer = peer.clone();
    annotate(&mut peer.metadata.annotations, names::STATE, wanted.map(PeerState::as_str));
    annotate(&mut peer.metadata.annotations, names::STATE_BEFORE, below);
    Ok(Some(peer))
}

/// Whether a block can lie over it.
fn is_below(state: PeerState) -> bool {
    !matches!(state, PeerState::Active | PeerState::Blocked)
}

/// This cluster as the order wants it; none where it is so already.
pub fn ordered_local(local: &LocalCluster, undo: bool) -> Result<Option<LocalCluster>, OrderRefused> {
    let standing = local.ordered_state();
    if undo && local.spec.state == LocalState::Draining {
        return Err(OrderRefused::ByManifest(local.spec.cluster_id.to_string(), LocalState::Draining.as_str()));
    }
    if (standing == LocalState::Draining) != undo {
        return Ok(None);
    }
    let mut local = local.clone();
    annotate(&mut local.metadata.annotations, names::STATE, (!undo).then_some(LocalState::Draining.as_str()));
    Ok(Some(local))
}

/// The gateway as the order wants it; none where it is so already.
pub fn ordered_gateway(gateway: &TunnelGateway, undo: bool) -> Result<Option<TunnelGateway>, OrderRefused> {
    if gateway.is_drained() != undo {
        return Ok(None);
    }
    let mut gateway = gateway.clone();
    annotate(&mut gateway.metadata.annotations, names::STATE, (!undo).then_some(LocalState::Draining.as_str()));
    Ok(Some(gateway))
}

/// The node as the order wants it, with the time it is given; none where it is so already.
pub fn ordered_node(node: &Node, undo: bool, now: WallTime) -> Result<Option<Node>, OrderRefused> {
    if api::order::is_drained(node) != undo {
        return Ok(None);
    }
    let mut node = node.clone();
    let since = condition::object_time(now).0.to_string();
    annotate(&mut node.metadata.annotations, names::STATE, (!undo).then_some(LocalState::Draining.as_str()));
    annotate(&mut node.metadata.annotations, names::STATE_SINCE, (!undo).then_some(since.as_str()));
    Ok(Some(node))
}

/// Since when a node is drained; none where it is not, or where nobody wrote it.
pub fn drained_since(node: &Node) -> Option<WallTime> {
    let text = node.metadata.annotations.as_ref()?.get(names::STATE_SINCE)?;
    let since: Timestamp = text.parse().ok()?;
    u64::try_from(since.as_millisecond()).ok().map(WallTime::from_millis)
}

fn annotate(annotations: &mut Option<BTreeMap<String, String>>, name: &str, state: Option<&str>) {
    let all = annotations.get_or_insert_default();
    match state {
        Some(state) => drop(all.insert(name.to_string(), state.to_string())),
        None => drop(all.remove(name)),
    }
    if all.is_empty() {
        *annotations = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(spec: PeerState, ordered: PeerState) -> ClusterPeer {
        let mut peer: ClusterPeer = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "birch"}, "spec": {"identityKeys": [], "record": "", "state": spec},
        }))
        .unwrap();
        let ordered = (ordered != PeerState::Active).then_some(ordered.as_str());
        annotate(&mut peer.metadata.annotations, names::STATE, ordered);
        peer
    }

    /// The state in force after the order, and whether anything is to be written.
    fn after(
        spec: PeerState,
        ordered: PeerState,
        state: PeerState,
        undo: bool,
    ) -> Result<(PeerState, bool), OrderRefused> {
        let before = peer(spec, ordered);
        ordered_peer(&before, state, undo).map(|after| (after.as_ref().unwrap_or(&before).state(), after.is_some()))
    }

    #[test]
    fn a_drain_and_a_block_hold_until_they_are_taken_back_and_nothing_is_written_twice() {
        use PeerState::{Active, Blocked, Drained};
        assert_eq!(after(Active, Active, Drained, false), Ok((Drained, true)));
        assert_eq!(after(Active, Drained, Drained, false), Ok((Drained, false)));
        assert_eq!(after(Active, Drained, Drained, true), Ok((Active, true)));
        assert_eq!(after(Active, Active, Drained, true), Ok((Active, false)));
        assert_eq!(after(Active, Drained, Blocked, false), Ok((Blocked, true)));
        assert_eq!(after(Drained, Blocked, Blocked, true), Ok((Drained, true)), "what the manifest says is left");
    }

    #[test]
    fn a_block_that_is_taken_back_leaves_the_drain_it_was_laid_over() {
        use PeerState::{Active, Blocked, Drained};
        let order = |peer: &ClusterPeer, state, undo| ordered_peer(peer, state, undo).unwrap().unwrap();
        let drained = order(&peer(Active, Active), Drained, false);
        let blocked = order(&drained, Blocked, false);
        assert_eq!(blocked.state(), Blocked);
        assert_eq!(ordered_peer(&blocked, Blocked, false), Ok(None), "a block over a block forgets nothing");
        let back = order(&blocked, Blocked, true);
        assert_eq!(back, drained);
        assert_eq!(order(&back, Drained, true), peer(Active, Active), "no annotation is left behind");
        let mut odd = blocked;
        annotate(&mut odd.metadata.annotations, names::STATE_BEFORE, Some("Blocked"));
        assert_eq!(order(&odd, Blocked, true).state(), Active, "a block lies over no block");
    }

    #[test]
    fn what_another_order_or_the_manifest_says_is_not_taken_back_by_the_wrong_order() {
        use PeerState::{Active, Blocked, Drained};
        let birch = || "birch".to_string();
        for undo in [false, true] {
            assert_eq!(after(Active, Blocked, Drained, undo), Err(OrderRefused::Blocked(birch())));
        }
        assert_eq!(after(Active, Drained, Blocked, true), Err(OrderRefused::OnlyDrained(birch())));
        assert_eq!(after(Drained, Active, Drained, true), Err(OrderRefused::ByManifest(birch(), "Drained")));
        assert_eq!(after(Blocked, Active, Drained, true), Err(OrderRefused::ByManifest(birch(), "Blocked")));
    }

    #[test]
    fn this_cluster_drains_and_comes_back_unless_its_manifest_says_so() {
        let local: LocalCluster = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "local"}, "spec": {"clusterId": "amber", "clusterSetId": "demo"},
        }))
        .unwrap();
        let draining = ordered_local(&local, false).unwrap().unwrap();
        assert_eq!(draining.state(), LocalState::Draining);
        assert_eq!(ordered_local(&draining, false), Ok(None));
        assert_eq!(ordered_local(&draining, true), Ok(Some(local.clone())));
        assert_eq!(ordered_local(&local, true), Ok(None));
        let mut declared = local;
        declared.spec.state = LocalState::Draining;
        assert!(matches!(ordered_local(&declared, true), Err(OrderRefused::ByManifest(..))));
    }

    #[test]
    fn a_gateway_gives_its_traffic_away_and_takes_it_back() {
        let gateway = TunnelGateway::default();
        let drained = ordered_gateway(&gateway, false).unwrap().unwrap();
        assert!(drained.is_drained() && !gateway.is_drained());
        assert_eq!(ordered_gateway(&drained, false), Ok(None));
        assert_eq!(ordered_gateway(&drained, true), Ok(Some(gateway.clone())));
        assert_eq!(ordered_gateway(&gateway, true), Ok(None));
    }

    #[test]
    fn a_node_is_drained_since_a_time_and_comes_back_as_it_was() {
        let (node, now) = (Node::default(), crate::testing::time(7));
        let drained = ordered_node(&node, false, now).unwrap().unwrap();
        assert!(api::order::is_drained(&drained));
        assert_eq!((drained_since(&drained), drained_since(&node)), (Some(now), None));
        assert_eq!(ordered_node(&drained, false, now), Ok(None));
        assert_eq!(ordered_node(&drained, true, now), Ok(Some(node.clone())));
        assert_eq!(ordered_node(&node, true, now), Ok(None));
    }

    #[test]
    fn an_order_that_is_none_is_not_read_as_one() {
        for text in [
            "peer-state",
            "peer-state?peer=birch&state=Active",
            "peer-state?peer=No&state=Drained",
            "gateway-state",
            "keys?slot=all",
            "node-state",
            "",
        ] {
            assert_eq!(Order::parse(text), None, "{text}");
        }
        assert_eq!(Order::parse("keys"), Some(Order::Keys { slot: None, retire: false }));
        assert_eq!(Order::parse("keys?slot=1&retire=true"), Some(Order::Keys { slot: Some(1), retire: true }));
        assert_eq!(Order::parse("local-state?undo=true"), Some(Order::Local { undo: true }));
    }
}
