//! [`Lookout`]: looks at what is ours in the kernel, from another thread than the one that changes it.

use std::collections::{BTreeMap, BTreeSet};

use kernel_core::{Setting, State};

use crate::device::Devices;
use crate::socket::{NETFILTER, ROUTE, Socket};
use crate::table::observe;
use crate::{Error, address, neighbour, nexthop, route, rule};

/// Sockets of its own: a look at ten thousand services takes long, and whoever changes the kernel does not wait for it.
pub struct Lookout {
    route: Socket,
    netfilter: Socket,
}

/// What was there while somebody looked. It is not one moment's state where something was changed meanwhile.
#[derive(Debug)]
pub struct Seen {
    pub state: State,
    /// Slot chains that exist, for [`Kernel::trust`](crate::Kernel::trust).
    pub(crate) slot_chains: BTreeSet<String>,
}

impl Lookout {
    /// Opens the sockets, in the network namespace of the calling thread: they stay there whichever thread uses them.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { route: Socket::open(ROUTE)?, netfilter: Socket::open(NETFILTER)? })
    }

    /// Everything of ours that is there now. Only who changed settings of others knows which they are:
    /// [`Kernel::settings`](crate::Kernel::settings).
    pub fn look(&mut self, settings: BTreeMap<Setting, u8>) -> Result<Seen, Error> {
        look(&mut self.route, &mut self.netfilter, settings)
    }
}

pub(crate) fn look(route: &mut Socket, netfilter: &mut Socket, settings: BTreeMap<Setting, u8>) -> Result<Seen, Error> {
    let state = State { settings, ..look_at_routing(route)? };
    let table = observe::observe(netfilter)?;
    let state = State { table: table.table, sets: table.sets, services: table.services, ..state };
    Ok(Seen { state, slot_chains: table.slot_chains.into_iter().collect() })
}

/// Everything but settings and the table.
pub(crate) fn look_at_routing(socket: &mut Socket) -> Result<State, Error> {
    let devices = Devices::list(socket)?;
    let nexthops = nexthop::list(socket, &devices)?;
    let links = devices.iter().filter(|device| device.is_ours());
    Ok(State {
        links: links.filter_map(|link| Some((link.name.clone(), link.observed_vxlan()?))).collect(),
        addresses: address::list(socket, &devices)?.into_iter().collect(),
        neighbours: neighbour::list(socket, &devices)?,
        forwarding: neighbour::list_forwarding(socket, &devices)?,
        nexthops: nexthops.single,
        groups: nexthops.groups,
        routes: route::list(socket, &devices)?,
        rules: rule::list(socket)?,
        ..State::default()
    })
}
