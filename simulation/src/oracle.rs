//! What must hold, asked of a world: at every moment of its objects, and of everything once all trouble is over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::kubernetes::EndpointSlice;
use api::{ServiceImport, names};
use gateway_core::Link;
use kernel_core::{Family, difference};

use crate::names::Answer;
use crate::object::Object;
use crate::objects::Change;
use crate::site::{self, NAMES, Name};
use crate::world::{MS, SECOND, START, World};

/// A round trip over the fair network, with room for what waits in line.
pub(crate) const ANSWER_WITHIN: u64 = 500 * MS;

/// Objects written at the start, and as many each second in the long run: a few for each happening.
const WRITES_AT_FIRST: u64 = 300;
const WRITES_A_SECOND: u64 = 20;

/// The endpoints of each exporting cluster, with their readiness.
type Imported = BTreeMap<usize, BTreeMap<IpAddr, bool>>;

impl World {
    /// A store that is written to without end.
    pub(crate) fn judge_pace(&mut self, place: usize) {
        let log = self.clusters[place].objects.log();
        let begun = self.now.saturating_sub(START) / SECOND;
        if log.len() as u64 <= WRITES_AT_FIRST + WRITES_A_SECOND * begun {
            return;
        }
        let latest: Vec<String> =
            log.iter().rev().take(8).map(|change| format!("{change:?}").chars().take(200).collect()).collect();
        let count = log.len();
        self.violations.push(format!("{} wrote {count} times; the latest: {}", NAMES[place], latest.join("; ")));
    }

    /// Judges what was written to a cluster's store since this was last asked.
    pub(crate) fn judge_objects(&mut self, place: usize) {
        let upto = self.clusters[place].objects.log().len();
        let from = std::mem::replace(&mut self.clusters[place].judged, upto);
        let changes: Vec<Change> = self.clusters[place].objects.log()[from..].to_vec();
        for change in changes {
            match change {
                Change::Applied(Object::ServiceImport(import)) => self.judge_import(place, &import),
                Change::Deleted(Object::ServiceImport(import)) => self.judge_deleted(place, &import),
                Change::Applied(Object::EndpointSlice(slice)) => self.judge_slice(place, &slice),
                Change::Applied(Object::ClusterPeer(peer)) => self.judge_translations(place, &peer),
                _ => {}
            }
        }
    }

    /// A clusterset address stays while its import has its family, and belongs to one service.
    fn judge_import(&mut self, place: usize, import: &ServiceImport) {
        let (key, uid) = (name_of(&import.metadata), import.metadata.uid.clone().unwrap_or_default());
        let cluster = NAMES[place];
        let known = self.imports.entry((place, uid)).or_insert_with(|| (self.now, Vec::new()));
        let before = std::mem::replace(&mut known.1, import.spec.ips.clone());
        // The families are those of the oldest exporter, which may be another one now.
        for ipv6 in [false, true] {
            let of_family = |ips: &[String]| ips.iter().find(|address| address.contains(':') == ipv6).cloned();
            if let (Some(before), Some(after)) = (of_family(&before), of_family(&import.spec.ips))
                && before != after
            {
                self.violations.push(format!("{key} in {cluster} had {before} and has {after}"));
            }
        }
        let others =
            self.clusters[place].objects.all::<ServiceImport>().filter(|other| name_of(&other.metadata) != key);
        for other in others {
            if other.spec.ips.iter().any(|address| import.spec.ips.contains(address)) {
                let other = name_of(&other.metadata);
                self.violations.push(format!("{key} and {other} in {cluster} have one address"));
            }
        }
    }

    /// An import goes only when nobody exports the service any more.
    fn judge_deleted(&mut self, place: usize, import: &ServiceImport) {
        let key = name_of(&import.metadata);
        let Some((namespace, name)) = key.split_once('/') else { return };
        let Some(service) = Name::find(namespace, name) else { return };
        let uid = import.metadata.uid.clone().unwrap_or_default();
        let Some((made, _)) = self.imports.remove(&(place, uid)) else { return };
        let exporters = self.truth.exporters(place, service);
        let listed = import.status.iter().flat_map(|status| &status.clusters);
        let still = listed
            .filter_map(|listed| site::place_of(&listed.cluster))
            .find(|of| exporters.get(of).is_some_and(|since| *since < made));
        if let Some(of) = still {
            let (cluster, of) = (NAMES[place], NAMES[of]);
            self.violations.push(format!("{key} was taken from {cluster} while {of} exported it all the time"));
        }
    }

    /// What is imported is accepted, and of the cluster it is said to be of.
    fn judge_slice(&mut self, place: usize, slice: &EndpointSlice) {
        let label = |name| slice.metadata.labels.as_ref()?.get(name);
        let Some(of) = label(names::mcs::SOURCE_CLUSTER).and_then(|source| site::place_of(source)) else { return };
        let service = label(names::mcs::SERVICE_NAME).cloned().unwrap_or_default();
        let namespace = slice.metadata.namespace.clone().unwrap_or_default();
        let Some(name) = Name::find(&namespace, &service) else {
            self.violations.push(format!("{namespace}/{service} is imported in {}, and nobody has it", NAMES[place]));
            return;
        };
        if !self.truth.may_be_given(place, of, name) {
            let (cluster, of) = (NAMES[place], NAMES[of]);
            self.violations.push(format!("{cluster} imports {name} of {of}, whose namespace was never accepted"));
        }
        let endpoints = slice.endpoints.iter().flatten().flat_map(|endpoint| &endpoint.addresses);
        for address in endpoints.filter_map(|text| text.parse().ok()) {
            let pod = self.pod_behind(place, address).and_then(site::pod_of);
            if pod.map(|(cluster, _)| cluster) != Some(of) {
                let (cluster, of) = (NAMES[place], NAMES[of]);
                self.violations.push(format!("{cluster} imports {address} as an endpoint of {of}"));
            }
        }
    }

    /// Everything that must hold when all trouble was over long enough ago. Opens connections, and waits for them.
    pub(crate) fn judge_calm(&mut self) -> Vec<String> {
        let mut wrong = self.judge_paths();
        for place in 0..self.clusters.len() {
            for service in Name::ALL {
                self.judge_view(place, service, &mut wrong);
                self.judge_names(place, service, &mut wrong);
            }
            self.judge_kernels(place, &mut wrong);
        }
        self.judge_connections(&mut wrong);
        wrong
    }

    fn judge_paths(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for cluster in &self.clusters {
            let now = cluster.now(self.now).instant;
            for gateway in &cluster.gateways {
                let Some(core) = &gateway.core else {
                    wrong.push(format!("{} gateway {} forwards nothing", NAMES[cluster.place], gateway.slot));
                    continue;
                };
                // Who blocked us answers nothing.
                let may = |of: &str| site::place_of(of).is_some_and(|of| !self.truth.is_stale(cluster.place, of));
                let is_shut = |link: &Link| {
                    let theirs =
                        site::place_of(link.cluster.as_str()).map(|of| (of, link.slot, link.remote_lane.0.into()));
                    let ours = (cluster.place, gateway.slot, link.lane.0.into());
                    self.truth.is_shut(ours) || theirs.is_some_and(|theirs| self.truth.is_shut(theirs))
                };
                let broken = core.broken(now).filter(|link| may(link.cluster.as_str()) && !is_shut(link));
                wrong.extend(broken.map(|link| {
                    let (of, slot) = (NAMES[cluster.place], gateway.slot);
                    format!("{of} gateway {slot} has no path to {} {}", link.cluster, link.slot)
                }));
            }
        }
        wrong
    }

    /// What a cluster has imported is what all say.
    fn judge_view(&self, place: usize, service: Name, wrong: &mut Vec<String>) {
        let objects = &self.clusters[place].objects;
        let exporters = self.truth.exporters(place, service);
        let import = objects.get::<ServiceImport>(service.namespace(), service.name());
        let knows = |of: &usize| !self.truth.is_stale(place, *of);
        let knows_all = (0..self.clusters.len()).all(|of| knows(&of));
        let seen = import.map(|import| {
            let clusters = import.status.iter().flat_map(|status| &status.clusters);
            let clusters = clusters.filter_map(|exporter| site::place_of(&exporter.cluster)).filter(knows);
            clusters.collect::<BTreeSet<usize>>()
        });
        let known: BTreeSet<usize> = exporters.keys().copied().filter(knows).collect();
        // Who blocked us may be known to export it still, or not yet: then an import of nobody else is as good as none.
        let expected = match &seen {
            Some(seen) if seen.is_empty() && !knows_all => Some(known),
            _ => (!known.is_empty()).then_some(known),
        };
        if seen != expected {
            wrong.push(format!(
                "{service} in {} is of {}, and should be of {}",
                NAMES[place],
                list(&seen),
                list(&expected)
            ));
            return;
        }
        let families = self.clusters[place].shape.families.all();
        let shares =
            |of: &usize| self.clusters[*of].shape.families.all().iter().any(|family| families.contains(family));
        // What is known of those who cannot be heard may be old: they may have given it an address, and need not.
        let wants = !service.is_headless() && exporters.keys().filter(|of| knows(of)).any(shares);
        let may = !service.is_headless() && (!knows_all || exporters.keys().any(shares));
        if import.is_some_and(|import| if import.spec.ips.is_empty() { wants } else { !may }) {
            wrong.push(format!("{service} in {} lacks an address, or has one it should not", NAMES[place]));
        }
        let mut imported = Imported::new();
        for slice in objects.all::<EndpointSlice>() {
            let label = |name| slice.metadata.labels.as_ref()?.get(name).map(String::as_str);
            let of_it = label(names::mcs::SERVICE_NAME) == Some(service.name())
                && slice.metadata.namespace.as_deref() == Some(service.namespace());
            let Some(of) = label(names::mcs::SOURCE_CLUSTER).and_then(site::place_of).filter(|_| of_it) else {
                continue;
            };
            for endpoint in slice.endpoints.iter().flatten() {
                let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
                let addresses = endpoint.addresses.iter().filter_map(|text| text.parse().ok());
                let pods = addresses.map(|seen: IpAddr| (self.pod_behind(place, seen).unwrap_or(seen), ready));
                imported.entry(of).or_default().extend(pods);
            }
        }
        imported.retain(|of, _| knows(of));
        let expected: Imported = exporters
            .keys()
            .filter(|of| knows(of))
            .map(|of| (*of, self.truth.endpoints(*of, service)))
            .filter(|(_, endpoints)| !endpoints.is_empty())
            .collect();
        if imported != expected {
            wrong.push(format!(
                "{service} in {} has {}, and should have {}",
                NAMES[place],
                show(&imported),
                show(&expected)
            ));
        }
    }

    /// Names answer what is imported.
    fn judge_names(&self, place: usize, service: Name, wrong: &mut Vec<String>) {
        let cluster = &self.clusters[place];
        let import = cluster.objects.get::<ServiceImport>(service.namespace(), service.name());
        for family in [Family::Ipv4, Family::Ipv6] {
            let of_family = |address: &IpAddr| Family::of(*address) == family;
            let expected = match import {
                None => Answer::Denied,
                Some(_) if service.is_headless() => {
                    let used = self.truth.exporters(place, service).into_keys();
                    let used = used.filter(|of| self.truth.is_used(place, *of));
                    let has_ready = |of: &usize| self.truth.endpoints(*of, service).values().any(|ready| *ready);
                    let used = self.truth.best_of(place, &used.filter(has_ready).collect());
                    let ready = used.into_iter().flat_map(|of| self.truth.endpoints(of, service));
                    let ready: BTreeSet<IpAddr> =
                        ready.filter(|(_, ready)| *ready).map(|(address, _)| address).collect();
                    // KEP-1645's DNS specification: a headless service without ready endpoints has no name.
                    if ready.is_empty() {
                        Answer::Denied
                    } else {
                        let seen = ready.into_iter().filter(of_family);
                        Answer::Addresses(seen.filter_map(|pod| self.seen_from(place, pod)).collect())
                    }
                }
                Some(import) => {
                    let addresses = import.spec.ips.iter().filter_map(|text| text.parse().ok());
                    Answer::Addresses(addresses.filter(of_family).collect())
                }
            };
            let seen =
                cluster.names.ask(&format!("{}.{}", service.name(), service.namespace()), family == Family::Ipv6);
            if seen != expected {
                wrong.push(format!(
                    "DNS in {} answers {seen:?} for {family:?} of {service}, and should answer {expected:?}",
                    NAMES[place]
                ));
            }
        }
    }

    /// Kernels hold what is wanted, to the last element.
    fn judge_kernels(&self, place: usize, wrong: &mut Vec<String>) {
        for host in &self.clusters[place].hosts {
            let Some(agent) = &host.agent else {
                wrong.push(format!("{} has no agent", host.name));
                continue;
            };
            let missing = difference(&agent.core.wanted(), &host.kernel.state);
            if let Some(first) = missing.first() {
                let more = missing.len() - 1;
                wrong.push(format!("{}'s kernel is not what is wanted: {first:?}, and {more} more", host.name));
            }
        }
    }

    /// Endpoints that nobody in a cluster may reach, and why.
    fn out_of_reach(&self, place: usize) -> Vec<(IpAddr, String)> {
        let mut found = Vec::new();
        for of in (0..self.clusters.len()).filter(|of| *of != place) {
            for service in Name::ALL {
                let families = self.clusters[place].shape.families.all();
                let Some(family) =
                    families.iter().find(|family| self.clusters[of].shape.families.all().contains(family))
                else {
                    continue;
                };
                let endpoint = site::endpoint(of, 0, service, 0, *family);
                let mut live = self.truth.endpoints(of, service);
                live.retain(|address, _| Family::of(*address) == *family);
                let is_exported = self.truth.exporters(of, service).contains_key(&of);
                if self.truth.standing.is_apart(place, of) {
                    let why = format!("of {}, and one has blocked the other", NAMES[of]);
                    found.extend(live.into_keys().next().filter(|_| is_exported).map(|endpoint| (endpoint, why)));
                } else if !(is_exported && live.contains_key(&endpoint))
                    && self.truth.closed_for(of, endpoint, self.now).is_some()
                {
                    found.push((endpoint, "not exported".to_owned()));
                }
            }
        }
        found
    }

    /// Every client reaches every service, at a cluster that is to serve it; and nobody reaches what is not exported.
    fn judge_connections(&mut self, wrong: &mut Vec<String>) {
        let mut tried: Vec<(u32, String, BTreeSet<usize>)> = Vec::new();
        let mut closed: Vec<(u32, String)> = Vec::new();
        for place in 0..self.clusters.len() {
            for host in 0..self.clusters[place].hosts.len() {
                let name = site::host_name(place, host);
                for service in Name::ALL.into_iter().filter(|service| !service.is_headless()) {
                    let import = self.clusters[place].objects.get::<ServiceImport>(service.namespace(), service.name());
                    let addresses = import.into_iter().flat_map(|import| &import.spec.ips);
                    let families: Vec<Family> =
                        addresses.filter_map(|text| Some(Family::of(text.parse().ok()?))).collect();
                    for family in families {
                        let serving = self.truth.serving(place, service, family);
                        for _ in 0..2 {
                            let number = self.connect(place, host, service, family);
                            tried.push((number, format!("{name} to {service} by {family:?}"), serving.clone()));
                        }
                    }
                }
                for (endpoint, why) in self.out_of_reach(place) {
                    closed.push((
                        self.connect_to(place, host, endpoint),
                        format!("{name} to {endpoint}, which is {why}"),
                    ));
                }
            }
        }
        self.run_until(self.now + ANSWER_WITHIN);
        for (number, who, serving) in tried {
            let Some(attempt) = self.attempts.get(number) else { continue };
            let out = attempt.by.iter().find(|(of, slot)| {
                let others = 0..self.clusters[*of].gateways.len() as u16;
                let is_out = |slot: u16| self.truth.standing.is_gateway_out(*of, slot);
                is_out(*slot) && !others.into_iter().all(is_out)
            });
            if let Some((of, slot)) = out {
                wrong.push(format!("{who}: goes by gateway {slot} of {}, which is drained", NAMES[*of]));
            }
            match attempt.given {
                None if serving.is_empty() => {}
                None => wrong.push(format!("{who}: nobody answers, and {} should", list(&Some(serving)))),
                Some((of, address)) if !serving.contains(&of) => {
                    wrong.push(format!("{who}: was given {address}, and should get {}", list(&Some(serving))));
                }
                Some((_, address)) if !attempt.answered => {
                    let lost = attempt.lost.as_deref().unwrap_or("nobody saw where it was lost");
                    wrong.push(format!("{who}: {address} did not answer: {lost}"));
                }
                Some(_) => {}
            }
        }
        for (number, who) in closed {
            if self.attempts.get(number).is_some_and(|attempt| attempt.answered) {
                wrong.push(format!("{who}, is answered"));
            }
        }
    }
}

fn name_of(meta: &api::kubernetes::ObjectMeta) -> String {
    format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

fn list(clusters: &Option<BTreeSet<usize>>) -> String {
    match clusters {
        None => "nobody".to_owned(),
        Some(clusters) if clusters.is_empty() => "nobody".to_owned(),
        Some(clusters) => clusters.iter().map(|place| NAMES[*place]).collect::<Vec<_>>().join(" and "),
    }
}

fn show(imported: &Imported) -> String {
    let of = |(place, endpoints): (&usize, &BTreeMap<IpAddr, bool>)| {
        let endpoints: Vec<String> = endpoints
            .iter()
            .map(|(address, ready)| if *ready { address.to_string() } else { format!("{address} (not ready)") })
            .collect();
        format!("{} {}", NAMES[*place], endpoints.join(", "))
    };
    if imported.is_empty() { "nothing".to_owned() } else { imported.iter().map(of).collect::<Vec<_>>().join("; ") }
}
