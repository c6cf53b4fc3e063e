//! The DNS server beside another implementation of the Multi-Cluster Services API: a real API server that knows the kinds
//! of that standard and none of ours.

mod fixture;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dns::Config;
use fixture::query;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType::{self, A, AAAA, SRV};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use kubernetes::{Part, Programs, Running};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Nothing here takes a second on an idle machine; this only ends a test that would wait for ever.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// Applies an object of any kind.
async fn apply(client: &Client, object: Value) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("/apiVersion"), text("/kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let plural = match kind.as_str() {
        "EndpointSlice" => "endpointslices".to_owned(),
        other => format!("{}s", other.to_lowercase()),
    };
    let resource =
        ApiResource { group: group.into(), version: version.into(), api_version: api_version.clone(), kind, plural };
    let api: Api<DynamicObject> = match text("/metadata/namespace") {
        namespace if namespace.is_empty() => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), &namespace, &resource),
    };
    let name = text("/metadata/name");
    let deadline = Instant::now() + LIMIT;
    // A kind is served a moment after its definition was taken.
    while let Err(error) = api.patch(&name, &PatchParams::apply("other"), &Patch::Apply(&object)).await {
        assert!(Instant::now() < deadline, "{name}: {error}");
        tokio::time::sleep(PAUSE).await;
    }
}

fn slice(service: &str, cluster: &str, endpoint: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("imported-{service}-{cluster}"), "namespace": "shop",
            "labels": {
                "multicluster.kubernetes.io/service-name": service,
                "multicluster.kubernetes.io/source-cluster": cluster,
                "endpointslice.kubernetes.io/managed-by": "other-controller.example.org",
            },
        },
        "addressType": "IPv4",
        "endpoints": [endpoint],
        "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
    })
}

async fn ask(server: SocketAddr, name: &str, record_type: RecordType) -> Message {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(&query(name, record_type, Some(1232))).await.unwrap();
    let mut answer = [0; 2048];
    let length = tokio::time::timeout(LIMIT, socket.recv(&mut answer)).await.expect("an answer").unwrap();
    Message::from_vec(&answer[..length]).unwrap()
}

async fn until(server: SocketAddr, name: &str, record_type: RecordType, wanted: &[&str]) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let message = ask(server, name, record_type).await;
        let mut found: Vec<String> = message.answers.iter().map(fixture::text).collect();
        found.sort();
        if found == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{name} {record_type}: {found:?}, not {wanted:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_answered_from_imports_and_slices_that_others_wrote_where_no_kind_of_ours_is_installed() {
    let programs = tokio::task::spawn_blocking(|| Programs::find_or_build().unwrap()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Running::start(&programs, folder.path(), &[Part::Etcd, Part::ApiServer]).await.unwrap();
    let client = cluster.client().await.unwrap();
    let of_the_standard = |definition: &Value| definition["spec"]["group"] == "multicluster.x-k8s.io";
    for definition in api::definitions::all().unwrap().into_iter().filter(of_the_standard) {
        apply(&client, definition).await;
    }
    let namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
    Api::<api::kubernetes::Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    // CoreDNS watches the older version; other controllers may write it.
    apply(&client, json!({
        "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceImport",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "ClusterSetIP", "ips": ["242.0.0.1"], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
    }))
    .await;
    apply(
        &client,
        json!({
            "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
            "metadata": {"name": "db", "namespace": "shop"},
            "spec": {"type": "Headless", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]},
        }),
    )
    .await;
    apply(&client, slice("db", "birch", json!({"addresses": ["10.2.0.7"], "hostname": "db-0"}))).await;

    let store = store::kubernetes::connect(Some(&cluster.plane().admin_kubeconfig())).await.unwrap();
    let stop = CancellationToken::new();
    let config = Config { listen: vec!["127.0.0.1:0".parse().unwrap()], imports_alone: true, ..Config::default() };
    let running = dns::start_at(config, store, stop.clone()).await.unwrap();
    let server = running.addresses[0];

    until(server, "web.shop.svc.clusterset.local.", A, &["A 242.0.0.1"]).await;
    until(server, "_http._tcp.web.shop.svc.clusterset.local.", SRV, &["SRV 0 100 80 web.shop.svc.clusterset.local."])
        .await;
    until(server, "db.shop.svc.clusterset.local.", A, &["A 10.2.0.7"]).await;
    until(server, "db-0.birch.db.shop.svc.clusterset.local.", A, &["A 10.2.0.7"]).await;
    assert_eq!(ask(server, "db.shop.svc.clusterset.local.", AAAA).await.metadata.response_code, ResponseCode::NoError);
    let nobody = ask(server, "nobody.shop.svc.clusterset.local.", A).await;
    assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);

    // Another cluster joins, and then the API server goes: what was known is answered.
    apply(&client, slice("db", "cedar", json!({"addresses": ["10.3.0.9"], "hostname": "db-0"}))).await;
    until(server, "db.shop.svc.clusterset.local.", A, &["A 10.2.0.7", "A 10.3.0.9"]).await;
    cluster.kill_part(Part::ApiServer).unwrap();
    until(server, "db.shop.svc.clusterset.local.", A, &["A 10.2.0.7", "A 10.3.0.9"]).await;
    stop.cancel();
    running.work.await.unwrap().unwrap();
}
