//! [`Host`]: one host of a cluster: its kernel, its node agent, and whether its cable is plugged.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::kubernetes::{EndpointSlice, Node, Service};
use api::time::Instant;
use api::{
    ClusterPeer, ClusterRoutingPolicy, LocalCluster, RoutingPolicy, ServiceExport, ServiceImport, TunnelGateway,
};
use kernel_core::{DeviceName, difference};
use node_core::{Input, NodeCore, ObjectChange};

use crate::follower::Follower;
use crate::kernel::Kernel;
use crate::object::{Held, Object};
use crate::objects::Change;
use crate::probing::Askings;

/// How often the agent compares everything, and how soon after a refusal of the kernel, in microseconds.
const RESYNC: u64 = 60_000_000;
const RETRY: u64 = 100_000;

pub(crate) struct Host {
    pub(crate) name: String,
    /// Its own address inside the cluster.
    pub(crate) address: IpAddr,
    pub(crate) is_unplugged: bool,
    pub(crate) kernel: Kernel,
    pub(crate) follower: Follower,
    pub(crate) agent: Option<Agent>,
    pub(crate) wakes_at: u64,
    pub(crate) asks_at: u64,
    pub(crate) askings: Askings,
}

/// The node agent process.
pub(crate) struct Agent {
    pub(crate) core: NodeCore,
    /// When it was started, microseconds of the world.
    pub(crate) started: u64,
    is_told: bool,
    look_at: u64,
}

impl Host {
    pub(crate) fn new(name: String, address: IpAddr) -> Self {
        let devices = ["lo", "eth0"].iter().filter_map(|name| DeviceName::new(name).ok()).collect();
        Self {
            name,
            address,
            is_unplugged: false,
            kernel: Kernel { devices, ..Kernel::default() },
            follower: Follower::default(),
            agent: None,
            wakes_at: u64::MAX,
            asks_at: u64::MAX,
            askings: Askings::new(),
        }
    }

    /// SIGKILL: what the agent put into the kernel stays.
    pub(crate) fn stop_agent(&mut self) {
        self.agent = None;
        self.follower.is_connected = false;
        self.wakes_at = u64::MAX;
        self.asks_at = u64::MAX;
    }

    pub(crate) fn start_agent(&mut self, known: Option<Vec<Object>>, world: u64, now: Instant) {
        self.stop_agent();
        self.askings.clear();
        let core = NodeCore::new(&self.name, now);
        self.agent = Some(Agent { core, started: world, is_told: false, look_at: 0 });
        self.tell(Input::Devices(self.kernel.devices.clone()), now);
        if let Some(known) = known {
            self.take_all(&known, now);
        }
    }

    pub(crate) fn tell(&mut self, input: Input, now: Instant) {
        if let Some(agent) = &mut self.agent {
            agent.core.take(input, now);
        }
    }

    pub(crate) fn take_all(&mut self, all: &[Object], now: Instant) {
        let Some(agent) = &mut self.agent else { return };
        macro_rules! reset {
            ($($input:ident: $kind:ty),+ $(,)?) => { $({
                let of_kind: Vec<$kind> = all.iter().filter_map(Held::of).cloned().collect();
                agent.core.take(Input::$input(ObjectChange::Reset(of_kind)), now);
            })+ };
        }
        reset!(
            LocalClusters: LocalCluster,
            ClusterPeers: ClusterPeer,
            TunnelGateways: TunnelGateway,
            Nodes: Node,
            Services: Service,
            ServiceExports: ServiceExport,
            ServiceImports: ServiceImport,
            EndpointSlices: EndpointSlice,
            RoutingPolicies: RoutingPolicy,
            ClusterRoutingPolicies: ClusterRoutingPolicy,
        );
        agent.is_told = true;
    }

    pub(crate) fn take(&mut self, change: &Change, now: Instant) {
        macro_rules! input {
            ($step:ident, $object:expr) => {
                match $object.clone() {
                    Object::LocalCluster(object) => Input::LocalClusters(ObjectChange::$step(*object)),
                    Object::ClusterPeer(object) => Input::ClusterPeers(ObjectChange::$step(*object)),
                    Object::TunnelGateway(object) => Input::TunnelGateways(ObjectChange::$step(*object)),
                    Object::Node(object) => Input::Nodes(ObjectChange::$step(*object)),
                    Object::Service(object) => Input::Services(ObjectChange::$step(*object)),
                    Object::ServiceExport(object) => Input::ServiceExports(ObjectChange::$step(*object)),
                    Object::ServiceImport(object) => Input::ServiceImports(ObjectChange::$step(*object)),
                    Object::EndpointSlice(object) => Input::EndpointSlices(ObjectChange::$step(*object)),
                    Object::RoutingPolicy(object) => Input::RoutingPolicies(ObjectChange::$step(*object)),
                    Object::ClusterRoutingPolicy(object) => Input::ClusterRoutingPolicies(ObjectChange::$step(*object)),
                    Object::ClusterMember(_) | Object::Namespace(_) => return,
                }
            };
        }
        let input = match change {
            Change::Applied(object) => input!(Applied, object),
            Change::Deleted(object) => input!(Deleted, object),
        };
        self.tell(input, now);
    }

    /// A gateway of this host made its device, or died with it.
    pub(crate) fn device(&mut self, name: &str, is_there: bool, now: Instant) {
        let Ok(device) = DeviceName::new(name) else { return };
        if is_there {
            self.kernel.devices.insert(device);
        } else {
            self.kernel.lose(&device);
        }
        self.devices_changed(now);
    }

    fn devices_changed(&mut self, now: Instant) {
        let devices: BTreeSet<DeviceName> = self.kernel.devices.clone();
        self.tell(Input::Devices(devices), now);
        if let Some(agent) = &mut self.agent {
            agent.look_at = 0;
        }
    }

    /// Brings the kernel to what is wanted now, as the agent does (node/src/owner.rs). Says what the kernel refused.
    pub(crate) fn settle(&mut self, world: u64, now: Instant) -> Vec<String> {
        let Some(agent) = self.agent.as_mut().filter(|agent| agent.is_told) else { return Vec::new() };
        let delta = agent.core.delta(now);
        let due = world >= agent.look_at;
        let changes = if due || delta.whole {
            agent.look_at = world + RESYNC;
            difference(&agent.core.wanted(), &self.kernel.state)
        } else {
            difference(&delta.after, &delta.before)
        };
        let devices = self.kernel.devices.len();
        let refused: Vec<String> = changes
            .iter()
            .filter(|change| !self.kernel.apply(change))
            .map(|change| format!("{}'s kernel refuses {change:?}", self.name))
            .collect();
        if !refused.is_empty() {
            agent.look_at = world + RETRY;
        }
        if self.kernel.devices.len() != devices {
            self.devices_changed(now);
        }
        refused
    }

    /// When the agent has something to do though nothing is told, by its own clock.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.agent.as_ref().and_then(|agent| agent.core.next_look())
    }

    pub(crate) fn look_at(&self) -> u64 {
        self.agent.as_ref().filter(|agent| agent.is_told).map_or(u64::MAX, |agent| agent.look_at)
    }
}
