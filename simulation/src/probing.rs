//! Agents ask the gateways of their cluster for health, as the crate `prober` does, over a network inside the cluster
//! that loses nothing but what is unplugged.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::health::{HealthReport, PathReason, Reachability};
use node_core::Input;

use crate::schedule::Sabotage;
use crate::world::{MS, World};

/// When a gateway is asked (prober/src/questions.rs): usually, while an answer is late, and when one is.
const EVERY: u64 = 100 * MS;
const FAST: u64 = 20 * MS;
const LATE: u64 = 60 * MS;
/// After so many questions in vain there is no hurry.
const HURRIED: u32 = 20;

/// The questions of one agent to one gateway.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asking {
    in_vain: u32,
    first_in_vain: u64,
    last: u64,
}

impl Asking {
    fn due(&self) -> u64 {
        let hurries = self.in_vain > 0 && self.in_vain < HURRIED;
        let usual = self.last + EVERY;
        if hurries { usual.min((self.first_in_vain + LATE).max(self.last + FAST)) } else { usual }
    }

    fn asked(&mut self, answered: bool, now: u64) {
        self.last = now;
        if answered {
            self.in_vain = 0;
        } else {
            if self.in_vain == 0 {
                self.first_in_vain = now;
            }
            self.in_vain += 1;
        }
    }
}

/// By slot.
pub(crate) type Askings = BTreeMap<u16, Asking>;

/// The gateways that are due, all that are new among them; and when the next one is.
fn due(askings: &mut Askings, gateways: &BTreeMap<u16, Vec<IpAddr>>, now: u64) -> Vec<u16> {
    askings.retain(|slot, _| gateways.contains_key(slot));
    gateways.keys().copied().filter(|slot| askings.get(slot).is_none_or(|asking| asking.due() <= now)).collect()
}

fn next(askings: &Askings, now: u64) -> u64 {
    askings.values().map(Asking::due).min().unwrap_or(now + EVERY).min(now + EVERY).max(now + MS)
}

impl World {
    pub(crate) fn ask_for_host(&mut self, place: usize, host: usize) {
        let Some(agent) = &self.clusters[place].hosts[host].agent else { return };
        let gateways = agent.core.gateway_addresses();
        let now = self.now;
        let instant = self.clusters[place].now(now).instant;
        for slot in due(&mut self.clusters[place].hosts[host].askings, &gateways, now) {
            self.clusters[place].hosts[host].tell(Input::Asked(slot), instant);
            let report = self.ask(place, host, slot, &gateways[&slot]);
            let asking = self.clusters[place].hosts[host].askings.entry(slot).or_default();
            asking.asked(report.is_some(), now);
            if let Some(report) = report {
                self.clusters[place].hosts[host].tell(Input::Report(report), instant);
            }
        }
        self.clusters[place].hosts[host].asks_at = next(&self.clusters[place].hosts[host].askings, now);
        self.settle_host(place, host);
    }

    pub(crate) fn ask_for_names(&mut self, place: usize) {
        let Some(process) = &self.clusters[place].names.process else { return };
        let gateways = process.view.gateways().clone();
        let (now, host) = (self.now, self.clusters[place].last_host());
        let instant = self.clusters[place].now(now).instant;
        for slot in due(&mut self.clusters[place].names.askings, &gateways, now) {
            let report = self.ask(place, host, slot, &gateways[&slot]);
            self.clusters[place].names.askings.entry(slot).or_default().asked(report.is_some(), now);
            if let Some(process) = &mut self.clusters[place].names.process {
                process.view.asked(slot);
                report.into_iter().for_each(|report| process.view.take_report(report, instant));
            }
        }
        self.clusters[place].names.asks_at = next(&self.clusters[place].names.askings, now);
        self.settle_names(place);
    }

    /// One question and its answer. The bytes of both are tested in `api` and `gateway_core`, and cost more than all else
    /// that is simulated.
    fn ask(&self, place: usize, from: usize, slot: u16, addresses: &[IpAddr]) -> Option<HealthReport> {
        let cluster = &self.clusters[place];
        let to = addresses.iter().find_map(|address| cluster.host_at(*address))?;
        let asked = cluster.gateways.iter().find(|gateway| gateway.slot == slot && gateway.host == to)?;
        let core = asked.core.as_ref().filter(|_| cluster.joins(from, to))?;
        let mut report = core.paths.health_report(cluster.now(self.now).instant);
        if self.sabotage == Some(Sabotage::RosyHealth) {
            report.peers.iter_mut().for_each(|peer| {
                (peer.reachability, peer.reason) = (Reachability::Up, PathReason::Answering);
            });
        }
        if self.sabotage == Some(Sabotage::RosyLanes) {
            report.peers.iter_mut().for_each(|peer| peer.lanes = u16::MAX);
        }
        Some(report)
    }
}
