//! [`Schedule`]: what happens in a world, and when; made up from a seed.

use crate::follower::Disk;
use crate::happening::{Happening, Order, Part};
use crate::network::Weather;
use crate::random::Random;
use crate::shape::Shape;
use crate::site::{self, Name};

/// Rounds of trouble and calm in one story.
const ROUNDS: u64 = 2;
/// Milliseconds of trouble in a round.
const TROUBLE: u64 = 6_000;
/// Milliseconds after all trouble is over until everything holds again: a path comes back within 6 s, and a call between
/// controllers is tried every 5 s at the latest.
const SETTLE: u64 = 12_000;

/// As much longer by a hub: its own paths come back first.
const BY_HUB: u64 = 8_000;
/// As much longer where a controller may have fallen asleep: one that wakes just before the other may take the Lease
/// (15 s) holds it until it is taken away, and the other looks every 2 s.
const BY_LEASE: u64 = 23_000;
/// Seconds of sleep: shorter and longer than the Lease.
const SLEEP: std::ops::Range<u64> = 3..25;

/// Clusters, and what happens to them, with milliseconds from the beginning.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub seed: u64,
    pub clusters: Vec<Shape>,
    /// The one of three clusters by which the other two reach each other, who otherwise cannot.
    pub hub: Option<usize>,
    pub happenings: Vec<(u64, Happening)>,
    /// What is broken on purpose, to show that the oracle sees it.
    pub sabotage: Option<Sabotage>,
}

/// A part that does not do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Gateways and kernels let every connection in.
    OpenFilters,
    /// Node agents are told that every peer is up, whatever the gateways measure.
    RosyHealth,
    /// Hosts lose the blackholes behind their routes.
    NoBlackholes,
    /// What operators order is taken, and stands nowhere.
    LostOrders,
    /// Hosts balance no connections of IPv6.
    OnlyIpv4,
    /// Hubs pass nothing on.
    LazyHub,
    /// Gateways say of every lane that packets pass.
    RosyLanes,
    /// Gateways forget as what they see pods that have the addresses of others.
    LostTranslations,
    /// Controllers write what they planned without another look at their Lease.
    UncheckedWriter,
}

impl Schedule {
    /// The story of a seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x005e_ed0f_5c4e_d01e);
        let count = 2 + usize::from(random.permille(500));
        let mut clusters: Vec<Shape> = (0..count).map(|_| Shape::any(&mut random)).collect();
        if random.permille(300) {
            clusters[1].pods_like = Some(0);
        }
        let hub = (count == 3 && random.permille(350)).then(|| random.below(3) as usize);
        let mut schedule = Self { seed, clusters, hub, happenings: Vec::new(), sabotage: None };
        schedule.begin(&mut random);
        let somebody_sleeps = random.permille(250);
        for round in 0..ROUNDS {
            let start = 100 + round * (TROUBLE + schedule.settle() + 1_000);
            for _ in 0..1 + random.below(7) {
                let at = start + random.below(TROUBLE);
                let happening = schedule.one(&mut random);
                schedule.happenings.push((at, happening));
            }
            if somebody_sleeps {
                schedule.lull(start + random.below(TROUBLE), &mut random);
            }
            schedule.happenings.push((start + TROUBLE, Happening::Calm));
        }
        schedule.happenings.sort_by_key(|(at, _)| *at);
        schedule
    }

    /// Milliseconds after all trouble is over until everything holds again.
    pub(crate) fn settle(&self) -> u64 {
        let sleeps = self.happenings.iter().any(|(_, happening)| matches!(happening, Happening::Sleep { .. }));
        SETTLE + if self.hub.is_some() { BY_HUB } else { 0 } + if sleeps { BY_LEASE } else { 0 }
    }

    /// The two clusters that cannot reach each other but by the hub.
    pub(crate) fn apart(&self) -> Option<(usize, usize)> {
        [(1, 2), (0, 2), (0, 1)].get(self.hub?).copied()
    }

    /// What is exported from the start.
    fn begin(&mut self, random: &mut Random) {
        for cluster in 0..self.clusters.len() {
            for service in Name::ALL {
                if !random.permille(650) {
                    continue;
                }
                for host in 0..self.hosts(cluster) {
                    if random.permille(700) {
                        let place = random.below(u64::from(site::PLACES)) as u8;
                        let ready = Some(random.permille(850));
                        self.happenings.push((0, Happening::Endpoint { cluster, service, host, place, ready }));
                    }
                }
                self.happenings.push((0, Happening::Export { cluster, service }));
            }
            for peer in (0..self.clusters.len()).filter(|peer| *peer != cluster) {
                if random.permille(300) {
                    self.happenings.push((0, Happening::Accept { cluster, peer, vault: true }));
                }
            }
        }
    }

    /// A controller falls asleep over what it has to write: an operator of its own cluster and one elsewhere see to that.
    fn lull(&mut self, at: u64, random: &mut Random) {
        let count = self.clusters.len();
        let cluster = random.below(count as u64) as usize;
        let seconds = SLEEP.start + random.below(SLEEP.end - SLEEP.start);
        let (service, peer) = (Name::ALL[random.below(4) as usize], (cluster + 1) % count);
        self.happenings.push((at, Happening::Sleep { cluster, seconds }));
        let elsewhere = match random.permille(500) {
            true => Happening::Unexport { cluster: peer, service },
            false => Happening::Export { cluster: peer, service },
        };
        self.happenings.push((at + 100 + random.below(200), elsewhere));
        let order = vec![if random.permille(500) { cluster } else { peer }];
        self.happenings.push((at + 300 + random.below(400), Happening::Policy { cluster, service, order }));
    }

    fn hosts(&self, cluster: usize) -> usize {
        self.clusters[cluster].hosts()
    }

    fn part(&self, cluster: usize, random: &mut Random) -> Part {
        match random.below(5) {
            0 | 1 => Part::Controller,
            2 => Part::Gateway(random.below(u64::from(self.clusters[cluster].gateways)) as u16),
            3 => Part::Node(random.below(self.hosts(cluster) as u64) as usize),
            _ => Part::Dns,
        }
    }

    /// Of all gateways the same lane, so that every two have one that is open.
    fn lane(&self, cluster: usize, random: &mut Random) -> Happening {
        let Shape { gateways, lanes, .. } = self.clusters[cluster];
        let slot = random.below(u64::from(gateways)) as u16;
        Happening::Lane {
            cluster,
            slot,
            lane: u16::from(self.seed.is_multiple_of(2)),
            open: lanes == 1 || random.permille(300),
        }
    }

    fn order(&self, cluster: usize, peer: usize, random: &mut Random) -> Happening {
        let order = match random.below(6) {
            0 => Order::DrainPeer(peer),
            1 | 2 => Order::BlockPeer(peer),
            3 => Order::DrainCluster,
            4 => Order::DrainGateway(random.below(u64::from(self.clusters[cluster].gateways)) as u16),
            _ => Order::DrainNode(random.below(self.hosts(cluster) as u64) as usize),
        };
        Happening::Order { cluster, order, undo: random.permille(450) }
    }

    /// One thing that may happen.
    fn one(&self, random: &mut Random) -> Happening {
        let count = self.clusters.len() as u64;
        let cluster = random.below(count) as usize;
        let peer = (cluster + 1 + random.below(count - 1) as usize) % count as usize;
        let service = Name::ALL[random.below(4) as usize];
        match random.below(34) {
            0 | 1 => Happening::Cut { from: cluster, to: peer },
            2 | 3 => Happening::Isolate { cluster },
            4 => Happening::Weather(Weather {
                loss_permille: random.below(250),
                duplicate_permille: random.below(100),
                delay: 10 + random.below(50),
                jitter: random.below(60),
            }),
            // Of two clusters one must stay where it is: who both move while nothing passes have no address left to call.
            5 => Happening::Move { cluster: 0, slot: random.below(u64::from(self.clusters[0].gateways)) as u16 },
            6..=8 => {
                let disk = [Disk::Kept, Disk::Kept, Disk::Old, Disk::Empty][random.below(4) as usize];
                Happening::Restart { cluster, part: self.part(cluster, random), disk }
            }
            9 | 10 => Happening::Kill { cluster, part: self.part(cluster, random) },
            11 => Happening::Unplug { cluster, host: random.below(self.hosts(cluster) as u64) as usize },
            12 => {
                let by = random.below(7200) as i64 - 3600;
                Happening::SetClock { cluster, by }
            }
            13 => Happening::StoreAway { cluster },
            14 => Happening::BackUp { cluster },
            15 | 16 => Happening::Export { cluster, service },
            17 | 18 => Happening::Unexport { cluster, service },
            19..=21 => {
                let host = random.below(self.hosts(cluster) as u64) as usize;
                let place = random.below(u64::from(site::PLACES)) as u8;
                let ready = [None, Some(true), Some(true), Some(false)][random.below(4) as usize];
                Happening::Endpoint { cluster, service, host, place, ready }
            }
            22 => {
                let mut order: Vec<usize> = (0..self.clusters.len()).collect();
                let turn = random.below(count) as usize;
                order.rotate_left(turn);
                order.truncate(random.below(count + 1) as usize);
                Happening::Policy { cluster, service, order }
            }
            23..=28 => self.order(cluster, peer, random),
            29..=31 => self.lane(cluster, random),
            32 => Happening::Drain { cluster, peer, drained: random.permille(600) },
            _ => Happening::Accept { cluster, peer, vault: random.permille(600) },
        }
    }
}
