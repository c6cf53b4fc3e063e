//! What every backend promises, as one suite.

mod worlds;

use std::collections::BTreeMap;

use api::kubernetes::{Lease, LeaseSpec, ObjectMeta, OwnerReference, Secret};
use api::tunnel_gateway::{TunnelGatewaySpec, TunnelGatewayStatus};
use api::{ClusterRoutingPolicy, ServiceExport, TunnelGateway};
use store::{Error, Event, Kind, Preconditions, Store};
use worlds::{World, before_the_limit};

/// Runs each promise against each backend; the last ones not against Kubernetes, which lets no owner own across
/// namespaces and collects what was owned some time later.
macro_rules! contract {
    ($($promise:ident),+ ; $($ours:ident),+ $(,)?) => {
        mod folder {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(super::worlds::folder().await).await;
            })+
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $ours() {
                super::$ours(super::worlds::folder().await).await;
            })+
        }
        mod feed {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(super::worlds::feed().await).await;
            })+
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $ours() {
                super::$ours(super::worlds::feed().await).await;
            })+
        }
        mod kubernetes {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(super::worlds::kubernetes().await).await;
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
    an_object_that_breaks_a_rule_is_refused_by_name,
    of_many_writers_of_one_version_one_wins,
    kinds_without_a_status_refuse_one;
    what_an_owner_owned_goes_with_it,
    an_object_of_an_owner_that_is_gone_is_refused,
);

fn export(name: &str) -> ServiceExport {
    ServiceExport {
        metadata: ObjectMeta { namespace: Some("shop".into()), name: Some(name.into()), ..Default::default() },
        ..Default::default()
    }
}

/// Changes what the export asks for.
fn labelled(mut export: ServiceExport, value: &str) -> ServiceExport {
    export.spec.exported_labels = BTreeMap::from([("team".into(), value.into())]);
    export
}

/// The Lease by which the gateway of these worlds holds slot 0.
fn slot() -> Lease {
    Lease {
        metadata: ObjectMeta {
            namespace: Some("tombolo-system".into()),
            name: Some("gateway-slot-0".into()),
            ..Default::default()
        },
        spec: Some(LeaseSpec { holder_identity: Some("edge".into()), ..Default::default() }),
    }
}

fn version<K: Kind>(object: &K) -> String {
    object.meta().resource_version.clone().unwrap_or_default()
}

async fn what_was_created_is_read_back_with_uid_time_generation_and_version(world: World) {
    let made = world.operator.create(&export("web")).await.unwrap();
    let meta = &made.metadata;
    assert_eq!(meta.uid.as_deref().map(str::len), Some(36));
    assert!(meta.creation_timestamp.is_some());
    assert_eq!(meta.generation, Some(1));
    assert!(version(&made).parse::<u64>().unwrap() > 0);
    assert_eq!(world.operator.get::<ServiceExport>(Some("shop"), "web").await.unwrap(), Some(made.clone()));
    assert_eq!(world.operator.list::<ServiceExport>().await.unwrap(), vec![made]);
    assert_eq!(world.operator.get::<ServiceExport>(Some("shop"), "other").await.unwrap(), None);
}

async fn a_second_create_of_the_same_name_is_refused(world: World) {
    world.operator.create(&export("web")).await.unwrap();
    let refusal = world.operator.create(&export("web")).await.unwrap_err();
    assert!(matches!(&refusal, Error::AlreadyExists(name) if name == "ServiceExport shop/web"), "{refusal}");
}

async fn an_update_names_the_uid_and_the_version_it_read(world: World) {
    let made = world.operator.create(&export("web")).await.unwrap();
    let newer = world.operator.update(&labelled(made.clone(), "b")).await.unwrap();
    assert_ne!(version(&newer), version(&made));
    assert_eq!(newer.metadata.uid, made.metadata.uid);
    assert_eq!(newer.metadata.creation_timestamp, made.metadata.creation_timestamp);

    let mut late = labelled(made, "c");
    assert!(matches!(world.operator.update(&late).await, Err(Error::Conflict { .. })));
    late.metadata.resource_version = None;
    assert!(matches!(world.operator.update(&late).await, Err(Error::Conflict { .. })));
    let mut stranger = newer;
    stranger.metadata.uid = Some("00000000-0000-4000-8000-000000000000".into());
    assert!(matches!(world.operator.update(&stranger).await, Err(Error::Conflict { .. })));
    assert!(matches!(world.operator.update(&export("absent")).await, Err(Error::NotFound(_))));
}

async fn a_write_that_changes_nothing_makes_no_version_and_no_event(world: World) {
    let made = world.operator.create(&export("web")).await.unwrap();
    let mut watch = world.operator.watch::<ServiceExport>();
    assert_eq!(before_the_limit(watch.next()).await, Some(Event::Reset(vec![made.clone()])));
    assert_eq!(world.operator.update(&made).await.unwrap(), made);
    let changed = world.operator.update(&labelled(made, "b")).await.unwrap();
    assert_eq!(before_the_limit(watch.next()).await, Some(Event::Applied(changed)));
}

async fn the_generation_counts_changes_of_the_spec_alone(world: World) {
    let mut made = world.operator.create(&export("web")).await.unwrap();
    made.metadata.labels = Some(BTreeMap::from([("a".into(), "b".into())]));
    let made = world.operator.update(&made).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    assert_eq!(world.operator.update(&labelled(made, "a")).await.unwrap().metadata.generation, Some(2));
}

async fn a_status_is_written_by_its_own_call_alone(world: World) {
    let status = Some(TunnelGatewayStatus { node: "worker".into(), ..Default::default() });
    let new = TunnelGateway {
        metadata: ObjectMeta {
            namespace: Some("tombolo-system".into()),
            name: Some("gateway-0".into()),
            ..Default::default()
        },
        spec: TunnelGatewaySpec { slot: 0 },
        status: status.clone(),
    };
    let made = world.owner.create(&new).await.unwrap();
    assert_eq!(made.status, None, "a create writes no status");
    world.gateway.create(&slot()).await.unwrap();
    let both = TunnelGateway { status: status.clone(), spec: TunnelGatewaySpec { slot: 1 }, ..made.clone() };
    let updated = world.gateway.update_status(&both).await.unwrap();
    assert_eq!((&updated.status, &updated.spec), (&status, &made.spec));
    assert_eq!(updated.metadata.generation, made.metadata.generation);
    let again = world.owner.update(&TunnelGateway { status: None, spec: both.spec.clone(), ..updated }).await.unwrap();
    assert_eq!((again.status, &again.spec), (status, &both.spec));
    assert!(matches!(world.gateway.update_status(&made).await, Err(Error::Conflict { .. })));
}

async fn a_watch_begins_with_everything_and_goes_on_with_each_change(world: World) {
    let one = world.operator.create(&export("one")).await.unwrap();
    let mut watch = world.operator.watch::<ServiceExport>();
    assert_eq!(before_the_limit(watch.next()).await, Some(Event::Reset(vec![one.clone()])));
    let two = world.operator.create(&export("two")).await.unwrap();
    assert_eq!(before_the_limit(watch.next()).await, Some(Event::Applied(two)));
    world.operator.delete::<ServiceExport>(Some("shop"), "one", Preconditions::default()).await.unwrap();
    assert_eq!(before_the_limit(watch.next()).await, Some(Event::Deleted(one)));
}

async fn two_watches_see_the_same_changes_in_the_same_order(world: World) {
    let (mut first, mut second) = (world.operator.watch::<ServiceExport>(), world.operator.watch::<ServiceExport>());
    let mut last = String::new();
    for index in 0..50 {
        last = version(&world.operator.create(&export(&format!("web-{index}"))).await.unwrap());
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
    let made = world.operator.create(&export("web")).await.unwrap();
    let delete = |only_if| world.operator.delete::<ServiceExport>(Some("shop"), "web", only_if);
    let wrong = Preconditions { uid: Some("other".into()), resource_version: None };
    assert!(matches!(delete(wrong).await, Err(Error::Conflict { .. })));
    let old = Preconditions { uid: None, resource_version: Some("0".into()) };
    assert!(matches!(delete(old).await, Err(Error::Conflict { .. })));
    let right = Preconditions { uid: made.metadata.uid, resource_version: made.metadata.resource_version };
    delete(right).await.unwrap();
    delete(Preconditions::default()).await.unwrap();
    assert_eq!(world.operator.get::<ServiceExport>(Some("shop"), "web").await.unwrap(), None);
}

async fn an_object_that_is_made_again_is_another(world: World) {
    let first = world.operator.create(&export("web")).await.unwrap();
    world.operator.delete::<ServiceExport>(Some("shop"), "web", Preconditions::default()).await.unwrap();
    let second = world.operator.create(&export("web")).await.unwrap();
    assert_ne!(first.metadata.uid, second.metadata.uid);
    assert!(matches!(world.operator.update(&first).await, Err(Error::Conflict { .. })));
}

fn owned_by(mut export: ServiceExport, owner: &Lease) -> ServiceExport {
    export.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "coordination.k8s.io/v1".into(),
        kind: "Lease".into(),
        name: owner.metadata.name.clone().unwrap(),
        uid: owner.metadata.uid.clone().unwrap(),
        ..Default::default()
    }]);
    export
}

async fn what_an_owner_owned_goes_with_it(world: World) {
    let owner = world.gateway.create(&slot()).await.unwrap();
    let owned = world.operator.create(&owned_by(export("owned"), &owner)).await.unwrap();
    let free = world.operator.create(&export("free")).await.unwrap();
    let mut watch = world.operator.watch::<ServiceExport>();
    before_the_limit(watch.next()).await;
    world.gateway.delete::<Lease>(Some("tombolo-system"), "gateway-slot-0", Preconditions::default()).await.unwrap();
    assert_eq!(before_the_limit(watch.next()).await, Some(Event::Deleted(owned)));
    assert_eq!(world.operator.list::<ServiceExport>().await.unwrap(), vec![free]);
}

async fn an_object_of_an_owner_that_is_gone_is_refused(world: World) {
    let owner = world.gateway.create(&slot()).await.unwrap();
    world.gateway.delete::<Lease>(Some("tombolo-system"), "gateway-slot-0", Preconditions::default()).await.unwrap();
    let refusal = world.operator.create(&owned_by(export("owned"), &owner)).await.unwrap_err();
    assert!(refusal.is_conflict() && refusal.to_string().contains("owner"), "{refusal}");
}

async fn an_object_that_breaks_a_rule_is_refused_by_name(world: World) {
    let empty = ClusterRoutingPolicy::new("all", Default::default());
    let refusal = world.operator.create(&empty).await.unwrap_err();
    assert!(matches!(&refusal, Error::Invalid { violations, .. } if violations[0].path == "spec"), "{refusal}");
    let refusal = world.operator.create(&export("Not_A_Name")).await.unwrap_err();
    assert!(
        matches!(&refusal, Error::Invalid { violations, .. } if violations[0].path == "metadata.name"),
        "{refusal}"
    );
}

async fn of_many_writers_of_one_version_one_wins(world: World) {
    let made = world.operator.create(&export("web")).await.unwrap();
    let writers = (0..16).map(|index| {
        let store: Store = world.operator.clone();
        let mine = labelled(made.clone(), &format!("writer-{index}"));
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
    let made = world.gateway.create(&slot()).await.unwrap();
    assert!(matches!(world.gateway.update_status(&made).await, Err(Error::Forbidden(_))));
}
