//! One service of the clusterset → the slots of its clusterset addresses.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use api::ClusterId;
use api::time::Instant;
use kernel_core::service::MOST_SLOTS;
use kernel_core::{Affinity, Backend, Family, Frontend, Protocol, Service};
use routing::slots::{client_slots, endpoint_weights, quotas, random_slots};
use routing::{Clusters, Decision, EndpointCount, EndpointCounts, Memory, PolicySet, Question, decide};

use crate::catalog::{Catalog, ImportFacts, PortFacts, SliceFacts};
use crate::input::Key;
use crate::shares::{Decided, ShareChange};

/// What a service is decided upon.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    pub clusters: &'a Clusters,
    pub policies: &'a PolicySet,
    pub catalog: &'a Catalog,
    /// Different on each host, so that hosts leave out different endpoints where there are more than slots.
    pub seed: u64,
    pub now: Instant,
}

/// A port of a service in one address family.
pub type Place = (String, Family);

/// One service as it is wanted in the kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Served {
    pub frontends: BTreeMap<Frontend, Service>,
    pub memories: BTreeMap<Place, Memory>,
    pub decided: BTreeMap<Place, Decided>,
    /// UDP flows to these endpoints go on, though new ones go elsewhere: their cluster or their node is drained and not
    /// gone. The kernel would end them with the slot, for an endpoint that leaves takes what is sent to it along.
    pub finishing: BTreeSet<(Frontend, Backend)>,
    /// What changed since it was decided before.
    pub changes: BTreeSet<ShareChange>,
    /// Look again then, though nothing else changed.
    pub ask_again: Option<Instant>,
    /// Round-trip times alone can change it.
    pub follows_round_trips: bool,
}

/// The endpoints of one port in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    pub counts: EndpointCounts,
    /// The ready ones, in order.
    pub ready: BTreeMap<ClusterId, Vec<Backend>>,
    /// Those that are not ready and go on with the flows they have.
    pub finishing: BTreeMap<ClusterId, Vec<Backend>>,
}

/// All frontends of a service. `last` is what was decided before; `before` is what is in force: endpoints keep their
/// slots as far as they can.
pub fn serve(
    key: &Key,
    import: &ImportFacts,
    last: &Served,
    before: &BTreeMap<Frontend, Service>,
    scene: Scene<'_>,
) -> Served {
    let mut served = Served::default();
    if import.headless {
        return served;
    }
    for port in &import.ports {
        for family in [Family::Ipv4, Family::Ipv6] {
            let addresses: Vec<IpAddr> =
                import.addresses.iter().copied().filter(|address| Family::of(*address) == family).collect();
            if addresses.is_empty() {
                continue;
            }
            let endpoints = endpoints(scene.catalog.slices_of_import(key), port, family);
            let place = (port.name.clone(), family);
            let decision = decision(key, port, last.memories.get(&place), &endpoints, scene);
            let change = last.decided.get(&place).and_then(|last| last.change(key, &port.name, &decision));
            served.changes.extend(change);
            served.decided.insert(place.clone(), Decided::of(&decision));
            served.ask_again = served.ask_again.into_iter().chain(decision.ask_again).min();
            served.follows_round_trips |= decision.follows_round_trips;
            let weights = endpoint_weights(&decision.shares, &endpoints.ready);
            let finishing: Vec<Backend> = match port.protocol {
                Protocol::Udp => {
                    let drained = |cluster: &ClusterId| scene.clusters.lets_finish(cluster, scene.now);
                    let there = |id: &ClusterId| drained(id) || scene.clusters.standing(id, scene.now).is_ok();
                    let ready = endpoints.ready.iter().filter(|(id, _)| drained(id));
                    let leaving = endpoints.finishing.iter().filter(|(id, _)| there(id));
                    ready.chain(leaving).flat_map(|(_, all)| all.clone()).collect()
                }
                Protocol::Tcp | Protocol::Sctp => Vec::new(),
            };
            for address in addresses {
                let frontend = Frontend { address, protocol: port.protocol, port: port.port };
                served.finishing.extend(finishing.iter().map(|backend| (frontend, *backend)));
                let slots = match import.affinity {
                    Affinity::None => {
                        let previous = before.get(&frontend).map(Service::slots).unwrap_or_default();
                        random_slots(&quotas(&weights, MOST_SLOTS, scene.seed), previous)
                    }
                    Affinity::ClientAddress => client_slots(&weights, MOST_SLOTS),
                };
                // At most 256 slots of one family: neither refusal can happen.
                if let Ok(service) = Service::new(slots, import.affinity) {
                    served.frontends.insert(frontend, service);
                }
            }
            served.memories.insert(place, decision.memory);
        }
    }
    served
}

/// Who answers on one port.
pub fn decision(
    key: &Key,
    port: &PortFacts,
    memory: Option<&Memory>,
    endpoints: &Endpoints,
    scene: Scene<'_>,
) -> Decision {
    decide(&Question {
        namespace: &key.0,
        service: &key.1,
        port: &port.name,
        clusters: scene.clusters,
        policies: scene.policies,
        endpoints: &endpoints.counts,
        memory: memory.unwrap_or(&Memory::default()),
        now: scene.now,
    })
}

/// The endpoints of a port: only of slices that have a port of that name and protocol.
pub fn endpoints<'a>(
    slices: impl Iterator<Item = (&'a ClusterId, &'a SliceFacts)>,
    port: &PortFacts,
    family: Family,
) -> Endpoints {
    let mut all: BTreeMap<&ClusterId, BTreeMap<Backend, (bool, bool)>> = BTreeMap::new();
    for (cluster, slice) in slices {
        for offered in slice.ports.iter().filter(|own| own.name == port.name && own.protocol == port.protocol) {
            let of_family = slice.endpoints.iter().filter(|endpoint| Family::of(endpoint.address) == family);
            for endpoint in of_family {
                let backend = Backend { address: endpoint.address, port: offered.port };
                // Listed twice, it is ready when one of both says so.
                let (ready, finishing) = all.entry(cluster).or_default().entry(backend).or_default();
                *ready |= endpoint.ready;
                *finishing |= endpoint.finishing;
            }
        }
    }
    let mut endpoints = Endpoints::default();
    for (cluster, backends) in all {
        let those = |wanted: fn(&(bool, bool)) -> bool| -> Vec<Backend> {
            backends.iter().filter(|(_, said)| wanted(said)).map(|(backend, _)| *backend).collect()
        };
        let (ready, finishing) = (those(|(ready, _)| *ready), those(|(ready, finishing)| !ready && *finishing));
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let counts = EndpointCount { ready: count(ready.len()), total: count(backends.len()) };
        endpoints.counts.insert(cluster.clone(), counts);
        endpoints.ready.insert(cluster.clone(), ready);
        if !finishing.is_empty() {
            endpoints.finishing.insert(cluster.clone(), finishing);
        }
    }
    endpoints
}

/// Endpoints of this cluster on this host that clients here may reach by the service's address: their packets to
/// themselves must come back by way of the host.
pub fn hairpins(
    key: &Key,
    import: &ImportFacts,
    catalog: &Catalog,
    local: &ClusterId,
    is_here: impl Fn(&crate::catalog::EndpointFacts) -> bool,
) -> BTreeSet<IpAddr> {
    if import.headless {
        return BTreeSet::new();
    }
    let own = catalog.slices_of_import(key).filter(|(cluster, _)| *cluster == local);
    own.flat_map(|(_, slice)| &slice.endpoints)
        .filter(|endpoint| is_here(endpoint))
        .map(|endpoint| endpoint.address)
        .collect()
}
