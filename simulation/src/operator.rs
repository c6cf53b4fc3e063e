//! What an operator does: introduces clusters to each other, and gives orders.

use api::cluster_peer::PeerState;
use api::{ClusterPeer, LocalCluster, TunnelGateway, names};
use controller_core::orders::{ordered_gateway, ordered_local, ordered_node, ordered_peer};

use crate::happening::{Order, Part};
use crate::object::Object;
use crate::parts::runs;
use crate::schedule::Sabotage;
use crate::site::{self, NAMES};
use crate::world::World;

impl World {
    /// Every operator trusts every other cluster.
    pub(crate) fn introduce(&mut self) {
        for place in 0..self.clusters.len() {
            for other in (0..self.clusters.len()).filter(|other| *other != place) {
                self.put_peer(place, other);
            }
        }
    }

    /// Writes a ClusterPeer as the truth wants it. The record it starts from stays the one it was made with.
    pub(crate) fn put_peer(&mut self, place: usize, other: usize) {
        let accept = if self.truth.accepts_vault(place, other) {
            vec!["shop".into(), "vault".into()]
        } else {
            vec!["shop".into()]
        };
        let state = if self.truth.standing.is_undesired(place, other) { PeerState::Drained } else { PeerState::Active };
        let known = self.clusters[place].objects.get::<ClusterPeer>("", NAMES[other]).cloned();
        let peer = match known {
            Some(mut peer) => {
                peer.spec.accept.namespaces = accept;
                peer.spec.state = state;
                Some(peer)
            }
            None => {
                let local = self.clusters[other].objects.get::<LocalCluster>("", names::LOCAL_CLUSTER);
                // One end that names the hub is enough.
                let via = self.truth.hub_between(place, other).filter(|_| place < other);
                local.and_then(|local| site::peer(other, local, via, accept, state))
            }
        };
        let Some(peer) = peer else {
            self.violations.push(format!("{} has no record to show after its start", NAMES[other]));
            return;
        };
        let wall = self.clusters[place].now(self.now).wall;
        self.clusters[place].objects.put(peer, wall);
        self.changed(place);
    }

    /// Orders that wait are carried out, in order, as soon as there are a controller and a store to do it.
    pub(crate) fn give_orders(&mut self, place: usize) {
        while runs(&self.clusters[place], Part::Controller) && !self.clusters[place].objects.is_away {
            let Some((order, undo)) = self.clusters[place].orders.pop_front() else { return };
            self.truth.standing.order(place, order, undo, self.now);
            if self.sabotage == Some(Sabotage::LostOrders) {
                continue;
            }
            // What is refused (a block stands in the way, the manifest says so) changes nothing.
            if let Some(ordered) = self.ordered(place, order, undo) {
                let wall = self.clusters[place].now(self.now).wall;
                self.clusters[place].objects.put_beside(ordered, wall);
                self.changed(place);
            }
        }
    }

    /// The object as the order wants it, where it is not so yet.
    fn ordered(&self, place: usize, order: Order, undo: bool) -> Option<Object> {
        let cluster = &self.clusters[place];
        let objects = &cluster.objects;
        match order {
            Order::DrainPeer(peer) | Order::BlockPeer(peer) => {
                let state = if order == Order::DrainPeer(peer) { PeerState::Drained } else { PeerState::Blocked };
                ordered_peer(objects.get::<ClusterPeer>("", NAMES[peer])?, state, undo).ok()?.map(Object::from)
            }
            Order::DrainCluster => {
                ordered_local(objects.get::<LocalCluster>("", names::LOCAL_CLUSTER)?, undo).ok()?.map(Object::from)
            }
            Order::DrainGateway(slot) => {
                let gateway = objects.get::<TunnelGateway>(names::SYSTEM_NAMESPACE, &names::slot_gateway(slot))?;
                ordered_gateway(gateway, undo).ok()?.map(Object::from)
            }
            Order::DrainNode(host) => {
                let node = objects.get("", &site::host_name(place, host))?;
                ordered_node(node, undo, cluster.now(self.now).wall).ok()?.map(Object::from)
            }
        }
    }
}
