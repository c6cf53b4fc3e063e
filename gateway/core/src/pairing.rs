//! Which lanes of ours and of our peers' gateways are links, and which number each link gets.

use alloc::collections::BTreeMap;

use api::ClusterId;
use api::keys::TunnelKey;

use crate::link::{LaneNumber, Link, LinkId};
use crate::topology::{PeerLane, Topology};

/// What makes a link the same link. A new key is a new link.
pub(crate) type Identity = (LaneNumber, ClusterId, u16, LaneNumber, [TunnelKey; 2], Option<[u8; 32]>);

pub(crate) fn identity(link: &Link) -> Identity {
    (link.lane, link.cluster.clone(), link.slot, link.remote_lane, [link.own_key, link.public_key], link.preshared_key)
}

/// Lane i of ours is paired with lane i modulo theirs, and every lane of either side has a partner. While keys rotate,
/// each of one side's keys is paired with each of the other's.
pub(crate) fn wanted_links(topology: &Topology) -> BTreeMap<Identity, &PeerLane> {
    let mut wanted = BTreeMap::new();
    for peer in &topology.peers {
        for gateway in &peer.gateways {
            let (ours, theirs) = (topology.ours.lanes.len(), gateway.lanes.len());
            let pairs = if ours == 0 || theirs == 0 { 0 } else { ours.max(theirs) };
            for pair in 0..pairs {
                let (local, remote) = (pair % ours, pair % theirs);
                let (Some(own), Some(lane)) = (topology.ours.lanes.get(local), gateway.lanes.get(remote)) else {
                    continue;
                };
                let (local, remote) = (LaneNumber(local as u8), LaneNumber(remote as u8));
                for own_key in [Some(own.key), own.next_key].into_iter().flatten() {
                    for public_key in [Some(lane.public_key), lane.next_key].into_iter().flatten() {
                        let keys = [own_key, public_key];
                        let key = (local, peer.id.clone(), gateway.slot, remote, keys, lane.preshared_key);
                        wanted.insert(key, lane);
                    }
                }
            }
        }
    }
    wanted
}

pub(crate) fn new_link(key: &Identity, id: LinkId) -> Link {
    let (lane, cluster, slot, remote_lane, [own_key, public_key], preshared_key) = key.clone();
    Link { id, lane, cluster, slot, remote_lane, own_key, public_key, preshared_key }
}

/// The lowest number no link has; those about to be removed still count, so that no session inherits one at once.
pub(crate) fn free_number<T>(links: &BTreeMap<LinkId, T>) -> Option<LinkId> {
    let mut free = 0;
    for id in links.keys() {
        if id.number() != free {
            break;
        }
        free += 1;
    }
    LinkId::new(free)
}
