//! Shapes that tests of several modules start from.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use api::ClusterId;
use api::service_import::{ImportPort, ImportType};
use api::time::WallTime;

use crate::advertisement::{AdvertisedEndpoint, AdvertisedService, AdvertisedSlice, Family, Item, TargetPort};

/// 2026-01-01, so that test times are plausible.
pub(crate) const START: u64 = 1_767_225_600_000;

pub(crate) fn time(second: u64) -> WallTime {
    WallTime::from_millis(START + second * 1_000)
}

pub(crate) fn cluster(name: &str) -> ClusterId {
    ClusterId::new(name).unwrap()
}

pub(crate) fn port(name: &str, port: u16, protocol: &str) -> ImportPort {
    ImportPort { name: name.into(), protocol: protocol.into(), app_protocol: None, port }
}

pub(crate) fn plain_service(second: u64) -> AdvertisedService {
    AdvertisedService {
        service_type: ImportType::ClusterSetIP,
        ports: vec![port("tcp", 42, "TCP"), port("udp", 42, "UDP")],
        session_affinity: None,
        session_affinity_config: None,
        internal_traffic_policy: None,
        traffic_distribution: None,
        exported_labels: BTreeMap::new(),
        exported_annotations: BTreeMap::new(),
        ip_families: vec![Family::V4],
        first_exported: time(second),
    }
}

pub(crate) fn service(second: u64) -> Arc<Item> {
    Arc::new(Item::Service(plain_service(second)))
}

pub(crate) fn plain_slice(addresses: &[&str]) -> AdvertisedSlice {
    AdvertisedSlice {
        family: Family::of(addresses[0].parse().unwrap()),
        ports: vec![TargetPort { name: "tcp".into(), protocol: "TCP".into(), port: 8042, app_protocol: None }],
        endpoints: addresses
            .iter()
            .map(|address| AdvertisedEndpoint {
                address: address.parse().unwrap(),
                hostname: None,
                node: None,
                zone: None,
                ready: true,
                finishing: false,
            })
            .collect(),
    }
}

pub(crate) fn slice(addresses: &[&str]) -> Arc<Item> {
    Arc::new(Item::Slice(plain_slice(addresses)))
}
