use k8s_openapi::api::core::v1::ClientIPConfig;
use proptest::prelude::*;

use super::*;
use crate::testing::{cluster, plain_service, port, time};

fn both() -> BTreeSet<Family> {
    [Family::V4, Family::V6].into()
}

/// Merges the services as exported by amber, birch, cedar, …
fn merged(services: &[AdvertisedService]) -> Merged {
    let ids: Vec<ClusterId> = ["amber", "birch", "cedar", "delta"].into_iter().map(cluster).collect();
    let claims: Vec<Claim<'_>> =
        services.iter().zip(&ids).map(|(service, cluster)| Claim { cluster, service }).collect();
    merge(&claims, &both()).unwrap()
}

#[test]
fn clusters_that_say_the_same_have_no_conflict() {
    let merged = merged(&[plain_service(1), plain_service(2)]);
    assert_eq!(merged.conflict_reason(), "NoConflicts");
    assert_eq!(merged.clusters, [cluster("amber"), cluster("birch")]);
}

#[test]
fn conformance_a_a_port_only_the_second_has_is_added_and_conflicts() {
    let mut second = plain_service(2);
    second.ports = vec![port("tcp", 42, "TCP"), port("stcp", 142, "SCTP")];
    let merged = merged(&[plain_service(1), second.clone()]);
    assert_eq!(merged.ports, [port("tcp", 42, "TCP"), port("udp", 42, "UDP"), port("stcp", 142, "SCTP")]);
    assert_eq!(merged.conflict_reason(), "PortConflict");
    assert_eq!(served_ports(&merged, &second), ["tcp".to_string(), "stcp".to_string()].into());
}

#[test]
fn conformance_b_another_number_under_a_taken_name_is_dropped_and_never_served() {
    let mut second = plain_service(2);
    second.ports = vec![port("tcp", 43, "TCP")];
    let merged = merged(&[plain_service(1), second.clone()]);
    assert_eq!(merged.ports, [port("tcp", 42, "TCP"), port("udp", 42, "UDP")]);
    assert_eq!(merged.conflict_reason(), "PortConflict");
    assert!(served_ports(&merged, &second).is_empty());
}

#[test]
fn conformance_c_a_newer_headless_export_does_not_change_the_type() {
    let mut second = plain_service(2);
    second.service_type = ImportType::Headless;
    let merged = merged(&[plain_service(1), second]);
    assert_eq!(merged.import_type, ImportType::ClusterSetIP);
    assert_eq!(merged.conflict_reason(), "TypeConflict");
    assert_eq!(
        merged.conflict_message(),
        "Conflicting type. Using \"ClusterSetIP\" from oldest service export in \"amber\". 1/2 clusters disagree."
    );
}

#[test]
fn conformance_d_labels_and_annotations_are_the_oldest_exports_alone() {
    let (mut first, mut second) = (plain_service(1), plain_service(2));
    first.exported_labels.insert("team".into(), "a".into());
    second.exported_labels.insert("owner".into(), "b".into());
    second.exported_annotations.insert("note".into(), "n".into());
    let merged = merged(&[first.clone(), second]);
    assert_eq!((merged.labels.clone(), merged.annotations.clone()), (first.exported_labels, BTreeMap::new()));
    assert_eq!(merged.conflict_reason(), "AnnotationsConflict,LabelsConflict");
}

#[test]
fn an_older_name_wins_over_a_newer_one_for_the_same_number() {
    let mut second = plain_service(2);
    second.ports = vec![port("http", 42, "TCP"), port("udp", 42, "UDP")];
    let merged = merged(&[plain_service(1), second.clone()]);
    assert_eq!(merged.ports, [port("tcp", 42, "TCP"), port("udp", 42, "UDP")]);
    assert_eq!(served_ports(&merged, &second), ["udp".to_string()].into());
}

#[test]
fn ports_in_another_order_are_no_conflict() {
    let mut second = plain_service(2);
    second.ports.reverse();
    assert_eq!(merged(&[plain_service(1), second]).conflict_reason(), "NoConflicts");
}

#[test]
fn equally_old_exports_are_decided_by_cluster_id_whatever_the_order_of_claims() {
    let (mut a, mut b) = (plain_service(1), plain_service(1));
    a.traffic_distribution = Some("PreferClose".into());
    b.traffic_distribution = None;
    let (amber, birch) = (cluster("amber"), cluster("birch"));
    let (first, second) = (Claim { cluster: &amber, service: &a }, Claim { cluster: &birch, service: &b });
    let merged = merge(&[first, second], &both()).unwrap();
    assert_eq!(Some(&merged), merge(&[second, first], &both()).as_ref());
    assert_eq!(merged.traffic_distribution.as_deref(), Some("PreferClose"));
}

#[test]
fn every_field_that_differs_is_named_in_one_reason() {
    let mut second = plain_service(2);
    second.ports.pop();
    second.service_type = ImportType::Headless;
    second.session_affinity = Some("ClientIP".into());
    second.internal_traffic_policy = Some("Local".into());
    second.traffic_distribution = Some("PreferClose".into());
    second.exported_labels.insert("a".into(), "b".into());
    second.exported_annotations.insert("a".into(), "b".into());
    second.ip_families = vec![Family::V6];
    assert_eq!(
        merged(&[plain_service(1), second]).conflict_reason(),
        "PortConflict,TypeConflict,SessionAffinityConflict,AnnotationsConflict,LabelsConflict,\
         InternalTrafficPolicyConflict,TrafficDistributionConflict,IPFamilyConflict"
    );
}

#[test]
fn what_the_api_server_would_fill_in_is_no_conflict() {
    let (mut first, mut second) = (plain_service(1), plain_service(2));
    second.session_affinity = Some("None".into());
    second.internal_traffic_policy = Some("Cluster".into());
    assert_eq!(merged(&[first.clone(), second.clone()]).conflict_reason(), "NoConflicts");
    first.session_affinity = Some("ClientIP".into());
    second.session_affinity = Some("ClientIP".into());
    second.session_affinity_config =
        Some(SessionAffinityConfig { client_ip: Some(ClientIPConfig { timeout_seconds: Some(10_800) }) });
    assert_eq!(merged(&[first.clone(), second.clone()]).conflict_reason(), "NoConflicts");
    second.session_affinity_config =
        Some(SessionAffinityConfig { client_ip: Some(ClientIPConfig { timeout_seconds: Some(10) }) });
    let merged = merged(&[first, second]);
    assert_eq!(merged.conflict_reason(), "SessionAffinityConfigConflict");
    assert_eq!(merged.session_affinity_config, None, "the oldest export's value is copied as it is");
}

#[test]
fn a_newcomer_of_one_family_takes_no_family_from_a_dual_stack_service() {
    let mut first = plain_service(1);
    first.ip_families = vec![Family::V6, Family::V4];
    let merged = merged(&[first, plain_service(2)]);
    assert_eq!(merged.ip_families, [Family::V6, Family::V4]);
    assert_eq!(merged.conflict_reason(), "IPFamilyConflict");
}

#[test]
fn families_this_cluster_does_not_have_are_left_out_and_the_next_oldest_is_asked() {
    let mut first = plain_service(1);
    first.ip_families = vec![Family::V6];
    let second = plain_service(2);
    let (amber, birch) = (cluster("amber"), cluster("birch"));
    let claims = [Claim { cluster: &amber, service: &first }, Claim { cluster: &birch, service: &second }];
    assert_eq!(merge(&claims, &[Family::V4].into()).unwrap().ip_families, [Family::V4]);
    assert_eq!(merge(&claims[..1], &[Family::V4].into()).unwrap().ip_families, []);
}

fn any_service() -> impl Strategy<Value = AdvertisedService> {
    let ports = proptest::collection::vec((0..4u8, 40..44u16, prop_oneof![Just("TCP"), Just("UDP")]), 0..5);
    (0..4u64, ports, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(second, ports, headless, v6, near)| {
        let mut service = plain_service(second);
        service.first_exported = time(second);
        service.ports = ports.into_iter().map(|(name, number, p)| port(&format!("p{name}"), number, p)).collect();
        service.service_type = if headless { ImportType::Headless } else { ImportType::ClusterSetIP };
        service.ip_families = if v6 { vec![Family::V6, Family::V4] } else { vec![Family::V4] };
        service.traffic_distribution = near.then(|| "PreferClose".into());
        service
    })
}

proptest! {
    #[test]
    fn any_order_of_claims_merges_to_the_same_and_ports_stay_unique(
        (ordered, shuffled) in proptest::collection::vec(any_service(), 1..4)
            .prop_flat_map(|list| (Just(list.clone()), Just(list.into_iter().enumerate().collect::<Vec<_>>()).prop_shuffle()))
    ) {
        let ids: Vec<ClusterId> = ["amber", "birch", "cedar", "delta"].into_iter().map(cluster).collect();
        let forward: Vec<_> = ordered.iter().zip(&ids).map(|(service, cluster)| Claim { cluster, service }).collect();
        let mixed: Vec<_> = shuffled.iter().map(|(i, service)| Claim { cluster: &ids[*i], service }).collect();
        let merged = merge(&forward, &both()).unwrap();
        prop_assert_eq!(&merged, &merge(&mixed, &both()).unwrap());
        let names: BTreeSet<_> = merged.ports.iter().map(|p| &p.name).collect();
        let numbers: BTreeSet<_> = merged.ports.iter().map(|p| (&p.protocol, p.port)).collect();
        prop_assert_eq!((names.len(), numbers.len()), (merged.ports.len(), merged.ports.len()));
    }
}
