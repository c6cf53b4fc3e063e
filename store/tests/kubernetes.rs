//! What an API server does to its clients, and what other people's objects must not suffer. Each test has its own.

mod worlds;

use std::collections::BTreeMap;

use api::kubernetes::{Node, ObjectMeta};
use api::{LocalCluster, ServiceExport};
use kube::api::{DynamicObject, PostParams};
use kube::{Api, Client};
use kubernetes::{Part, Programs, Running};
use serde_json::{Value, json};
use store::{Event, Store, Watch};
use worlds::{before_the_limit, control_plane};

struct Cluster {
    running: Running,
    client: Client,
    store: Store,
    _folder: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let programs = tokio::task::spawn_blocking(|| Programs::find_or_build().unwrap()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let running = Running::start(&programs, folder.path(), &[Part::Etcd, Part::ApiServer]).await.unwrap();
        let client = running.client().await.unwrap();
        let store = store::kubernetes::connect(Some(&running.plane().admin_kubeconfig())).await.unwrap();
        Self { running, client, store, _folder: folder }
    }

    /// With our kinds and a namespace for exports.
    async fn prepared() -> Self {
        let cluster = Self::start().await;
        control_plane::prepare(&cluster.client).await;
        cluster
    }

    fn raw<K: api::Kind>(&self, namespace: Option<&str>) -> Api<DynamicObject> {
        let resource = kube::api::ApiResource::erase::<K>(&());
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    async fn until_interrupted(&self, text: &str) {
        before_the_limit(async {
            while !self.store.interruption().is_some_and(|interruption| interruption.reason.contains(text)) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    async fn until_in_touch(&self) {
        before_the_limit(async {
            while self.store.interruption().is_some() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

fn export(name: &str) -> ServiceExport {
    let metadata = ObjectMeta { namespace: Some("shop".into()), name: Some(name.into()), ..Default::default() };
    ServiceExport { metadata, ..Default::default() }
}

async fn next(watch: &mut Watch<ServiceExport>) -> Event<ServiceExport> {
    before_the_limit(watch.next()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_while_nobody_is_in_touch_is_told_later_and_only_that() {
    let mut cluster = Cluster::prepared().await;
    let [stays, goes] = ["stays", "goes"].map(export);
    let stays = cluster.store.create(&stays).await.unwrap();
    let goes = cluster.store.create(&goes).await.unwrap();
    let mut watch = cluster.store.watch::<ServiceExport>();
    assert_eq!(next(&mut watch).await, Event::Reset(vec![goes.clone(), stays]));

    cluster.running.kill_part(Part::ApiServer).unwrap();
    cluster.until_interrupted("serviceexports").await;
    // A new API server begins with an empty watch cache: who follows has to list anew.
    cluster.running.start_part(Part::ApiServer).unwrap();
    cluster.running.wait_until_ready().await.unwrap();
    let other = store::kubernetes::open(cluster.client.clone());
    other.delete::<ServiceExport>(Some("shop"), "goes", store::Preconditions::default()).await.unwrap();
    let comes = other.create(&export("comes")).await.unwrap();
    let mut told = [next(&mut watch).await, next(&mut watch).await];
    told.sort_by_key(|event| matches!(event, Event::Deleted(_)));
    assert_eq!(told, [Event::Applied(comes), Event::Deleted(goes)]);
    cluster.until_in_touch().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_the_api_server_does_not_know_is_named_until_it_does() {
    let cluster = Cluster::start().await;
    let mut watch = cluster.store.watch::<LocalCluster>();
    cluster.until_interrupted("does not know localclusters.tombolo.dev: are the CRDs installed?").await;
    control_plane::prepare(&cluster.client).await;
    assert_eq!(before_the_limit(watch.next()).await, Some(Event::Reset(Vec::new())));
    cluster.until_in_touch().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_role_is_told_what_is_not_allowed() {
    let cluster = Cluster::prepared().await;
    let stranger = cluster.running.plane().kubeconfig("stranger", None).unwrap();
    let store = store::kubernetes::connect(Some(&stranger)).await.unwrap();
    let _watch = store.watch::<ServiceExport>();
    before_the_limit(async {
        let reason = || store.interruption().map(|interruption| interruption.reason).unwrap_or_default();
        while !reason().contains("not allowed to list and watch serviceexports") || !reason().contains("stranger") {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    let refused = store.create(&export("web")).await.unwrap_err();
    assert!(matches!(&refused, store::Error::Forbidden(text) if text.contains("stranger")), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_wrote_into_an_object_stays_there_also_what_nobody_here_knows() {
    let cluster = Cluster::prepared().await;
    let theirs = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "worker", "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{}", "theirs.example/key": "value",
        }},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"], "taints": [{"key": "a", "effect": "NoSchedule"}]},
        "status": {"images": [{"names": ["web"], "sizeBytes": 7}], "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    });
    let raw = cluster.raw::<Node>(None);
    raw.create(&PostParams::default(), &serde_json::from_value(theirs).unwrap()).await.unwrap();

    let mut node = cluster.store.get::<Node>(None, "worker").await.unwrap().unwrap();
    assert_eq!(node.status.as_ref().unwrap().images, None, "nobody here reads images");
    node.metadata.annotations = Some(BTreeMap::from([("ours.example/key".into(), "value".into())]));
    let updated = cluster.store.update(&node).await.unwrap();
    assert_eq!(cluster.store.update(&updated).await.unwrap(), updated, "nothing is written twice");

    let stored = serde_json::to_value(raw.get("worker").await.unwrap()).unwrap();
    let annotations: Vec<&String> = stored["metadata"]["annotations"].as_object().unwrap().keys().collect();
    assert_eq!(annotations, ["kubectl.kubernetes.io/last-applied-configuration", "ours.example/key"]);
    assert_eq!(stored["status"]["images"][0]["sizeBytes"], 7);
    assert_eq!(stored["spec"]["taints"][0]["key"], "a");
    let writes = |log: &str| {
        let entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        entries.filter(|entry| entry["objectRef"]["resource"] == "nodes" && entry["verb"] == "patch").count()
    };
    let log = std::fs::read_to_string(cluster.running.plane().audit_log()).unwrap();
    assert_eq!(writes(&log), 1, "the second update asked for nothing");
}
