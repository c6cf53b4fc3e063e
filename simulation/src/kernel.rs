//! [`Kernel`]: a tiny model of what a host's kernel does with what the node agent puts into it: which way a packet
//! goes, which endpoint a connection gets, what the filter lets pass. It takes things back as the real one does: next
//! hops and routes go with their device.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gateway_core::packet::{Flow, Intent};
use kernel_core::{
    Backend, Change, DeviceName, ForwardingKey, Frontend, NeighbourKey, Nexthop, Protocol, Route, RouteTable, Selector,
    Service, State, Target,
};
use routing::slots::stable_hash;

/// Where a packet goes from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Inside VXLAN to the host with this address.
    Vxlan(IpAddr),
    Tunnel(DeviceName),
    /// Dropped, as wanted.
    Blackhole,
    /// Sent, and there is nobody: a neighbour or a forwarding entry is missing.
    Lost(&'static str),
    /// None of our rules knows the destination: the host's other routes decide, and what is not of this cluster leaves
    /// in clear.
    Elsewhere,
}

/// Why a packet is not let in.
pub(crate) type Refusal = &'static str;

#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) state: State,
    /// Devices that are there and up, ours among them.
    pub(crate) devices: BTreeSet<DeviceName>,
}

impl Kernel {
    /// Takes one step; false when the kernel refuses it.
    pub(crate) fn apply(&mut self, change: &Change) -> bool {
        let state = &mut self.state;
        match change.clone() {
            Change::SetTable(table) => drop(state.table.replace(table)),
            Change::RemoveTable => {
                state.table = None;
                state.sets = kernel_core::Sets::default();
                state.services.clear();
            }
            Change::AddElement(element) => drop(state.sets.insert(element)),
            Change::RemoveElement(element) => drop(state.sets.remove(&element)),
            Change::SetService { frontend, after, .. } => set(&mut state.services, frontend, after),
            Change::ForgetFlows { .. } => {}
            Change::SetSetting(setting, value) => set(&mut state.settings, setting, Some(value)),
            Change::RestoreSetting(setting) => set(&mut state.settings, setting, None),
            Change::AddLink(name, vxlan) => {
                self.devices.insert(name.clone());
                set(&mut state.links, name, Some(vxlan));
            }
            Change::SetMtu(name, mtu) => match state.links.get_mut(&name) {
                Some(link) => link.mtu = mtu,
                None => return false,
            },
            Change::RemoveLink(name) => self.lose(&name),
            Change::AddAddress(address) => drop(state.addresses.insert(address)),
            Change::RemoveAddress(address) => drop(state.addresses.remove(&address)),
            Change::SetNeighbour(key, mac) => set(&mut state.neighbours, key, Some(mac)),
            Change::RemoveNeighbour(key) => set(&mut state.neighbours, key, None),
            Change::SetForwarding(key, address) => set(&mut state.forwarding, key, Some(address)),
            Change::RemoveForwarding(key) => set(&mut state.forwarding, key, None),
            Change::SetNexthop(id, nexthop) => {
                if !self.devices.contains(&nexthop.device) {
                    return false;
                }
                state.nexthops.insert(id, nexthop);
            }
            Change::RemoveNexthop(id) => {
                state.nexthops.remove(&id);
                self.forget_what_leads_nowhere();
            }
            Change::SetGroup(id, group) => {
                if group.members().keys().any(|member| !state.nexthops.contains_key(member)) {
                    return false;
                }
                state.groups.insert(id, group);
            }
            Change::RemoveGroup(id) => {
                state.groups.remove(&id);
                self.forget_what_leads_nowhere();
            }
            Change::SetRoute(key, route) => {
                if !leads_somewhere(state, &self.devices, &route) {
                    return false;
                }
                state.routes.insert(key, route);
            }
            Change::RemoveRoute(key) => drop(state.routes.remove(&key)),
            Change::AddRule(rule) => drop(state.rules.insert(rule)),
            Change::RemoveRule(rule) => drop(state.rules.remove(&rule)),
        }
        true
    }

    /// A device goes, and takes along what leaned on it.
    pub(crate) fn lose(&mut self, device: &DeviceName) {
        self.devices.remove(device);
        let state = &mut self.state;
        state.links.remove(device);
        state.addresses.retain(|address| address.device != *device);
        state.neighbours.retain(|key, _| key.device != *device);
        state.forwarding.retain(|key, _| key.device != *device);
        state.nexthops.retain(|_, nexthop| nexthop.device != *device);
        self.forget_what_leads_nowhere();
    }

    /// Groups lose members that are gone, and go with the last one; routes go with their target.
    fn forget_what_leads_nowhere(&mut self) {
        let state = &mut self.state;
        let nexthops = &state.nexthops;
        let groups = std::mem::take(&mut state.groups);
        state.groups = groups
            .into_iter()
            .filter_map(|(id, group)| {
                let left = group.members().iter().filter(|(member, _)| nexthops.contains_key(member));
                let left = left.map(|(member, weight)| (*member, *weight)).collect();
                Some((id, kernel_core::Group::new(left).ok()?))
            })
            .collect();
        let routes = std::mem::take(&mut state.routes);
        state.routes = routes.into_iter().filter(|(_, route)| leads_somewhere(state, &self.devices, route)).collect();
    }

    /// Which way a packet goes that arrived by `device`, or began on this host.
    pub(crate) fn route(&self, flow: &Flow, device: Option<&DeviceName>) -> Way {
        let mut rules: Vec<_> = self.state.rules.iter().collect();
        rules.sort_by_key(|rule| rule.priority);
        for rule in rules {
            let asked = kernel_core::Family::of(flow.destination) == rule.family
                && match &rule.selector {
                    Selector::Everything | Selector::NotMarked { .. } => true,
                    Selector::From(from) => Some(from) == device,
                };
            if let Some(route) = asked.then(|| self.lookup(rule.table(), flow.destination)).flatten() {
                return self.follow(route, flow);
            }
        }
        Way::Elsewhere
    }

    /// The longest prefix, and of equal ones the best metric.
    fn lookup(&self, table: RouteTable, destination: IpAddr) -> Option<&Route> {
        let fits =
            self.state.routes.iter().filter(|(key, _)| key.table == table && key.destination.contains(&destination));
        let best = fits.max_by_key(|(key, _)| (key.destination.prefix_len(), u32::MAX - key.metric));
        best.map(|(_, route)| route)
    }

    fn follow(&self, route: &Route, flow: &Flow) -> Way {
        let state = &self.state;
        match &route.target {
            Target::Blackhole => Way::Blackhole,
            Target::Device { device, via } => self.by_device(device, *via),
            Target::Nexthop(id) => match state.nexthops.get(id) {
                Some(Nexthop { device, via, .. }) => self.by_device(device, *via),
                None => Way::Lost("the next hop is gone"),
            },
            Target::Group(id) => {
                let Some(group) = state.groups.get(id) else { return Way::Lost("the group is gone") };
                let whole: u64 = group.members().values().map(|weight| u64::from(*weight)).sum();
                let hash = stable_hash(&(flow.source, flow.destination, flow.source_port, flow.destination_port));
                let mut place = hash % whole.max(1);
                for (member, weight) in group.members() {
                    if place < u64::from(*weight) {
                        let Some(Nexthop { device, via, .. }) = state.nexthops.get(member) else { break };
                        return self.by_device(device, *via);
                    }
                    place -= u64::from(*weight);
                }
                Way::Lost("the group has no member")
            }
        }
    }

    fn by_device(&self, device: &DeviceName, via: Option<IpAddr>) -> Way {
        if !self.devices.contains(device) {
            return Way::Lost("the device is gone");
        }
        if !self.state.links.contains_key(device) {
            return Way::Tunnel(device.clone());
        }
        let Some(address) = via else { return Way::Lost("nobody lives behind the VXLAN device itself") };
        let neighbour = NeighbourKey { device: device.clone(), address };
        let Some(mac) = self.state.neighbours.get(&neighbour) else {
            return Way::Lost("the next hop has no neighbour");
        };
        let forwarding = ForwardingKey { device: device.clone(), mac: *mac };
        match self.state.forwarding.get(&forwarding) {
            Some(host) => Way::Vxlan(*host),
            None => Way::Lost("the neighbour is behind no host"),
        }
    }

    /// What of other clusters' packets is not let through or in. `ends_here`: the destination lives on this host.
    pub(crate) fn refuses(
        &self,
        flow: &Flow,
        intent: Intent,
        device: Option<&DeviceName>,
        ends_here: bool,
    ) -> Option<Refusal> {
        let State { table, sets, .. } = &self.state;
        table.as_ref()?;
        let from = |prefixes: &BTreeSet<ipnet::IpNet>| prefixes.iter().any(|net| net.contains(&flow.source));
        if device.is_some_and(|device| sets.tunnels.contains(device))
            && !from(&sets.remote)
            && !from(&sets.local)
            && !from(&sets.control)
        {
            return Some("ForeignSource");
        }
        // A gateway host does not track what only passes through.
        if !ends_here || !from(&sets.remote) || intent != Intent::Connect {
            return None;
        }
        let admitted = Protocol::from_number(flow.protocol).is_some_and(|protocol| {
            let exported = kernel_core::Exported { address: flow.destination, protocol, port: flow.destination_port };
            sets.exported.contains(&exported)
        });
        (!admitted).then_some("Unexported")
    }

    /// The endpoint a new connection gets. The outer `None`: no such service; the inner: it has no endpoint.
    pub(crate) fn choose(&self, frontend: &Frontend, turn: u64) -> Option<Option<Backend>> {
        let service: &Service = self.state.services.get(frontend)?;
        let slots = service.slots();
        if slots.is_empty() {
            return Some(None);
        }
        Some(slots.get((turn % slots.len() as u64) as usize).copied())
    }
}

fn leads_somewhere(state: &State, devices: &BTreeSet<DeviceName>, route: &Route) -> bool {
    match &route.target {
        Target::Blackhole => true,
        Target::Device { device, .. } => devices.contains(device),
        Target::Nexthop(id) => state.nexthops.contains_key(id),
        Target::Group(id) => state.groups.contains_key(id),
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}
