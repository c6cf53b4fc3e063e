//! [`World`]: some clusters, one line of time, and everything that waits to happen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;

use api::TranslatedPrefix;
use controller_core::plan::{Subject, Write};

use crate::attempt::Attempts;
use crate::cluster::Cluster;
use crate::follower::Disk;
use crate::gateway::Outcome;
use crate::happening::{Happening, Part};
use crate::network::Network;
use crate::random::Random;
use crate::replicas::Turn;
use crate::schedule::{Sabotage, Schedule};
use crate::site::{self, NAMES};
use crate::truth::Truth;

/// Microseconds.
pub(crate) const MS: u64 = 1000;
pub(crate) const SECOND: u64 = 1_000_000;

/// Every world begins here, so that no clock is near zero.
pub(crate) const START: u64 = 1000 * SECOND;
/// How often a cluster's slow parts look around.
const TICK: u64 = 100 * MS;

pub(crate) enum Event {
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    /// A part is shown the log of objects up to a place.
    Shown {
        cluster: usize,
        part: Part,
        upto: usize,
    },
    /// A connection is to be answered by now.
    Due {
        attempt: u32,
    },
    /// A part reaches its feed.
    Feed {
        cluster: usize,
        part: Part,
    },
    Start {
        cluster: usize,
        part: Part,
        disk: Disk,
    },
    Written {
        cluster: usize,
        incarnation: u64,
        subject: Subject,
        writes: Vec<Write>,
    },
    Slumber {
        cluster: usize,
        turn: Turn,
    },
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) random: Random,
    pub(crate) clusters: Vec<Cluster>,
    pub(crate) network: Network,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    pub(crate) truth: Truth,
    pub(crate) attempts: Attempts,
    /// What must never be, and was.
    pub(crate) violations: Vec<String>,
    pub(crate) story: String,
    /// When somebody opens a connection next.
    pub(crate) knocks_at: u64,
    /// What was killed and stays so until trouble is over.
    pub(crate) killed: BTreeSet<(usize, Part)>,
    /// Imports that are there, by cluster and uid: since when, and their addresses.
    pub(crate) imports: BTreeMap<(usize, String), (u64, Vec<String>)>,
    /// What prefixes of peers are seen as, by cluster, peer and prefix.
    pub(crate) translations: BTreeMap<(usize, String, String), TranslatedPrefix>,
    /// When the schedule began, from the start.
    pub(crate) began: u64,
    pub(crate) sabotage: Option<Sabotage>,
}

impl World {
    /// The clusters of a schedule, all parts started and no peers yet.
    pub(crate) fn new(schedule: &Schedule) -> Self {
        let mut random = Random::new(schedule.seed);
        let clusters: Vec<Cluster> = schedule
            .clusters
            .iter()
            .enumerate()
            .map(|(place, shape)| Cluster::new(place, *shape, random.below(SECOND * 1000)))
            .collect();
        let mut world = Self {
            now: START,
            random,
            clusters,
            network: Network { apart: schedule.apart(), ..Network::new() },
            queue: BTreeMap::new(),
            queued: 0,
            truth: Truth::new(schedule),
            attempts: Attempts::default(),
            violations: Vec::new(),
            story: String::new(),
            knocks_at: u64::MAX,
            killed: BTreeSet::new(),
            imports: BTreeMap::new(),
            translations: BTreeMap::new(),
            began: 0,
            sabotage: None,
        };
        for place in 0..world.clusters.len() {
            world.install(place, if schedule.hub == Some(place) { schedule.apart() } else { None });
        }
        world
    }

    /// `between`: whose datagrams it passes on.
    fn install(&mut self, place: usize, between: Option<(usize, usize)>) {
        let cluster = &mut self.clusters[place];
        let wall = cluster.now(self.now).wall;
        let objects = &mut cluster.objects;
        objects.put(site::local_cluster(place, cluster.shape, between), wall);
        ["shop", "vault"].iter().for_each(|name| objects.put(site::namespace(name), wall));
        (0..cluster.hosts.len()).for_each(|host| objects.put(site::node(place, host, cluster.shape), wall));
        cluster.ticks_at = self.now + self.random.below(TICK);
        for part in self.parts(place) {
            let at = self.now + self.random.below(50 * MS);
            self.at(at, Event::Start { cluster: place, part, disk: Disk::Empty });
        }
    }

    pub(crate) fn parts(&self, place: usize) -> Vec<Part> {
        let cluster = &self.clusters[place];
        let gateways = cluster.gateways.iter().map(|gateway| Part::Gateway(gateway.slot));
        let nodes = (0..cluster.hosts.len()).map(Part::Node);
        [Part::Controller, Part::Dns].into_iter().chain(gateways).chain(nodes).collect()
    }

    // Time.

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((at.max(self.now), self.queued), event);
    }

    pub(crate) fn tell(&mut self, what: impl AsRef<str>) {
        let _ = writeln!(self.story, "{:>9.3} s  {}", (self.now - START) as f64 / 1e6, what.as_ref());
    }

    pub(crate) fn run_until(&mut self, end: u64) {
        while self.violations.is_empty() && self.step(end) {}
        if self.violations.is_empty() {
            self.now = self.now.max(end);
        }
    }

    /// Lets the next thing happen, unless that is after `end`.
    fn step(&mut self, end: u64) -> bool {
        let (wake, who) = self.next_wake();
        let event = self.queue.keys().next().map_or(u64::MAX, |(at, _)| *at);
        let next = event.min(wake).min(self.knocks_at);
        if next > end {
            return false;
        }
        self.now = self.now.max(next);
        if event == next {
            if let Some((_, event)) = self.queue.pop_first() {
                self.happens(event);
            }
        } else if wake == next {
            self.wakes(who);
        } else {
            self.knocks_at += 40 * MS + self.random.below(80 * MS);
            self.knock();
        }
        true
    }

    /// Who wakes next. Asked before every event, so it is a plain loop.
    fn next_wake(&self) -> (u64, (usize, Wake)) {
        let mut first = (u64::MAX, (0, Wake::Tick));
        for (place, cluster) in self.clusters.iter().enumerate() {
            let mut sooner = |at: u64, who: Wake| {
                if at < first.0 {
                    first = (at, (place, who));
                }
            };
            sooner(cluster.ticks_at, Wake::Tick);
            sooner(cluster.names.wakes_at, Wake::Dns);
            sooner(cluster.names.asks_at, Wake::DnsAsks);
            for (slot, gateway) in cluster.gateways.iter().enumerate() {
                sooner(gateway.wakes_at, Wake::Gateway(slot));
            }
            for (host, state) in cluster.hosts.iter().enumerate() {
                sooner(state.wakes_at, Wake::Node(host));
                sooner(state.asks_at, Wake::Asks(host));
            }
        }
        first
    }

    fn wakes(&mut self, (place, who): (usize, Wake)) {
        match who {
            Wake::Tick => self.tick(place),
            Wake::Gateway(slot) => self.poll_gateway(place, slot),
            Wake::Node(host) => self.settle_host(place, host),
            Wake::Asks(host) => self.ask_for_host(place, host),
            Wake::Dns => self.settle_names(place),
            Wake::DnsAsks => self.ask_for_names(place),
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Datagram { from, to, bytes } => self.land(from, to, &bytes),
            Event::Shown { cluster, part, upto } => self.show(cluster, part, upto),
            Event::Due { attempt } => self.judge_answer(attempt),
            Event::Feed { cluster, part } => self.feed(cluster, part),
            Event::Start { cluster, part, disk } => self.start(cluster, part, disk),
            Event::Written { cluster, incarnation, subject, writes } => {
                self.write(cluster, incarnation, &subject, writes);
            }
            Event::Slumber { cluster, turn } => self.slumber(cluster, turn),
        }
    }

    // Gateways, nodes, names.

    fn tick(&mut self, place: usize) {
        self.clusters[place].ticks_at += TICK;
        let now = self.clusters[place].now(self.now);
        self.tick_controllers(place);
        let cluster = &mut self.clusters[place];
        cluster.gateways.iter_mut().for_each(|gateway| gateway.expire(now.instant));
        if self.sabotage == Some(Sabotage::OpenFilters) {
            cluster.gateways.iter_mut().for_each(crate::gateway::Gateway::open_up);
        }
        if self.sabotage == Some(Sabotage::LostTranslations) {
            cluster.gateways.iter_mut().for_each(|gateway| gateway.forget_translations(now.instant));
        }
        for slot in 0..cluster.gateways.len() {
            self.announce(place, slot);
        }
        self.tick_streams(place);
        self.give_orders(place);
        for part in self.parts(place) {
            let host = self.host_of(place, part);
            if part != Part::Controller && !self.clusters[place].feeds(host) {
                self.lose_feed(place, part);
            }
        }
    }

    /// A gateway writes its own status, through its feed.
    fn announce(&mut self, place: usize, slot: usize) {
        let cluster = &mut self.clusters[place];
        let gateway = &cluster.gateways[slot];
        if gateway.core.is_none() || !gateway.follower.is_connected || cluster.objects.is_away {
            return;
        }
        let name = api::names::slot_gateway(gateway.slot);
        let Some(known) = cluster.objects.get::<api::TunnelGateway>(api::names::SYSTEM_NAMESPACE, &name) else {
            return;
        };
        let host = &cluster.hosts[gateway.host];
        let status = api::tunnel_gateway::TunnelGatewayStatus {
            node: host.name.clone(),
            node_addresses: vec![host.address.to_string()],
            endpoints: vec![cluster.outside[slot][0].ip().to_string()],
            lanes: (0..cluster.shape.lanes)
                .zip(&cluster.outside[slot])
                .map(|(lane, outside)| api::tunnel_gateway::LaneStatus {
                    public_key: crate::pretend::public_key(site::secret(place, gateway.slot, lane)),
                    port: outside.port(),
                    device: gateway.device(lane),
                })
                .collect(),
            paths: Vec::new(),
            rotation: None,
            conditions: Vec::new(),
        };
        if known.status.as_ref() != Some(&status) {
            let said = api::TunnelGateway { status: Some(status), ..known.clone() };
            let wall = cluster.now(self.now).wall;
            cluster.objects.put_beside(said, wall);
            self.changed(place);
        }
    }

    /// A gateway was told something: it may have made its device.
    pub(crate) fn settle_gateway(&mut self, place: usize, slot: usize) {
        let now = self.clusters[place].now(self.now);
        let cluster = &mut self.clusters[place];
        let gateway = &cluster.gateways[slot];
        let host = gateway.host;
        let devices: Vec<String> = gateway.devices().collect();
        let known = &cluster.hosts[host].kernel.devices;
        let is_there = devices.iter().all(|device| known.iter().any(|known| known.as_str() == device));
        if gateway.core.is_some() && !is_there {
            devices.iter().for_each(|device| cluster.hosts[host].device(device, true, now.instant));
            self.settle_host(place, host);
        }
        self.poll_gateway(place, slot);
    }

    fn poll_gateway(&mut self, place: usize, slot: usize) {
        let now = self.clusters[place].now(self.now);
        let gateway = &mut self.clusters[place].gateways[slot];
        let Some(core) = &mut gateway.core else {
            gateway.wakes_at = u64::MAX;
            return;
        };
        let outcome = core.poll(now.instant);
        self.carry_out(place, slot, outcome);
    }

    /// Does what a gateway wants done.
    pub(crate) fn carry_out(&mut self, place: usize, slot: usize, outcome: Outcome) {
        for event in outcome.events {
            self.tell(format!("  {} gateway {slot}: {event}", NAMES[place]));
        }
        let host = self.clusters[place].gateways[slot].host;
        for (lane, to, bytes) in outcome.datagrams {
            self.launch(place, slot, lane, to, bytes);
        }
        for (lane, packet) in outcome.delivered {
            let device = self.clusters[place].gateways[slot].device(lane);
            self.carry(place, host, packet, kernel_core::DeviceName::new(&device).ok());
        }
        let cluster = &mut self.clusters[place];
        let next = cluster.gateways[slot].core.as_ref().map(|core| core.paths.next_deadline());
        cluster.gateways[slot].wakes_at = next.map_or(u64::MAX, |at| cluster.to_world(at).max(self.now + 1));
    }

    pub(crate) fn settle_host(&mut self, place: usize, host: usize) {
        let now = self.clusters[place].now(self.now);
        let refused = self.clusters[place].hosts[host].settle(now.world, now.instant);
        refused.iter().for_each(|what| self.tell(format!("  {what}")));
        if self.sabotage == Some(Sabotage::NoBlackholes) {
            let routes = &mut self.clusters[place].hosts[host].kernel.state.routes;
            routes.retain(|_, route| route.target != kernel_core::Target::Blackhole);
        }
        if self.sabotage == Some(Sabotage::OnlyIpv4) {
            self.clusters[place].hosts[host].kernel.state.services.retain(|frontend, _| frontend.address.is_ipv4());
        }
        let cluster = &mut self.clusters[place];
        let next = cluster.hosts[host].next_look().map_or(u64::MAX, |at| cluster.to_world(at));
        let next = next.min(cluster.hosts[host].look_at());
        cluster.hosts[host].wakes_at = next.max(self.now + 1);
    }

    pub(crate) fn settle_names(&mut self, place: usize) {
        let now = self.clusters[place].now(self.now);
        let cluster = &mut self.clusters[place];
        let next = cluster.names.process.as_mut().and_then(|process| {
            process.publish(now.instant);
            process.view.next_deadline(now.instant)
        });
        cluster.names.wakes_at = next.map_or(u64::MAX, |at| cluster.to_world(at).max(self.now + 1));
    }

    /// Whether a part runs; what happens to it is in the schedule.
    pub(crate) fn apply(&mut self, happening: &Happening) {
        self.tell(happening.to_string());
        self.truth.take(happening, self.now);
        self.do_happening(happening);
    }
}

#[derive(Clone, Copy, Debug)]
enum Wake {
    Tick,
    Gateway(usize),
    Node(usize),
    Asks(usize),
    Dns,
    DnsAsks,
}
