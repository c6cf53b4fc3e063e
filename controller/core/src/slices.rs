//! Endpoints as slices: how an exporter cuts them, and the EndpointSlices an importer writes (ES-1 to ES-8).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

use api::ClusterId;
use api::kubernetes::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice, ObjectMeta, OwnerReference};
use api::names;
use sha2::{Digest, Sha256};

use crate::advertisement::{AdvertisedEndpoint, AdvertisedSlice, Family, ServiceName, TargetPort};

/// Endpoints in one slice: what the EndpointSlice controller of Kubernetes uses, and small enough for one sync page.
pub const MAX_SLICE_ENDPOINTS: usize = 100;

/// Cuts the endpoints of one source slice into slices of at most [`MAX_SLICE_ENDPOINTS`].
///
/// Endpoints are cut by the bits of their address's hash, as deep as needed. So the cut is a pure function, every
/// replica cuts alike, and an endpoint that comes or goes touches one slice (two when that one overflows).
pub fn cut(
    id: &str,
    family: Family,
    ports: &[TargetPort],
    endpoints: Vec<AdvertisedEndpoint>,
) -> Vec<(String, AdvertisedSlice)> {
    let mut cut = Vec::new();
    let mut pending = vec![(String::new(), endpoints)];
    while let Some((bits, mut endpoints)) = pending.pop() {
        // 64 bits of a hash do not run out; the bound is here so that a loop cannot.
        if endpoints.len() <= MAX_SLICE_ENDPOINTS || bits.len() == 64 {
            endpoints.truncate(MAX_SLICE_ENDPOINTS);
            let id = if bits.is_empty() { id.to_string() } else { format!("{id}.{bits}") };
            cut.push((id, AdvertisedSlice { family, ports: ports.to_vec(), endpoints }));
            continue;
        }
        let depth = bits.len();
        let (ones, zeros) = endpoints.into_iter().partition(|e| address_hash(e.address) >> (63 - depth) & 1 == 1);
        pending.push((format!("{bits}1"), ones));
        pending.push((format!("{bits}0"), zeros));
    }
    cut
}

fn address_hash(address: IpAddr) -> u64 {
    let digest = match address {
        IpAddr::V4(v4) => Sha256::digest(v4.octets()),
        IpAddr::V6(v6) => Sha256::digest(v6.octets()),
    };
    digest[..8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// The name of the EndpointSlice here for slice `id` of a cluster's service: readable, unique, never over 253 characters.
pub fn imported_name(service: &ServiceName, cluster: &ClusterId, id: &str) -> String {
    let digest = Sha256::digest(format!("{}\0{}\0{cluster}\0{id}", service.namespace, service.name));
    let hash: String = digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("imported-{}-{cluster}-{hash}", service.name)
}

/// What an imported slice is made from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub service: &'a ServiceName,
    pub cluster: &'a ClusterId,
    /// The slice's id in the advertisement.
    pub id: &'a str,
    pub slice: &'a AdvertisedSlice,
    /// Names of the ports clients may reach here ([`crate::merge::served_ports`]).
    pub served: &'a BTreeSet<String>,
    /// The cluster was silent for too long: nothing of it is ready.
    pub silent: bool,
    /// This is our own cluster: node names mean something.
    pub local: bool,
    /// The uid of the ServiceImport that owns the slice.
    pub owner: &'a str,
}

/// The EndpointSlice for one advertised slice; `None` when it would have no port a client may use, or no endpoint.
pub fn imported(source: Source<'_>) -> Option<EndpointSlice> {
    let ports: Vec<EndpointPort> = source
        .slice
        .ports
        .iter()
        .filter(|port| source.served.contains(&port.name))
        .map(|port| EndpointPort {
            name: Some(port.name.clone()),
            protocol: Some(port.protocol.clone()),
            port: Some(i32::from(port.port)),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    // A headless service may have no ports at all; one that has some, all of them refused, has nothing to offer.
    if (ports.is_empty() && !source.slice.ports.is_empty()) || source.slice.endpoints.is_empty() {
        return None;
    }
    let endpoints = source.slice.endpoints.iter().map(|endpoint| Endpoint {
        addresses: vec![endpoint.address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(endpoint.ready && !source.silent),
            serving: endpoint.finishing.then_some(!source.silent),
            terminating: None,
        }),
        hostname: endpoint.hostname.clone(),
        node_name: endpoint.node.clone().filter(|_| source.local),
        zone: endpoint.zone.clone(),
        ..Default::default()
    });
    let labels = [
        (names::mcs::SERVICE_NAME, source.service.name.clone()),
        (names::mcs::SOURCE_CLUSTER, source.cluster.to_string()),
        (names::kubernetes::MANAGED_BY, names::MANAGED_BY_TOMBOLO.to_string()),
    ];
    Some(EndpointSlice {
        metadata: ObjectMeta {
            name: Some(imported_name(source.service, source.cluster, source.id)),
            namespace: Some(source.service.namespace.clone()),
            labels: Some(labels.into_iter().map(|(key, value)| (key.to_string(), value)).collect()),
            owner_references: Some(vec![OwnerReference {
                api_version: "multicluster.x-k8s.io/v1beta1".into(),
                kind: "ServiceImport".into(),
                name: source.service.name.clone(),
                uid: source.owner.into(),
                controller: Some(false),
                block_owner_deletion: None,
            }]),
            ..Default::default()
        },
        address_type: source.slice.family.as_str().into(),
        endpoints: Some(endpoints.collect()),
        ports: Some(ports),
    })
}

/// Whether `slice` is one that this controller writes.
pub fn is_imported(slice: &EndpointSlice) -> bool {
    label(slice, names::kubernetes::MANAGED_BY) == Some(names::MANAGED_BY_TOMBOLO)
}

/// The value of a label.
pub fn label<'a>(slice: &'a EndpointSlice, key: &str) -> Option<&'a str> {
    slice.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// Whether `observed` is already what is wanted. Labels that somebody added are left in peace.
pub fn is_up_to_date(wanted: &EndpointSlice, observed: &EndpointSlice) -> bool {
    let none = BTreeMap::new();
    let labels = observed.metadata.labels.as_ref().unwrap_or(&none);
    let owners = |slice: &EndpointSlice| -> Vec<String> {
        slice.metadata.owner_references.iter().flatten().map(|owner| owner.uid.clone()).collect()
    };
    wanted.metadata.labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
        && owners(wanted) == owners(observed)
        && wanted.address_type == observed.address_type
        && wanted.ports.as_deref().unwrap_or_default() == observed.ports.as_deref().unwrap_or_default()
        && wanted.endpoints.as_deref().unwrap_or_default() == observed.endpoints.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, plain_slice};

    fn endpoints(count: u16) -> Vec<AdvertisedEndpoint> {
        (0..count)
            .map(|n| AdvertisedEndpoint {
                address: IpAddr::from([10, 2, (n >> 8) as u8, n as u8]),
                hostname: None,
                node: None,
                zone: None,
                ready: true,
                finishing: false,
            })
            .collect()
    }

    #[test]
    fn a_small_slice_stays_whole_and_keeps_its_id() {
        let cut = cut("web-1", Family::V4, &[], endpoints(100));
        assert_eq!((cut.len(), cut[0].0.as_str()), (1, "web-1"));
    }

    #[test]
    fn no_slice_is_larger_than_the_limit_and_no_endpoint_is_lost() {
        let cut = cut("web-1", Family::V4, &[], endpoints(2_000));
        assert!(cut.iter().all(|(_, slice)| slice.endpoints.len() <= MAX_SLICE_ENDPOINTS));
        assert_eq!(cut.iter().map(|(_, slice)| slice.endpoints.len()).sum::<usize>(), 2_000);
    }

    #[test]
    fn an_endpoint_that_goes_touches_one_slice_of_many() {
        let all = endpoints(1_000);
        let mut fewer = all.clone();
        fewer.remove(500);
        let before: BTreeMap<_, _> = cut("web-1", Family::V4, &[], all).into_iter().collect();
        let after: BTreeMap<_, _> = cut("web-1", Family::V4, &[], fewer).into_iter().collect();
        let changed = before.iter().filter(|(id, slice)| after.get(*id) != Some(slice)).count();
        assert!(changed <= 2, "{changed} slices changed");
    }

    #[test]
    fn an_imported_slice_says_where_it_is_from_and_offers_only_served_ports() {
        let (service, birch) = (ServiceName::new("shop", "web"), cluster("birch"));
        let mut slice = plain_slice(&["10.2.0.1"]);
        slice.endpoints[0].node = Some("birch-worker".into());
        slice.ports.push(TargetPort { name: "admin".into(), protocol: "TCP".into(), port: 9, app_protocol: None });
        let served = BTreeSet::from(["tcp".to_string()]);
        let source = Source {
            service: &service,
            cluster: &birch,
            id: "a",
            slice: &slice,
            served: &served,
            silent: false,
            local: false,
            owner: "u",
        };
        let made = imported(source).unwrap();
        assert_eq!(label(&made, names::mcs::SOURCE_CLUSTER), Some("birch"));
        assert_eq!(label(&made, names::kubernetes::SERVICE_NAME), None, "it must not leak into cluster.local (ES-7)");
        assert_eq!(made.ports.as_ref().unwrap().len(), 1);
        let endpoint = &made.endpoints.as_ref().unwrap()[0];
        assert_eq!((endpoint.node_name.clone(), endpoint.conditions.as_ref().unwrap().ready), (None, Some(true)));
        let quiet = imported(Source { silent: true, ..source }).unwrap();
        assert_eq!(quiet.endpoints.unwrap()[0].conditions.as_ref().unwrap().ready, Some(false));
        assert_eq!(imported(Source { served: &BTreeSet::new(), ..source }), None);
    }
}
