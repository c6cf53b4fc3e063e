//! What is left of a drain: established connections, as all hosts of this cluster count them.

use api::report::{ControllerReport, HostFlows};
use serde::Serialize;

use super::Subject;

/// A count that is older says nothing any more: hosts say it again every few seconds, also where there are many.
const FRESH: f64 = 70.0;

/// Established connections, by host and by the other cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Left {
    pub connections: Vec<LeftOn>,
    /// Hosts that have not counted, or not since the order; what is open there is unknown.
    pub uncounted: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOn {
    pub host: String,
    /// The cluster at the other end.
    pub cluster: String,
    pub connections: u64,
}

impl Left {
    /// What the hosts of this cluster say is left of what `subject` had.
    pub fn of(subject: &Subject, report: &ControllerReport) -> Self {
        let mut left = Self::default();
        let hosts: Vec<&str> = match subject {
            Subject::Node(node) => vec![node],
            _ => report.hosts.iter().map(|flows| flows.node.as_str()).collect(),
        };
        for host in hosts {
            let is_valid = |flows: &&HostFlows| {
                let is_fresh = flows.age.is_some_and(|age| age < FRESH);
                flows.node == host && is_fresh && flows.drained.contains(&subject.key())
            };
            match report.hosts.iter().find(is_valid) {
                Some(flows) => left.connections.extend(left_on(subject, flows, &report.cluster_id)),
                None => left.uncounted.push(host.to_owned()),
            }
        }
        left
    }

    pub fn count(&self) -> u64 {
        self.connections.iter().map(|left| left.connections).sum()
    }

    /// Why it cannot be said that nothing is left; none where it can.
    pub fn reason(&self) -> Option<String> {
        match (self.count(), self.uncounted.as_slice()) {
            (0, []) => None,
            (0, hosts) => Some(format!("nothing was counted yet on {}: is its node agent there?", hosts.join(", "))),
            (_, _) => Some(format!("still left: {}", self.words())),
        }
    }

    /// `3 established connections`, with a question mark where not all was counted.
    pub fn words(&self) -> String {
        let mark = if self.uncounted.is_empty() { "" } else { "?" };
        let count = self.count();
        let noun = if count == 1 { "connection" } else { "connections" };
        format!("{count}{mark} established {noun}")
    }

    /// Where they are, a line each.
    pub fn lines(&self) -> String {
        let line = |left: &LeftOn| format!("  {}  {} with {}\n", left.host, left.connections, left.cluster);
        let unknown = |host: &String| format!("  {host}  ? not counted\n");
        self.connections.iter().map(line).chain(self.uncounted.iter().map(unknown)).collect()
    }
}

fn left_on(subject: &Subject, flows: &HostFlows, own: &str) -> Vec<LeftOn> {
    let on = |cluster: &str, connections| LeftOn { host: flows.node.clone(), cluster: cluster.into(), connections };
    let peers = flows.flows.iter();
    let mut all: Vec<LeftOn> = match subject {
        Subject::Drained(peer) | Subject::Blocked(peer) => {
            peers.filter(|flows| flows.peer == *peer).map(|flows| on(&flows.peer, flows.outward)).collect()
        }
        Subject::Ourselves => peers.map(|flows| on(&flows.peer, flows.inward)).collect(),
        Subject::Node(_) => {
            let members = peers.map(|flows| on(&flows.peer, flows.inward));
            members.chain([on(own, flows.own)]).collect()
        }
        Subject::Gateway(_) => Vec::new(),
    };
    all.retain(|left| left.connections > 0);
    all
}

#[cfg(test)]
mod tests {
    use api::report::FlowReport;

    use super::*;

    fn report(drained: &str, age: Option<f64>) -> ControllerReport {
        let of =
            |peer: &str, outward, inward| FlowReport { peer: peer.into(), outward, inward, ..FlowReport::default() };
        let hosts = ["gateway", "worker"].map(|node| HostFlows {
            node: node.into(),
            age,
            flows: vec![of("birch", 2, 0), of("cedar", 0, 3)],
            own: 1,
            drained: vec![drained.into()],
            counted: 7,
        });
        ControllerReport { cluster_id: "amber".into(), hosts: hosts.into(), ..ControllerReport::default() }
    }

    #[test]
    fn what_is_left_is_counted_on_all_hosts_for_what_is_drained_alone() {
        let count = |subject: Subject| Left::of(&subject, &report(&subject.key(), Some(1.0))).count();
        assert_eq!(count(Subject::Drained("birch".into())), 4);
        assert_eq!(count(Subject::Ourselves), 6);
        assert_eq!(count(Subject::Node("worker".into())), 4, "with this cluster's own clients");
        let left = Left::of(&Subject::Ourselves, &report("cluster", Some(1.0)));
        assert_eq!(left.lines(), "  gateway  3 with cedar\n  worker  3 with cedar\n");
        assert_eq!(left.reason().unwrap(), "still left: 6 established connections");
    }

    #[test]
    fn what_nobody_counted_since_the_order_is_unknown_and_never_nothing() {
        for unknown in [report("peer birch", Some(1.0)), report("cluster", None), report("cluster", Some(99.0))] {
            let left = Left::of(&Subject::Ourselves, &unknown);
            assert_eq!((left.count(), left.uncounted.len()), (0, 2));
            assert!(left.reason().unwrap().contains("gateway, worker"));
            assert_eq!(left.words(), "0? established connections");
        }
    }
}
