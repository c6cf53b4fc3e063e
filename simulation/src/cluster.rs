//! [`Cluster`]: one cluster with all its parts.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use api::time::{Instant, WallTime};
use controller_core::engine::NodeAgent;

use crate::controller::{Controller, Now};
use crate::gateway::Gateway;
use crate::happening::Order;
use crate::host::Host;
use crate::lease::LeaseShelf;
use crate::names::Names;
use crate::objects::Objects;
use crate::process::StreamKey;
use crate::replicas::Sleeper;
use crate::shape::Shape;
use crate::site;
use crate::stream::End;

/// What every wall clock shows when a world begins: some day in 2026.
const FIRST_DAY: u64 = 1_790_000_000_000;

pub(crate) struct Cluster {
    pub(crate) place: usize,
    pub(crate) shape: Shape,
    pub(crate) objects: Objects,
    /// The replica that agents and gateways reach.
    pub(crate) controller: Controller,
    /// The one they reached before, until it is taken away.
    pub(crate) sleeper: Option<Sleeper>,
    pub(crate) lease: LeaseShelf,
    /// The controller is to fall asleep for so many seconds.
    pub(crate) drowsy: Option<u64>,
    pub(crate) gateways: Vec<Gateway>,
    /// The gateways' hosts first, by slot; DNS and the controller live on the last.
    pub(crate) hosts: Vec<Host>,
    pub(crate) names: Names,
    /// Control connections that end at a gateway of this cluster.
    pub(crate) ends: BTreeMap<StreamKey, End>,
    /// Where the datagrams of each gateway's lanes leave now.
    pub(crate) outside: Vec<Vec<SocketAddr>>,
    /// How far its monotonic clocks are ahead of the world, microseconds.
    ahead: u64,
    /// How far its wall clock is ahead, milliseconds.
    pub(crate) wall_ahead: i64,
    pub(crate) ticks_at: u64,
    pub(crate) next_port: u16,
    /// When the next call to a peer may be made, and the pause after that one, by slot and peer.
    pub(crate) calls: BTreeMap<(u16, String), (u64, u64)>,
    /// How much of the log of objects the oracle has judged.
    pub(crate) judged: usize,
    /// What its operator ordered and the controller has not done yet; `true` takes it back.
    pub(crate) orders: VecDeque<(Order, bool)>,
}

impl Cluster {
    pub(crate) fn new(place: usize, shape: Shape, ahead: u64) -> Self {
        let Shape { gateways, lanes, .. } = shape;
        Self {
            place,
            shape,
            objects: Objects::default(),
            controller: Controller::new(place, shape),
            sleeper: None,
            lease: LeaseShelf::default(),
            drowsy: None,
            gateways: (0..gateways)
                .map(|slot| {
                    let secrets = (0..lanes).map(|lane| site::secret(place, slot, lane)).collect();
                    Gateway::new(slot, usize::from(slot), secrets)
                })
                .collect(),
            hosts: (0..shape.hosts())
                .map(|host| Host::new(site::host_name(place, host), site::host_address(place, host, shape)))
                .collect(),
            names: Names::new(),
            ends: BTreeMap::new(),
            outside: (0..gateways)
                .map(|slot| (0..lanes).map(|lane| site::outside(place, slot, lane)).collect())
                .collect(),
            ahead,
            wall_ahead: 0,
            ticks_at: 0,
            next_port: 1024,
            calls: BTreeMap::new(),
            judged: 0,
            orders: VecDeque::new(),
        }
    }

    pub(crate) fn now(&self, world: u64) -> Now {
        let millis = FIRST_DAY.saturating_add(world / 1000);
        Now {
            world,
            instant: Instant::from_micros(world + self.ahead),
            wall: WallTime::from_millis(millis.saturating_add_signed(self.wall_ahead)),
        }
    }

    /// A reading of this cluster's clock as a time of the world.
    pub(crate) fn to_world(&self, at: Instant) -> u64 {
        at.as_micros().saturating_sub(self.ahead)
    }

    /// The host that DNS and the controller live on.
    pub(crate) fn last_host(&self) -> usize {
        self.hosts.len() - 1
    }

    pub(crate) fn host_at(&self, address: IpAddr) -> Option<usize> {
        self.hosts.iter().position(|host| host.address == address)
    }

    /// Whether packets pass between two hosts.
    pub(crate) fn joins(&self, one: usize, other: usize) -> bool {
        one == other || !(self.hosts[one].is_unplugged || self.hosts[other].is_unplugged)
    }

    /// What controllers know of the agent on a host that came or went.
    pub(crate) fn agent(&self, host: usize, connected: bool, since: WallTime) -> NodeAgent {
        NodeAgent {
            connected,
            since,
            addresses: vec![self.hosts[host].address.to_string()],
            pod_prefixes: site::pod_prefixes(self.place, host, self.shape),
        }
    }

    /// Whether the feed can reach a part on this host.
    pub(crate) fn feeds(&self, host: usize) -> bool {
        self.controller.process.is_some() && self.joins(host, self.last_host())
    }
}
