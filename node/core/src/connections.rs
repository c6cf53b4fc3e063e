//! [`targets`]: whose endpoints are whose, so that the kernel can count connections by the cluster they are given to.

use alloc::collections::BTreeMap;
use alloc::string::ToString;

use api::ClusterId;
use api::cluster_peer::PeerState;
use api::local_cluster::{LocalClusterSpec, ServiceMode};
use kernel_core::Targets;

use crate::facts::PeerFacts;

/// None where another service proxy gives connections to endpoints: they do not pass our translation.
pub fn targets(local: &LocalClusterSpec, peers: &BTreeMap<ClusterId, PeerFacts>) -> Option<Targets> {
    if local.service_mode != ServiceMode::Nftables {
        return None;
    }
    // The own id is the own cluster's, whoever else claims it. Nothing is given to a blocked peer.
    let others = peers.iter().filter(|(id, peer)| **id != local.cluster_id && peer.state != PeerState::Blocked);
    Some(Targets {
        local: local.cluster_id.to_string(),
        remote: others.map(|(id, peer)| (id.to_string(), peer.prefixes.clone())).collect(),
    })
}
