//! [`Agents`]: on which nodes a node agent does its work. An endpoint on a node without one cannot be reached from
//! other clusters, for nobody admits their packets there.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use api::kubernetes::Node;
use api::names;
use api::time::Instant;

/// How long a node counts as connected after its agent went away: an agent that restarts is back within 2 s, and what
/// it put into the kernel works on without it.
pub const LOST_GRACE: Duration = Duration::from_secs(15);

/// The same after the controller itself started: agents redial with back-off, and nothing may drop because of us.
pub const START_GRACE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Default)]
struct Agent {
    has_node: bool,
    /// The Node says that an agent was ready once.
    was_ready: bool,
    connected: bool,
    lost: Option<Instant>,
}

#[derive(Clone, Debug)]
pub struct Agents {
    nodes: BTreeMap<String, Agent>,
    started: Instant,
    /// What was last said of each node, so that a change can be told.
    withheld: BTreeMap<String, bool>,
}

impl Agents {
    pub fn new(started: Instant) -> Self {
        Self { nodes: BTreeMap::new(), started, withheld: BTreeMap::new() }
    }

    pub fn observe_node(&mut self, name: &str, node: Option<&Node>) {
        let agent = self.nodes.entry(name.to_string()).or_default();
        agent.has_node = node.is_some();
        agent.was_ready = node
            .and_then(|node| node.metadata.annotations.as_ref())
            .is_some_and(|annotations| annotations.contains_key(names::AGENT_READY));
        if node.is_none() && !agent.connected {
            self.nodes.remove(name);
        }
    }

    pub fn observe_agent(&mut self, name: &str, connected: bool, now: Instant) {
        let agent = self.nodes.entry(name.to_string()).or_default();
        agent.was_ready |= agent.connected || connected;
        agent.lost = (!connected).then_some(now);
        agent.connected = connected;
    }

    /// Whether endpoints on this node are kept back. Never in a cluster that has no agents, nor for nodes nobody
    /// declared.
    pub fn is_withheld(&self, name: &str) -> bool {
        self.withheld.get(name).copied().unwrap_or(false)
    }

    fn judge(&self, agent: &Agent, now: Instant) -> bool {
        let any_agent = self.nodes.values().any(|agent| agent.was_ready || agent.connected);
        if !any_agent || !agent.has_node || agent.connected {
            return false;
        }
        if !agent.was_ready {
            return true;
        }
        match agent.lost {
            Some(lost) => now.since(lost) >= LOST_GRACE,
            None => now.since(self.started) >= START_GRACE,
        }
    }

    /// The nodes whose verdict changed since the last call.
    pub fn refresh(&mut self, now: Instant) -> Vec<String> {
        let fresh: BTreeMap<String, bool> =
            self.nodes.iter().map(|(name, agent)| (name.clone(), self.judge(agent, now))).collect();
        let mut changed: Vec<String> = fresh
            .iter()
            .filter(|(name, withheld)| self.withheld.get(*name).copied().unwrap_or(false) != **withheld)
            .map(|(name, _)| name.clone())
            .collect();
        changed.extend(
            self.withheld
                .iter()
                .filter(|(name, was)| **was && !fresh.contains_key(*name))
                .map(|(name, _)| name.clone()),
        );
        self.withheld = fresh;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: bool) -> Node {
        let mut node = Node::default();
        if ready {
            node.metadata.annotations = Some([(names::AGENT_READY.to_string(), String::from("t"))].into());
        }
        node
    }

    #[test]
    fn a_cluster_without_agents_keeps_nothing_back() {
        let mut agents = Agents::new(Instant::from_millis(0));
        agents.observe_node("a", Some(&node(false)));
        assert!(agents.refresh(Instant::from_millis(90_000)).is_empty());
        assert!(!agents.is_withheld("a"));
    }

    #[test]
    fn a_node_whose_agent_never_came_is_kept_back_once_another_one_has() {
        let mut agents = Agents::new(Instant::from_millis(0));
        agents.observe_node("a", Some(&node(false)));
        agents.observe_node("b", Some(&node(false)));
        agents.observe_agent("b", true, Instant::from_millis(1));
        assert_eq!(agents.refresh(Instant::from_millis(2)), ["a"]);
        assert!(agents.is_withheld("a") && !agents.is_withheld("b") && !agents.is_withheld("undeclared"));
    }

    #[test]
    fn a_controller_restart_drops_no_endpoint_within_the_grace() {
        let mut agents = Agents::new(Instant::from_millis(0));
        agents.observe_node("a", Some(&node(true)));
        assert!(agents.refresh(Instant::from_millis(29_000)).is_empty());
        assert_eq!(agents.refresh(Instant::from_millis(30_000)), ["a"]);
        agents.observe_agent("a", true, Instant::from_millis(31_000));
        assert_eq!(agents.refresh(Instant::from_millis(31_000)), ["a"]);
        agents.observe_agent("a", false, Instant::from_millis(40_000));
        assert!(agents.refresh(Instant::from_millis(54_000)).is_empty());
        assert_eq!(agents.refresh(Instant::from_millis(55_000)), ["a"]);
    }
}
