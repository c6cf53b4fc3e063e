//! What a folder of manifests promises beyond the contract of every backend.

mod worlds;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use api::kubernetes::{EndpointSlice, Namespace, Node, ObjectMeta, OwnerReference, Secret, Service};
use api::{ClusterProperty, LocalCluster, RoutingPolicy, ServiceExport, ServiceImport};
use store::folder::{Report, Reports};
use store::{Error, Event, Kind, Preconditions, Store, Watch, folder};
use worlds::{Place, before_the_limit};

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\nspec:\n  ports:\n  - port: {port}\n"
    )
}

fn port(service: &Service) -> i32 {
    service.spec.as_ref().unwrap().ports.as_ref().unwrap()[0].port
}

fn name<K: Kind>(object: &K) -> String {
    object.meta().name.clone().unwrap()
}

async fn get(store: &Store, name: &str) -> Option<Service> {
    store.get::<Service>(Some("shop"), name).await.unwrap()
}

/// Waits until the watch has told of an object for which `wanted` holds.
async fn applied<K: Kind>(watch: &mut Watch<K>, mut wanted: impl FnMut(&K) -> bool) -> K {
    before_the_limit(async {
        loop {
            match watch.next().await.unwrap() {
                Event::Reset(all) => {
                    if let Some(found) = all.into_iter().find(&mut wanted) {
                        return found;
                    }
                }
                Event::Applied(object) if wanted(&object) => return object,
                _ => {}
            }
        }
    })
    .await
}

async fn deleted<K: Kind>(watch: &mut Watch<K>) -> K {
    before_the_limit(async {
        loop {
            if let Event::Deleted(object) = watch.next().await.unwrap() {
                return object;
            }
        }
    })
    .await
}

/// Waits until what is wrong is as `wanted`.
async fn reported(reports: &mut Reports, mut wanted: impl FnMut(&[Report]) -> bool) -> Vec<Report> {
    before_the_limit(async {
        loop {
            let current = reports.current();
            if wanted(&current) {
                return current.to_vec();
            }
            assert!(reports.changed().await, "the folder was closed");
        }
    })
    .await
}

#[tokio::test]
async fn files_that_come_change_and_go_are_followed() {
    let place = Place::new();
    place.write("a.yaml", &service("web", 80));
    let (store, reports) = place.open();
    let mut watch = store.watch::<Service>();
    assert_eq!(port(&applied(&mut watch, |s| name(s) == "web").await), 80);
    place.write("a.yaml", &service("web", 81));
    assert_eq!(port(&applied(&mut watch, |s| name(s) == "web").await), 81);
    place.write("b.json", r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"json","namespace":"shop"}}"#);
    applied(&mut watch, |s| name(s) == "json").await;
    fs::remove_file(place.manifests().join("a.yaml")).unwrap();
    assert_eq!(name(&deleted(&mut watch).await), "web");
    assert!(reports.current().is_empty(), "{:?}", reports.current());
}

#[tokio::test]
async fn folders_that_come_later_are_followed_with_all_that_is_in_them() {
    let place = Place::new();
    let (store, _reports) = place.open();
    let mut watch = store.watch::<Service>();
    for round in 0..20 {
        let folder = place.manifests().join(format!("new-{round}/deep/er"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("web.yml"), service(&format!("web-{round}"), 80)).unwrap();
    }
    let mut missing: std::collections::BTreeSet<_> = (0..20).map(|round| format!("web-{round}")).collect();
    while !missing.is_empty() {
        let found = applied(&mut watch, |_| true).await;
        missing.remove(&name(&found));
    }
    // A folder that moves away takes its objects with it, and is not followed elsewhere.
    fs::rename(place.manifests().join("new-0"), place.path().join("elsewhere")).unwrap();
    assert_eq!(name(&deleted(&mut watch).await), "web-0");
    fs::write(place.path().join("elsewhere/deep/er/web.yml"), service("stranger", 80)).unwrap();
    place.write("last.yaml", &service("last", 80));
    applied(&mut watch, |s| name(s) == "last").await;
    assert!(get(&store, "stranger").await.is_none());
}

#[tokio::test]
async fn an_object_keeps_its_uid_and_time_when_its_file_is_edited_renamed_or_replaced() {
    let place = Place::new();
    place.write("a.yaml", &service("web", 80));
    let (store, _reports) = place.open();
    let born = get(&store, "web").await.unwrap().metadata;
    let mut watch = store.watch::<Service>();
    let same = |now: &Service, generation| {
        assert_eq!(now.metadata.uid, born.uid);
        assert_eq!(now.metadata.creation_timestamp, born.creation_timestamp);
        assert_eq!(now.metadata.generation, Some(generation));
    };
    // As `mv`.
    fs::rename(place.manifests().join("a.yaml"), place.manifests().join("b.yaml")).unwrap();
    place.write("b.yaml", &service("web", 81));
    same(&applied(&mut watch, |s| port(s) == 81).await, 2);
    // As editors that write beside and rename over.
    place.write(".b.yaml.swp", &service("web", 82));
    fs::rename(place.manifests().join(".b.yaml.swp"), place.manifests().join("b.yaml")).unwrap();
    same(&applied(&mut watch, |s| port(s) == 82).await, 3);
    // As editors that rename to a backup first.
    fs::rename(place.manifests().join("b.yaml"), place.manifests().join("b.yaml~")).unwrap();
    place.write("b.yaml", &service("web", 83));
    same(&applied(&mut watch, |s| port(s) == 83).await, 4);
    // Into another folder.
    fs::create_dir(place.manifests().join("sub")).unwrap();
    fs::rename(place.manifests().join("b.yaml"), place.manifests().join("sub/b.yaml")).unwrap();
    place.write("sub/b.yaml", &service("web", 84));
    same(&applied(&mut watch, |s| port(s) == 84).await, 5);
}

#[tokio::test]
async fn an_object_keeps_everything_over_a_restart_and_what_went_meanwhile_is_gone() {
    let place = Place::new();
    place.write("a.yaml", &service("web", 80));
    place.write("b.yaml", &service("gone", 80));
    let (store, reports) = place.open();
    let (web, gone) = (get(&store, "web").await.unwrap(), get(&store, "gone").await.unwrap());
    let made = store.create(&node("worker")).await.unwrap();
    drop((store, reports));

    fs::remove_file(place.manifests().join("b.yaml")).unwrap();
    let (store, reports) = place.open();
    assert_eq!(get(&store, "web").await, Some(web));
    assert_eq!(get(&store, "gone").await, None);
    assert_eq!(store.get::<Node>(None, "worker").await.unwrap(), Some(made));
    drop((store, reports));

    place.write("b.yaml", &service("gone", 80));
    let (store, _reports) = place.open();
    let again = get(&store, "gone").await.unwrap();
    assert_ne!(again.metadata.uid, gone.metadata.uid);
    let version = |s: &Service| s.metadata.resource_version.clone().unwrap().parse::<u64>().unwrap();
    assert!(version(&again) > version(&gone), "versions never go back");
}

fn node(name: &str) -> Node {
    Node { metadata: ObjectMeta { name: Some(name.into()), ..Default::default() }, ..Default::default() }
}

#[tokio::test]
async fn a_broken_document_is_reported_with_its_line_and_its_last_good_version_stays_in_force() {
    let place = Place::new();
    let broken =
        format!("{}---\n{}---\n# a comment\n\n{}", service("one", 80), service("two", 80), service("three", 80));
    place.write("a.yaml", &broken);
    let (store, mut reports) = place.open();
    let mut watch = store.watch::<Service>();
    // The second document loses its shape, the third its syntax, and the first changes.
    let text = format!(
        "{}---\n{}---\n# a comment\n\n{}",
        service("one", 81),
        service("two", 80).replace("port: 80", "port: eighty"),
        service("three", 80).replace("metadata: {", "metadata: {{")
    );
    place.write("a.yaml", &text);
    assert_eq!(port(&applied(&mut watch, |s| port(s) == 81).await), 81);
    let found = reported(&mut reports, |reports| reports.len() == 2).await;
    assert_eq!((found[0].file.as_str(), found[0].line), ("a.yaml", Some(13)), "{found:?}");
    assert_eq!(found[0].object.as_deref(), Some("Service shop/two"));
    assert!(found[0].reason.contains("eighty") || found[0].reason.contains("i32"), "{found:?}");
    assert!(found[0].last_good_in_force && found[1].last_good_in_force, "{found:?}");
    assert!((18..=19).contains(&found[1].line.unwrap()), "{found:?}");
    assert!(get(&store, "two").await.is_some() && get(&store, "three").await.is_some());

    // Also across a restart.
    drop((store, watch, reports));
    let (store, mut reports) = place.open();
    assert_eq!(reports.current().len(), 2);
    let two = get(&store, "two").await.unwrap();
    assert!(get(&store, "three").await.is_some());
    place.write("a.yaml", &broken);
    reported(&mut reports, <[Report]>::is_empty).await;
    assert_eq!(get(&store, "two").await.unwrap().metadata.uid, two.metadata.uid);
}

#[tokio::test]
async fn a_file_that_goes_takes_its_last_good_versions_with_it() {
    let place = Place::new();
    place.write("a.yaml", &service("web", 80));
    let (store, mut reports) = place.open();
    let mut watch = store.watch::<Service>();
    place.write("a.yaml", "{{{");
    reported(&mut reports, |reports| reports.len() == 1).await;
    fs::remove_file(place.manifests().join("a.yaml")).unwrap();
    assert_eq!(name(&deleted(&mut watch).await), "web");
    reported(&mut reports, <[Report]>::is_empty).await;
}

#[tokio::test]
async fn a_file_of_a_hundred_megabytes_is_refused_by_name_and_everything_else_goes_on() {
    let place = Place::new();
    let (store, mut reports) = place.open();
    let mut watch = store.watch::<Service>();
    // Written apart and without its bytes, so that only its size is there.
    let large = fs::File::create(place.path().join("large")).unwrap();
    large.set_len(100 * 1024 * 1024).unwrap();
    fs::rename(place.path().join("large"), place.manifests().join("large.yaml")).unwrap();
    place.write("web.yaml", &service("web", 80));
    applied(&mut watch, |s| name(s) == "web").await;
    let found = reported(&mut reports, |reports| reports.len() == 1).await;
    assert_eq!(found[0].file, "large.yaml");
    assert!(found[0].reason.contains("104857600"), "{found:?}");
}

#[tokio::test]
async fn what_is_no_plain_file_is_reported_and_does_not_stop_anything() {
    let place = Place::new();
    nix::unistd::mkfifo(&place.manifests().join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    place.write("web.yaml", &service("web", 80));
    let (store, reports) = place.open();
    assert!(get(&store, "web").await.is_some());
    assert_eq!(reports.current()[0].file, "pipe.yaml");
}

#[tokio::test]
async fn of_two_files_that_define_an_object_the_first_by_path_counts() {
    let place = Place::new();
    place.write("b.yaml", &service("web", 80));
    let (store, mut reports) = place.open();
    let mut watch = store.watch::<Service>();
    place.write("c.yaml", &format!("---\n{}", service("web", 81)));
    let found = reported(&mut reports, |reports| !reports.is_empty()).await;
    assert_eq!((found[0].file.as_str(), found[0].line), ("c.yaml", Some(2)));
    assert!(found[0].reason.contains("b.yaml line 1"), "{found:?}");
    assert_eq!(port(&get(&store, "web").await.unwrap()), 80);
    let before = get(&store, "web").await.unwrap();
    fs::remove_file(place.manifests().join("b.yaml")).unwrap();
    let after = applied(&mut watch, |s| port(s) == 81).await;
    assert_eq!(after.metadata.uid, before.metadata.uid);
    reported(&mut reports, <[Report]>::is_empty).await;
}

#[tokio::test]
async fn unknown_kinds_and_unknown_fields_of_our_kinds_are_reported_and_those_of_kubernetes_are_not() {
    let place = Place::new();
    place.write("kind.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: web }\n");
    place.write("version.yaml", "\napiVersion: tombolo.dev/v9\nkind: ClusterPeer\nmetadata: { name: birch }\n");
    place.write(
        "policy.yaml",
        "apiVersion: tombolo.dev/v1alpha1\nkind: RoutingPolicy\nmetadata: { name: web, namespace: shop }\nspec:\n  targetRefs:\n  - name: web\n  tiers:\n  - clusters:\n    - local: true\n  fallback: true\n",
    );
    place.write(
        "export.yaml",
        "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: { name: web, namespace: shop }\nspce: {}\n",
    );
    place.write(
        "service.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: { name: web, namespace: shop }\nspec: { fieldOfTheFuture: 1 }\n",
    );
    let (store, reports) = place.open();
    let found = reports.current();
    let of =
        |file: &str| found.iter().find(|report| report.file == file).unwrap_or_else(|| panic!("{file}: {found:?}"));
    assert!(of("kind.yaml").reason.contains("Deployment"));
    assert_eq!(of("version.yaml").line, Some(2));
    assert!(of("version.yaml").reason.contains("tombolo.dev/v1alpha1"));
    assert_eq!(of("policy.yaml").line, Some(10), "{found:?}");
    assert!(of("policy.yaml").reason.contains("fallback"));
    assert_eq!(of("export.yaml").line, Some(4), "{found:?}");
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(get(&store, "web").await.is_some());
    assert!(store.list::<RoutingPolicy>().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_rule_that_is_broken_is_reported_at_its_line() {
    let place = Place::new();
    place.write(
        "local.yaml",
        "apiVersion: tombolo.dev/v1alpha1\nkind: LocalCluster\nmetadata:\n  name: local\nspec:\n  clusterId: amber\n  clusterSetId: demo\n  gateways:\n    mtu: 900\n",
    );
    place.write(
        "property.yaml",
        "apiVersion: about.k8s.io/v1alpha1\nkind: ClusterProperty\nmetadata:\n  name: cluster.clusterset.k8s.io\nspec:\n  value: Not An Id\n---\napiVersion: about.k8s.io/v1beta1\nkind: ClusterProperty\nmetadata:\n  name: clusterset.k8s.io\nspec:\n  value: demo\n",
    );
    let (store, reports) = place.open();
    let found = reports.current();
    assert!(found[1].reason.contains("'Not An Id' is not a cluster id"), "{found:?}");
    assert_eq!(store.list::<ClusterProperty>().await.unwrap().len(), 1, "the property that is right is there");
    assert_eq!(found[0].line, Some(9), "{found:?}");
    assert!(found[0].reason.contains("spec.gateways.mtu"), "{found:?}");
    assert!(store.list::<LocalCluster>().await.unwrap().is_empty());
}

#[tokio::test]
async fn manifests_are_read_as_people_write_them() {
    let place = Place::new();
    place.write(
        "list.yaml",
        "%YAML 1.2\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: { name: one, uid: stale, resourceVersion: '9' }\n- apiVersion: v1\n  kind: Secret\n  metadata: { name: s }\n  stringData: { key: value }\n...\n--- # an export, old style\napiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\nmetadata: &m { name: one }\n---\n",
    );
    let (store, reports) = place.open();
    assert!(reports.current().is_empty(), "{:?}", reports.current());
    let one = store.get::<Service>(Some("default"), "one").await.unwrap().unwrap();
    assert_ne!(one.metadata.uid.as_deref(), Some("stale"));
    assert!(store.get::<ServiceExport>(Some("default"), "one").await.unwrap().is_some());
    let secret = store.get::<Secret>(Some("default"), "s").await.unwrap().unwrap();
    assert_eq!(secret.data.unwrap()["key"].0, b"value");
}

#[tokio::test]
async fn a_bomb_of_aliases_is_refused_and_everything_else_goes_on() {
    let place = Place::new();
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for level in 1..30 {
        let below = format!("*a{}", level - 1);
        bomb += &format!("a{level}: &a{level} [{}]\n", [below.as_str(); 9].join(","));
    }
    place.write("bomb.yaml", &bomb);
    place.write("deep.yaml", &"[".repeat(100_000));
    place.write("web.yaml", &service("web", 80));
    let (store, reports) = place.open();
    assert_eq!(reports.current().len(), 2, "{:?}", reports.current());
    assert!(get(&store, "web").await.is_some());
}

#[tokio::test]
async fn the_users_files_are_never_written_and_own_what_they_define() {
    let place = Place::new();
    let text = "apiVersion: v1\nkind: Node\nmetadata:\n  name: worker\n  labels: { zone: a }\nstatus:\n  addresses:\n  - { type: InternalIP, address: 10.0.0.1 }\n";
    place.write("node.yaml", text);
    let (store, _reports) = place.open();
    let read = store.get::<Node>(None, "worker").await.unwrap().unwrap();
    assert_eq!(read.status.as_ref().unwrap().addresses.as_ref().unwrap()[0].address, "10.0.0.1");

    let mut respecified = read.clone();
    respecified.spec = Some(api::kubernetes::NodeSpec { pod_cidr: Some("10.1.0.0/24".into()), ..Default::default() });
    let refusal = store.update(&respecified).await.unwrap_err();
    assert!(matches!(&refusal, Error::Forbidden(why) if why.contains("node.yaml")), "{refusal}");
    let mut relabelled = read.clone();
    relabelled.metadata.labels = Some(BTreeMap::from([("zone".into(), "b".into())]));
    assert!(matches!(store.update(&relabelled).await, Err(Error::Forbidden(_))));
    let refusal = store.delete::<Node>(None, "worker", Preconditions::default()).await.unwrap_err();
    assert!(matches!(&refusal, Error::Forbidden(why) if why.contains("node.yaml")), "{refusal}");

    let mut annotated = read.clone();
    annotated.metadata.annotations = Some(BTreeMap::from([("tombolo.dev/agent-ready".into(), "now".into())]));
    let annotated = store.update(&annotated).await.unwrap();
    assert_eq!(annotated.metadata.generation, read.metadata.generation);
    assert_eq!(fs::read_to_string(place.manifests().join("node.yaml")).unwrap(), text);

    // What was said of it stays when the user edits the file, and over a restart.
    let mut watch = store.watch::<Node>();
    place.write("node.yaml", &text.replace("zone: a", "zone: c"));
    let edited = applied(&mut watch, |node| node.metadata.labels.as_ref().unwrap()["zone"] == "c").await;
    assert_eq!(edited.metadata.annotations, annotated.metadata.annotations);
    drop((store, watch, _reports));
    let (store, _reports) = place.open();
    assert_eq!(store.get::<Node>(None, "worker").await.unwrap(), Some(edited));
}

#[tokio::test]
async fn an_object_that_tombolo_made_becomes_the_users_when_a_file_defines_it() {
    let place = Place::new();
    let (store, _reports) = place.open();
    let mut made = node("worker");
    made.metadata.annotations =
        Some(BTreeMap::from([("tombolo.dev/infrastructure-addresses".into(), "10.9.0.1".into())]));
    let made = store.create(&made).await.unwrap();
    let mut watch = store.watch::<Node>();
    place.write("node.yaml", "apiVersion: v1\nkind: Node\nmetadata: { name: worker, labels: { zone: a } }\n");
    let defined = applied(&mut watch, |node| node.metadata.labels.is_some()).await;
    assert_eq!(defined.metadata.uid, made.metadata.uid);
    assert_eq!(defined.metadata.annotations, made.metadata.annotations);
    fs::remove_file(place.manifests().join("node.yaml")).unwrap();
    assert_eq!(name(&deleted(&mut watch).await), "worker");
}

#[tokio::test]
async fn what_is_measured_of_a_users_endpoints_is_kept_beside_the_file() {
    let place = Place::new();
    let slice = |port: u16| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{ name: web-1, namespace: shop }}\naddressType: IPv4\nendpoints:\n- addresses: [10.1.0.5]\n- addresses: [10.1.0.6]\nports:\n- port: {port}\n"
        )
    };
    place.write("slice.yaml", &slice(80));
    let (store, _reports) = place.open();
    let mut measured = store.get::<EndpointSlice>(Some("shop"), "web-1").await.unwrap().unwrap();
    measured.endpoints.as_mut().unwrap()[0].conditions =
        Some(api::kubernetes::EndpointConditions { ready: Some(false), ..Default::default() });
    let measured = store.update_status(&measured).await.unwrap();
    assert_eq!(measured.metadata.generation, Some(1));
    let mut watch = store.watch::<EndpointSlice>();
    place.write("slice.yaml", &slice(81));
    let edited = applied(&mut watch, |slice| slice.metadata.generation == Some(2)).await;
    let ready = |index: usize| edited.endpoints.as_ref().unwrap()[index].conditions.as_ref().and_then(|c| c.ready);
    assert_eq!((ready(0), ready(1)), (Some(false), None));
}

#[tokio::test]
async fn what_tombolo_made_for_a_users_object_goes_with_its_definition() {
    let place = Place::new();
    place.write("web.yaml", &service("web", 80));
    let (store, _reports) = place.open();
    let owner = get(&store, "web").await.unwrap();
    let import = ServiceImport {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("shop".into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Service".into(),
                name: "web".into(),
                uid: owner.metadata.uid.unwrap(),
                ..Default::default()
            }]),
            ..Default::default()
        },
        ..Default::default()
    };
    store.create(&import).await.unwrap();
    let mut watch = store.watch::<ServiceImport>();
    fs::remove_file(place.manifests().join("web.yaml")).unwrap();
    assert_eq!(name(&deleted(&mut watch).await), "web");
}

#[tokio::test]
async fn a_namespace_is_there_while_an_object_of_it_is_or_a_file_declares_it() {
    let place = Place::new();
    place.write("web.yaml", &service("web", 80));
    let (store, _reports) = place.open();
    let implied = store.get::<Namespace>(None, "shop").await.unwrap().unwrap();
    let mut watch = store.watch::<Namespace>();
    place.write("shop.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: { name: shop, labels: { team: a } }\n");
    let declared = applied(&mut watch, |ns| ns.metadata.labels.as_ref().unwrap().contains_key("team")).await;
    assert_eq!(declared.metadata.uid, implied.metadata.uid);
    fs::remove_file(place.manifests().join("shop.yaml")).unwrap();
    let again = applied(&mut watch, |ns| !ns.metadata.labels.as_ref().unwrap().contains_key("team")).await;
    assert_eq!(again.metadata.uid, implied.metadata.uid);
    fs::remove_file(place.manifests().join("web.yaml")).unwrap();
    assert_eq!(name(&deleted(&mut watch).await), "shop");
}

#[tokio::test]
async fn a_manifests_folder_that_is_replaced_loses_nothing() {
    let place = Place::new();
    place.write("web.yaml", &service("web", 80));
    let (store, mut reports) = place.open();
    let mut watch = store.watch::<Service>();
    let born = applied(&mut watch, |_| true).await;
    fs::rename(place.manifests(), place.path().join("old")).unwrap();
    let found = reported(&mut reports, |reports| !reports.is_empty()).await;
    assert!(found[0].reason.contains("is gone"), "{found:?}");
    assert!(get(&store, "web").await.is_some());
    fs::create_dir(place.path().join("new")).unwrap();
    fs::write(place.path().join("new/web.yaml"), service("web", 81)).unwrap();
    fs::rename(place.path().join("new"), place.manifests()).unwrap();
    assert_eq!(applied(&mut watch, |s| port(s) == 81).await.metadata.uid, born.metadata.uid);
    reported(&mut reports, <[Report]>::is_empty).await;
    place.write("web.yaml", &service("web", 82));
    applied(&mut watch, |s| port(s) == 82).await;
}

#[tokio::test]
async fn one_process_owns_the_state_and_another_is_refused_by_its_number() {
    let place = Place::new();
    let (store, reports) = place.open();
    let refusal = folder::open(place.config()).map(|_| ()).unwrap_err().to_string();
    assert!(refusal.contains(&std::process::id().to_string()), "{refusal}");
    drop((store, reports));
    place.open();
}

#[tokio::test]
async fn the_state_is_for_its_owner_alone() {
    let place = Place::new();
    let (_store, _reports) = place.open();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&place.path().join("state")), 0o700);
    for entry in fs::read_dir(place.path().join("state")).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}

#[tokio::test]
async fn a_missing_manifests_folder_is_refused_by_name() {
    let place = Place::new();
    fs::remove_dir(place.manifests()).unwrap();
    let refusal = folder::open(place.config()).map(|_| ()).unwrap_err().to_string();
    assert!(refusal.contains("manifests") && refusal.contains("make it"), "{refusal}");
}
