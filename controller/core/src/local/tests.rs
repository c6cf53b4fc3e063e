use serde_json::json;

use super::*;
use crate::testing::time;

fn export() -> ServiceExport {
    serde_json::from_value(json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": { "name": "web", "namespace": "shop", "uid": "u1", "creationTimestamp": "2026-01-01T00:00:05Z",
                      "labels": { "own": "label" } },
        "spec": { "exportedLabels": { "team": "a" } }
    }))
    .unwrap()
}

fn service(spec: serde_json::Value) -> Service {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": "shop", "labels": { "own": "label" } }, "spec": spec
    }))
    .unwrap()
}

fn plain_service() -> Service {
    service(json!({ "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] }))
}

fn slice(name: &str, endpoints: serde_json::Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "namespace": "shop", "labels": { "kubernetes.io/service-name": "web" } },
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }], "endpoints": endpoints
    }))
    .unwrap()
}

fn web() -> ServiceName {
    ServiceName::new("shop", "web")
}

fn index() -> LocalIndex {
    let mut index = LocalIndex::new(Instant::from_millis(0));
    index.set_families(&[Family::V4].into());
    index
}

fn exported() -> LocalIndex {
    let mut index = index();
    index.observe_services(Observed::Applied(plain_service()));
    index.observe_exports(Observed::Applied(export()));
    index.observe_slices(Observed::Applied(slice("web-1", json!([{ "addresses": ["10.1.0.1"] }]))));
    index.refresh(time(100));
    index
}

#[test]
fn a_service_is_advertised_only_with_an_export_in_the_same_cluster() {
    let mut index = index();
    index.observe_services(Observed::Applied(plain_service()));
    index.observe_slices(Observed::Applied(slice("web-1", json!([{ "addresses": ["10.1.0.1"] }]))));
    assert!(index.refresh(time(100)).1.is_empty());
    index.observe_exports(Observed::Applied(export()));
    assert_eq!(index.refresh(time(100)).1.len(), 2);
    let service = index.advertisement().service(&web()).unwrap();
    assert_eq!(service.exported_labels, [("team".to_string(), "a".to_string())].into());
    assert_eq!(service.first_exported, time(5));
    assert_eq!(index.verdict(&web()).unwrap().ready, ServiceReason::Exported);
}

#[test]
fn an_export_without_its_service_says_so_and_becomes_valid_when_the_service_comes() {
    let mut index = index();
    index.observe_exports(Observed::Applied(export()));
    index.refresh(time(100));
    assert_eq!(index.verdict(&web()).unwrap().valid, ServiceReason::NoService);
    index.observe_services(Observed::Applied(plain_service()));
    index.refresh(time(100));
    assert_eq!(index.verdict(&web()).unwrap().valid, ServiceReason::Valid);
    index.observe_services(Observed::Deleted(plain_service()));
    index.refresh(time(100));
    assert_eq!(index.verdict(&web()).unwrap().valid, ServiceReason::NoService);
    assert!(index.advertisement().is_empty());
}

#[test]
fn an_external_name_is_refused_and_a_service_without_address_is_headless() {
    let mut index = exported();
    index.observe_services(Observed::Applied(service(json!({ "type": "ExternalName", "externalName": "a.example" }))));
    index.refresh(time(100));
    assert_eq!(index.verdict(&web()).unwrap().valid, ServiceReason::InvalidServiceType);
    assert!(index.advertisement().is_empty());
    index.observe_services(Observed::Applied(service(json!({ "clusterIP": "None" }))));
    index.refresh(time(100));
    assert_eq!(index.advertisement().service(&web()).unwrap().service_type, ImportType::Headless);
}

#[test]
fn one_changed_endpoint_changes_one_item() {
    let mut index = exported();
    index.observe_slices(Observed::Applied(slice("web-2", json!([{ "addresses": ["10.1.0.2"] }]))));
    index.refresh(time(100));
    index.observe_slices(Observed::Applied(slice(
        "web-1",
        json!([{ "addresses": ["10.1.0.1"], "conditions": { "ready": false } }]),
    )));
    let (_, changes) = index.refresh(time(100));
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].key, ItemKey::slice(web(), "web-1"));
    index.observe_slices(Observed::Deleted(slice("web-1", json!([]))));
    assert_eq!(index.refresh(time(100)).1, [ItemChange { key: ItemKey::slice(web(), "web-1"), item: None }]);
}

#[test]
fn endpoints_on_a_drained_node_stay_advertised_and_finish_what_they_have() {
    let mut index = exported();
    let endpoints = json!([
        { "addresses": ["10.1.1.1"], "nodeName": "w1" }, { "addresses": ["10.1.1.2"] },
        { "addresses": ["10.1.1.3"], "nodeName": "w1", "conditions": { "ready": false } },
        { "addresses": ["10.1.2.1"], "nodeName": "w2", "conditions": { "ready": false, "serving": true } },
        { "addresses": ["10.1.2.2"], "nodeName": "w2" },
    ]);
    index.observe_slices(Observed::Applied(slice("web-1", endpoints)));
    index.refresh(time(100));
    let node = |annotations: serde_json::Value| -> Observed<Node> {
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "w1", "annotations": annotations },
            "spec": { "podCIDR": "10.1.1.0/24" } });
        Observed::Applied(serde_json::from_value(node).unwrap())
    };
    let said = |index: &LocalIndex| -> Vec<(bool, bool)> {
        let web = web();
        let slices = index.advertisement().slices(&web);
        slices.flat_map(|(_, slice)| &slice.endpoints).map(|said| (said.ready, said.finishing)).collect()
    };
    let before = [(true, false), (true, false), (false, false), (false, true), (true, false)];
    assert_eq!(said(&index), before);
    index.observe_nodes(node(json!({ names::STATE: "Draining" })), Instant::from_millis(0));
    assert_eq!(index.refresh(time(100)).1.len(), 1);
    assert_eq!(said(&index), [(false, true), (false, true), (false, false), (false, true), (true, false)]);
    let verdict = index.verdict(&web()).unwrap();
    assert_eq!((verdict.endpoints, verdict.drained), (5, 3));
    assert!(verdict.message.contains("3 are on drained nodes"), "{}", verdict.message);
    index.observe_nodes(node(json!({})), Instant::from_millis(0));
    index.refresh(time(100));
    assert_eq!(said(&index), before);
}

#[test]
fn an_endpoint_whose_nodes_agent_is_not_ready_is_kept_back_and_named() {
    let mut index = exported();
    let node: Node =
        serde_json::from_value(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "w1" } })).unwrap();
    index.observe_nodes(Observed::Applied(node.clone()), Instant::from_millis(0));
    let mut other = node;
    other.metadata.name = Some("w2".into());
    index.observe_nodes(Observed::Applied(other), Instant::from_millis(0));
    index.observe_agent("w2", true, Instant::from_millis(0));
    index.observe_slices(Observed::Applied(slice("web-1", json!([{ "addresses": ["10.1.0.1"], "nodeName": "w1" }]))));
    index.refresh(time(100));
    assert_eq!(index.verdict(&web()).unwrap().ready, ServiceReason::NodeNotConnected);
    assert_eq!(index.advertisement().endpoints(), 0);
    index.observe_agent("w1", true, Instant::from_millis(5));
    index.refresh(time(100));
    assert_eq!((index.verdict(&web()).unwrap().ready, index.advertisement().endpoints()), (ServiceReason::Exported, 1));
}

#[test]
fn endpoints_that_nobody_checks_count_as_ready_and_are_called_unchecked() {
    let mut index = exported();
    let endpoints =
        json!([{ "addresses": ["10.1.0.1"] }, { "addresses": ["10.1.0.2"], "conditions": { "ready": true } }]);
    let with_check = |mut slice: EndpointSlice| {
        let annotations = slice.metadata.annotations.get_or_insert_default();
        annotations.insert(names::CHECK.into(), "tcp".into());
        slice
    };
    index.observe_slices(Observed::Applied(slice("web-1", endpoints.clone())));
    index.refresh(time(100));
    let verdict = index.verdict(&web()).unwrap();
    assert!(verdict.unchecked == 1 && verdict.message.contains("1 are Unchecked"), "{verdict:?}");
    assert!(index.advertisement().slices(&web()).all(|(_, slice)| slice.endpoints.iter().all(|one| one.ready)));
    index.observe_slices(Observed::Applied(with_check(slice("web-1", endpoints))));
    index.refresh(time(100));
    assert_eq!(index.verdict(&web()).unwrap().unchecked, 0);
}

#[test]
fn a_namespace_that_is_being_deleted_exports_nothing() {
    let mut index = exported();
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": "shop", "deletionTimestamp": "2026-01-01T00:00:09Z" } });
    index.observe_namespaces(Observed::Applied(serde_json::from_value(namespace).unwrap()));
    index.refresh(time(100));
    assert!(index.advertisement().is_empty() && !index.has_namespace("shop"));
}

#[test]
fn an_export_from_the_future_counts_from_when_it_was_first_seen() {
    let mut index = exported();
    let mut later = export();
    later.metadata.uid = Some("u2".into());
    later.metadata.creation_timestamp =
        Some(api::kubernetes::Time(jiff::Timestamp::from_second(4_000_000_000).unwrap()));
    index.observe_exports(Observed::Applied(later.clone()));
    index.refresh(time(200));
    later.metadata.resource_version = Some("7".into());
    index.observe_exports(Observed::Applied(later));
    index.refresh(time(900));
    assert_eq!(index.advertisement().service(&web()).unwrap().first_exported, time(200));
}

#[test]
fn a_change_among_ten_thousand_services_looks_at_one() {
    let mut index = index();
    let named = |n: usize| {
        let (mut service, mut export) = (plain_service(), export());
        service.metadata.name = Some(format!("s{n}"));
        export.metadata.name = Some(format!("s{n}"));
        (service, export)
    };
    for n in 0..10_000 {
        let (service, export) = named(n);
        index.observe_services(Observed::Applied(service));
        index.observe_exports(Observed::Applied(export));
    }
    index.refresh(time(100));
    index.observe_exports(Observed::Deleted(named(77).1));
    let (looked_at, changes) = index.refresh(time(100));
    assert_eq!((looked_at.len(), changes.len()), (1, 1));
}
