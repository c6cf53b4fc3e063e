use proptest::prelude::*;

use super::world::{T0, World, local_cluster, peer, signed_record, signed_record_in};
use super::*;
use crate::advertisement::{ItemChange, ItemKey};
use crate::index::Observed;
use crate::plan::Verb;
use crate::testing::{self, cluster, time};
use api::ServiceExport;
use api::kubernetes::Node;
use api::member_record::MemberState;

#[test]
fn nothing_is_written_before_every_kind_was_shown() {
    let mut engine = Engine::new(IdentityKey([1; 32]), "e".into(), None, Bounds::default(), T0);
    engine.observe_local_cluster(Observed::Reset(vec![local_cluster()]), T0, time(1));
    assert!(engine.plan(time(1)).is_empty() && engine.advertise(T0, time(1)).is_empty());
}

#[test]
fn a_remote_service_becomes_an_import_with_an_address_and_slices_and_then_nothing_more_is_due() {
    let mut world = World::new();
    world.hears("birch", 1, &["10.2.0.1", "10.2.0.2"]);
    assert!(world.settle() > 0);
    let import = world.import().unwrap();
    assert_eq!((import.spec.ips.len(), import.spec.ip_families), (1, vec!["IPv4".to_string()]));
    assert_eq!(import.status.unwrap().clusters[0].cluster, "birch");
    let endpoints = vec![("10.2.0.1".to_string(), true), ("10.2.0.2".to_string(), true)];
    assert_eq!(world.slices(), [("birch".to_string(), endpoints, vec!["tcp".to_string()])]);
    world.engine.mark_all();
    assert_eq!(world.settle(), 0, "a full difference finds nothing");
}

#[test]
fn our_own_export_is_imported_too_and_its_conditions_say_so() {
    let mut world = World::new();
    world.exports(1, "10.1.0.1");
    world.settle();
    assert_eq!(world.slices()[0].0, "amber");
    for (kind, status, reason) in
        [("Valid", "True", "Valid"), ("Ready", "True", "Exported"), ("Conflict", "False", "NoConflicts")]
    {
        let found = world.condition::<ServiceExport>("shop", "web", kind);
        assert_eq!(found, Some((status.to_string(), reason.to_string())), "{kind}");
    }
    assert_eq!(world.condition::<ServiceImport>("shop", "web", "Ready"), Some(("True".into(), "Ready".into())));
}

#[test]
fn a_conflict_shows_on_our_export_whoever_is_older() {
    for ours in [1, 9] {
        let mut world = World::new();
        world.exports(ours, "10.1.0.1");
        let mut other = testing::plain_service(5);
        other.ports = vec![testing::port("tcp", 43, "TCP")];
        let mut said = Advertisement::default();
        let web = ServiceName::new("shop", "web");
        said.put(ItemKey::service(web.clone()), Arc::new(crate::advertisement::Item::Service(other)));
        said.put(ItemKey::slice(web, "a"), testing::slice(&["10.2.0.1"]));
        world.hears_all(&cluster("birch"), said);
        world.settle();
        let found = world.condition::<ServiceExport>("shop", "web", "Conflict");
        assert_eq!(found, Some(("True".into(), "PortConflict".into())));
        // Whoever is newer serves nothing on a port that means something else there.
        assert_eq!(world.slices().len(), 1);
        assert_eq!(world.slices()[0].0, if ours == 1 { "amber" } else { "birch" });
    }
}

#[test]
fn one_changed_endpoint_writes_one_slice_among_many_services() {
    let mut world = World::new();
    let birch = cluster("birch");
    let mut said = Advertisement::default();
    for n in 0..10_000 {
        let name = ServiceName::new("shop", &format!("s{n}"));
        said.put(ItemKey::service(name.clone()), testing::service(1));
        if n < 200 {
            said.put(ItemKey::slice(name, "a"), testing::slice(&["10.2.0.1"]));
        }
    }
    // More services than the prefix has addresses: the others say so, and nothing stops.
    world.hears_all(&birch, said.clone());
    world.settle();
    world.log.clear();
    let change = ItemChange {
        key: ItemKey::slice(ServiceName::new("shop", "s7"), "a"),
        item: Some(testing::slice(&["10.2.0.1", "10.2.0.9"])),
    };
    said.apply(&change);
    let token = Token { epoch: "e".into(), hash: said.hash() };
    world.engine.hear_changes(&birch, &[change], Some(token), T0, time(100));
    assert_eq!(world.settle(), 1);
    assert_eq!((world.log[0].0, world.log[0].1), (Verb::Update, "EndpointSlice"));
}

#[test]
fn exhausted_addresses_are_a_named_condition() {
    let mut world = World::new();
    let mut small = local_cluster();
    small.spec.cluster_set_prefixes = vec!["10.200.0.0/32".parse().unwrap()];
    world.put(small);
    world.hears("birch", 1, &["10.2.0.1"]);
    world.exports(1, "10.1.0.1");
    let mut said = Advertisement::default();
    for name in ["a", "b"] {
        said.put(ItemKey::service(ServiceName::new("shop", name)), testing::service(1));
    }
    world.hears_all(&cluster("birch"), said);
    world.settle();
    let reasons: Vec<_> = ["a", "b", "web"]
        .iter()
        .map(|name| world.condition::<ServiceImport>("shop", name, "Ready").unwrap().1)
        .collect();
    assert_eq!(reasons.iter().filter(|reason| *reason == "AddressesExhausted").count(), 2, "{reasons:?}");
}

#[test]
fn an_address_outlives_a_restart_and_is_freed_with_its_import() {
    let mut world = World::new();
    world.hears("birch", 1, &["10.2.0.1"]);
    world.settle();
    let mut import = world.import().unwrap();
    import.spec.ips = vec!["10.200.0.77".into()];
    let mut again = World::empty();
    again.objects = world.objects.clone();
    again.objects.insert(("ServiceImport", ObjectKey::of(&import)), import.into());
    again.version = world.version;
    again.show_resets();
    again.put_namespace("shop");
    again.hears("birch", 1, &["10.2.0.1"]);
    again.settle();
    assert_eq!(again.import().unwrap().spec.ips, ["10.200.0.77"]);
    again.hears_all(&cluster("birch"), Advertisement::default());
    again.settle();
    assert!(again.import().is_none() && again.slices().is_empty() && again.engine.cluster_addresses.is_empty());
}

#[test]
fn an_import_waits_for_its_namespace() {
    let mut world = World::new();
    let mut said = Advertisement::default();
    said.put(ItemKey::service(ServiceName::new("later", "web")), testing::service(1));
    world.hears_all(&cluster("birch"), said);
    world.settle();
    assert!(world.get::<ServiceImport>("later", "web").is_none());
    world.put_namespace("later");
    world.settle();
    assert!(world.get::<ServiceImport>("later", "web").is_some());
}

#[test]
fn an_import_of_another_controller_is_left_in_peace_and_our_export_says_so() {
    let mut world = World::new();
    let mut theirs = ServiceImport::new("web", Default::default());
    theirs.metadata.namespace = Some("shop".into());
    world.put(theirs);
    world.exports(1, "10.1.0.1");
    world.settle();
    assert_eq!(world.import().unwrap().spec, Default::default());
    let found = world.condition::<ServiceExport>("shop", "web", "Ready");
    assert_eq!(found, Some(("False".into(), "ForeignController".into())));
}

#[test]
fn a_bad_peer_is_named_in_its_status_and_its_good_words_stay() {
    let mut world = World::new();
    let web = ServiceName::new("shop", "web");
    let mut said = Advertisement::default();
    said.put(ItemKey::service(ServiceName::new("kube-system", "dns")), testing::service(1));
    said.put(ItemKey::service(web.clone()), testing::service(5_000));
    said.put(ItemKey::slice(web, "a"), testing::slice(&["10.2.0.1", "10.1.0.1"]));
    world.hears_all(&cluster("birch"), said);
    world.settle();
    assert_eq!(world.slices()[0].1, [("10.2.0.1".to_string(), true)]);
    let status = world.get::<ClusterPeer>("", "birch").unwrap().status.unwrap();
    assert_eq!(
        status.refused,
        [
            "NamespaceNotAccepted: for example of kube-system/dns",
            "EndpointOutsidePrefixes: for example of shop/web",
            "FutureTimestamp: for example of shop/web"
        ]
    );
    assert_eq!(status.imported_services, 1);
}

#[test]
fn a_silent_peer_keeps_its_import_and_loses_its_readiness_after_thirty_seconds() {
    let mut world = World::new();
    world.hears("birch", 1, &["10.2.0.1"]);
    world.engine.set_synced(&cluster("birch"), Some("the connection broke".into()), T0, time(100));
    world.settle();
    assert_eq!(world.condition::<ClusterPeer>("", "birch", "Synced"), Some(("Unknown".into(), "Stale".into())));
    assert!(world.slices()[0].1[0].1);
    world.engine.tick(Instant::from_millis(30_000));
    world.settle();
    assert!(!world.slices()[0].1[0].1 && world.import().is_some());
    assert_eq!(world.condition::<ClusterPeer>("", "birch", "Synced"), Some(("False".into(), "Stale".into())));
    assert_eq!(world.engine.unserved().len(), 1);
}

#[test]
fn a_blocked_peer_and_a_deleted_one_contribute_nothing() {
    for block in [Some("spec"), Some("order"), None] {
        let mut world = World::new();
        world.hears("birch", 1, &["10.2.0.1"]);
        world.settle();
        let mut birch: ClusterPeer = world.get("", "birch").unwrap();
        if let Some(by) = block {
            match by {
                "spec" => birch.spec.state = PeerState::Blocked,
                _ => drop(birch.metadata.annotations.insert([(names::STATE.into(), "Blocked".into())].into())),
            }
            world.put(birch);
            world.settle();
            assert_eq!(
                world.condition::<ClusterPeer>("", "birch", "Accepted"),
                Some(("False".into(), "Blocked".into()))
            );
            assert_eq!(world.condition::<ClusterPeer>("", "birch", "Used"), Some(("False".into(), "Blocked".into())));
        } else {
            world.objects.remove(&("ClusterPeer", ObjectKey::named("birch")));
            world.engine.take_in(None, Some(birch.into()), T0, time(100));
            world.settle();
        }
        assert!(world.import().is_none() && world.slices().is_empty());
    }
}

#[test]
fn records_are_learned_from_anybody_and_strangers_become_members_awaiting_a_verdict() {
    let mut world = World::new();
    let cedar = cluster("cedar");
    world.engine.hear_record(&cedar, signed_record("birch", 2, 7, "demo"), T0, time(100));
    world.engine.hear_record(&cedar, signed_record("delta", 9, 1, "demo"), T0, time(100));
    world.engine.hear_record(&cedar, signed_record("birch", 8, 9, "demo"), T0, time(100));
    world.settle();
    let birch: ClusterPeer = world.get("", "birch").unwrap();
    assert_eq!(birch.newest_record().unwrap().generation, 7);
    assert_eq!(world.condition::<ClusterPeer>("", "birch", "Accepted"), Some(("False".into(), "IdClash".into())));
    let delta: ClusterMember = world.get("", "delta").unwrap();
    assert_eq!(delta.status.unwrap().heard_from, "cedar");
    world.put(peer("delta", 9));
    world.settle();
    assert!(world.get::<ClusterMember>("", "delta").is_none(), "a peer is not awaiting a verdict");
}

#[test]
fn a_record_of_our_own_name_by_another_identity_is_a_clash() {
    let mut world = World::new();
    world.engine.hear_record(&cluster("birch"), signed_record("amber", 9, 1, "demo"), T0, time(100));
    world.settle();
    assert_eq!(world.condition::<ClusterPeer>("", "birch", "Accepted"), Some(("False".into(), "IdClash".into())));
}

#[test]
fn peers_are_known_by_their_keys_and_blocked_ones_and_strangers_are_not() {
    let mut world = World::new();
    let key = signed_record("birch", 2, 1, "demo").key;
    assert_eq!(world.engine.peer_of(&key), Some(cluster("birch")));
    assert_eq!(world.engine.peer_of(&IdentityKey([9; 32])), None);
    let mut birch = peer("birch", 2);
    birch.spec.state = PeerState::Blocked;
    world.put(birch);
    assert_eq!((world.engine.peer_of(&key), world.engine.identities_of(&cluster("birch"))), (None, None));
}

#[test]
fn slots_and_nodes_get_their_objects_and_addresses() {
    let mut world = World::new();
    assert!(world.get::<TunnelGateway>(names::SYSTEM_NAMESPACE, "gateway-0").is_some());
    let agent = NodeAgent {
        connected: true,
        since: time(7),
        addresses: vec!["192.0.2.5".into()],
        pod_prefixes: vec!["10.1.5.0/24".into()],
    };
    world.engine.observe_agent("worker", agent, T0);
    world.settle();
    let node: Node = world.get("", "worker").unwrap();
    let annotations = node.metadata.annotations.clone().unwrap();
    assert!(annotations[names::INFRASTRUCTURE_ADDRESSES].starts_with("10.250.1."));
    assert_eq!(annotations[names::AGENT_READY], "2026-01-01T00:00:07Z");
    assert_eq!(node.spec.unwrap().pod_cidrs.unwrap(), ["10.1.5.0/24"]);
    assert_eq!(node.status.unwrap().addresses.unwrap()[0].address, "192.0.2.5");
}

#[test]
fn our_record_is_asked_for_once_keys_are_there_and_shown_when_it_is_signed() {
    let mut world = World::new();
    assert!(world.engine.unsigned_record().is_none());
    world.engine.set_slot_keys([(0, vec![api::keys::TunnelKey([5; 32])].into())].into());
    let record = world.engine.unsigned_record().unwrap();
    assert_eq!((record.generation, record.slots.len()), (1, 1));
    world.engine.set_own_record(signed_record("amber", 1, 1, "demo"), record);
    assert!(world.engine.unsigned_record().is_none());
    world.settle();
    let local: LocalCluster = world.get("", "local").unwrap();
    assert!(!local.status.unwrap().record.is_empty());
}

#[test]
fn a_drain_is_said_in_our_record_and_a_peers_word_of_its_own_drain_is_shown_on_it() {
    let mut world = World::new();
    world.settle();
    let used = |world: &World, kind| match kind {
        "LocalCluster" => world.condition::<LocalCluster>("", "local", "Used"),
        _ => world.condition::<ClusterPeer>("", "birch", "Used"),
    };
    let active = || Some(("True".to_string(), "Active".to_string()));
    let draining = || Some(("False".to_string(), "Draining".to_string()));
    assert_eq!((used(&world, "LocalCluster"), used(&world, "ClusterPeer")), (active(), active()));

    world.engine.set_slot_keys([(0, vec![api::keys::TunnelKey([5; 32])].into())].into());
    assert_eq!(world.engine.unsigned_record().unwrap().state, MemberState::Active);
    let mut local: LocalCluster = world.get("", "local").unwrap();
    local.metadata.annotations = Some([(names::STATE.into(), "Draining".into())].into());
    world.put(local);
    world.settle();
    assert_eq!(world.engine.unsigned_record().unwrap().state, MemberState::Draining);
    assert_eq!(used(&world, "LocalCluster"), draining());

    let drains = signed_record_in("birch", 2, 2, "demo", MemberState::Draining);
    world.engine.hear_record(&cluster("birch"), drains, T0, time(100));
    world.settle();
    assert_eq!(used(&world, "ClusterPeer"), draining());
    assert_eq!(world.condition::<ClusterPeer>("", "birch", "Accepted").unwrap().0, "True");
}

#[test]
fn a_failed_write_is_tried_again_later_and_a_refused_one_is_named() {
    let mut world = World::new();
    world.hears("birch", 1, &["10.2.0.1"]);
    let (subject, writes) =
        world.engine.plan(time(100)).into_iter().find(|(s, _)| matches!(s, Subject::Service(_))).unwrap();
    let failed = Outcome::Failed { object: writes[0].object.clone(), reason: "away".into() };
    world.engine.finished(&subject, vec![failed], T0, time(100));
    assert!(world.engine.plan(time(100)).iter().all(|(planned, _)| *planned != subject));
    world.engine.tick(Instant::from_millis(1_000));
    assert!(world.engine.plan(time(100)).iter().any(|(planned, _)| *planned == subject));
    let refused = Outcome::Refused { object: writes[0].object.clone(), reason: "no".into() };
    world.engine.finished(&subject, vec![refused], T0, time(100));
    assert_eq!(world.engine.store_refusals()[&subject], "ServiceImport: no");
}

#[derive(Clone, Debug)]
enum Step {
    Birch(u64, u8),
    Cedar(u64, u8),
    Own(u64),
    Silence,
    Settle,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_order_of_events_ends_in_the_same_objects(
        (ordered, shuffled) in proptest::collection::vec(prop_oneof![
            (1..9u64, 1..9u8).prop_map(|(s, a)| Step::Birch(s, a)),
            (1..9u64, 1..9u8).prop_map(|(s, a)| Step::Cedar(s, a)),
            (1..9u64).prop_map(Step::Own),
            Just(Step::Silence), Just(Step::Settle),
        ], 1..8).prop_flat_map(|steps| (Just(steps.clone()), Just(steps).prop_shuffle()))
    ) {
        let run = |steps: &[Step]| {
            let mut world = World::new();
            for step in steps {
                match step {
                    Step::Birch(s, a) => world.hears("birch", *s, &[&format!("10.2.0.{a}")]),
                    Step::Cedar(s, a) => world.hears("cedar", *s, &[&format!("10.3.0.{a}")]),
                    Step::Own(s) => world.exports(*s, "10.1.0.1"),
                    Step::Silence => { world.engine.tick(T0); }
                    Step::Settle => { world.settle(); }
                }
            }
            // The last word of each is the same in both runs.
            world.hears("birch", 1, &["10.2.0.1"]);
            world.hears("cedar", 1, &["10.3.0.1"]);
            world.settle();
            let import = world.import().unwrap();
            let clusters: BTreeSet<_> = import.status.unwrap().clusters.into_iter().map(|c| c.cluster).collect();
            (import.spec, clusters, world.slices())
        };
        let own = |steps: &[Step]| steps.iter().any(|step| matches!(step, Step::Own(_)));
        prop_assert_eq!(own(&ordered), own(&shuffled));
        prop_assert_eq!(run(&ordered), run(&shuffled));
    }
}

#[test]
fn after_a_restart_what_a_peer_exported_stays_until_the_peer_speaks_even_if_its_word_was_lost() {
    let mut world = World::new();
    world.hears("birch", 1, &["10.2.0.1"]);
    world.settle();
    let address = world.import().unwrap().spec.ips;

    // The same objects, and nothing kept of birch: the kill came before it was on disk.
    world.engine = World::empty().engine;
    world.show_resets();
    world.put_namespace("shop");
    world.engine.mark_all();
    world.settle();
    assert_eq!(world.import().map(|import| import.spec.ips), Some(address), "birch has said nothing yet");
    assert_eq!(world.slices().len(), 1);

    world.hears_all(&cluster("birch"), Advertisement::default());
    world.settle();
    assert_eq!(world.import(), None, "birch exports nothing now");
    assert!(world.slices().is_empty());
}

#[test]
fn nobody_waits_for_the_word_of_a_peer_that_is_blocked_or_deleted_before_it_spoke() {
    for blocked in [true, false] {
        let mut world = World::new();
        world.hears("birch", 1, &["10.2.0.1"]);
        world.settle();
        // The same objects, and nothing kept of birch.
        world.engine = World::empty().engine;
        world.show_resets();
        world.put_namespace("shop");
        world.engine.mark_all();
        world.settle();
        assert!(world.import().is_some(), "birch has said nothing yet");
        let mut birch: ClusterPeer = world.get("", "birch").unwrap();
        if blocked {
            birch.spec.state = PeerState::Blocked;
            world.put(birch);
        } else {
            world.objects.remove(&("ClusterPeer", ObjectKey::named("birch")));
            world.engine.take_in(None, Some(birch.into()), T0, time(100));
        }
        world.settle();
        assert!(world.import().is_none() && world.slices().is_empty(), "blocked: {blocked}");
    }
}

#[test]
fn a_rebuilt_cluster_wins_again_by_what_a_peer_remembers_and_only_for_as_long_as_that_peer_is_trusted() {
    let mut world = World::new();
    // This installation was made at second 5; its export is from second 9, birch's from second 7.
    world.engine.set_recall(Recall::new(Some(time(5)), recall::KeptRecall::default()));
    world.exports(9, "10.1.0.1");
    world.hears("birch", 7, &["10.2.0.1"]);
    world.settle();
    let oldest = |world: &World| world.import().unwrap().status.unwrap().clusters[0].cluster.clone();
    assert_eq!(oldest(&world), "birch");
    let web = ServiceName::new("shop", "web");
    let remembered = [Remembered { service: web.clone(), first_exported: time(1) }];
    let heard = world.engine.hear_remembered(&cluster("cedar"), &remembered, time(100));
    assert_eq!((heard.touched, heard.refused.len()), ([web.clone()].into(), 0));
    world.settle();
    assert_eq!(oldest(&world), "amber");
    assert_eq!(world.engine.ledger().current().service(&web).unwrap().first_exported, time(1), "every peer is told");

    let mut blocked = peer("cedar", 3);
    blocked.spec.state = PeerState::Blocked;
    world.put(blocked);
    world.settle();
    assert_eq!(oldest(&world), "birch");
}

#[test]
fn a_new_holder_of_the_lease_mends_what_the_old_one_left_half_done() {
    let mut old = World::new();
    old.hears("birch", 1, &["10.2.0.1"]);
    old.settle();
    // It was stopped in the middle: a slice is missing, another import should be gone.
    let mut new = World::empty();
    new.objects = old.objects.clone();
    new.version = old.version;
    new.objects.retain(|(kind, _), _| *kind != "EndpointSlice");
    let mut left_over = old.import().unwrap();
    left_over.metadata.name = Some("gone".into());
    left_over.metadata.uid = Some("uid-gone".into());
    let left_over: crate::plan::Object = left_over.into();
    new.objects.insert(("ServiceImport", ObjectKey { namespace: "shop".into(), name: "gone".into() }), left_over);
    new.show_resets();
    new.put_namespace("shop");
    new.hears("birch", 1, &["10.2.0.1"]);
    new.engine.mark_all();
    new.settle();
    assert_eq!(new.slices(), old.slices());
    assert!(new.get::<ServiceImport>("shop", "gone").is_none() && new.import().is_some());
}
