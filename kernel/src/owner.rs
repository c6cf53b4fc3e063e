//! [`Kernel`]: the one owner of what is ours in the kernel of one network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kernel_core::{Change, DeviceName, Refusal, Setting, State, difference};

use crate::device::Devices;
use crate::lookout::{self, Seen};
use crate::setting::Settings;
use crate::socket::{NETFILTER, ROUTE, Socket};
use crate::table::{observe, transaction};
use crate::{
    Counted, Counter, Device, Error, Path, address, connection, device, neighbour, nexthop, path, route, rule,
};

/// What is ours in the kernel of the network namespace that the thread was in when it opened this.
pub struct Kernel {
    route: Socket,
    netfilter: Socket,
    settings: Settings,
    /// Slot chains known to exist.
    slot_chains: BTreeSet<String>,
}

/// What became of a list of changes.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Changes in force.
    pub applied: usize,
    /// Changes that are not, in the order given. All others were tried.
    pub failures: Vec<Failure>,
}

/// A change the kernel refused.
#[derive(Debug)]
pub struct Failure {
    pub change: Change,
    pub error: Error,
}

impl Kernel {
    /// Opens the sockets, in the network namespace of the calling thread: they stay there whichever thread uses them.
    /// Settings (`/proc/sys`) are those of the thread that calls [`Self::apply`], which has to be in the same one.
    ///
    /// `settings_record` is the file that keeps the old values of settings that are not ours; it is made when the first
    /// is changed, in a folder that must exist.
    pub fn open(settings_record: &std::path::Path) -> Result<Self, Error> {
        Ok(Self {
            route: Socket::open(ROUTE)?,
            netfilter: Socket::open(NETFILTER)?,
            settings: Settings::open(settings_record)?,
            slot_chains: BTreeSet::new(),
        })
    }

    /// Everything of ours that is in the kernel now. Costs the size of all of it: for the start. Later a
    /// [`Lookout`](crate::Lookout) looks beside it.
    pub fn observe(&mut self) -> Result<State, Error> {
        let settings = self.settings.list();
        let seen = lookout::look(&mut self.route, &mut self.netfilter, settings)?;
        self.trust(&seen);
        Ok(seen.state)
    }

    /// Everything of ours but the table and what is in it: few things, whatever the number of services.
    pub fn observe_routing(&mut self) -> Result<State, Error> {
        Ok(State { settings: self.settings.list(), ..lookout::look_at_routing(&mut self.route)? })
    }

    /// The settings of others that we changed, with the value each has now.
    pub fn settings(&self) -> BTreeMap<Setting, u8> {
        self.settings.list()
    }

    /// Takes what a [`Lookout`](crate::Lookout) saw for what is there. Only where nothing was applied since it began to
    /// look.
    pub fn trust(&mut self, seen: &Seen) {
        self.slot_chains.clone_from(&seen.slot_chains);
    }

    /// Applies changes in their order. One that is refused is reported, and the others go on. Neighbouring changes of
    /// the table share a transaction, of at most 2,000 elements; a service is never half changed.
    ///
    /// After a failure the kernel is not what partial states take it for (a device may have gone and taken its next hops
    /// along): observe, and apply the whole difference.
    pub fn apply(&mut self, changes: &[Change]) -> Outcome {
        let mut failed: Vec<(usize, Error)> = Vec::new();
        let mut flows = BTreeSet::new();
        let mut rest: Vec<(usize, &Change)> = Vec::new();
        let mut of_table: Vec<(usize, &Change)> = Vec::new();
        for (place, change) in changes.iter().enumerate() {
            match change {
                // Ended when all is in force, so that they cannot come back; one list serves all of them.
                Change::ForgetFlows { frontend, backend } => {
                    flows.insert((*frontend, *backend));
                    rest.push((place, change));
                }
                _ if change.is_of_table() => of_table.push((place, change)),
                _ => {
                    failed.extend(transaction::apply(&mut self.netfilter, &mut self.slot_chains, &of_table));
                    of_table.clear();
                    failed.extend(self.apply_one(change).err().map(|error| (place, error)));
                }
            }
        }
        failed.extend(transaction::apply(&mut self.netfilter, &mut self.slot_chains, &of_table));
        if !flows.is_empty()
            && let Err(error) = connection::forget(&mut self.netfilter, &flows)
        {
            failed.extend(rest.iter().map(|(place, _)| (*place, error.clone())));
        }
        failed.sort_by_key(|(place, _)| *place);
        let applied = changes.len() - failed.len();
        let failures =
            failed.into_iter().map(|(place, error)| Failure { change: changes[place].clone(), error }).collect();
        Outcome { applied, failures }
    }

    fn apply_one(&mut self, change: &Change) -> Result<(), Error> {
        let socket = &mut self.route;
        match change {
            Change::SetSetting(setting, value) => self.settings.set(setting, *value),
            Change::RestoreSetting(setting) => self.settings.restore(setting),
            Change::AddLink(name, link) => device::add(socket, name, link),
            Change::SetMtu(name, mtu) => device::set_mtu(socket, name, *mtu),
            Change::RemoveLink(name) => device::remove(socket, name),
            Change::AddAddress(wanted) => address::add(socket, wanted),
            Change::RemoveAddress(gone) => address::remove(socket, gone),
            Change::SetNeighbour(key, mac) => neighbour::set(socket, key, *mac),
            Change::RemoveNeighbour(key) => neighbour::remove(socket, key),
            Change::SetForwarding(key, remote) => neighbour::set_forwarding(socket, key, *remote),
            Change::RemoveForwarding(key) => neighbour::remove_forwarding(socket, key),
            Change::SetNexthop(id, wanted) => nexthop::set(socket, *id, wanted),
            Change::RemoveNexthop(id) => nexthop::remove(socket, id.number()),
            Change::SetGroup(id, group) => nexthop::set_group(socket, *id, group),
            Change::RemoveGroup(id) => nexthop::remove(socket, id.number()),
            Change::SetRoute(key, wanted) => route::set(socket, key, wanted),
            Change::RemoveRoute(key) => route::remove(socket, key),
            Change::AddRule(wanted) => rule::add(socket, wanted),
            Change::RemoveRule(gone) => rule::remove(socket, gone),
            Change::SetTable(_)
            | Change::RemoveTable
            | Change::AddElement(_)
            | Change::RemoveElement(_)
            | Change::SetService { .. }
            | Change::ForgetFlows { .. } => Ok(()),
        }
    }

    /// What was counted since the table was made. Empty when there is no table.
    pub fn counted(&mut self) -> Result<Counted, Error> {
        observe::counted(&mut self.netfilter)
    }

    /// What was refused since the table was made, by reason. Empty when there is no table.
    pub fn counters(&mut self) -> Result<BTreeMap<Refusal, Counter>, Error> {
        Ok(self.counted()?.refused)
    }

    /// Every device of the network namespace, ours or not.
    pub fn devices(&mut self) -> Result<Vec<Device>, Error> {
        Ok(Devices::list(&mut self.route)?.iter().cloned().collect())
    }

    /// Which way a packet of this host to that address takes now.
    pub fn path(&mut self, to: IpAddr) -> Result<Path, Error> {
        path::find_path(&mut self.route, to)
    }

    /// The device of that name, if there is one now.
    pub fn device(&mut self, name: &DeviceName) -> Result<Option<Device>, Error> {
        device::find_device(&mut self.route, name)
    }

    /// Takes away everything of ours, also what an earlier version made, and restores the settings of others. Needs no
    /// running part of Tombolo; the blackhole routes go too, so that packets for other clusters may leave in clear.
    pub fn cleanup(&mut self) -> Result<Outcome, Error> {
        let mut observed = self.observe()?;
        // All that was changed, also what reads no more.
        for setting in self.settings.changed() {
            observed.settings.entry(setting).or_default();
        }
        let outcome = self.apply(&difference(&State::default(), &observed));
        route::remove_all(&mut self.route)?;
        let devices = Devices::list(&mut self.route)?;
        for number in nexthop::list(&mut self.route, &devices)?.strange {
            nexthop::remove(&mut self.route, number)?;
        }
        Ok(outcome)
    }

    /// What a stranger with the same rights could do to our table.
    #[cfg(test)]
    pub(crate) fn tamper(&mut self, messages: Vec<crate::message::Message>) {
        transaction::send_all(&mut self.netfilter, messages);
    }

    /// Bytes of requests about the table so far.
    #[cfg(test)]
    pub(crate) fn sent_bytes(&self) -> usize {
        self.netfilter.sent
    }

    /// Family and name of all tables that are not ours.
    #[cfg(test)]
    pub(crate) fn foreign_tables(&mut self) -> Vec<String> {
        let all = crate::message::Message::new(10 << 8 | 1, 0, &[0; 4]);
        let tables = self.netfilter.dump(&all, |received| {
            let name = crate::message::attributes_after(received.payload, 4).find(|(kind, _)| *kind == 1)?;
            let family = if received.payload.first() == Some(&2) { "ip" } else { "inet" };
            Some(format!("{family} {}", crate::message::text(name.1)?))
        });
        tables.expect("tables").into_iter().filter(|table| table != "inet tombolo").collect()
    }

    /// Who opened the connections that are tracked.
    #[cfg(test)]
    pub(crate) fn tracked_sources(&mut self) -> BTreeSet<IpAddr> {
        connection::sources(&mut self.netfilter)
    }
}
