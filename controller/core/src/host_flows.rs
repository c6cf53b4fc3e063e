//! [`AllHostFlows`]: what is open on each host of this cluster, as their agents write it into their Leases while something
//! is drained.
//!
//! How old a count is, is measured from when this controller saw it change: no host's clock counts.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use api::kubernetes::{Lease, Node};
use api::names;
use api::report::HostFlows;
use api::time::Instant;

use crate::engine::Engine;
use crate::index::{Index, Observed};

/// A count of more bytes is none of ours: it has a hundred bytes a peer, and there are at most some hundred peers.
const MOST_BYTES: usize = 64 * 1024;

/// The counts, by node.
#[derive(Default)]
pub struct AllHostFlows {
    leases: Index<Lease>,
    by_node: BTreeMap<String, (HostFlows, Option<Instant>)>,
}

impl AllHostFlows {
    pub fn observe(&mut self, step: Observed<Lease>, now: Instant) {
        // What is there when this controller starts may be old.
        let heard = self.leases.is_known().then_some(now);
        for touched in self.leases.observe(step) {
            let Some(node) = names::node_of_lease(&touched.key.name) else { continue };
            if touched.key.namespace != names::SYSTEM_NAMESPACE {
                continue;
            }
            match self.leases.get(&touched.key).and_then(count) {
                Some(flows) => drop(self.by_node.insert(node.to_string(), (flows, heard))),
                None => drop(self.by_node.remove(node)),
            }
        }
    }

    /// Every count there is, with its age; of each of `nodes` one, which says nothing where that node does not.
    pub fn report<'a>(&self, nodes: impl Iterator<Item = &'a str>, now: Instant) -> Vec<HostFlows> {
        let none = |node: &str| HostFlows { node: node.to_string(), ..HostFlows::default() };
        let mut all: BTreeMap<&str, HostFlows> = nodes.map(|node| (node, none(node))).collect();
        all.extend(self.by_node.iter().map(|(node, (flows, heard))| {
            let age = heard.map(|heard| now.since(heard).as_secs_f64());
            (node.as_str(), HostFlows { node: node.clone(), age, ..flows.clone() })
        }));
        all.into_values().collect()
    }
}

impl Engine {
    /// What is open on each host, while something is drained; also those that had an agent and do not say.
    pub fn host_flows(&self, now: Instant) -> Vec<HostFlows> {
        let had_agent =
            |node: &&Node| node.metadata.annotations.iter().flatten().any(|(name, _)| name == names::AGENT_READY);
        let nodes = self.local.nodes().values().filter(had_agent).filter_map(|node| node.metadata.name.as_deref());
        self.host_flows.report(nodes, now)
    }
    pub fn observe_leases(&mut self, step: Observed<Lease>, now: Instant) {
        self.host_flows.observe(step, now);
    }
}

/// What a Lease says is open; none where it says nothing that can be read.
fn count(lease: &Lease) -> Option<HostFlows> {
    let text = lease.metadata.annotations.as_ref()?.get(names::OPEN_FLOWS)?;
    if text.len() > MOST_BYTES {
        return None;
    }
    // An object alone: a list would be read as one without names.
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    serde_json::from_value(object.into()).ok()
}

#[cfg(test)]
mod tests {
    use api::report::FlowReport;
    use serde_json::json;

    use super::*;

    fn lease(node: &str, text: &str) -> Lease {
        serde_json::from_value(json!({ "metadata": { "namespace": names::SYSTEM_NAMESPACE,
            "name": names::node_lease(node), "annotations": { names::OPEN_FLOWS: text } } }))
        .unwrap()
    }

    fn flows(inward: u64) -> String {
        let of_birch = FlowReport { peer: "birch".into(), inward, ..FlowReport::default() };
        let flows = HostFlows { flows: vec![of_birch], drained: vec!["cluster".into()], ..HostFlows::default() };
        serde_json::to_string(&flows).unwrap()
    }

    #[test]
    fn a_count_has_an_age_once_it_was_seen_to_change_and_goes_when_it_is_taken_back() {
        let (mut all, at) = (AllHostFlows::default(), Instant::from_millis);
        all.observe(Observed::Reset(vec![lease("worker", &flows(3))]), at(0));
        let report = all.report(["gateway", "worker"].into_iter(), at(9_000));
        assert_eq!((report[0].node.as_str(), report[0].age), ("gateway", None), "a node that says nothing is no zero");
        let report = all.report([].into_iter(), at(9_000));
        assert_eq!((report[0].node.as_str(), report[0].age, report[0].flows[0].inward), ("worker", None, 3));
        all.observe(Observed::Applied(lease("worker", &flows(2))), at(9_000));
        let report = all.report([].into_iter(), at(9_500));
        assert_eq!((report[0].age, report[0].flows[0].inward), (Some(0.5), 2));
        let mut bare = lease("worker", "");
        bare.metadata.annotations = None;
        all.observe(Observed::Applied(bare), at(10_000));
        assert!(all.report([].into_iter(), at(10_000)).is_empty());
    }

    #[test]
    fn a_lease_that_says_nothing_readable_is_no_count() {
        let mut all = AllHostFlows::default();
        let giant = "1".repeat(MOST_BYTES + 1);
        let leases = ["", "{", "[]", "7", giant.as_str()].map(|text| lease("worker", text));
        for odd in leases {
            all.observe(Observed::Reset(vec![odd]), Instant::from_millis(0));
            assert!(all.report([].into_iter(), Instant::from_millis(0)).is_empty());
        }
        let mut other = lease("worker", &flows(1));
        other.metadata.name = Some("gateway-slot-0".into());
        all.observe(Observed::Reset(vec![other]), Instant::from_millis(0));
        assert!(all.report([].into_iter(), Instant::from_millis(0)).is_empty());
    }
}
