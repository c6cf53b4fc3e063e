//! The way of datagrams between gateways of different clusters.

use std::net::SocketAddr;

use crate::world::{Event, World};

impl World {
    /// A gateway sends a datagram.
    pub(crate) fn launch(&mut self, place: usize, slot: usize, to: SocketAddr, bytes: Vec<u8>) {
        let cluster = &self.clusters[place];
        let from = cluster.outside[slot];
        if cluster.hosts[cluster.gateways[slot].host].is_unplugged {
            return;
        }
        let Some((other, _)) = self.socket(to) else { return };
        for flight in self.network.flights(place, other, &mut self.random) {
            let at = self.now + flight;
            self.at(at, Event::Datagram { from, to, bytes: bytes.clone() });
        }
    }

    fn socket(&self, address: SocketAddr) -> Option<(usize, usize)> {
        self.clusters
            .iter()
            .find_map(|cluster| Some((cluster.place, cluster.outside.iter().position(|outside| *outside == address)?)))
    }

    /// A datagram arrives.
    pub(crate) fn land(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let Some((place, slot)) = self.socket(to) else { return };
        let now = self.clusters[place].now(self.now);
        let cluster = &mut self.clusters[place];
        if cluster.hosts[cluster.gateways[slot].host].is_unplugged {
            return;
        }
        let Some(core) = &mut cluster.gateways[slot].core else { return };
        let outcome = core.receive(from, bytes, now.instant);
        self.carry_out(place, slot, outcome);
    }
}
