//! The CustomResourceDefinitions of every kind that is not Kubernetes' own, made from the types. Nobody edits one by hand.

use alloc::vec::Vec;

use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::{
    ClusterMember, ClusterPeer, ClusterProperty, ClusterRoutingPolicy, LocalCluster, RoutingPolicy, ServiceExport,
    ServiceImport, TunnelGateway,
};

/// Labels by which an installer can refuse to downgrade the MCS kinds (mcs-api `config/crd`).
const MCS_RELEASE: &str = "v0.5.0";
const MCS_REVISION: &str = "0";
/// Where the group `about.k8s.io` was approved (KEP-2149).
const ABOUT_APPROVAL: &str = "https://github.com/kubernetes/enhancements/pull/3084";

/// Every definition: our kinds first.
///
/// # Errors
/// None that a test of this crate would not meet: a type that is no JSON.
pub fn all() -> serde_json::Result<Vec<Value>> {
    let mut all = Vec::new();
    for definition in [
        LocalCluster::crd(),
        ClusterPeer::crd(),
        TunnelGateway::crd(),
        RoutingPolicy::crd(),
        ClusterRoutingPolicy::crd(),
    ] {
        all.push(serde_json::to_value(definition)?);
    }
    all.push(without_spec_too(serde_json::to_value(ClusterMember::crd())?));
    for definition in [ServiceExport::crd(), ServiceImport::crd()] {
        let mut definition = served_twice(without_spec_too(serde_json::to_value(definition)?));
        definition["metadata"]["labels"] = json!({
            "multicluster.x-k8s.io/release-version": MCS_RELEASE,
            "multicluster.x-k8s.io/crd-schema-revision": MCS_REVISION,
        });
        all.push(definition);
    }
    let mut property = served_twice(serde_json::to_value(ClusterProperty::crd())?);
    // The API server lets nobody make a kind below k8s.io without saying who approved it.
    property["metadata"]["annotations"] = json!({ "api-approved.kubernetes.io": ABOUT_APPROVAL });
    all.push(property);
    Ok(all)
}

/// Lets objects in that say no spec: a ServiceExport is complete with its name (KEP-1645).
fn without_spec_too(mut definition: Value) -> Value {
    if let Some(schema) =
        definition.pointer_mut("/spec/versions/0/schema/openAPIV3Schema").and_then(Value::as_object_mut)
    {
        schema.remove("required");
    }
    definition
}

/// The same schema as `v1alpha1` and `v1beta1`, stored as the newer one: CoreDNS still watches the older (API-2).
fn served_twice(mut definition: Value) -> Value {
    if let Some(versions) = definition.pointer_mut("/spec/versions").and_then(Value::as_array_mut)
        && let Some(newest) = versions.first().cloned()
    {
        let mut older = newest;
        older["name"] = json!("v1alpha1");
        older["storage"] = json!(false);
        versions.push(older);
    }
    definition
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standards_kinds_serve_both_versions_and_store_the_newer() {
        for definition in all().unwrap() {
            let group = definition.pointer("/spec/group").and_then(Value::as_str).unwrap();
            if !["multicluster.x-k8s.io", "about.k8s.io"].contains(&group) {
                continue;
            }
            let versions = definition.pointer("/spec/versions").unwrap().as_array().unwrap();
            let shown: Vec<_> =
                versions.iter().map(|v| (v["name"].as_str().unwrap(), v["storage"].as_bool().unwrap())).collect();
            assert_eq!(shown, [("v1beta1", true), ("v1alpha1", false)]);
        }
    }

    #[test]
    fn an_export_that_is_a_name_and_nothing_else_is_complete() {
        for definition in all().unwrap() {
            let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap();
            let named = definition.pointer("/spec/names/kind").and_then(Value::as_str).unwrap();
            let needs_spec = !["ClusterMember", "ServiceExport", "ServiceImport"].contains(&named);
            assert_eq!(schema.get("required") == Some(&json!(["spec"])), needs_spec, "{named}");
        }
    }

    #[test]
    fn every_list_and_string_of_ours_is_bounded_for_the_api_server_counts_the_cost() {
        // A CRD without bounds is accepted until a validation rule meets it; kinds with rules must be bounded.
        let local = serde_json::to_string(&all().unwrap()[0]).unwrap();
        assert!(local.contains("x-kubernetes-validations"), "LocalCluster lost its validation rule");
    }
}
