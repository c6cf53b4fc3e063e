//! Who answers and why, in the words of `tombolo explain`: asked for and installed.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

use api::report::{ClusterShare, PortReport, ServiceReport};
use api::time::Instant;
use kernel_core::{Family, Frontend, Protocol};
use routing::{Decision, Source};

use crate::NodeCore;
use crate::catalog::{ImportFacts, PortFacts};
use crate::frontends::{Endpoints, decision, endpoints};
use crate::input::Key;

impl NodeCore {
    /// Every service of the clusterset, as decided now.
    pub fn services(&self, now: Instant) -> Vec<ServiceReport> {
        self.catalog.imports().map(|(key, import)| self.report(key, import, now)).collect()
    }

    /// One service, as decided now; none when there is no such ServiceImport.
    pub fn explain(&self, namespace: &str, name: &str, now: Instant) -> Option<ServiceReport> {
        let key = (namespace.to_string(), name.to_string());
        self.catalog.imports.get(&key).map(|import| self.report(&key, import, now))
    }

    /// How many services of the clusterset there are.
    pub fn service_count(&self) -> usize {
        self.catalog.imports.len()
    }

    fn report(&self, key: &Key, import: &ImportFacts, now: Instant) -> ServiceReport {
        ServiceReport {
            service: format!("{}/{}", key.0, key.1),
            service_type: if import.headless { "Headless" } else { "ClusterSetIP" }.to_string(),
            addresses: import.addresses.iter().map(ToString::to_string).collect(),
            ports: import.ports.iter().map(|port| self.port_report(key, import, port, now)).collect(),
        }
    }

    /// The family of the service's first address stands for both: clusters rarely export endpoints of one alone.
    fn port_report(&self, key: &Key, import: &ImportFacts, port: &PortFacts, now: Instant) -> PortReport {
        let address = import.addresses.first();
        let family = address.map_or(Family::Ipv4, |address| Family::of(*address));
        let endpoints = endpoints(self.catalog.slices_of_import(key), port, family);
        let memory = self.served.get(key).and_then(|served| served.memories.get(&(port.name.clone(), family)));
        let decision = decision(key, port, memory, &endpoints, self.scene(now));
        let frontend = address.map(|address| Frontend { address: *address, protocol: port.protocol, port: port.port });
        let installed = frontend.map(|frontend| self.installed(&frontend, &endpoints)).unwrap_or_default();
        let (policy, policy_generation) = named(&decision.policy);
        PortReport {
            name: port.name.clone(),
            protocol: match port.protocol {
                Protocol::Tcp => "TCP",
                Protocol::Udp => "UDP",
                Protocol::Sctp => "SCTP",
            }
            .to_string(),
            port: port.port,
            policy,
            policy_generation,
            clusters: shares(&decision, &installed),
        }
    }

    /// The part of the slots in force that each cluster has, in percent.
    fn installed(&self, frontend: &Frontend, endpoints: &Endpoints) -> BTreeMap<api::ClusterId, f64> {
        let slots = self.services.get(frontend).map(kernel_core::Service::slots).unwrap_or_default();
        let part = |backends: &Vec<kernel_core::Backend>| {
            let own = slots.iter().filter(|slot| backends.binary_search(slot).is_ok()).count();
            // At most 256 of them.
            if slots.is_empty() { 0.0 } else { own as f64 * 100.0 / slots.len() as f64 }
        };
        endpoints.ready.iter().map(|(cluster, backends)| (cluster.clone(), part(backends))).collect()
    }
}

fn named(source: &Source) -> (alloc::string::String, Option<i64>) {
    match source {
        Source::Override { name, generation } => (format!("ClusterRoutingPolicy {name} (override)"), Some(*generation)),
        Source::Policy { namespace, name, generation } => {
            (format!("RoutingPolicy {namespace}/{name}"), Some(*generation))
        }
        Source::Default { name, generation } => (format!("ClusterRoutingPolicy {name} (default)"), Some(*generation)),
        Source::LocalFirst => ("local first".to_string(), None),
    }
}

fn shares(decision: &Decision, installed: &BTreeMap<api::ClusterId, f64>) -> Vec<ClusterShare> {
    let share = |verdict: &routing::Verdict| ClusterShare {
        cluster: verdict.cluster.to_string(),
        tier: verdict.tier,
        ready: verdict.ready,
        total: verdict.total,
        verdict: format!("{:?}", verdict.standing),
        reason: verdict.reason.to_string(),
        asked_percent: decision.percent(&verdict.cluster),
        installed_percent: installed.get(&verdict.cluster).copied().unwrap_or(0.0),
    };
    decision.verdicts.iter().map(share).collect()
}
