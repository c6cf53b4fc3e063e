//! [`Standing`]: who is used and who is not, by the word of operators.

use std::collections::{BTreeMap, BTreeSet};

use crate::happening::Order;

/// A pair is a cluster and the peer that its operator speaks of.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// By manifest.
    undesired: BTreeSet<(usize, usize)>,
    /// By order; a block lies over it.
    drained: BTreeSet<(usize, usize)>,
    /// Since when.
    blocked: BTreeMap<(usize, usize), u64>,
    /// When a block was taken back last.
    let_in: BTreeMap<(usize, usize), u64>,
    /// Since when a cluster gives a peer no new connections, whatever the reason.
    unused: BTreeMap<(usize, usize), u64>,
    clusters: BTreeSet<usize>,
    gateways: BTreeSet<(usize, u16)>,
    nodes: BTreeSet<(usize, usize)>,
}

impl Standing {
    pub(crate) fn declare(&mut self, cluster: usize, peer: usize, drained: bool, now: u64) {
        put(&mut self.undesired, (cluster, peer), drained);
        self.note(cluster, peer, now);
    }

    /// An order was carried out, or refused by the rules for orders.
    pub(crate) fn order(&mut self, cluster: usize, order: Order, undo: bool, now: u64) {
        match order {
            Order::DrainPeer(peer) => {
                let pair = (cluster, peer);
                let refused = self.blocked.contains_key(&pair) || undo && self.undesired.contains(&pair);
                if !refused {
                    put(&mut self.drained, pair, !undo);
                }
                self.note(cluster, peer, now);
            }
            Order::BlockPeer(peer) => {
                if !undo {
                    self.blocked.entry((cluster, peer)).or_insert(now);
                } else if self.blocked.remove(&(cluster, peer)).is_some() {
                    self.let_in.insert((cluster, peer), now);
                }
                self.note(cluster, peer, now);
            }
            Order::DrainCluster => put(&mut self.clusters, cluster, !undo),
            Order::DrainGateway(slot) => put(&mut self.gateways, (cluster, slot), !undo),
            Order::DrainNode(host) => put(&mut self.nodes, (cluster, host), !undo),
        }
    }

    fn note(&mut self, cluster: usize, peer: usize, now: u64) {
        let pair = (cluster, peer);
        if self.undesired.contains(&pair) || self.drained.contains(&pair) || self.blocked.contains_key(&pair) {
            self.unused.entry(pair).or_insert(now);
        } else {
            self.unused.remove(&pair);
        }
    }

    pub(crate) fn is_undesired(&self, cluster: usize, peer: usize) -> bool {
        self.undesired.contains(&(cluster, peer))
    }

    /// Since when the operator of a cluster has blocked a peer.
    pub(crate) fn blocked_since(&self, cluster: usize, peer: usize) -> Option<u64> {
        self.blocked.get(&(cluster, peer)).copied()
    }

    /// When a peer that was blocked was let in last; zero where it never was.
    pub(crate) fn let_in(&self, cluster: usize, peer: usize) -> u64 {
        self.let_in.get(&(cluster, peer)).copied().unwrap_or(0)
    }

    /// Since when the operator of a cluster wants a peer to get no new connections.
    pub(crate) fn unused_since(&self, cluster: usize, peer: usize) -> Option<u64> {
        self.unused.get(&(cluster, peer)).copied()
    }

    /// Whether one of the two has blocked the other: no packet passes.
    pub(crate) fn is_apart(&self, one: usize, other: usize) -> bool {
        self.blocked.contains_key(&(one, other)) || self.blocked.contains_key(&(other, one))
    }

    /// Whether a cluster asks to be given nothing, by its record.
    pub(crate) fn is_leaving(&self, cluster: usize) -> bool {
        self.clusters.contains(&cluster)
    }

    /// Whether every one of a cluster's so many gateways is drained: it is used where nobody else can serve.
    pub(crate) fn is_last_resort(&self, cluster: usize, gateways: usize) -> bool {
        gateways > 0 && (0..gateways).all(|slot| self.is_gateway_out(cluster, slot as u16))
    }

    pub(crate) fn is_gateway_out(&self, cluster: usize, slot: u16) -> bool {
        self.gateways.contains(&(cluster, slot))
    }

    pub(crate) fn is_node_out(&self, cluster: usize, host: usize) -> bool {
        self.nodes.contains(&(cluster, host))
    }
}

fn put<K: Ord>(set: &mut BTreeSet<K>, key: K, is_in: bool) {
    if is_in {
        set.insert(key);
    } else {
        set.remove(&key);
    }
}
