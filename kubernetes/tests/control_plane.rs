//! A control plane of Kubernetes' own programs, as tests of other crates get it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use kubernetes::{Part, Programs, Running};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_is_up_keeps_objects_through_a_kill_and_has_its_controllers() {
    let programs = Programs::find_or_build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut running = Running::start(&programs, folder.path(), &Part::ALL).await.unwrap();
    let client = running.client().await.unwrap();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = Namespace { metadata: named("shop"), ..Default::default() };
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "shop");
    let map = ConfigMap {
        metadata: named("kept"),
        data: Some(BTreeMap::from([("a".into(), "b".into())])),
        ..Default::default()
    };
    maps.create(&PostParams::default(), &map).await.unwrap();

    // Each namespace gets one from the controller manager.
    let accounts: Api<ServiceAccount> = Api::namespaced(client, "shop");
    while accounts.get_opt("default").await.unwrap().is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }

    for part in [Part::ApiServer, Part::Etcd] {
        running.kill_part(part).unwrap();
    }
    for part in [Part::Etcd, Part::ApiServer] {
        running.start_part(part).unwrap();
    }
    running.wait_until_ready().await.unwrap();
    let kept = maps.get("kept").await.unwrap();
    assert_eq!(kept.data.unwrap()["a"], "b");
    assert!(std::fs::read_to_string(running.plane().audit_log()).unwrap().contains("\"configmaps\""));
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), ..Default::default() }
}
