//! One API server for all promises of a test program, one promise at a time, each finding it empty.

use std::sync::OnceLock;

use api::kubernetes::{Lease, ObjectMeta};
use api::{ClusterRoutingPolicy, ServiceExport, TunnelGateway};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use kubernetes::{Part, Programs, Running};
use store::Store;
use tokio::sync::{Mutex, MutexGuard};

/// Kubeconfig of the one that runs.
type Shared = std::path::PathBuf;

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let (tell, told) = std::sync::mpsc::channel();
        // It ends with the thread that started it, so that thread lives as long as the tests.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let programs = Programs::find_or_build().unwrap();
            let parts = [Part::Etcd, Part::ApiServer];
            let running = runtime.block_on(Running::start(&programs, folder.path(), &parts)).unwrap();
            runtime.block_on(async { prepare(&running.client().await.unwrap()).await });
            tell.send(running.plane().admin_kubeconfig()).unwrap();
            loop {
                std::thread::park();
            }
        });
        told.recv().expect("the API server did not start: see above")
    })
}

/// Whoever holds it has the API server alone.
pub(crate) type Turn = MutexGuard<'static, ()>;

/// An empty API server that knows our kinds, and the right to it.
pub(crate) async fn client() -> (Client, Turn) {
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    let kubeconfig = tokio::task::spawn_blocking(shared).await.unwrap();
    let client = kubernetes::client_of(kubeconfig).await.unwrap();
    empty::<ServiceExport>(&client).await;
    empty::<TunnelGateway>(&client).await;
    empty::<ClusterRoutingPolicy>(&client).await;
    empty::<Lease>(&client).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "tombolo-system");
    secrets.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    (client, turn)
}

pub(crate) async fn store() -> (Store, Turn) {
    let (client, turn) = client().await;
    (store::kubernetes::open(client), turn)
}

async fn empty<K: api::Kind>(client: &Client) {
    let everywhere: Api<K> = Api::all(client.clone());
    for object in everywhere.list(&ListParams::default()).await.unwrap() {
        let name = object.meta().name.clone().unwrap();
        let resource = kube::api::ApiResource::erase::<K>(&());
        let api: Api<kube::api::DynamicObject> = match &object.meta().namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        // The API server makes leases of its own, and may be faster.
        let _ = api.delete(&name, &DeleteParams::default()).await;
    }
}

pub(crate) async fn prepare(client: &Client) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in ["shop", "tombolo-system"] {
        let metadata = ObjectMeta { name: Some(name.into()), ..Default::default() };
        namespaces.create(&PostParams::default(), &Namespace { metadata, ..Default::default() }).await.unwrap();
    }
    install_kinds(client).await;
}

/// Installs every kind of ours and waits until the API server serves it.
pub(crate) async fn install_kinds(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in api::definitions::all().unwrap() {
        let definition: CustomResourceDefinition = serde_json::from_value(definition).unwrap();
        let name = definition.metadata.name.clone().unwrap();
        api.create(&PostParams::default(), &definition).await.unwrap();
        super::before_the_limit(async {
            loop {
                let status = api.get(&name).await.unwrap().status;
                let conditions = status.and_then(|status| status.conditions).unwrap_or_default();
                if conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True") {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}
