//! What is due for gateways and nodes: the slots' objects, and each node's addresses and agent.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

use api::kubernetes::{Node, NodeAddress};
use api::tunnel_gateway::TunnelGatewaySpec;
use api::{TunnelGateway, names};

use crate::advertisement::Family;
use crate::condition;
use crate::engine::Engine;
use crate::index::ObjectKey;
use crate::plan::{Verb, Write};
use crate::service_plan::MANAGED_BY;

/// A node's addresses in the infrastructure prefixes, as its annotation says.
pub fn infrastructure_addresses(node: &Node) -> Vec<IpAddr> {
    let text = node.metadata.annotations.as_ref().and_then(|all| all.get(names::INFRASTRUCTURE_ADDRESSES));
    text.iter().flat_map(|text| text.split(',')).filter_map(|address| address.trim().parse().ok()).collect()
}

impl Engine {
    /// One object a slot; those of slots that are no more are deleted.
    pub(crate) fn plan_gateways(&mut self) -> Vec<Write> {
        let Some(slots) = self.local_cluster().map(|local| local.spec.gateways.slots) else { return Vec::new() };
        let missing = (0..slots).filter(|slot| {
            let key = ObjectKey { namespace: names::SYSTEM_NAMESPACE.into(), name: names::slot_gateway(*slot) };
            self.gateways.get(&key).is_none()
        });
        let made = missing.map(|slot| {
            let mut gateway = TunnelGateway::new(&names::slot_gateway(slot), TunnelGatewaySpec { slot });
            gateway.metadata.namespace = Some(names::SYSTEM_NAMESPACE.into());
            Write::new(Verb::Create, gateway)
        });
        let surplus = self.gateways.values().filter(|gateway| gateway.spec.slot >= slots);
        made.chain(surplus.map(|gateway| Write::new(Verb::Delete, gateway.clone()))).collect()
    }

    /// The Node of an agent that told of itself, and the annotations of every Node.
    ///
    /// On Kubernetes the Node is the kubelet's: only annotations are ours. On plain hosts the agent's word makes it.
    pub(crate) fn plan_node(&mut self, name: &str) -> Vec<Write> {
        let key = ObjectKey::named(name);
        let agent = self.node_agents.get(name).cloned();
        let Some(observed) = self.local.nodes().get(&key).cloned() else {
            let Some(agent) = agent.filter(|agent| agent.connected && !self.kubelets_register_nodes) else {
                self.node_addresses.release(name);
                return Vec::new();
            };
            let mut node = Node::default();
            node.metadata.name = Some(name.to_string());
            node.metadata.labels = Some([(MANAGED_BY.to_string(), names::MANAGED_BY_TOMBOLO.to_string())].into());
            let spec = node.spec.get_or_insert_default();
            spec.pod_cidr = agent.pod_prefixes.first().cloned();
            spec.pod_cidrs = Some(agent.pod_prefixes);
            return vec![Write::new(Verb::Create, node)];
        };
        for address in infrastructure_addresses(&observed) {
            self.node_addresses.claim(name, address);
        }
        let mut wanted = observed.clone();
        let addresses: Vec<String> = [Family::V4, Family::V6]
            .into_iter()
            .filter_map(|family| self.node_addresses.obtain(name, family))
            .map(|address| address.to_string())
            .collect();
        let annotations = wanted.metadata.annotations.get_or_insert_default();
        if addresses.is_empty() {
            annotations.remove(names::INFRASTRUCTURE_ADDRESSES);
        } else {
            annotations.insert(names::INFRASTRUCTURE_ADDRESSES.into(), addresses.join(","));
        }
        if let Some(agent) = &agent {
            // Written when it comes and when it goes, not while it stays: objects report transitions.
            annotations.insert(names::AGENT_READY.into(), condition::object_time(agent.since).0.to_string());
        }
        if annotations.is_empty() {
            wanted.metadata.annotations = None;
        }
        let made_by_us = observed.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some();
        if let Some(agent) = agent.filter(|agent| agent.connected && made_by_us) {
            let spec = wanted.spec.get_or_insert_default();
            spec.pod_cidr = agent.pod_prefixes.first().cloned();
            spec.pod_cidrs = Some(agent.pod_prefixes);
            let status = wanted.status.get_or_insert_default();
            status.addresses = Some(
                agent
                    .addresses
                    .into_iter()
                    .map(|address| NodeAddress { type_: "InternalIP".into(), address })
                    .collect(),
            );
        }
        // Both would carry the version that was seen: the status follows when the update was.
        if wanted.metadata != observed.metadata || wanted.spec != observed.spec {
            vec![Write::new(Verb::Update, Node { status: observed.status, ..wanted })]
        } else if wanted.status != observed.status {
            vec![Write::new(Verb::UpdateStatus, wanted)]
        } else {
            Vec::new()
        }
    }
}
