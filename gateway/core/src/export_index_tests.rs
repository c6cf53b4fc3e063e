use alloc::vec;

use serde_json::json;

use super::*;

const NOW: Instant = Instant::from_millis(1_000);

/// When all that left at [`NOW`] is over.
fn later() -> Instant {
    NOW + LINGER
}

fn key(name: &str) -> ObjectKey {
    ("shop".into(), name.into())
}

fn export(name: &str) -> ServiceExport {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {}})).unwrap()
}

fn refused_export(name: &str) -> ServiceExport {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop"}, "spec": {},
        "status": {"conditions": [{
            "type": "Valid", "status": "False", "reason": "NoService", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"
        }]}
    }))
    .unwrap()
}

fn slice(name: &str, service: &str, addresses: &[&str]) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": addresses.iter().map(|address| json!({"addresses": [address]})).collect::<Vec<_>>(),
        "ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
    }))
    .unwrap()
}

fn endpoint(address: &str, protocol: u8, port: u16) -> ExportedEndpoint {
    ExportedEndpoint { address: address.parse().unwrap(), protocol, port }
}

fn both(address: &str, change: fn(ExportedEndpoint) -> ExportChange) -> Vec<ExportChange> {
    vec![change(endpoint(address, 6, 80)), change(endpoint(address, 17, 53))]
}

#[test]
fn endpoints_open_with_the_export_and_close_with_its_removal() {
    let mut index = ExportIndex::default();
    assert_eq!(index.apply_slice(&slice("web-1", "web", &["10.1.0.5"]), NOW), []);
    assert_eq!(index.apply_export(&export("web")), both("10.1.0.5", ExportChange::Add));
    assert_eq!(index.apply_export(&export("web")), [], "a change of nothing is no change");
    assert_eq!(index.remove_export(key("web")), both("10.1.0.5", ExportChange::Remove));
    assert_eq!(index.everything().count(), 0);
}

#[test]
fn an_export_that_is_refused_opens_nothing() {
    let mut index = ExportIndex::default();
    index.apply_slice(&slice("web-1", "web", &["10.1.0.5"]), NOW);
    assert_eq!(index.apply_export(&refused_export("web")), []);
    index.apply_export(&export("web"));
    assert_eq!(index.apply_export(&refused_export("web")), both("10.1.0.5", ExportChange::Remove));
}

#[test]
fn an_endpoint_of_two_services_closes_with_the_last() {
    let mut index = ExportIndex::default();
    index.apply_export(&export("web"));
    index.apply_export(&export("api"));
    index.apply_slice(&slice("web-1", "web", &["10.1.0.5"]), NOW);
    assert_eq!(index.apply_slice(&slice("api-1", "api", &["10.1.0.5"]), NOW), []);
    assert_eq!(index.remove_slice(&key("web-1"), NOW), []);
    assert_eq!(index.remove_slice(&key("api-1"), NOW), []);
    assert_eq!(index.expire(later()), both("10.1.0.5", ExportChange::Remove));
}

#[test]
fn a_changed_slice_changes_only_what_differs() {
    let mut index = ExportIndex::default();
    index.apply_export(&export("web"));
    index.apply_slice(&slice("web-1", "web", &["10.1.0.5", "10.1.0.6"]), NOW);
    let changes = index.apply_slice(&slice("web-1", "web", &["10.1.0.6", "10.1.0.7"]), NOW);
    assert_eq!(changes, both("10.1.0.7", ExportChange::Add));
    assert_eq!(index.expire(NOW), [], "peers still know it");
    assert_eq!(index.expire(later()), both("10.1.0.5", ExportChange::Remove));
}

#[test]
fn slices_of_other_clusters_open_nothing_here() {
    let mut index = ExportIndex::default();
    index.apply_export(&export("web"));
    let mut imported = slice("web-birch", "web", &["10.2.0.5"]);
    let labels = imported.metadata.labels.as_mut().unwrap();
    labels.insert(kubernetes::MANAGED_BY.into(), MANAGED_BY_TOMBOLO.into());
    assert_eq!(index.apply_slice(&imported, NOW), []);
}

#[test]
fn a_new_list_closes_what_is_not_on_it() {
    let mut index = ExportIndex::default();
    index.reset_exports(&[export("web"), export("api")]);
    index.reset_slices(&[slice("web-1", "web", &["10.1.0.5"]), slice("api-1", "api", &["10.1.0.6"])], NOW);
    assert_eq!(index.reset_exports(&[export("api")]), both("10.1.0.5", ExportChange::Remove));
    assert_eq!(index.reset_slices(&[], NOW), []);
    assert_eq!(index.expire(later()), both("10.1.0.6", ExportChange::Remove));
}

#[test]
fn what_cannot_be_an_endpoint_is_left_out() {
    let mut index = ExportIndex::default();
    index.apply_export(&export("web"));
    let mut odd = slice("web-1", "web", &["not an address", "10.1.0.5"]);
    odd.ports =
        serde_json::from_value(json!([{"port": 70000, "protocol": "TCP"}, {"port": 80, "protocol": "QUIC"}, {}]))
            .unwrap();
    assert_eq!(index.apply_slice(&odd, NOW), []);
}

#[test]
fn what_lingers_closes_at_once_when_its_service_is_no_longer_exported() {
    let mut index = ExportIndex::default();
    index.apply_export(&export("web"));
    index.apply_slice(&slice("web-1", "web", &["10.1.0.5"]), NOW);
    index.apply_slice(&slice("web-1", "web", &["10.1.0.6"]), NOW);
    let closed = index.remove_export(key("web"));
    assert_eq!(closed, [both("10.1.0.5", ExportChange::Remove), both("10.1.0.6", ExportChange::Remove)].concat());
    assert_eq!(index.everything().count(), 0);
}
