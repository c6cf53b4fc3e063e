//! The difference of two states.

use alloc::borrow::Cow;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::{
    Backend, Change, DeviceName, Element, Frontend, Group, GroupId, Nexthop, NexthopId, Protocol, Route, Service, Sets,
    State, Target,
};

/// The steps that turn `observed` into `wanted`, in an order that is safe at every step. Nothing when they are equal.
/// Both may be partial (see the crate).
///
/// 1. The table and its sets: filters stand before anything can pass. In a set, what leaves goes before what comes,
///    because intervals must not overlap; `kernel` puts both into one transaction, so that nothing slips in between.
/// 2. Links, settings, addresses, neighbours, next hops, groups, routes: each after what it leans on.
/// 3. Services: a connection is given only to endpoints that have a route.
/// 4. Rules: our table of routes is asked only when it is complete.
/// 5. What is no longer wanted, in the opposite order; settings of others are restored, the table goes last.
pub fn difference(wanted: &State, observed: &State) -> Vec<Change> {
    let (observed, recreated_links) = &surviving(wanted, observed);
    let mut changes = Vec::new();

    // A table whose sets or hooks are of another shape cannot be changed in place: it is made anew, and filled again.
    let nothing = State::default();
    let refill = match (&wanted.table, &observed.table) {
        (Some(want), Some(have)) if !want.fits(have) => {
            changes.push(Change::RemoveTable);
            true
        }
        (Some(_), None) => true,
        _ => false,
    };
    let table_observed: &State = if refill { &nothing } else { observed };
    if let Some(want) = &wanted.table
        && table_observed.table.as_ref() != Some(want)
    {
        changes.push(Change::SetTable(want.clone()));
    }
    let table_goes = wanted.table.is_none() && observed.table.is_some();
    if !table_goes {
        set_changes(&wanted.sets, &table_observed.sets, &mut changes);
    }

    changes.extend(recreated_links.iter().cloned().map(Change::RemoveLink));
    for (name, want) in &wanted.links {
        match observed.links.get(name) {
            Some(have) if have == want => {}
            Some(_) => changes.push(Change::SetMtu(name.clone(), want.mtu)),
            None => changes.push(Change::AddLink(name.clone(), want.clone())),
        }
    }
    // Some settings belong to a device of ours, and are there only with it.
    set_all(&wanted.settings, &observed.settings, &mut changes, |key, value| Change::SetSetting(key.clone(), *value));
    changes.extend(wanted.addresses.difference(&observed.addresses).cloned().map(Change::AddAddress));
    set_all(&wanted.neighbours, &observed.neighbours, &mut changes, |key, mac| Change::SetNeighbour(key.clone(), *mac));
    set_all(&wanted.forwarding, &observed.forwarding, &mut changes, |key, remote| {
        Change::SetForwarding(key.clone(), *remote)
    });
    // The kernel does not move a next hop from one family to the other.
    for (id, have) in &observed.nexthops {
        if wanted.nexthops.get(id).is_some_and(|want| want.family != have.family) {
            changes.push(Change::RemoveNexthop(*id));
        }
    }
    set_all(&wanted.nexthops, &observed.nexthops, &mut changes, |id, nexthop| Change::SetNexthop(*id, nexthop.clone()));
    set_all(&wanted.groups, &observed.groups, &mut changes, |id, group| Change::SetGroup(*id, group.clone()));
    set_all(&wanted.routes, &observed.routes, &mut changes, |key, route| Change::SetRoute(*key, route.clone()));
    if !table_goes {
        service_changes(&wanted.services, &table_observed.services, &mut changes);
    }
    changes.extend(wanted.rules.difference(&observed.rules).cloned().map(Change::AddRule));

    changes.extend(observed.rules.difference(&wanted.rules).cloned().map(Change::RemoveRule));
    remove_all(&wanted.routes, &observed.routes, &mut changes, |key| Change::RemoveRoute(*key));
    remove_all(&wanted.groups, &observed.groups, &mut changes, |id| Change::RemoveGroup(*id));
    remove_all(&wanted.nexthops, &observed.nexthops, &mut changes, |id| Change::RemoveNexthop(*id));
    remove_all(&wanted.forwarding, &observed.forwarding, &mut changes, |key| Change::RemoveForwarding(key.clone()));
    remove_all(&wanted.neighbours, &observed.neighbours, &mut changes, |key| Change::RemoveNeighbour(key.clone()));
    changes.extend(observed.addresses.difference(&wanted.addresses).cloned().map(Change::RemoveAddress));
    remove_all(&wanted.links, &observed.links, &mut changes, |name| Change::RemoveLink(name.clone()));
    remove_all(&wanted.settings, &observed.settings, &mut changes, |key| Change::RestoreSetting(key.clone()));
    if table_goes {
        changes.push(Change::RemoveTable);
    }
    changes
}

/// What of `observed` is still there once links and next hops that cannot be changed in place were taken away, and the
/// names of those links. The kernel takes along whatever leans on them.
fn surviving<'a>(wanted: &State, observed: &'a State) -> (Cow<'a, State>, Vec<DeviceName>) {
    let recreated: BTreeSet<DeviceName> = observed
        .links
        .iter()
        .filter(|(name, have)| wanted.links.get(*name).is_some_and(|want| !want.differs_only_in_mtu(have)))
        .map(|(name, _)| name.clone())
        .collect();
    let moved = |id: &NexthopId, have: &Nexthop| {
        recreated.contains(&have.device) || wanted.nexthops.get(id).is_some_and(|want| want.family != have.family)
    };
    let lost: BTreeSet<NexthopId> =
        observed.nexthops.iter().filter(|(id, have)| moved(id, have)).map(|(id, _)| *id).collect();
    if recreated.is_empty() && lost.is_empty() {
        return (Cow::Borrowed(observed), Vec::new());
    }
    let mut left = observed.clone();
    left.links.retain(|name, _| !recreated.contains(name));
    left.addresses.retain(|address| !recreated.contains(&address.device));
    left.neighbours.retain(|key, _| !recreated.contains(&key.device));
    left.forwarding.retain(|key, _| !recreated.contains(&key.device));
    // Those of the other family stay in the list: `difference` still has to take them away.
    left.nexthops.retain(|_, have| !recreated.contains(&have.device));
    let mut lost_groups = BTreeSet::new();
    left.groups = core::mem::take(&mut left.groups)
        .into_iter()
        .filter_map(|(id, group)| match without(&group, &lost) {
            Some(rest) => Some((id, rest)),
            None => {
                lost_groups.insert(id);
                None
            }
        })
        .collect();
    left.routes.retain(|_, route| !leans_on(route, &recreated, &lost, &lost_groups));
    (Cow::Owned(left), recreated.into_iter().collect())
}

fn without(group: &Group, lost: &BTreeSet<NexthopId>) -> Option<Group> {
    let members = group.members().iter().filter(|(id, _)| !lost.contains(id));
    Group::new(members.map(|(id, weight)| (*id, *weight)).collect()).ok()
}

fn leans_on(
    route: &Route,
    devices: &BTreeSet<DeviceName>,
    nexthops: &BTreeSet<NexthopId>,
    groups: &BTreeSet<GroupId>,
) -> bool {
    match &route.target {
        Target::Nexthop(id) => nexthops.contains(id),
        Target::Group(id) => groups.contains(id),
        Target::Device { device, .. } => devices.contains(device),
        Target::Blackhole => false,
    }
}

fn set_all<K: Ord, V: PartialEq>(
    wanted: &BTreeMap<K, V>,
    observed: &BTreeMap<K, V>,
    changes: &mut Vec<Change>,
    change: impl Fn(&K, &V) -> Change,
) {
    for (key, want) in wanted {
        if observed.get(key) != Some(want) {
            changes.push(change(key, want));
        }
    }
}

fn remove_all<K: Ord, V>(
    wanted: &BTreeMap<K, V>,
    observed: &BTreeMap<K, V>,
    changes: &mut Vec<Change>,
    change: impl Fn(&K) -> Change,
) {
    for key in observed.keys() {
        if !wanted.contains_key(key) {
            changes.push(change(key));
        }
    }
}

fn set_changes(wanted: &Sets, observed: &Sets, changes: &mut Vec<Change>) {
    let (wanted, observed) = (wanted.normalized(), observed.normalized());
    elements(&wanted.remote, &observed.remote, changes, Element::Remote);
    elements(&wanted.local, &observed.local, changes, Element::Local);
    elements(&wanted.clusterset, &observed.clusterset, changes, Element::Clusterset);
    elements(&wanted.here, &observed.here, changes, Element::Here);
    elements(&wanted.control, &observed.control, changes, Element::Control);
    elements(&wanted.nodes, &observed.nodes, changes, Element::Node);
    elements(&wanted.hairpin, &observed.hairpin, changes, Element::Hairpin);
    elements(&wanted.exported, &observed.exported, changes, Element::Exported);
    elements(&wanted.echo, &observed.echo, changes, Element::Echo);
    elements(&wanted.tunnels, &observed.tunnels, changes, Element::Tunnel);
}

fn elements<T: Ord + Clone>(
    wanted: &BTreeSet<T>,
    observed: &BTreeSet<T>,
    changes: &mut Vec<Change>,
    element: fn(T) -> Element,
) {
    changes.extend(observed.difference(wanted).cloned().map(|gone| Change::RemoveElement(element(gone))));
    changes.extend(wanted.difference(observed).cloned().map(|new| Change::AddElement(element(new))));
}

fn service_changes(
    wanted: &BTreeMap<Frontend, Service>,
    observed: &BTreeMap<Frontend, Service>,
    changes: &mut Vec<Change>,
) {
    let keys: BTreeSet<&Frontend> = wanted.keys().chain(observed.keys()).collect();
    for frontend in keys {
        let (after, before) = (wanted.get(frontend), observed.get(frontend));
        if after == before {
            continue;
        }
        changes.push(Change::SetService { frontend: *frontend, before: before.cloned(), after: after.cloned() });
        if frontend.protocol == Protocol::Udp {
            let slots = |service: Option<&Service>| -> BTreeSet<_> {
                service.map(Service::slots).unwrap_or_default().iter().copied().collect()
            };
            let (before, after) = (slots(before), slots(after));
            let mut gone: Vec<Backend> = before.difference(&after).copied().collect();
            // Whoever spoke to the address before anything answered there is tracked as speaking to the address itself.
            if before.is_empty() && !after.is_empty() {
                gone.push(Backend { address: frontend.address, port: frontend.port });
            }
            changes.extend(gone.into_iter().map(|backend| Change::ForgetFlows { frontend: *frontend, backend }));
        }
    }
}
