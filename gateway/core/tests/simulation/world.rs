//! Three clusters joined by a pretend network, one line of time, and an oracle that watches what is delivered.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use api::ClusterId;
use api::time::Instant;
use gateway_core::packet::Packet;
use gateway_core::{EventKind, OurGateway, PathState, PeerCluster, PeerGateway, PeerLane, Standing, Topology};

use crate::gateway::{Gateway, Leaving, clock};
use crate::packets;
use crate::pretend::public_key;
use crate::random::Random;

pub(crate) const NAMES: [&str; 3] = ["amber", "birch", "cedar"];
pub(crate) const AMBER: usize = 0;
pub(crate) const BIRCH: usize = 1;
pub(crate) const CEDAR: usize = 2;
/// cedar's address is translated: others can only answer where it called from.
pub(crate) const LANES: [u8; 3] = [2, 1, 2];
const MTU: u16 = 1380;
/// What a pretend session adds: header and tag.
const SEALED_LONGER: usize = 32;

/// How the network treats packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) loss_permille: u64,
    pub(crate) duplicate_permille: u64,
    pub(crate) delay: Duration,
    /// A packet takes up to this much longer, and so may overtake another.
    pub(crate) jitter: Duration,
}

impl Default for Weather {
    fn default() -> Self {
        let (delay, jitter) = (Duration::from_millis(5), Duration::from_millis(3));
        Self { loss_permille: 0, duplicate_permille: 0, delay, jitter }
    }
}

#[derive(Debug)]
struct Flying {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Node {
    gateway: Gateway,
    topology: Topology,
    /// The private keys of each lane.
    secrets: Vec<Vec<u64>>,
    /// What its clock shows beyond the world's.
    ahead: Duration,
    /// Lane sockets as the world sees them.
    outside: Vec<SocketAddr>,
    /// How many of its events are in the story.
    told: usize,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) random: Random,
    pub(crate) weather: Weather,
    nodes: Vec<Node>,
    /// `blocked[a][b]`: nothing gets from a to b.
    blocked: [[bool; 3]; 3],
    /// `widest[a][b]`: the largest datagram that gets from a to b. Larger ones vanish without a word.
    widest: [[usize; 3]; 3],
    flying: BTreeMap<(Duration, u64), Flying>,
    launched: u64,
    /// Datagrams a stranger has seen pass and may send again.
    overheard: Vec<Flying>,
    replayed_initiations: usize,
    /// What was sent inside: from which cluster to which; `None` for what must never arrive.
    sent: BTreeMap<u64, Option<(usize, usize)>>,
    arrived: BTreeSet<u64>,
    /// What else was delivered, and where.
    delivered: Vec<(usize, Vec<u8>)>,
    pub(crate) violations: Vec<String>,
    pub(crate) story: String,
    chatter: bool,
    next_chatter: Duration,
}

/// An address of a cluster's pod, in either family.
pub(crate) fn pod(cluster: usize, ipv6: bool) -> IpAddr {
    let number = cluster + 1;
    if ipv6 { format!("fd00:{number}::5") } else { format!("10.{number}.0.5") }.parse().unwrap()
}

pub(crate) fn stranger() -> SocketAddr {
    "203.0.113.66:6666".parse().unwrap()
}

pub(crate) fn secret(cluster: usize, lane: usize) -> u64 {
    1_000_003 * (cluster as u64 + 1) + 7919 * (lane as u64 + 1)
}

fn written_endpoint(cluster: usize, lane: usize) -> SocketAddr {
    format!("192.0.2.{}:{}", cluster + 1, 51820 + lane).parse().unwrap()
}

pub(crate) fn topology(of: usize) -> Topology {
    let id = |cluster: usize| ClusterId::new(NAMES[cluster]).unwrap();
    let control = |cluster: usize| format!("fdcc:{}::1", cluster + 1).parse().unwrap();
    let prefixes = |cluster: usize| {
        let number = cluster + 1;
        [format!("10.{number}.0.0/16"), format!("fd00:{number}::/32")].map(|text| text.parse().unwrap()).to_vec()
    };
    let lane = |cluster: usize, lane: usize| PeerLane {
        public_key: public_key(secret(cluster, lane)),
        next_key: None,
        preshared_key: None,
        configured: [written_endpoint(cluster, lane)].into(),
        learned: Vec::new(),
    };
    let peer = |cluster: usize| PeerCluster {
        id: id(cluster),
        prefixes: prefixes(cluster),
        translations: Vec::new(),
        standing: Standing::Active,
        gateways: [PeerGateway {
            slot: 0,
            control_address: Some(control(cluster)),
            lanes: (0..usize::from(LANES[cluster])).map(|number| lane(cluster, number)).collect(),
        }]
        .into(),
    };
    let ours = OurGateway {
        cluster: id(of),
        slot: 0,
        lanes: (0..usize::from(LANES[of])).map(|lane| public_key(secret(of, lane)).into()).collect(),
        control_address: control(of),
        prefixes: prefixes(of),
        inner_mtu: MTU,
    };
    Topology { ours, peers: (0..3).filter(|other| *other != of).map(peer).collect() }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let start = Duration::from_secs(1000);
        let nodes = (0..3)
            .map(|cluster| {
                let ahead = Duration::from_millis(random.below(1_000_000_000));
                let incarnation = random.next();
                let outside = (0..usize::from(LANES[cluster])).map(|lane| written_endpoint(cluster, lane)).collect();
                let (topology, secrets) = (topology(cluster), first_secrets(cluster));
                let gateway = Gateway::start(topology.clone(), &secrets, incarnation, clock(start + ahead));
                Node { gateway, topology, secrets, ahead, outside, told: 0 }
            })
            .collect();
        Self {
            now: start,
            random,
            weather: Weather::default(),
            nodes,
            blocked: [[false; 3]; 3],
            widest: [[usize::MAX; 3]; 3],
            flying: BTreeMap::new(),
            launched: 0,
            overheard: Vec::new(),
            replayed_initiations: 0,
            sent: BTreeMap::new(),
            arrived: BTreeSet::new(),
            delivered: Vec::new(),
            violations: Vec::new(),
            story: String::new(),
            chatter: false,
            next_chatter: start,
        }
    }

    /// A world in which every path has come up.
    pub(crate) fn joined(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.run(Duration::from_secs(3));
        assert!(world.all_up(), "{}", world.describe());
        world
    }

    pub(crate) fn tell(&mut self, what: impl AsRef<str>) {
        let _ = writeln!(self.story, "{:>9.3} s  {}", self.now.as_secs_f64() - 1000.0, what.as_ref());
    }

    fn tell_events(&mut self, cluster: usize) {
        let node = &mut self.nodes[cluster];
        let news = node.gateway.events.get(node.told..).unwrap_or_default();
        let lines: Vec<String> = news.iter().map(|event| format!("  {}: {event}", NAMES[cluster])).collect();
        node.told = node.gateway.events.len();
        lines.iter().for_each(|line| self.tell(line));
    }

    pub(crate) fn gateway(&mut self, cluster: usize) -> &mut Gateway {
        &mut self.nodes[cluster].gateway
    }

    pub(crate) fn time_at(&self, cluster: usize) -> Instant {
        clock(self.now + self.nodes[cluster].ahead)
    }

    // Things that happen.

    pub(crate) fn block(&mut self, from: usize, to: usize) {
        self.tell(format!("nothing gets from {} to {}", NAMES[from], NAMES[to]));
        self.blocked[from][to] = true;
    }

    /// From now on inner packets of at most `mtu` bytes get from one cluster to another.
    pub(crate) fn narrow(&mut self, from: usize, to: usize, mtu: usize) {
        self.tell(format!("{} to {} carries {mtu} bytes", NAMES[from], NAMES[to]));
        self.widest[from][to] = mtu + SEALED_LONGER;
    }

    /// What a gateway tells its nodes of another cluster.
    pub(crate) fn mtu(&self, from: usize, to: usize) -> u16 {
        let report = self.nodes[from].gateway.paths.health_report(self.time_at(from));
        report.peers.iter().find(|peer| peer.cluster.as_str() == NAMES[to]).unwrap().mtu
    }

    pub(crate) fn heal(&mut self) {
        self.tell("the network is whole");
        self.blocked = [[false; 3]; 3];
        self.weather = Weather::default();
    }

    /// SIGKILL and a new start: all sessions are gone, keys and clock stay.
    pub(crate) fn restart(&mut self, cluster: usize) {
        self.tell(format!("{} restarts", NAMES[cluster]));
        let now = self.time_at(cluster);
        let incarnation = self.random.next();
        let node = &mut self.nodes[cluster];
        node.told = 0;
        node.gateway = Gateway::start(node.topology.clone(), &node.secrets, incarnation, now);
    }

    /// A gateway is given other keys, of its own or of others.
    pub(crate) fn configure(&mut self, cluster: usize, topology: Topology, secrets: Vec<Vec<u64>>) {
        let now = self.time_at(cluster);
        let node = &mut self.nodes[cluster];
        node.gateway.sessions.iter_mut().zip(&secrets).for_each(|(lane, secrets)| lane.secrets.clone_from(secrets));
        node.gateway.reconfigure(topology.clone(), now);
        (node.topology, node.secrets) = (topology, secrets);
    }

    /// The translator before cedar forgets its ports and takes others.
    pub(crate) fn rebind(&mut self) {
        self.tell("cedar's translator takes new ports");
        for (lane, address) in (0..).zip(&mut self.nodes[CEDAR].outside) {
            // Two lanes never get one port.
            let port = 20000 + 2 * self.random.below(20000) as u16 + lane;
            *address = SocketAddr::new("198.51.100.3".parse().unwrap(), port);
        }
    }

    /// A machine was asleep.
    pub(crate) fn jump(&mut self, cluster: usize, by: Duration) {
        self.tell(format!("{}'s clock jumps by {} s", NAMES[cluster], by.as_secs()));
        self.nodes[cluster].ahead += by;
    }

    /// Packets between random pods from now on.
    pub(crate) fn chat(&mut self) {
        self.chatter = true;
        self.next_chatter = self.now;
    }

    /// A pod sends a UDP packet to another cluster's; gives its number.
    pub(crate) fn send(&mut self, from: usize, to: usize, ipv6: bool) -> u64 {
        let number = self.sent.len() as u64 + 1;
        self.sent.insert(number, Some((from, to)));
        let packet = packets::udp(pod(from, ipv6), pod(to, ipv6), 4001, &number.to_be_bytes());
        self.inject(from, &packet);
        number
    }

    /// A packet comes out of a cluster into its gateway's first lane.
    pub(crate) fn inject(&mut self, from: usize, packet: &[u8]) {
        let now = self.time_at(from);
        let leaving = self.nodes[from].gateway.forward(0, &[packet.to_vec()], now);
        self.launch(from, leaving);
    }

    /// Whether a packet from one cluster reaches another.
    pub(crate) fn passes(&mut self, from: usize, to: usize, packet: &[u8]) -> bool {
        self.delivered.clear();
        self.inject(from, packet);
        self.run(Duration::from_millis(30));
        self.delivered.iter().any(|(cluster, bytes)| *cluster == to && bytes == packet)
    }

    /// A gateway that went bad sends what it should not; it must not arrive.
    pub(crate) fn cheat(&mut self, from: usize, source: IpAddr, to: usize) {
        self.tell(format!("{} cheats: a packet from {source} to {}", NAMES[from], NAMES[to]));
        let number = self.sent.len() as u64 + 1;
        self.sent.insert(number, None);
        let packet = packets::udp(source, pod(to, source.is_ipv6()), 4001, &number.to_be_bytes());
        let now = self.time_at(from);
        let id = ClusterId::new(NAMES[to]).unwrap();
        let node = &mut self.nodes[from].gateway;
        let links: Vec<_> = node.paths.links().filter(|link| link.cluster == id).map(|link| link.id).collect();
        for link in links {
            let leaving = self.nodes[from].gateway.seal_unchecked(link, &packet, now);
            self.launch(from, leaving);
        }
    }

    /// A stranger sends noise, and what it overheard, whole and damaged.
    pub(crate) fn disturb(&mut self) {
        self.tell("a stranger sends noise and replays");
        for _ in 0..20 {
            let to = self.nodes[self.random.below(3) as usize].outside[0];
            let len = self.random.below(200) as usize;
            let mut noise: Vec<u8> = (0..len).map(|_| self.random.next() as u8).collect();
            if let Some(head) = noise.get_mut(..4) {
                head.copy_from_slice(&[1 + self.random.below(4) as u8, 0, 0, 0]);
            }
            self.fly(stranger(), to, noise);
        }
        for _ in 0..20.min(self.overheard.len()) {
            let chosen = self.random.below(self.overheard.len() as u64) as usize;
            let (to, mut bytes) = (self.overheard[chosen].to, self.overheard[chosen].bytes.clone());
            self.replayed_initiations += usize::from(bytes.len() == 148);
            if self.random.permille(500) && !bytes.is_empty() {
                let position = self.random.below(bytes.len() as u64) as usize;
                bytes[position] ^= 1 << self.random.below(8);
            }
            self.fly(stranger(), to, bytes);
        }
    }

    // Time.

    pub(crate) fn run(&mut self, by: Duration) {
        let end = self.now + by;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until `done`, for `limit` at most. Gives how long it took.
    pub(crate) fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let begin = self.now;
        while !done(self) {
            if !self.step(begin + limit) {
                return None;
            }
        }
        Some(self.now - begin)
    }

    /// Lets the next thing happen, unless that is after `end`.
    fn step(&mut self, end: Duration) -> bool {
        let deadline = |node: &Node| {
            let at = Duration::from_micros(node.gateway.paths.next_deadline().as_micros());
            at.saturating_sub(node.ahead).max(self.now)
        };
        let (who, wake) = self.nodes.iter().map(deadline).enumerate().min_by_key(|(_, at)| *at).unwrap();
        let landing = self.flying.keys().next().copied();
        let chatter = if self.chatter { self.next_chatter } else { Duration::MAX };
        let next = wake.min(chatter).min(landing.map_or(Duration::MAX, |(at, _)| at));
        if next > end {
            return false;
        }
        self.now = next;
        if let Some(key) = landing.filter(|(at, _)| *at == next) {
            let flying = self.flying.remove(&key).unwrap();
            self.land(flying);
        } else if chatter == next {
            self.next_chatter += Duration::from_millis(20);
            let from = self.random.below(3) as usize;
            let to = (from + 1 + self.random.below(2) as usize) % 3;
            let ipv6 = self.random.permille(500);
            self.send(from, to, ipv6);
        } else {
            let now = self.time_at(who);
            let leaving = self.nodes[who].gateway.poll(now);
            self.launch(who, leaving);
            self.tell_events(who);
        }
        true
    }

    // The network.

    fn launch(&mut self, from: usize, leaving: Vec<Leaving>) {
        for Leaving { lane, to, bytes } in leaving {
            let source = self.nodes[from].outside[lane];
            // A restarted gateway cannot know that an initiation is an old one: WireGuard itself answers that, once, and
            // without keys nothing follows.
            if to == stranger() && !(bytes.len() == 92 && self.replayed_initiations > 0) {
                self.violations.push(format!("{} answered a stranger", NAMES[from]));
            }
            let Some((cluster, _)) = self.socket(to) else { continue };
            if bytes.len() > self.widest[from][cluster] {
                continue;
            }
            if self.blocked[from][cluster] || self.random.permille(self.weather.loss_permille) {
                continue;
            }
            if self.random.permille(self.weather.duplicate_permille) {
                self.fly(source, to, bytes.clone());
            }
            self.fly(source, to, bytes);
        }
    }

    fn fly(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let jitter = Duration::from_micros(self.random.below(self.weather.jitter.as_micros() as u64));
        self.launched += 1;
        self.flying.insert((self.now + self.weather.delay + jitter, self.launched), Flying { from, to, bytes });
    }

    fn land(&mut self, flying: Flying) {
        let Some((cluster, lane)) = self.socket(flying.to) else { return };
        // Only what has arrived is played again: who can hold a packet back and send it first may move an endpoint, by
        // WireGuard's design.
        if flying.from != stranger() && self.random.permille(10) && self.overheard.len() < 500 {
            self.overheard.push(Flying { bytes: flying.bytes.clone(), ..flying });
        }
        let now = self.time_at(cluster);
        let leaving = self.nodes[cluster].gateway.receive(lane, &[(flying.from, flying.bytes)], now);
        self.launch(cluster, leaving);
        self.tell_events(cluster);
        for packet in std::mem::take(&mut self.nodes[cluster].gateway.delivered) {
            self.judge(cluster, &packet);
        }
    }

    fn socket(&self, address: SocketAddr) -> Option<(usize, usize)> {
        let find = |node: &Node| node.outside.iter().position(|outside| *outside == address);
        self.nodes.iter().enumerate().find_map(|(cluster, node)| Some((cluster, find(node)?)))
    }

    // The oracle.

    fn judge(&mut self, cluster: usize, bytes: &[u8]) {
        let packet = Packet::parse(bytes).expect("what is delivered can be read");
        if packet.flow.destination_port != 4001 {
            self.delivered.push((cluster, bytes.to_vec()));
            return;
        }
        let number = u64::from_be_bytes(bytes[packet.transport + 8..packet.transport + 16].try_into().unwrap());
        let flow = packet.flow;
        match self.sent.get(&number) {
            Some(Some((from, to))) => {
                let (source, destination) = (flow.source, flow.destination);
                let right = cluster == *to
                    && source == pod(*from, source.is_ipv6())
                    && destination == pod(*to, destination.is_ipv6());
                if !right {
                    self.violations.push(format!("{} was given {flow}", NAMES[cluster]));
                }
            }
            Some(None) => self.violations.push(format!("{} was given the forged {flow}", NAMES[cluster])),
            None => self.violations.push(format!("{} was given {flow}, which nobody sent", NAMES[cluster])),
        }
        if !self.arrived.insert(number) {
            self.violations.push(format!("packet {number} arrived twice in {}", NAMES[cluster]));
        }
    }

    /// How many packets of pods did not arrive.
    pub(crate) fn missing(&self) -> usize {
        let meant = self.sent.iter().filter(|(_, way)| way.is_some());
        meant.filter(|(number, _)| !self.arrived.contains(number)).count()
    }

    pub(crate) fn stop_chat(&mut self) {
        self.chatter = false;
    }

    pub(crate) fn has_arrived(&self, number: u64) -> bool {
        self.arrived.contains(&number)
    }

    /// States of all links of one gateway to another cluster.
    pub(crate) fn states(&self, from: usize, to: usize) -> Vec<PathState> {
        let id = ClusterId::new(NAMES[to]).unwrap();
        let statuses = self.nodes[from].gateway.paths.statuses(self.time_at(from));
        statuses.filter(|(link, _)| link.cluster == id).map(|(_, status)| status.state).collect()
    }

    pub(crate) fn all_up(&self) -> bool {
        (0..3).all(|from| (0..3).filter(|to| *to != from).all(|to| self.is(from, to, PathState::Up)))
    }

    /// Whether all links of `from` to `to` are in this state.
    pub(crate) fn is(&self, from: usize, to: usize, state: PathState) -> bool {
        self.states(from, to).iter().all(|seen| *seen == state)
    }

    /// How often a gateway said that a path went down.
    pub(crate) fn times_down(&self, cluster: usize) -> usize {
        let down = |kind: &EventKind| matches!(kind, EventKind::PathChanged { to: PathState::Down, .. });
        self.nodes[cluster].gateway.events.iter().filter(|event| down(&event.kind)).count()
    }

    /// The whole story, for a failing test.
    pub(crate) fn describe(&self) -> String {
        let mut text = self.story.clone();
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            let _ = writeln!(text, "now {} to {}: {:?}", NAMES[from], NAMES[to], self.states(from, to));
        }
        text
    }
}

fn first_secrets(cluster: usize) -> Vec<Vec<u64>> {
    (0..usize::from(LANES[cluster])).map(|lane| vec![secret(cluster, lane)]).collect()
}
