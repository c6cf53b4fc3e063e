//! What every backend promises, as one suite.

mod worlds;

use std::collections::BTreeMap;

use api::cluster_id::ClusterId;
use api::kubernetes::{Lease, LeaseSpec, ObjectMeta, OwnerReference, Secret};
use api::local_cluster::LocalClusterSpec;
use api::service_import::{ImportType, ServiceImport, ServiceImportSpec, ServiceImportStatus};
use api::{Kind, LocalCluster};
use store::{Error, Event, Preconditions, Store};
use worlds::{World, before_the_limit};

/// Runs each promise against each backend.
macro_rules! contract {
    ($($promise:ident),+ $(,)?) => {
        mod folder {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(super::worlds::folder().await).await;
            })+
        }
    };
}

contract!(
    what_was_created_is_read_back_with_uid_time_generation_and_version,
    a_second_create_of_the_same_name_is_refused,
    an_update_names_the_uid_and_the_version_it_read,
    a_write_that_changes_nothing_makes_no_version_and_no_event,
    the_generation_counts_changes_of_the_spec_alone,
    a_status_is_written_by_its_own_call_alone,
    a_watch_begins_with_everything_and_goes_on_with_each_change,
    two_watches_see_the_same_changes_in_the_same_order,
    a_delete_may_name_uid_and_version_and_an_absent_object_is_no_error,
    an_object_that_is_made_again_is_another,
    what_an_owner_owned_goes_with_it,
    an_object_of_an_owner_that_is_gone_is_refused,
    an_object_that_breaks_a_rule_is_refused_by_name,
    of_many_writers_of_one_version_one_wins,
    kinds_without_a_status_refuse_one,
);

fn import(name: &str) -> ServiceImport {
    ServiceImport {
        metadata: ObjectMeta { namespace: Some("shop".into()), name: Some(name.into()), ..Default::default() },
        spec: ServiceImportSpec { import_type: ImportType::Headless, ..Default::default() },
        status: None,
    }
}

fn lease(name: &str, holder: &str) -> Lease {
    Lease {
        metadata: ObjectMeta {
            namespace: Some("tombolo-system".into()),
            name: Some(name.into()),
            ..Default::default()
        },
        spec: Some(LeaseSpec { holder_identity: Some(holder.into()), ..Default::default() }),
    }
}

fn version<K: Kind>(object: &K) -> String {
    object.meta().resource_version.clone().unwrap_or_default()
}

async fn what_was_created_is_read_back_with_uid_time_generation_and_version(world: World) {
    let made = world.store.create(&import("web")).await.unwrap();
    let meta = &made.metadata;
    assert_eq!(meta.uid.as_deref().map(str::len), Some(36));
    assert!(meta.creation_timestamp.is_some());
    assert_eq!(meta.generation, Some(1));
    assert!(version(&made).parse::<u64>().unwrap() > 0);
    assert_eq!(world.store.get::<ServiceImport>(Some("shop"), "web").await.unwrap(), Some(made.clone()));
    assert_eq!(world.store.list::<ServiceImport>().await.unwrap(), vec![made]);
    assert_eq!(world.store.get::<ServiceImport>(Some("shop"), "other").await.unwrap(), None);
}

async fn a_second_create_of_the_same_name_is_refused(world: World) {
    world.store.create(&import("web")).await.unwrap();
    let refusal = world.store.create(&import("web")).await.unwrap_err();
    assert!(matches!(&refusal, Error::AlreadyExists(name) if name == "ServiceImport shop/web"), "{refusal}");
}

async fn an_update_names_the_uid_and_the_version_it_read(world: World) {
    let made = world.store.create(&lease("slot", "a")).await.unwrap();
    let mut newer = made.clone();
    newer.spec.as_mut().unwrap().holder_identity = Some("b".into());
    let newer = world.store.update(&newer).await.unwrap();
    assert_ne!(version(&newer), version(&made));
    assert_eq!(newer.metadata.uid, made.metadata.uid);
    assert_eq!(newer.metadata.creation_timestamp, made.metadata.creation_timestamp);

    let mut late = made.clone();
    late.spec.as_mut().unwrap().holder_identity = Some("c".into());
    assert!(matches!(world.store.update(&late).await, Err(Error::Conflict { .. })));
    late.metadata.resource_version = None;
    assert!(matches!(world.store.update(&late).await, Err(Error::Conflict { .. })));
    let mut stranger = newer.clone();
    stranger.metadata.uid = Some("00000000-0000-4000-8000-000000000000".into());
    assert!(matches!(world.store.update(&stranger).await, Err(Error::Conflict { .. })));
    assert!(matches!(world.store.update(&lease("absent", "a")).await, Err(Error::NotFound(_))));
}

async fn a_write_that_changes_nothing_makes_no_version_and_no_event(world: World) {
    let made = world.store.create(&lease("slot", "a")).await.unwrap();
    let mut watch = world.store.watch::<Lease>();
    assert_eq!(before_the_limit(watch.next()).await, Some(Event::Reset(vec![made.clone()])));
    assert_eq!(world.store.update(&made).await.unwrap(), made);
    let mut changed = made.clone();
    changed.spec.as_mut().unwrap().holder_identity = Some("b".into());
    let changed = world.store.update(&changed).await.unwrap();
    assert_eq!(before_the_limit(watch.next()).await, Some(Event::Applied(changed)));
}

async fn the_generation_counts_changes_of_the_spec_alone(world: World) {
    let made = world.store.create(&import("web")).await.unwrap();
    let mut labelled = made.clone();
    labelled.metadata.labels = Some(BTreeMap::from([("a".into(), "b".into())]));
    let labelled = world.store.update(&labelled).await.unwrap();
    assert_eq!(labelled.metadata.generation, Some(1));
    let mut changed = labelled.clone();
    changed.spec.ip_families = vec!["IPv4".into()];
    assert_eq!(world.store.update(&changed).await.unwrap().metadata.generation, Some(2));
}

async fn a_status_is_written_by_its_own_call_alone(world: World) {
    let status = Some(ServiceImportStatus {
        clusters: vec![api::service_import::ClusterStatus { cluster: "amber".into() }],
        conditions: vec![],
    });
    let made = world.store.create(&ServiceImport { status: status.clone(), ..import("web") }).await.unwrap();
    assert_eq!(made.status, None);
    let mut both = ServiceImport { status: status.clone(), ..made.clone() };
    both.spec.ip_families = vec!["IPv6".into()];
    let updated = world.store.update_status(&both).await.unwrap();
    assert_eq!((updated.status.clone(), &updated.spec), (status.clone(), &made.spec));
    let again = world.store.update(&ServiceImport { status: None, spec: both.spec.clone(), ..updated }).await.unwrap();
    assert_eq!((again.status.clone(), &again.spec), (status, &both.spec));
    assert!(matches!(world.store.update_status(&made).await, Err(Error::Conflict { .. })));
}

async fn a_watch_begins_with_everything_and_goes_on_with_each_change(world: World) {
    let one = world.store.create(&import("one")).await.unwrap();
    let mut watch = world.store.watch::<ServiceImport>();
    assert_eq!(before_the_limit(watch.next()).await, Some(Event::Reset(vec![one.clone()])));
    let two = world.store.create(&import("two")).await.unwrap();
    assert_eq!(before_the_limit(watch.next()).await, Some(Event::Applied(two)));
    world.store.delete::<ServiceImport>(Some("shop"), "one", Preconditions::default()).await.unwrap();
    assert_eq!(before_the_limit(watch.next()).await, Some(Event::Deleted(one)));
}

async fn two_watches_see_the_same_changes_in_the_same_order(world: World) {
    let (mut first, mut second) = (world.store.watch::<Lease>(), world.store.watch::<Lease>());
    let mut last = String::new();
    for index in 0..50 {
        last = version(&world.store.create(&lease(&format!("lease-{index}"), "a")).await.unwrap());
    }
    let mut seen = [Vec::new(), Vec::new()];
    for (watch, seen) in [&mut first, &mut second].into_iter().zip(&mut seen) {
        while seen.last() != Some(&last) {
            match before_the_limit(watch.next()).await.unwrap() {
                Event::Reset(all) => seen.extend(all.iter().map(version)),
                Event::Applied(one) => seen.push(version(&one)),
                Event::Deleted(_) => panic!("nothing was deleted"),
            }
        }
    }
    let sorted = |list: &[String]| {
        let mut numbers: Vec<u64> = list.iter().map(|text| text.parse().unwrap()).collect();
        numbers.sort_unstable();
        numbers
    };
    assert_eq!(sorted(&seen[0]), sorted(&seen[1]));
    assert_eq!(seen[0].len(), 50);
}

async fn a_delete_may_name_uid_and_version_and_an_absent_object_is_no_error(world: World) {
    let made = world.store.create(&lease("slot", "a")).await.unwrap();
    let delete = |only_if| world.store.delete::<Lease>(Some("tombolo-system"), "slot", only_if);
    let wrong = Preconditions { uid: Some("other".into()), resource_version: None };
    assert!(matches!(delete(wrong).await, Err(Error::Conflict { .. })));
    let old = Preconditions { uid: None, resource_version: Some("0".into()) };
    assert!(matches!(delete(old).await, Err(Error::Conflict { .. })));
    let right = Preconditions { uid: made.metadata.uid, resource_version: made.metadata.resource_version };
    delete(right).await.unwrap();
    delete(Preconditions::default()).await.unwrap();
    assert_eq!(world.store.get::<Lease>(Some("tombolo-system"), "slot").await.unwrap(), None);
}

async fn an_object_that_is_made_again_is_another(world: World) {
    let first = world.store.create(&lease("slot", "a")).await.unwrap();
    world.store.delete::<Lease>(Some("tombolo-system"), "slot", Preconditions::default()).await.unwrap();
    let second = world.store.create(&lease("slot", "a")).await.unwrap();
    assert_ne!(first.metadata.uid, second.metadata.uid);
    assert!(matches!(world.store.update(&first).await, Err(Error::Conflict { .. })));
}

fn owned_by(mut lease: Lease, owner: &ServiceImport) -> Lease {
    lease.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "multicluster.x-k8s.io/v1beta1".into(),
        kind: "ServiceImport".into(),
        name: owner.metadata.name.clone().unwrap(),
        uid: owner.metadata.uid.clone().unwrap(),
        ..Default::default()
    }]);
    lease
}

async fn what_an_owner_owned_goes_with_it(world: World) {
    let owner = world.store.create(&import("web")).await.unwrap();
    let owned = world.store.create(&owned_by(lease("owned", "a"), &owner)).await.unwrap();
    let free = world.store.create(&lease("free", "a")).await.unwrap();
    let mut watch = world.store.watch::<Lease>();
    before_the_limit(watch.next()).await;
    world.store.delete::<ServiceImport>(Some("shop"), "web", Preconditions::default()).await.unwrap();
    assert_eq!(before_the_limit(watch.next()).await, Some(Event::Deleted(owned)));
    assert_eq!(world.store.list::<Lease>().await.unwrap(), vec![free]);
}

async fn an_object_of_an_owner_that_is_gone_is_refused(world: World) {
    let owner = world.store.create(&import("web")).await.unwrap();
    world.store.delete::<ServiceImport>(Some("shop"), "web", Preconditions::default()).await.unwrap();
    let refusal = world.store.create(&owned_by(lease("owned", "a"), &owner)).await.unwrap_err();
    assert!(refusal.is_conflict() && refusal.to_string().contains("owner"), "{refusal}");
}

async fn an_object_that_breaks_a_rule_is_refused_by_name(world: World) {
    let mut bad = LocalCluster::new(
        "local",
        LocalClusterSpec {
            cluster_id: ClusterId::new("amber").unwrap(),
            cluster_set_id: ClusterId::new("demo").unwrap(),
            ..worlds::local_cluster().spec
        },
    );
    bad.spec.gateways.mtu = 900;
    let refusal = world.store.create(&bad).await.unwrap_err().to_string();
    assert!(refusal.contains("spec.gateways.mtu"), "{refusal}");
    let refusal = world.store.create(&lease("Not_A_Name", "a")).await.unwrap_err().to_string();
    assert!(refusal.contains("metadata.name"), "{refusal}");
}

async fn of_many_writers_of_one_version_one_wins(world: World) {
    let made = world.store.create(&lease("slot", "nobody")).await.unwrap();
    let writers = (0..16).map(|index| {
        let store: Store = world.store.clone();
        let mut mine = made.clone();
        mine.spec.as_mut().unwrap().holder_identity = Some(format!("writer-{index}"));
        tokio::spawn(async move { store.update(&mine).await })
    });
    let mut won = 0;
    for writer in writers.collect::<Vec<_>>() {
        match writer.await.unwrap() {
            Ok(_) => won += 1,
            Err(error) => assert!(matches!(error, Error::Conflict { .. }), "{error}"),
        }
    }
    assert_eq!(won, 1);
}

async fn kinds_without_a_status_refuse_one(world: World) {
    let secret = Secret {
        metadata: ObjectMeta {
            namespace: Some("tombolo-system".into()),
            name: Some("agent-contract".into()),
            ..Default::default()
        },
        ..Default::default()
    };
    let made = world.owner.create(&secret).await.unwrap();
    assert!(matches!(world.owner.update_status(&made).await, Err(Error::Forbidden(_))));
    let made = world.store.create(&lease("slot", "a")).await.unwrap();
    assert!(matches!(world.store.update_status(&made).await, Err(Error::Forbidden(_))));
}
