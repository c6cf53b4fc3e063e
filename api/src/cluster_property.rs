//! `ClusterProperty` (KEP-2149, About API): one thing that is said of a whole cluster, under a well-known name.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ClusterId, Kind, Scope, Violation, names};

/// Written by whoever manages the cluster. The names without a domain, or below `k8s.io`, belong to the standard.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "about.k8s.io",
    version = "v1beta1",
    kind = "ClusterProperty",
    plural = "clusterproperties",
    crates(std = "core"),
    category = "multicluster",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Value","type":"string","jsonPath":".spec.value"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPropertySpec {
    /// The value of this property, at most 128,000 bytes.
    #[schemars(length(min = 1, max = 128_000))]
    pub value: String,
}

/// As the standard's comment has it.
const LONGEST_VALUE: usize = 128_000;

impl Kind for ClusterProperty {
    const SCOPE: Scope = Scope::Cluster;

    fn violations(&self) -> Vec<Violation> {
        let value = &self.spec.value;
        if value.is_empty() || value.len() > LONGEST_VALUE {
            let wrong = alloc::format!("has {} bytes: give 1 to {LONGEST_VALUE}", value.len());
            return vec![Violation::new("spec.value", wrong)];
        }
        let is_id = [names::CLUSTER_ID_PROPERTY, names::CLUSTER_SET_ID_PROPERTY]
            .contains(&self.metadata.name.as_deref().unwrap_or_default());
        match ClusterId::new(value) {
            Err(error) if is_id => vec![Violation::new("spec.value", error.to_string())],
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn property(name: &str, value: &str) -> ClusterProperty {
        ClusterProperty::new(name, ClusterPropertySpec { value: value.into() })
    }

    #[test]
    fn the_properties_that_name_a_cluster_hold_an_id_and_others_what_they_like() {
        assert!(property(names::CLUSTER_ID_PROPERTY, "amber").violations().is_empty());
        assert!(property("colour.example.com", "Rather Yellow").violations().is_empty());
        let wrong = property(names::CLUSTER_SET_ID_PROPERTY, "Rather Yellow").violations();
        assert!(wrong[0].message.contains("is not a cluster id"), "{wrong:?}");
        assert_eq!(property("colour.example.com", "").violations()[0].path, "spec.value");
    }
}
