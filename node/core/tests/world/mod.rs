//! Cluster `amber` with a gateway node and two workers, and peers `birch` and `cedar`.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::cluster_peer::{Accept, ClusterPeerSpec, PeerState};
use api::health::{HealthReport, PathReason, PeerHealth, Reachability};
use api::keys::IdentityKey;
use api::kubernetes::*;
use api::local_cluster::LocalClusterSpec;
use api::member_record::{MemberRecord, MemberState, SignedRecord, bytes_to_sign};
use api::service_import::{ImportPort, ImportType, ServiceImportSpec};
use api::time::Instant;
use api::tunnel_gateway::{LaneStatus, TunnelGatewaySpec, TunnelGatewayStatus};
use api::{ClusterId, ClusterPeer, LocalCluster, ServiceExport, ServiceImport, TunnelGateway, names};
use ed25519_dalek::{Signer, SigningKey};
use kernel_core::{Change, DeviceName, difference};
use node_core::{Delta, Input, NodeCore, ObjectChange};

pub const TUNNEL: &str = "tombolo-0-0";

pub fn id(name: &str) -> ClusterId {
    ClusterId::new(name).unwrap()
}

pub fn at(milliseconds: u64) -> Instant {
    Instant::from_millis(1_000_000 + milliseconds)
}

pub fn meta(namespace: Option<&str>, name: &str) -> ObjectMeta {
    ObjectMeta { namespace: namespace.map(Into::into), name: Some(name.into()), ..ObjectMeta::default() }
}

pub fn local() -> LocalCluster {
    let spec: LocalClusterSpec = serde_json::from_value(serde_json::json!({
        "clusterId": "amber", "clusterSetId": "demo",
        "podPrefixes": ["10.1.0.0/16", "fd00:1::/48"],
        "infrastructurePrefixes": ["10.101.0.0/24", "fd00:101::/64"],
        "clusterSetPrefixes": ["10.201.0.0/16", "fd00:201::/112"],
    }))
    .unwrap();
    LocalCluster::new(names::LOCAL_CLUSTER, spec)
}

/// Node number n: 172.31.1.n, pods 10.1.n.0/24 and fd00:1:0:n::/64, infrastructure 10.101.0.n and fd00:101::n.
pub fn node(name: &str, number: u8) -> Node {
    let annotation = format!("10.101.0.{number},fd00:101::{number}");
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": name, "annotations": {names::INFRASTRUCTURE_ADDRESSES: annotation}},
        "spec": {"podCIDRs": [format!("10.1.{number}.0/24"), format!("fd00:1:0:{number}::/64")]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("172.31.1.{number}")}]},
    }))
    .unwrap()
}

pub fn gateway(slot: u16, node: &str) -> TunnelGateway {
    let mut gateway = TunnelGateway::new(&names::slot_gateway(slot), TunnelGatewaySpec { slot });
    gateway.metadata.namespace = Some(names::SYSTEM_NAMESPACE.into());
    gateway.status = Some(TunnelGatewayStatus {
        node: node.into(),
        node_addresses: vec!["172.31.1.1".into()],
        lanes: vec![LaneStatus {
            public_key: api::keys::TunnelKey([1; 32]),
            port: 51820,
            device: format!("tombolo-{slot}-0"),
        }],
        ..TunnelGatewayStatus::default()
    });
    gateway
}

/// Peer number n has pods 10.n.0.0/16 and fd00:n::/48.
pub fn peer(name: &str, number: u8) -> ClusterPeer {
    peer_in(name, number, MemberState::Active, PeerState::Active)
}

pub fn peer_in(name: &str, number: u8, member: MemberState, state: PeerState) -> ClusterPeer {
    let key = SigningKey::from_bytes(&[number; 32]);
    let identity = IdentityKey(key.verifying_key().to_bytes());
    let record = MemberRecord {
        cluster_set_id: id("demo"),
        cluster_id: id(name),
        identity_keys: vec![identity],
        successions: vec![],
        epoch: "e1".into(),
        generation: 1,
        control_prefix: identity.control_prefix(),
        slots: vec![],
        prefixes: vec![format!("10.{number}.0.0/16").parse().unwrap(), format!("fd00:{number}::/48").parse().unwrap()],
        labels: BTreeMap::new(),
        protocol: (1, 1),
        state: member,
    };
    let record = serde_json::to_vec(&record).unwrap();
    let signature = key.sign(&bytes_to_sign(&record)).to_bytes().to_vec();
    let record = SignedRecord { record, key: identity, signature }.to_base64();
    ClusterPeer::new(
        name,
        ClusterPeerSpec {
            identity_keys: vec![identity],
            record,
            endpoints: vec![],
            allowed_prefixes: vec![],
            allow_overlap: false,
            accept: Accept::default(),
            state,
        },
    )
}

pub fn import(name: &str, address: &str) -> ServiceImport {
    let mut import = ServiceImport::new(
        name,
        ServiceImportSpec {
            ports: vec![ImportPort { name: "http".into(), protocol: "TCP".into(), app_protocol: None, port: 80 }],
            ips: vec![address.into()],
            import_type: ImportType::ClusterSetIP,
            ..ServiceImportSpec::default()
        },
    );
    import.metadata.namespace = Some("shop".into());
    import
}

fn slice(name: &str, labels: serde_json::Value, endpoints: &[(&str, bool, Option<&str>)]) -> EndpointSlice {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, ready, node)| {
            serde_json::json!({"addresses": [address], "conditions": {"ready": ready}, "nodeName": node})
        })
        .collect();
    serde_json::from_value(serde_json::json!({
        "metadata": {"namespace": "shop", "name": name, "labels": labels},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    }))
    .unwrap()
}

/// The endpoints a cluster exports for a service of the clusterset.
pub fn imported(service: &str, cluster: &str, endpoints: &[(&str, bool, Option<&str>)]) -> EndpointSlice {
    let labels = serde_json::json!({names::mcs::SERVICE_NAME: service, names::mcs::SOURCE_CLUSTER: cluster});
    slice(&format!("imported-{service}-{cluster}"), labels, endpoints)
}

/// The endpoints of a Service of this cluster.
pub fn own(service: &str, endpoints: &[(&str, bool, Option<&str>)]) -> EndpointSlice {
    slice(&format!("{service}-own"), serde_json::json!({names::kubernetes::SERVICE_NAME: service}), endpoints)
}

pub fn service(name: &str) -> Service {
    serde_json::from_value(serde_json::json!({"metadata": {"namespace": "shop", "name": name}, "spec": {}})).unwrap()
}

pub fn export(name: &str) -> ServiceExport {
    let mut export = ServiceExport::new(name, Default::default());
    export.metadata.namespace = Some("shop".into());
    export
}

pub fn report(slot: u16, peers: &[(&str, Reachability)]) -> HealthReport {
    let peers = peers.iter().map(|(name, reachability)| PeerHealth {
        cluster: id(name),
        reachability: *reachability,
        reason: match reachability {
            Reachability::Up => PathReason::Answering,
            Reachability::Down => PathReason::SilentPeer,
            Reachability::Unknown => PathReason::NoHandshakeYet,
        },
        age: Duration::from_secs(5),
        round_trip: Some(Duration::from_millis(10)),
        loss_permille: 0,
        mtu: 1370,
        lanes: 1,
    });
    HealthReport { slot, draining: false, peers: peers.collect() }
}

pub fn devices(names: &[&str]) -> Input {
    Input::Devices(names.iter().map(|name| DeviceName::new(name).unwrap()).collect::<BTreeSet<_>>())
}

/// One host of amber, told everything, and both peers up.
pub fn host(name: &str) -> NodeCore {
    let mut core = NodeCore::new(name, at(0));
    for input in objects() {
        core.take(input, at(0));
    }
    core.take(devices(&["lo", "eth0", TUNNEL]), at(0));
    core.take(Input::Report(report(0, &[("birch", Reachability::Up), ("cedar", Reachability::Up)])), at(10));
    core.delta(at(10));
    core
}

pub fn objects() -> Vec<Input> {
    vec![
        Input::LocalClusters(ObjectChange::Reset(vec![local()])),
        Input::Nodes(ObjectChange::Reset(vec![node("gateway", 1), node("worker", 2), node("other", 3)])),
        Input::TunnelGateways(ObjectChange::Reset(vec![gateway(0, "gateway")])),
        Input::ClusterPeers(ObjectChange::Reset(vec![peer("birch", 2), peer("cedar", 3)])),
        Input::ServiceImports(ObjectChange::Reset(vec![import("web", "10.201.0.1")])),
        Input::EndpointSlices(ObjectChange::Reset(vec![
            imported("web", "birch", &[("10.2.1.5", true, None), ("10.2.1.6", true, None)]),
            imported("web", "cedar", &[("10.3.1.5", true, None), ("10.3.1.6", false, None)]),
        ])),
    ]
}

/// What changed after some inputs, as steps.
pub fn after(core: &mut NodeCore, now: Instant, inputs: Vec<Input>) -> (Delta, Vec<Change>) {
    for input in inputs {
        core.take(input, now);
    }
    let delta = core.delta(now);
    let changes = difference(&delta.after, &delta.before);
    (delta, changes)
}
