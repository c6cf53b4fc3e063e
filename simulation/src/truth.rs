//! [`Truth`]: what the schedule alone says must be, and must not be. It never looks into a part.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kernel_core::Family;

use crate::happening::{Happening, Part};
use crate::schedule::Schedule;
use crate::shape::Shape;
use crate::site::{self, Name};
use crate::standing::Standing;
use crate::world::{MS, SECOND};

/// A service that is exported no more is closed this soon where nothing is in trouble.
const CLOSES_WITHIN: u64 = SECOND;
/// An endpoint that left an exported service is open for as much longer: clients elsewhere still know it.
const LINGER: u64 = 5 * SECOND;
/// A part that starts, or gets its feed again, knows what is now after this.
const CATCHES_UP: u64 = 2 * SECOND;
/// The operator's word on a peer is heard by every agent after this; and a block by the gateways (docs/cli.md: 5 s).
const UNUSED_WITHIN: u64 = SECOND;
const BLOCKED_WITHIN: u64 = SECOND;
/// Flows leave a lane that is shut within a second, and the agents' next question belongs to it.
const LANE_CHANGES_WITHIN: u64 = SECOND + 200 * MS;
/// After so long every agent has put routes to every peer into its kernel.
const KNOWS_PEERS: u64 = 3 * SECOND;

/// Cluster, service, host and place.
type EndpointKey = (usize, Name, usize, u8);

#[derive(Debug)]
pub(crate) struct Truth {
    shapes: Vec<Shape>,
    /// By which the others reach each other.
    hub: Option<usize>,
    /// How long it takes after trouble until everything holds again.
    settle: u64,
    introduced: Option<u64>,
    /// Since when.
    exports: BTreeMap<(usize, Name), u64>,
    endpoints: BTreeMap<EndpointKey, bool>,
    /// When an address was to be closed that was open before.
    closing: BTreeMap<IpAddr, u64>,
    policies: BTreeMap<(usize, Name), Vec<usize>>,
    pub(crate) standing: Standing,
    vault: BTreeSet<(usize, usize)>,
    vault_ever: BTreeSet<(usize, usize)>,
    cuts: BTreeSet<(usize, usize)>,
    isolated: BTreeSet<usize>,
    unplugged: BTreeSet<(usize, usize)>,
    /// Lanes that a firewall shuts: cluster, slot, number.
    shut: BTreeSet<(usize, u16, u16)>,
    /// From when on every connection that is given an endpoint must be answered.
    steady_from: u64,
    stores_away: BTreeSet<usize>,
    running: BTreeSet<(usize, Part)>,
    gateways: BTreeMap<usize, usize>,
    /// Since when no packet can make a round between two clusters.
    lost: BTreeMap<(usize, usize), u64>,
    /// When a part of a cluster came or went last, or a cable.
    stirred: Vec<u64>,
}

impl Truth {
    pub(crate) fn new(schedule: &Schedule) -> Self {
        let stirred = vec![0; schedule.clusters.len()];
        Self {
            shapes: schedule.clusters.clone(),
            hub: schedule.hub,
            settle: schedule.settle() * MS,
            introduced: None,
            exports: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            closing: BTreeMap::new(),
            policies: BTreeMap::new(),
            standing: Standing::default(),
            vault: BTreeSet::new(),
            vault_ever: BTreeSet::new(),
            cuts: BTreeSet::new(),
            isolated: BTreeSet::new(),
            unplugged: BTreeSet::new(),
            shut: BTreeSet::new(),
            steady_from: u64::MAX,
            stores_away: BTreeSet::new(),
            running: BTreeSet::new(),
            gateways: BTreeMap::new(),
            lost: BTreeMap::new(),
            stirred,
        }
    }

    pub(crate) fn introduced(&mut self, now: u64) {
        self.introduced = Some(now);
        self.steady_from = now + self.settle;
    }

    pub(crate) fn note_part(&mut self, place: usize, part: Part, runs: bool, now: u64) {
        self.stirred[place] = now;
        if runs {
            self.running.insert((place, part));
        } else {
            self.running.remove(&(place, part));
        }
        if let Part::Gateway(slot) = part {
            let count = self.gateways.entry(place).or_default();
            *count = (*count).max(usize::from(slot) + 1);
        }
        self.find_lost(now);
    }

    /// How long it takes until everything goes on after a happening; `None`: for as long as there is trouble.
    fn settles_within(&self, happening: &Happening) -> Option<u64> {
        match happening {
            Happening::Cut { .. }
            | Happening::Isolate { .. }
            | Happening::Weather(_)
            | Happening::Kill { .. }
            | Happening::Unplug { .. }
            | Happening::StoreAway { .. } => None,
            Happening::SetClock { .. } | Happening::BackUp { .. } => Some(0),
            Happening::Lane { .. } => Some(LANE_CHANGES_WITHIN),
            Happening::Move { .. } | Happening::Restart { .. } | Happening::Sleep { .. } | Happening::Calm => {
                Some(self.settle)
            }
            Happening::Export { .. }
            | Happening::Unexport { .. }
            | Happening::Endpoint { .. }
            | Happening::Policy { .. }
            | Happening::Drain { .. }
            | Happening::Order { .. }
            | Happening::Accept { .. } => Some(CATCHES_UP),
        }
    }

    pub(crate) fn take(&mut self, happening: &Happening, now: u64) {
        let settles = self.settles_within(happening).map(|within| now + within);
        self.steady_from = match happening {
            Happening::Calm => settles.unwrap_or(now),
            _ => self.steady_from.max(settles.unwrap_or(u64::MAX)),
        };
        match happening {
            Happening::Cut { from, to } => drop(self.cuts.insert((*from, *to))),
            Happening::Isolate { cluster } => drop(self.isolated.insert(*cluster)),
            Happening::Unplug { cluster, host } => {
                self.unplugged.insert((*cluster, *host));
                self.stirred[*cluster] = now;
            }
            Happening::Calm => {
                self.cuts.clear();
                self.isolated.clear();
                let unplugged = std::mem::take(&mut self.unplugged).into_iter().map(|(place, _)| place);
                for place in unplugged.chain(std::mem::take(&mut self.stores_away)) {
                    self.stirred[place] = now;
                }
            }
            Happening::Export { cluster, service } => {
                self.exports.entry((*cluster, *service)).or_insert(now);
                for address in self.addresses(*cluster, *service) {
                    self.closing.remove(&address);
                }
            }
            Happening::Unexport { cluster, service } => {
                if self.exports.remove(&(*cluster, *service)).is_some() {
                    let closed = self.addresses(*cluster, *service);
                    self.closing.extend(closed.into_iter().map(|address| (address, now + CLOSES_WITHIN)));
                    // What lingered of it is closed with it.
                    self.shorten(*cluster, *service, now + CLOSES_WITHIN);
                }
            }
            Happening::Endpoint { cluster, service, host, place, ready } => {
                let key = (*cluster, *service, *host, *place);
                let addresses: Vec<IpAddr> = self.addresses_of(key).collect();
                match ready {
                    Some(ready) => {
                        self.endpoints.insert(key, *ready);
                        if self.exports.contains_key(&(*cluster, *service)) {
                            self.closing.retain(|address, _| !addresses.contains(address));
                        }
                    }
                    None => {
                        if self.endpoints.remove(&key).is_some() && self.exports.contains_key(&(*cluster, *service)) {
                            self.closing
                                .extend(addresses.iter().map(|address| (*address, now + LINGER + CLOSES_WITHIN)));
                        }
                    }
                }
            }
            Happening::Policy { cluster, service, order } => {
                if order.is_empty() {
                    self.policies.remove(&(*cluster, *service));
                } else {
                    self.policies.insert((*cluster, *service), order.clone());
                }
            }
            Happening::Drain { cluster, peer, drained } => {
                self.standing.declare(*cluster, *peer, *drained, now);
            }
            Happening::Accept { cluster, peer, vault } => {
                if *vault {
                    self.vault.insert((*cluster, *peer));
                    self.vault_ever.insert((*cluster, *peer));
                } else {
                    self.vault.remove(&(*cluster, *peer));
                }
            }
            Happening::Lane { cluster, slot, lane, open } => {
                if *open {
                    self.shut.remove(&(*cluster, *slot, *lane));
                } else {
                    self.shut.insert((*cluster, *slot, *lane));
                }
            }
            Happening::StoreAway { cluster } => drop(self.stores_away.insert(*cluster)),
            // It counts when it was carried out.
            Happening::Order { .. }
            | Happening::Weather(_)
            | Happening::Move { .. }
            | Happening::Restart { .. }
            | Happening::Kill { .. }
            | Happening::SetClock { .. }
            | Happening::Sleep { .. }
            | Happening::BackUp { .. } => {}
        }
        self.find_lost(now);
    }

    fn addresses(&self, cluster: usize, service: Name) -> Vec<IpAddr> {
        let of_it = self.endpoints.keys().filter(|(of, name, ..)| (*of, *name) == (cluster, service));
        of_it.flat_map(|key| self.addresses_of(*key)).collect()
    }

    /// The addresses of an endpoint: one of each family of its cluster.
    fn addresses_of(&self, (cluster, service, host, place): EndpointKey) -> impl Iterator<Item = IpAddr> + use<> {
        let families = self.shapes[cluster].families.all();
        families.iter().map(move |family| site::endpoint(cluster, host, service, place, *family))
    }

    fn shorten(&mut self, cluster: usize, service: Name, to: u64) {
        for (address, at) in &mut self.closing {
            if site::endpoint_of(*address).is_some_and(|(of, name, ..)| (of, name) == (cluster, service)) {
                *at = (*at).min(to);
            }
        }
    }

    fn find_lost(&mut self, now: u64) {
        for one in 0..self.shapes.len() {
            for other in (0..self.shapes.len()).filter(|other| *other != one) {
                let cut = |one, other| self.cuts.contains(&(one, other)) || self.cuts.contains(&(other, one));
                let lost = self.is_dark(one)
                    || self.is_dark(other)
                    || match self.hub_between(one, other) {
                        Some(hub) => cut(one, hub) || cut(hub, other) || self.is_dark(hub),
                        None => cut(one, other),
                    };
                if lost {
                    self.lost.entry((one, other)).or_insert(now);
                } else {
                    self.lost.remove(&(one, other));
                }
            }
        }
    }

    /// Whether nothing gets in or out of a cluster.
    fn is_dark(&self, place: usize) -> bool {
        let gateways = self.gateways.get(&place).copied().unwrap_or(0);
        let works = |slot: usize| {
            self.running.contains(&(place, Part::Gateway(slot as u16))) && !self.unplugged.contains(&(place, slot))
        };
        self.isolated.contains(&place) || !(0..gateways).any(works)
    }

    // What is asked.

    /// The hub by which two clusters reach each other, where they cannot directly.
    pub(crate) fn hub_between(&self, one: usize, other: usize) -> Option<usize> {
        self.hub.filter(|hub| *hub != one && *hub != other)
    }

    /// Whether packets pass between two clusters, as far as operators decide it.
    pub(crate) fn is_joined(&self, one: usize, other: usize) -> bool {
        let hub = self.hub_between(one, other);
        !self.standing.is_apart(one, other)
            && hub.is_none_or(|hub| !self.standing.is_apart(one, hub) && !self.standing.is_apart(hub, other))
    }

    /// Whether nothing since `opened` may keep a connection to an endpoint from being answered.
    pub(crate) fn must_answer(&self, place: usize, endpoint: IpAddr, opened: u64) -> bool {
        let of = site::pod_of(endpoint).map(|(of, _)| of);
        opened >= self.steady_from && self.lives(endpoint) && of.is_some_and(|of| self.is_joined(place, of))
    }

    /// Whether a firewall shuts one of a link's lanes.
    pub(crate) fn is_shut(&self, lane: (usize, u16, u16)) -> bool {
        self.shut.contains(&lane)
    }

    pub(crate) fn lost_since(&self, one: usize, other: usize) -> Option<u64> {
        self.lost.get(&(one, other)).copied()
    }

    pub(crate) fn accepts_vault(&self, place: usize, peer: usize) -> bool {
        self.vault.contains(&(place, peer))
    }

    /// Whether new connections may go to a cluster at all, by the word of both operators.
    pub(crate) fn is_used(&self, place: usize, of: usize) -> bool {
        place == of
            || self.standing.unused_since(place, of).is_none()
                && self.is_joined(place, of)
                && !self.standing.is_leaving(of)
    }

    /// Those of clusters that can serve which are to: one whose gateways are all drained only where there is no other.
    pub(crate) fn best_of(&self, place: usize, able: &BTreeSet<usize>) -> BTreeSet<usize> {
        let is_last_resort = |of: &usize| {
            let gateways = self.gateways.get(of).copied().unwrap_or(0);
            *of != place && self.standing.is_last_resort(*of, gateways)
        };
        let better: BTreeSet<usize> = able.iter().copied().filter(|of| !is_last_resort(of)).collect();
        if better.is_empty() { able.clone() } else { better }
    }

    /// Whether a cluster cannot know what another says now: that one blocked it, or the hub stands apart.
    pub(crate) fn is_stale(&self, place: usize, of: usize) -> bool {
        !self.is_joined(place, of) && self.standing.blocked_since(place, of).is_none()
    }

    /// For how many seconds a cluster should have stopped to give a peer new connections, as its operator said.
    pub(crate) fn unused_for(&self, place: usize, of: usize, now: u64) -> Option<f64> {
        self.obeyed_for(place, self.standing.unused_since(place, of)? + UNUSED_WITHIN, now)
    }

    /// For how many seconds nothing of a cluster should have come to another that has blocked it.
    pub(crate) fn blocked_for(&self, place: usize, of: usize, now: u64) -> Option<f64> {
        self.obeyed_for(place, self.standing.blocked_since(place, of)? + BLOCKED_WITHIN, now)
    }

    /// How long ago an order was to be in force everywhere in a cluster: it gets nowhere while a part is away.
    fn obeyed_for(&self, place: usize, due: u64, now: u64) -> Option<f64> {
        let due = due.max(self.stirred[place] + CATCHES_UP);
        let heard = !self.is_in_trouble(place) && !self.stores_away.contains(&place);
        (heard && now > due).then(|| (now - due) as f64 / 1e6)
    }

    /// Whether an endpoint with this address is alive.
    pub(crate) fn lives(&self, address: IpAddr) -> bool {
        site::endpoint_of(address).is_some_and(|key| self.endpoints.contains_key(&key))
    }

    fn accepts(&self, place: usize, of: usize, service: Name) -> bool {
        place == of || service != Name::Keys || self.accepts_vault(place, of)
    }

    /// Whether a cluster may ever have been given a service of another.
    pub(crate) fn may_be_given(&self, place: usize, of: usize, service: Name) -> bool {
        place == of || service != Name::Keys || self.vault_ever.contains(&(place, of))
    }

    /// How many seconds ago at the latest an address had to be closed; `None` while it may be open.
    pub(crate) fn closed_for(&self, place: usize, address: IpAddr, now: u64) -> Option<f64> {
        let open = self.lives(address)
            && site::endpoint_of(address)
                .is_some_and(|(cluster, service, ..)| self.exports.contains_key(&(cluster, service)));
        if open || self.is_in_trouble(place) {
            return None;
        }
        let closed = self.closing.get(&address).copied().unwrap_or(0).max(self.stirred[place] + CATCHES_UP);
        (now > closed).then(|| (now - closed) as f64 / 1e6)
    }

    /// Whether a part of a cluster is down, or a cable pulled.
    pub(crate) fn is_in_trouble(&self, place: usize) -> bool {
        let gateways = self.gateways.get(&place).copied().unwrap_or(0);
        let mut parts = [Part::Controller, Part::Dns]
            .into_iter()
            .chain((0..gateways).map(|slot| Part::Gateway(slot as u16)))
            .chain((0..self.shapes[place].hosts()).map(Part::Node));
        parts.any(|part| !self.running.contains(&(place, part)))
            || self.unplugged.iter().any(|(cluster, _)| *cluster == place)
    }

    /// Whether a host must have a route to another cluster's pod, or a blackhole.
    pub(crate) fn must_know(&self, place: usize, _host: usize, destination: IpAddr, now: u64) -> bool {
        site::pod_of(destination).is_some_and(|(of, _)| of != place && of < self.shapes.len())
            && self.introduced.is_some_and(|at| now > at + KNOWS_PEERS)
    }

    /// The clusters whose export of a service counts in `place`, with the time since when.
    pub(crate) fn exporters(&self, place: usize, service: Name) -> BTreeMap<usize, u64> {
        let of_service = self.exports.iter().filter(|((of, name), _)| {
            *name == service && self.accepts(place, *of, service) && self.standing.blocked_since(place, *of).is_none()
        });
        of_service.map(|((of, _), since)| (*of, (*since).max(self.standing.let_in(place, *of)))).collect()
    }

    /// Host, place and readiness of a service's endpoints, as its own cluster's objects have them.
    pub(crate) fn said(&self, cluster: usize, service: Name) -> impl Iterator<Item = (usize, u8, bool)> {
        let of_it = self.endpoints.iter().filter(move |((of, name, ..), _)| (*of, *name) == (cluster, service));
        of_it.map(|((_, _, host, place), ready)| (*host, *place, *ready))
    }

    /// The endpoints of a service in one cluster, with their readiness.
    pub(crate) fn endpoints(&self, cluster: usize, service: Name) -> BTreeMap<IpAddr, bool> {
        let all = self.said(cluster, service).flat_map(|(host, place, ready)| {
            let ready = ready && !self.standing.is_node_out(cluster, host);
            self.addresses_of((cluster, service, host, place)).map(move |address| (address, ready))
        });
        all.collect()
    }

    /// The clusters that new connections from `place` go to, when everything works.
    pub(crate) fn serving(&self, place: usize, service: Name, family: Family) -> BTreeSet<usize> {
        let able: BTreeSet<usize> = self
            .exporters(place, service)
            .into_keys()
            .filter(|of| self.is_used(place, *of))
            .filter(|of| {
                let endpoints = self.endpoints(*of, service);
                endpoints.iter().any(|(address, ready)| *ready && Family::of(*address) == family)
            })
            .collect();
        match self.policies.get(&(place, service)) {
            Some(order) => {
                let chosen = self.best_of(place, &order.iter().copied().filter(|of| able.contains(of)).collect());
                order.iter().find(|of| chosen.contains(of)).into_iter().copied().collect()
            }
            None if able.contains(&place) => [place].into(),
            None => self.best_of(place, &able),
        }
    }
}
