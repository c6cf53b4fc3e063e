//! The control relay: gateways call each other inside the tunnel and splice to their controllers, as gateway/src/relay.rs
//! does. Every segment is a packet that takes the way of all packets.

use std::net::{IpAddr, SocketAddr};

use api::names::ports::CONTROL_RELAY;

use crate::process::StreamKey;
use crate::segment::{RST, SYN, Segment};
use crate::site;
use crate::stream::{End, reset};
use crate::world::{MS, SECOND, World};

/// Pauses between calls after failures, and what makes one good again (gateway/src/relay/dialler.rs).
const FIRST_PAUSE: u64 = 100 * MS;
const LONGEST_PAUSE: u64 = 5 * SECOND;

impl World {
    /// Streams repeat and give up; gateways call whom they have no stream to.
    pub(crate) fn tick_streams(&mut self, place: usize) {
        let keys: Vec<StreamKey> = self.clusters[place].ends.keys().copied().collect();
        for key in keys {
            if let Some(end) = self.clusters[place].ends.get_mut(&key) {
                end.tick(self.now);
                self.flush(place, &key);
            }
        }
        for slot in 0..self.clusters[place].gateways.len() {
            self.call_peers(place, slot);
        }
    }

    fn call_peers(&mut self, place: usize, slot: usize) {
        let cluster = &self.clusters[place];
        let gateway = &cluster.gateways[slot];
        let Some(core) = gateway.core.as_ref().filter(|_| cluster.feeds(gateway.host)) else { return };
        let (number, own) = (gateway.slot, core.control);
        for (peer, addresses) in core.reachable(cluster.now(self.now).instant) {
            let Some(address) = addresses.first() else { continue };
            let cluster = &mut self.clusters[place];
            let other = SocketAddr::new((*address).into(), CONTROL_RELAY);
            let of_peer = |end: &End| site_of_call(end, &addresses);
            let has_one = cluster.ends.iter().any(|(key, end)| key.0 == number && of_peer(end));
            let (at, pause) = cluster.calls.get(&(number, peer.clone())).copied().unwrap_or((0, FIRST_PAUSE));
            if has_one || self.now < at {
                continue;
            }
            let half = pause / 2;
            cluster
                .calls
                .insert((number, peer), (self.now + half + self.random.below(half), (pause * 2).min(LONGEST_PAUSE)));
            cluster.next_port = cluster.next_port.checked_add(1).unwrap_or(1024);
            let own = SocketAddr::new(own.into(), cluster.next_port);
            let key = (number, own, other);
            cluster.ends.insert(key, End::dial(own, other, self.now));
            self.flush(place, &key);
        }
    }

    /// Sends what an end has to send, and lets its controller know what came.
    pub(crate) fn flush(&mut self, place: usize, key: &StreamKey) {
        let cluster = &mut self.clusters[place];
        let now = cluster.now(self.now);
        let Some(end) = cluster.ends.get_mut(key) else { return };
        let packets = std::mem::take(&mut end.packets);
        let received = std::mem::take(&mut end.received);
        let broken = end.broken;
        let host = cluster.gateways[usize::from(key.0)].host;
        if !received.is_empty()
            && let Some(process) = &mut cluster.controller.process
        {
            process.hear(key, &received, now);
        }
        for packet in packets {
            self.carry(place, host, packet, None);
        }
        if let Some(why) = broken {
            self.clusters[place].ends.remove(key);
            if let Some(process) = &mut self.clusters[place].controller.process {
                process.hung_up(key, why, now);
            }
        }
        if !received.is_empty() || broken.is_some() {
            self.settle_controller(place);
        }
    }

    /// This end is done: the other is told.
    pub(crate) fn close(&mut self, place: usize, key: &StreamKey) {
        let Some(end) = self.clusters[place].ends.remove(key) else { return };
        let host = self.clusters[place].gateways[usize::from(key.0)].host;
        self.carry(place, host, reset(end.own, end.other), None);
    }

    /// A segment for the control address of a gateway of this cluster.
    pub(crate) fn control_segment(
        &mut self,
        place: usize,
        slot: u16,
        from: SocketAddr,
        to: SocketAddr,
        segment: Segment,
        payload: &[u8],
    ) {
        let key = (slot, to, from);
        if !self.clusters[place].ends.contains_key(&key) {
            if !segment.has(SYN) || segment.has(RST) || to.port() != CONTROL_RELAY || !self.accept(place, key) {
                if !segment.has(RST) {
                    let host = self.clusters[place].gateways[usize::from(slot)].host;
                    self.carry(place, host, reset(to, from), None);
                }
                return;
            }
            return self.flush(place, &key);
        }
        let now = self.clusters[place].now(self.now);
        let Some(end) = self.clusters[place].ends.get_mut(&key) else { return };
        let was_open = end.is_open;
        end.receive(segment, payload, self.now);
        if !was_open && end.is_open {
            let peer = self.clusters.iter().find(|cluster| controls(cluster, from.ip())).map(|cluster| cluster.place);
            let cluster = &mut self.clusters[place];
            if let (Some(peer), Some(process)) = (peer, &mut cluster.controller.process) {
                process.offered(&site::id(peer), key);
            }
            if let Some(peer) = peer {
                cluster.calls.insert((slot, site::NAMES[peer].to_owned()), (now.world, FIRST_PAUSE));
            }
            self.settle_controller(place);
        }
        self.flush(place, &key);
    }

    /// Somebody calls: a peer's gateway, for its controller. TLS shows whose identity that controller has.
    fn accept(&mut self, place: usize, key: StreamKey) -> bool {
        let caller = self.clusters.iter().find(|cluster| controls(cluster, key.2.ip()));
        let Some(identity) = caller.map(|cluster| cluster.controller.identity()) else { return false };
        let cluster = &mut self.clusters[place];
        let gateway = &cluster.gateways[usize::from(key.0)];
        let known = gateway.core.as_ref().is_some_and(|core| {
            core.roster
                .topology
                .peers
                .iter()
                .flat_map(|peer| &peer.gateways)
                .any(|gateway| gateway.control_address.map(IpAddr::V6) == Some(key.2.ip()))
        });
        if !known || !cluster.feeds(gateway.host) {
            return false;
        }
        let now = cluster.now(self.now);
        let Some(process) = &mut cluster.controller.process else { return false };
        let Some(peer) = process.peer_of(&identity) else { return false };
        process.called(peer, key, now);
        cluster.ends.insert(key, End::accept(key.1, key.2, now.world));
        true
    }
}

/// Whether an end of ours called one of these.
fn site_of_call(end: &End, addresses: &[std::net::Ipv6Addr]) -> bool {
    end.other.port() == CONTROL_RELAY && addresses.iter().any(|address| IpAddr::V6(*address) == end.other.ip())
}

/// Whether a control address is of a gateway of this cluster.
fn controls(cluster: &crate::cluster::Cluster, address: IpAddr) -> bool {
    let IpAddr::V6(address) = address else { return false };
    cluster.controller.identity().control_prefix().contains(address.into())
}
