//! Connections that clients try, and what became of each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use gateway_core::packet::Packet;
use kernel_core::{Family, Frontend, Protocol};

use crate::oracle::ANSWER_WITHIN;
use crate::segment::{ACK, SYN, Segment};
use crate::site::{self, ENDPOINT_PORT, NAMES, Name, PORT};
use crate::world::{Event, SECOND, World};

/// One connection that somebody tries to open.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    /// Whose endpoint it was given: cluster and address. None: it was refused at once, or there was no such name.
    pub(crate) given: Option<(usize, IpAddr)>,
    /// It goes to another cluster because a service's name led there.
    is_led: bool,
    opened: u64,
    /// Cluster and host of the client.
    from: (usize, usize),
    /// The endpoint answered, and the client heard it.
    pub(crate) answered: bool,
    /// The gateways its packets passed: cluster and slot.
    pub(crate) by: BTreeSet<(usize, u16)>,
    /// Where it was lost, as far as somebody saw it.
    pub(crate) lost: Option<String>,
}

/// What a world was busy with, so that nobody takes an empty one for a good one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections that were given an endpoint of another cluster by name, and those of them that were answered.
    pub remote: u64,
    pub answered: u64,
    /// Connections for which there was nobody.
    pub unserved: u64,
    /// Connections from other clusters that did not reach an endpoint, with somebody saying why.
    pub refused: u64,
    /// Datagrams of others that hubs passed on.
    pub passed_on: u64,
    /// Writes that a controller was late with: another replica writes now.
    pub late: u64,
}

impl std::ops::Add for Tally {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            remote: self.remote + other.remote,
            answered: self.answered + other.answered,
            unserved: self.unserved + other.unserved,
            refused: self.refused + other.refused,
            passed_on: self.passed_on + other.passed_on,
            late: self.late + other.late,
        }
    }
}

impl Attempt {
    fn new(given: Option<(usize, IpAddr)>, is_led: bool) -> Self {
        Self { given, is_led, opened: 0, from: (0, 0), answered: false, by: BTreeSet::new(), lost: None }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Attempts {
    pub(crate) tally: Tally,
    known: BTreeMap<u32, Attempt>,
    last: u32,
}

impl Attempts {
    pub(crate) fn get(&self, number: u32) -> Option<&Attempt> {
        self.known.get(&number)
    }

    /// Where a packet of an attempt was lost.
    pub(crate) fn note(&mut self, packet: &Packet, bytes: &[u8], why: impl FnOnce() -> String) {
        if let Some(attempt) = self.of_packet(packet, bytes)
            && attempt.lost.is_none()
        {
            attempt.lost = Some(why());
            self.tally.refused += 1;
        }
    }

    /// A packet of an attempt goes by a gateway.
    pub(crate) fn passes(&mut self, packet: &Packet, bytes: &[u8], cluster: usize, slot: u16) {
        if let Some(attempt) = self.of_packet(packet, bytes) {
            attempt.by.insert((cluster, slot));
        }
    }

    fn of_packet(&mut self, packet: &Packet, bytes: &[u8]) -> Option<&mut Attempt> {
        let (segment, _) = Segment::read(packet, bytes)?;
        let number = if segment.has(ACK) { segment.acknowledged } else { segment.sequence };
        if !site::is_pod(packet.flow.destination) {
            return None;
        }
        self.known.get_mut(&number)
    }

    /// Old ones are never asked for again.
    fn add(&mut self, attempt: Attempt) -> u32 {
        self.last += 1;
        self.known.insert(self.last, attempt);
        while self.known.len() > 2000 {
            self.known.pop_first();
        }
        self.last
    }
}

impl World {
    /// A client on some host opens a connection to some service.
    pub(crate) fn knock(&mut self) {
        let place = self.random.below(self.clusters.len() as u64) as usize;
        let host = self.random.below(self.clusters[place].hosts.len() as u64) as usize;
        let service = Name::ALL[self.random.below(3) as usize];
        let families = self.clusters[place].shape.families.all();
        let family = families[self.random.below(families.len() as u64) as usize];
        // Past all names: straight to a pod that may not be exported.
        let other = self.random.below(self.clusters.len() as u64) as usize;
        if self.clusters[other].shape.families.all().contains(&family) && self.random.permille(150) {
            let at = self.random.below(self.clusters[other].hosts.len() as u64) as usize;
            let number = self.random.below(u64::from(site::PLACES)) as u8;
            self.connect_to(place, host, site::endpoint(other, at, service, number, family));
        } else {
            self.connect(place, host, service, family);
        }
    }

    /// Opens a connection to a service by its clusterset address; the attempt's number.
    pub(crate) fn connect(&mut self, place: usize, host: usize, service: Name, family: Family) -> u32 {
        let import = self.clusters[place].objects.get::<api::ServiceImport>(service.namespace(), service.name());
        let mut addresses = import.into_iter().flat_map(|import| &import.spec.ips).filter_map(|text| text.parse().ok());
        let address = addresses.find(|address: &IpAddr| Family::of(*address) == family);
        let turn = self.random.next();
        let backend = address.and_then(|address| {
            let frontend = Frontend { address, protocol: Protocol::Tcp, port: PORT };
            self.clusters[place].hosts[host].kernel.choose(&frontend, turn)?
        });
        let Some(backend) = backend else {
            self.attempts.tally.unserved += 1;
            return self.attempts.add(Attempt::new(None, false));
        };
        let Some(pod) = self.pod_behind(place, backend.address) else {
            let name = site::host_name(place, host);
            self.violations.push(format!("{name} gives {service} to {}, which is nobody's", backend.address));
            return self.attempts.add(Attempt::new(None, false));
        };
        self.judge_choice(place, host, service, pod);
        self.open(place, host, pod, true)
    }

    /// Opens a connection to an endpoint's own address.
    pub(crate) fn connect_to(&mut self, place: usize, host: usize, endpoint: IpAddr) -> u32 {
        self.open(place, host, endpoint, false)
    }

    fn open(&mut self, place: usize, host: usize, endpoint: IpAddr, by_name: bool) -> u32 {
        let Some(seen) = self.seen_from(place, endpoint) else {
            return self.attempts.add(Attempt::new(None, false));
        };
        let given = site::pod_of(endpoint).map(|(cluster, _)| (cluster, endpoint));
        let is_led = by_name && given.is_some_and(|(of, _)| of != place);
        self.attempts.tally.remote += u64::from(is_led);
        let number =
            self.attempts.add(Attempt { opened: self.now, from: (place, host), ..Attempt::new(given, is_led) });
        if is_led {
            self.at(self.now + ANSWER_WITHIN, Event::Due { attempt: number });
        }
        let client = site::real(self.clusters[place].shape, site::client(place, host, Family::of(endpoint)));
        let from = SocketAddr::new(client, 20_000 + (number % 40_000) as u16);
        let to = SocketAddr::new(seen, ENDPOINT_PORT);
        let segment = Segment { flags: SYN, sequence: number, acknowledged: 0 };
        self.carry(place, host, segment.packet(from, to, &[]), None);
        number
    }

    /// A segment reaches a pod.
    pub(crate) fn reach_pod(&mut self, place: usize, host: usize, from: SocketAddr, to: SocketAddr, segment: Segment) {
        if segment.has(ACK) {
            if let Some(attempt) = self.attempts.known.get_mut(&segment.acknowledged) {
                attempt.answered = true;
                self.attempts.tally.answered += u64::from(attempt.is_led);
            }
            return;
        }
        let Some(pod) = site::pod_at(place, self.clusters[place].shape, to.ip()) else { return };
        let meant = self.attempts.get(segment.sequence).and_then(|attempt| attempt.given);
        if let Some((_, meant)) = meant.filter(|(_, meant)| *meant != pod) {
            self.violations.push(format!("a connection to the pod {meant} reached {pod} in {}", NAMES[place]));
        }
        match self.pod_behind(place, from.ip()) {
            Some(client) if site::pod_of(client).is_some_and(|(of, _)| of != place) => {
                self.judge_arrival(place, client, pod);
            }
            _ => {}
        }
        if self.truth.lives(pod) {
            let answer = Segment { flags: SYN | ACK, sequence: 0, acknowledged: segment.sequence };
            self.carry(place, host, answer.packet(to, from, &[]), None);
        }
    }

    /// A connection that nothing stands in the way of is answered.
    pub(crate) fn judge_answer(&mut self, number: u32) {
        let Some(attempt) = self.attempts.get(number).filter(|attempt| !attempt.answered) else { return };
        let (place, host) = attempt.from;
        if let Some((_, endpoint)) = attempt.given
            && self.truth.must_answer(place, endpoint, attempt.opened)
        {
            let lost = attempt.lost.as_deref().unwrap_or("nobody saw where it was lost");
            let name = site::host_name(place, host);
            self.violations.push(format!("{name} to {endpoint}: no answer, though nothing is in the way: {lost}"));
        }
    }

    /// A new connection must not go to a cluster that is lost.
    fn judge_choice(&mut self, place: usize, host: usize, service: Name, endpoint: IpAddr) {
        let Some((other, _)) = site::pod_of(endpoint) else { return };
        if other != place
            && let Some(agent) = &self.clusters[place].hosts[host].agent
            && let Some(since) = self.truth.lost_since(place, other)
        {
            let since = since.max(agent.started);
            // The promise is 2 s; the agent's own wake-up belongs to it, the event that follows at once does not.
            if self.now > since + 2 * SECOND + SECOND / 10 {
                let seconds = (self.now - since) as f64 / 1e6;
                let (name, lost) = (site::host_name(place, host), NAMES[other]);
                self.violations.push(format!("{name} gives {service} to {lost}, which is lost since {seconds:.1} s"));
            }
        }
        if other != place
            && self.clusters[place].hosts[host].agent.is_some()
            && let Some(seconds) = self.truth.unused_for(place, other, self.now)
        {
            let (name, of) = (site::host_name(place, host), NAMES[other]);
            self.violations.push(format!("{name} gives {service} to {of}, {seconds:.1} s after that was forbidden"));
        }
        if !self.truth.may_be_given(place, other, service) {
            let (name, of) = (site::host_name(place, host), NAMES[other]);
            self.violations.push(format!("{name} gives {service} to {of}, whose namespace was never accepted"));
        }
    }

    /// A new connection from another cluster reached a pod: it must be exported, or have been a moment ago.
    fn judge_arrival(&mut self, place: usize, from: IpAddr, to: IpAddr) {
        let other = site::pod_of(from).map(|(of, _)| of);
        if let Some(seconds) = other.and_then(|of| self.truth.blocked_for(place, of, self.now)) {
            let message = format!(
                "{to} in {} got a connection from {from}, {seconds:.1} s after its cluster was to be cut off",
                NAMES[place]
            );
            self.violations.push(message);
        }
        if let Some(seconds) = self.truth.closed_for(place, to, self.now) {
            let message = format!(
                "{to} in {} got a connection from {from}, {seconds:.1} s after it was to be closed",
                NAMES[place]
            );
            self.violations.push(message);
        }
    }
}
