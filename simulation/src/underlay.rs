//! The way of datagrams between gateways of different clusters.

use std::net::SocketAddr;

use gateway_core::transit::is_by_hub;

use crate::network::Lane;
use crate::world::{Event, World};

impl World {
    /// A lane of a gateway sends a datagram.
    pub(crate) fn launch(&mut self, place: usize, slot: usize, lane: u16, to: SocketAddr, bytes: Vec<u8>) {
        if is_by_hub(to) {
            return self.launch_by_hub(place, slot, lane, to, &bytes);
        }
        let cluster = &self.clusters[place];
        let from = cluster.outside[slot][usize::from(lane)];
        if cluster.hosts[cluster.gateways[slot].host].is_unplugged {
            return;
        }
        let Some(other) = self.socket(to) else { return };
        for flight in self.network.flights((place, slot as u16, lane), other, &mut self.random) {
            let at = self.now + flight;
            self.at(at, Event::Datagram { from, to, bytes: bytes.clone() });
        }
    }

    fn socket(&self, address: SocketAddr) -> Option<Lane> {
        self.clusters.iter().find_map(|cluster| {
            (0..).zip(&cluster.outside).find_map(|(slot, lanes)| {
                let lane = lanes.iter().position(|outside| *outside == address)?;
                Some((cluster.place, slot, lane as u16))
            })
        })
    }

    /// A datagram arrives.
    pub(crate) fn land(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let Some((place, slot, lane)) = self.socket(to) else { return };
        let slot = usize::from(slot);
        let now = self.clusters[place].now(self.now);
        let cluster = &mut self.clusters[place];
        if cluster.hosts[cluster.gateways[slot].host].is_unplugged {
            return;
        }
        let Some(core) = &mut cluster.gateways[slot].core else { return };
        let outcome = core.receive(lane, from, bytes, now.instant);
        self.carry_out(place, slot, outcome);
    }
}
