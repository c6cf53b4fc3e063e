//! [`DrainedNodes`]: the nodes of this cluster that an order took out of service, and which endpoints are on them.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

use api::Prefix;
use api::kubernetes::Node;

/// The drained nodes with the prefixes of their pods: an endpoint that names no node is where its address is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainedNodes(BTreeMap<String, Vec<Prefix>>);

impl DrainedNodes {
    /// A node is as it is now, or gone. Whether that changes what is drained.
    pub fn observe(&mut self, name: &str, node: Option<&Node>) -> bool {
        match node.filter(|node| api::order::is_drained(node)) {
            Some(node) => {
                let prefixes = pod_prefixes(node);
                self.0.insert(name.to_string(), prefixes.clone()) != Some(prefixes)
            }
            None => self.0.remove(name).is_some(),
        }
    }

    /// Whether an endpoint is on one of them: by the node it names, else by its address.
    pub fn hold(&self, node: Option<&str>, address: IpAddr) -> bool {
        match node {
            Some(node) => self.0.contains_key(node),
            None => self.0.values().flatten().any(|prefix| prefix.contains(address)),
        }
    }
}

fn pod_prefixes(node: &Node) -> Vec<Prefix> {
    let spec = node.spec.iter();
    let texts = spec.flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
    texts.filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use api::names;
    use serde_json::json;

    use super::*;

    fn node(state: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": "w1", "annotations": { names::STATE: state } },
            "spec": { "podCIDRs": ["10.1.1.0/24", "fd00:1:0:1::/64"] },
        }))
        .unwrap()
    }

    #[test]
    fn an_endpoint_is_on_the_node_it_names_or_where_its_address_is() {
        let mut drained = DrainedNodes::default();
        assert!(!drained.observe("w1", Some(&node("Active"))));
        assert!(drained.observe("w1", Some(&node("Draining"))) && !drained.observe("w1", Some(&node("Draining"))));
        let here = "10.1.1.7".parse().unwrap();
        assert!(drained.hold(None, here) && drained.hold(Some("w1"), "192.0.2.1".parse().unwrap()));
        assert!(!drained.hold(Some("w2"), here) && !drained.hold(None, "10.1.2.7".parse().unwrap()));
        assert!(drained.observe("w1", None) && !drained.hold(None, here));
    }
}
