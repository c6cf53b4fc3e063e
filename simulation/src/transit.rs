//! Ways by a hub, as gateway/src/transit.rs has them: what a lane sends to an endpoint on the loopback leaves as a frame
//! inside the tunnel to the hub, and a frame for a lane arrives as if from the way's own endpoint.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use api::names::ports;
use gateway_core::LaneNumber;
use gateway_core::roster::Roster;
use gateway_core::transit::{End, Frame, MOST_HUBS, Passage, Transit, Way};

use crate::packets;
use crate::schedule::Sabotage;
use crate::world::World;

#[derive(Debug, Default)]
pub(crate) struct Ways {
    rules: Transit,
    open: BTreeMap<Way, SocketAddr>,
    opened: u16,
}

impl Ways {
    /// Takes a new roster, and gives it back with the ways among the endpoints.
    pub(crate) fn configure(&mut self, roster: &Roster) -> Roster {
        let rules = roster.transit();
        self.open.retain(|way, _| rules.knows(way));
        let with_ways = roster.with_ways(&rules, |_, way| Some(self.endpoint(way)));
        self.rules = rules;
        with_ways
    }

    /// The endpoint that stands for a way.
    fn endpoint(&mut self, way: Way) -> SocketAddr {
        let opened = &mut self.opened;
        *self.open.entry(way).or_insert_with(|| {
            *opened += 1;
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1024 + *opened)
        })
    }

    fn behind(&self, endpoint: SocketAddr) -> Option<Way> {
        self.open.iter().find(|(_, open)| **open == endpoint).map(|(way, _)| *way)
    }
}

impl World {
    /// A lane sends a datagram to the endpoint of a way.
    pub(crate) fn launch_by_hub(&mut self, place: usize, slot: usize, lane: u16, to: SocketAddr, datagram: &[u8]) {
        let Some(core) = &self.clusters[place].gateways[slot].core else { return };
        let Some(way) = core.ways.behind(to) else { return };
        let source = End { gateway: core.control, lane: LaneNumber(lane as u8) };
        let frame = Frame { hubs_left: MOST_HUBS, source, destination: way.remote, datagram };
        let bytes = [&frame.header()[..], datagram].concat();
        self.send_frame(place, slot, way.hub, &bytes);
    }

    fn send_frame(&mut self, place: usize, slot: usize, to: Ipv6Addr, frame: &[u8]) {
        let gateway = &self.clusters[place].gateways[slot];
        let (host, Some(own)) = (gateway.host, gateway.core.as_ref().map(|core| core.control)) else { return };
        self.carry(place, host, packets::udp(own.into(), to.into(), ports::TRANSIT, frame), None);
    }

    /// A frame came to a gateway, inside a tunnel.
    pub(crate) fn take_frame(&mut self, place: usize, slot: u16, from: IpAddr, bytes: &[u8]) {
        let (IpAddr::V6(sender), slot) = (from, usize::from(slot)) else { return };
        let now = self.clusters[place].now(self.now).instant;
        let Some(core) = &mut self.clusters[place].gateways[slot].core else { return };
        let judged = Frame::parse(bytes).and_then(|frame| {
            let passage = core.ways.rules.judge(sender, &frame, &core.direct(now))?;
            Ok((passage, frame))
        });
        match judged {
            Ok((Passage::Arrived { lane, back }, frame)) => {
                let from = core.ways.endpoint(back);
                let outcome = core.receive(lane.0.into(), from, frame.datagram, now);
                self.carry_out(place, slot, outcome);
            }
            Ok((Passage::On { to, hubs_left }, frame)) if self.sabotage != Some(Sabotage::LazyHub) => {
                let passed = [&Frame { hubs_left, ..frame }.header()[..], frame.datagram].concat();
                self.attempts.tally.passed_on += 1;
                self.send_frame(place, slot, to, &passed);
            }
            // Refused ones are lost: paths come and go, and each end tries again.
            Ok(_) | Err(_) => {}
        }
    }
}
