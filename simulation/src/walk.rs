//! The way of a packet inside a cluster: from kernel to kernel, into a tunnel or to a pod.

use std::net::IpAddr;

use api::names::ports;
use gateway_core::packet::Packet;
use kernel_core::DeviceName;

use crate::gateway::Gateway;
use crate::kernel::Way;
use crate::packets;
use crate::schedule::Sabotage;
use crate::segment::{Segment, ends};
use crate::site::{self, NAMES};
use crate::world::World;

/// Hosts a packet may pass in one cluster: client, gateway, another gateway that has the path, and one to spare.
const MOST_HOPS: usize = 4;

impl World {
    /// Carries a packet that begins on a host, or arrives there by `device`.
    pub(crate) fn carry(&mut self, place: usize, mut host: usize, packet: Vec<u8>, mut device: Option<DeviceName>) {
        let Ok(parsed) = Packet::parse(&packet) else {
            self.violations.push(format!("a packet in {} cannot be read", NAMES[place]));
            return;
        };
        let flow = parsed.flow;
        if let Some((slot, _)) = device.as_ref().and_then(|device| self.lane_of(place, host, device)) {
            self.attempts.passes(&parsed, &packet, place, slot);
        }
        for _ in 0..MOST_HOPS {
            let owner = self.owner(place, flow.destination);
            let cluster = &self.clusters[place];
            let kernel = &cluster.hosts[host].kernel;
            if self.sabotage != Some(Sabotage::OpenFilters)
                && let Some(refusal) = kernel.refuses(&flow, parsed.intent, device.as_ref(), owner == Some(host))
            {
                self.attempts
                    .note(&parsed, &packet, || format!("{} refuses it: {refusal}", site::host_name(place, host)));
                return;
            }
            if owner == Some(host) {
                return self.deliver(place, host, &parsed, &packet);
            }
            let next = match kernel.route(&flow, device.as_ref()) {
                Way::Tunnel(name) => {
                    return match self.lane_of(place, host, &name) {
                        Some((slot, lane)) => {
                            self.attempts.passes(&parsed, &packet, place, slot);
                            self.enter_tunnel(place, slot, lane, &packet);
                        }
                        None => self.attempts.note(&parsed, &packet, || format!("{name} is there and nobody reads it")),
                    };
                }
                Way::Vxlan(address) => cluster.host_at(address),
                Way::Blackhole => {
                    self.attempts
                        .note(&parsed, &packet, || format!("{} has a blackhole for it", site::host_name(place, host)));
                    return;
                }
                Way::Lost(why) => {
                    self.attempts.note(&parsed, &packet, || format!("{}: {why}", site::host_name(place, host)));
                    return;
                }
                Way::Elsewhere => {
                    if owner.is_none() {
                        self.leaves_in_clear(place, host, &parsed);
                    }
                    owner
                }
            };
            let Some(next) = next else { return };
            if !cluster_joins(self, place, host, next) {
                self.attempts.note(&parsed, &packet, || format!("a cable between hosts of {} is pulled", NAMES[place]));
                return;
            }
            device = Some(self.arrival(place, next, host));
            host = next;
        }
        self.violations.push(format!("a packet goes round in {}: {flow}", NAMES[place]));
    }

    /// By which device a packet arrives that another host sent.
    fn arrival(&self, place: usize, at: usize, _from: usize) -> DeviceName {
        let vxlan = self.clusters[place].hosts[at].kernel.state.links.keys().next().cloned();
        vxlan.unwrap_or_else(DeviceName::loopback)
    }

    /// On which host of this cluster an address lives.
    fn owner(&self, place: usize, address: IpAddr) -> Option<usize> {
        let cluster = &self.clusters[place];
        if site::is_pod(address) {
            let (_, host) = site::pod_of(site::pod_at(place, cluster.shape, address)?)?;
            return (host < cluster.hosts.len()).then_some(host);
        }
        cluster.gateways.iter().find_map(|gateway| {
            (gateway.core.as_ref().map(|core| IpAddr::V6(core.control)) == Some(address)).then_some(gateway.host)
        })
    }

    /// The lane of a gateway that runs on a host, by its device.
    fn lane_of(&self, place: usize, host: usize, device: &DeviceName) -> Option<(u16, u16)> {
        let mut gateways = self.clusters[place].gateways.iter();
        let gateway = gateways.find(|gateway| gateway.host == host && gateway.core.is_some())?;
        let lane = gateway.devices().position(|known| known == device.as_str())?;
        Some((gateway.slot, lane as u16))
    }

    fn enter_tunnel(&mut self, place: usize, slot: u16, lane: u16, packet: &[u8]) {
        let now = self.clusters[place].now(self.now).instant;
        let slot = usize::from(slot);
        let Some(core) = &mut self.clusters[place].gateways[slot].core else { return };
        let outcome = core.forward(lane, packet, now);
        self.carry_out(place, slot, outcome);
    }

    /// What the kernel itself knows as another cluster's must never take the host's other routes.
    fn leaves_in_clear(&mut self, place: usize, host: usize, packet: &Packet) {
        let remote = &self.clusters[place].hosts[host].kernel.state.sets.remote;
        let destination = packet.flow.destination;
        let known = remote.iter().any(|net| net.contains(&destination));
        let pod = self.pod_behind(place, destination).unwrap_or(destination);
        if known || self.truth.must_know(place, host, pod, self.now) {
            let name = site::host_name(place, host);
            self.violations.push(format!("a packet to {destination} leaves {name} in clear"));
        }
    }

    fn deliver(&mut self, place: usize, host: usize, packet: &Packet, bytes: &[u8]) {
        let (from, to) = ends(packet);
        if packet.flow.protocol == packets::UDP && to.port() == ports::TRANSIT {
            let gateways = &self.clusters[place].gateways;
            let control = |gateway: &&Gateway| gateway.core.as_ref().map(|core| IpAddr::V6(core.control));
            let gateway = gateways.iter().find(|gateway| control(gateway) == Some(to.ip())).map(|gateway| gateway.slot);
            if let (Some(slot), Some(frame)) = (gateway, bytes.get(packet.transport + 8..packet.len)) {
                self.take_frame(place, slot, from.ip(), frame);
            }
            return;
        }
        let Some((segment, payload)) = Segment::read(packet, bytes) else { return };
        let control = self.clusters[place]
            .gateways
            .iter()
            .find(|gateway| gateway.core.as_ref().map(|core| IpAddr::V6(core.control)) == Some(to.ip()));
        match control.map(|gateway| gateway.slot) {
            Some(slot) => self.control_segment(place, slot, from, to, segment, payload),
            None => self.reach_pod(place, host, from, to, segment),
        }
    }
}

fn cluster_joins(world: &World, place: usize, one: usize, other: usize) -> bool {
    world.clusters[place].joins(one, other)
}
