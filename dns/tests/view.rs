//! Objects, policies and health together: which clusters are answered, as time goes by.

mod fixture;

use std::time::Duration;

use api::health::{HealthReport, PathReason, PeerHealth, Reachability};
use api::time::Instant;
use api::{ClusterPeer, ClusterRoutingPolicy, LocalCluster, RoutingPolicy, TunnelGateway};
use dns::view::{Change, View};
use dns::zone::Zone;
use fixture::{answers, id, import, is_name_error, is_no_data, slice};
use hickory_proto::rr::RecordType::A;
use serde_json::{Value, json};
use store::Event;

const START: Instant = Instant::from_millis(1_000_000);

fn after(milliseconds: u64) -> Instant {
    START + Duration::from_millis(milliseconds)
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn local() -> LocalCluster {
    object(json!({ "metadata": { "name": "local" }, "spec": { "clusterId": "amber", "clusterSetId": "set" } }))
}

fn peer(name: &str, state: &str) -> ClusterPeer {
    let keys = json!([api::keys::IdentityKey([1; 32])]);
    let spec = json!({ "identityKeys": keys, "record": "", "state": state });
    object(json!({ "metadata": { "name": name }, "spec": spec }))
}

fn gateway(slot: u16) -> TunnelGateway {
    object(json!({
        "metadata": { "namespace": "tombolo-system", "name": format!("gateway-{slot}") },
        "spec": { "slot": slot },
        "status": { "nodeAddresses": ["10.0.0.1"] },
    }))
}

fn report(slot: u16, peers: &[(&str, Reachability)]) -> HealthReport {
    let peer = |(cluster, reachability): &(&str, Reachability)| PeerHealth {
        cluster: id(cluster),
        reachability: *reachability,
        reason: if *reachability == Reachability::Up { PathReason::Answering } else { PathReason::SilentPeer },
        age: Duration::from_secs(1),
        round_trip: None,
        loss_permille: 0,
        mtu: 1420,
        lanes: 1,
    };
    HealthReport { slot, draining: false, peers: peers.iter().map(peer).collect() }
}

fn pod(cluster: &str, host: &str) -> api::kubernetes::EndpointSlice {
    let name = format!("db-{cluster}-v4");
    slice("db", cluster, &name, json!([{ "addresses": [host] }]), json!([{ "name": "sql", "port": 5432 }]))
}

/// `shop/db`, headless, with an endpoint each in amber (local), birch and cedar; birch and cedar are peers.
struct World {
    view: View,
    zone: Zone,
}

impl World {
    fn new() -> Self {
        let zone = Zone::unknown(dns::name::Origin::new(fixture::ZONE).unwrap(), &[], 1);
        let mut world = Self { view: View::new(zone.clone(), "dns-0", START), zone };
        world.tell(Change::Local(Event::Reset(vec![local()])), 0);
        world.tell(Change::Peer(Event::Reset(vec![peer("birch", "Active"), peer("cedar", "Active")])), 0);
        world.tell(Change::Gateway(Event::Reset(vec![gateway(0)])), 0);
        let db = import("shop", "db", json!({ "type": "Headless", "ports": [] }));
        world.tell(Change::Import(Event::Reset(vec![db])), 0);
        let slices = vec![pod("amber", "10.1.0.1"), pod("birch", "10.2.0.1"), pod("cedar", "10.3.0.1")];
        world.tell(Change::Slice(Event::Reset(slices)), 0);
        world
    }

    fn tell(&mut self, change: Change, at: u64) {
        self.view.apply(change, after(at));
        self.look(at);
    }

    fn hear(&mut self, slot: u16, peers: &[(&str, Reachability)], at: u64) {
        self.view.take_report(report(slot, peers), after(at));
        self.look(at);
    }

    fn look(&mut self, at: u64) {
        if let Some(zone) = self.view.publish(after(at)) {
            self.zone = zone;
        }
    }

    /// The last numbers of the clusters that are answered: 1 amber, 2 birch, 3 cedar.
    fn answered(&self) -> Vec<u8> {
        let addresses = answers(&self.zone, "db.shop.svc", A);
        addresses.iter().map(|text| text.split('.').nth(1).unwrap().parse().unwrap()).collect()
    }
}

const BOTH_UP: [(&str, Reachability); 2] = [("birch", Reachability::Up), ("cedar", Reachability::Up)];
const BIRCH_DOWN: [(&str, Reachability); 2] = [("birch", Reachability::Down), ("cedar", Reachability::Up)];

#[test]
fn a_zone_is_known_once_imports_slices_and_the_local_cluster_were_listed() {
    let zone = Zone::unknown(dns::name::Origin::new(fixture::ZONE).unwrap(), &[], 1);
    let mut view = View::new(zone, "dns-0", START);
    view.apply(Change::Import(Event::Reset(vec![])), START);
    view.apply(Change::Slice(Event::Reset(vec![])), START);
    assert!(view.publish(START).is_none_or(|zone| !zone.is_known()));
    assert_eq!(view.awaited().collect::<Vec<_>>(), ["LocalCluster"]);
    view.apply(Change::Local(Event::Reset(vec![])), START);
    assert!(view.publish(START).unwrap().is_known());
}

#[test]
fn the_local_cluster_chooses_what_a_cluster_below_a_service_answers_and_without_a_choice_it_is_reserved() {
    let mut world = World::new();
    assert!(is_name_error(&world.zone, "birch.db.shop.svc", A));
    let mut chosen = local();
    chosen.spec.dns = object(json!({ "clusterNames": "Answered" }));
    world.tell(Change::Local(Event::Applied(chosen)), 0);
    assert_eq!(answers(&world.zone, "birch.db.shop.svc", A), ["A 10.2.0.1"]);
    let mut chosen = local();
    chosen.spec.dns = object(json!({ "emptyClusterName": "NoData" }));
    world.tell(Change::Local(Event::Applied(chosen)), 0);
    assert!(is_no_data(&world.zone, "birch.db.shop.svc", A));
    world.tell(Change::Local(Event::Applied(local())), 0);
    assert!(is_name_error(&world.zone, "birch.db.shop.svc", A));
}

#[test]
fn the_last_known_state_serves_at_once_after_a_start_and_not_for_ever_without_health() {
    let mut world = World::new();
    assert_eq!(world.answered(), [1, 2, 3]);
    let deadline = world.view.next_deadline(after(0)).unwrap();
    assert_eq!(deadline, after(2000));
    world.look(2000);
    assert_eq!(world.answered(), [1], "no heartbeat means unknown, and that is not healthy");
}

#[test]
fn a_cluster_no_gateway_reaches_is_left_out_and_one_that_any_reaches_is_not() {
    let mut world = World::new();
    world.tell(Change::Gateway(Event::Applied(gateway(1))), 0);
    world.hear(0, &BIRCH_DOWN, 3000);
    assert_eq!(world.answered(), [1, 3]);
    world.hear(1, &BOTH_UP, 3000);
    assert_eq!(world.answered(), [1, 2, 3]);
    // The gateway that reaches it falls silent; the other one goes on.
    world.hear(0, &BIRCH_DOWN, 3300);
    world.look(3500);
    assert_eq!(world.answered(), [1, 3]);
}

#[test]
fn a_cluster_that_came_back_is_left_out_while_it_proves_itself_unless_nobody_else_answers() {
    let just_up = |view: &mut View, peers: &[(&str, Reachability)], at: u64| {
        let mut report = report(0, peers);
        report.peers.iter_mut().for_each(|peer| peer.age = Duration::ZERO);
        view.take_report(report, after(at));
    };
    let mut world = World::new();
    world.hear(0, &BIRCH_DOWN, 3_000);
    just_up(&mut world.view, &BOTH_UP, 3_100);
    world.look(3_100);
    assert_eq!(world.answered(), [1, 3]);
    world.hear(0, &BOTH_UP, 3_400);
    assert_eq!(world.view.next_deadline(after(3_400)), Some(after(3_400) + routing::gateway_reports::SILENCE));
    world.hear(0, &BOTH_UP, 4_050);
    assert_eq!(world.view.next_deadline(after(4_050)), Some(after(4_100)));
    assert_eq!(world.answered(), [1, 3]);
    world.look(4_100);
    assert_eq!(world.answered(), [1, 2, 3]);

    world.tell(Change::Slice(Event::Reset(vec![pod("birch", "10.2.0.1")])), 4_200);
    world.hear(0, &BIRCH_DOWN, 4_300);
    just_up(&mut world.view, &BOTH_UP, 4_400);
    world.look(4_400);
    assert_eq!(world.answered(), [2], "late answers are better than none");
}

#[test]
fn when_every_gateway_is_silent_what_was_known_last_holds_and_is_marked() {
    let mut world = World::new();
    world.hear(0, &BIRCH_DOWN, 3000);
    world.look(60_000);
    assert_eq!(world.answered(), [1, 3]);
    assert!(world.view.is_last_known());
    world.hear(0, &BOTH_UP, 60_001);
    assert_eq!(world.answered(), [1, 2, 3]);
    assert!(!world.view.is_last_known());
}

#[test]
fn a_gateway_that_is_taken_away_is_as_silent_as_one_that_died() {
    let mut world = World::new();
    world.hear(0, &BIRCH_DOWN, 3000);
    world.tell(Change::Gateway(Event::Deleted(gateway(0))), 3100);
    assert_eq!(world.answered(), [1, 3]);
    // A report that was still under way counts no more.
    world.hear(0, &BOTH_UP, 3101);
    assert_eq!(world.answered(), [1, 3]);
}

#[test]
fn a_drained_peer_is_left_out_whatever_its_health() {
    let mut world = World::new();
    world.hear(0, &BOTH_UP, 3000);
    world.tell(Change::Peer(Event::Applied(peer("birch", "Drained"))), 3001);
    assert_eq!(world.answered(), [1, 3]);
    assert_eq!(world.view.out_of_service(after(3001))[0].reason, PathReason::DrainedHere);
    world.tell(Change::Peer(Event::Applied(peer("birch", "Active"))), 3002);
    assert_eq!(world.answered(), [1, 2, 3]);
    world.tell(Change::Peer(Event::Deleted(peer("cedar", "Active"))), 3003);
    assert_eq!(world.answered(), [1, 2], "who is no peer is not answered");
}

#[test]
fn beside_another_implementation_every_cluster_is_answered() {
    let mut world = World::new();
    world.tell(Change::Local(Event::Deleted(local())), 10_000);
    assert_eq!(world.answered(), [1, 2, 3]);
    world.tell(Change::Local(Event::Applied(local())), 10_001);
    assert_eq!(world.answered(), [1]);
    world.tell(Change::Peer(Event::Reset(vec![])), 10_002);
    world.tell(Change::Gateway(Event::Reset(vec![])), 10_002);
    assert_eq!(world.answered(), [1, 2, 3], "without peers and gateways nobody measures");
}

fn policy(headless: bool) -> RoutingPolicy {
    let tiers = json!([{ "clusters": [{ "cluster": "birch" }] }, { "clusters": [{ "cluster": "cedar" }] }]);
    object(json!({
        "metadata": { "namespace": "shop", "name": "db", "generation": 1 },
        "spec": { "targetRefs": [{ "name": "db" }], "tiers": tiers, "headless": headless },
    }))
}

#[test]
fn a_policy_narrows_headless_answers_only_where_it_says_so() {
    let mut world = World::new();
    world.hear(0, &BOTH_UP, 3000);
    world.tell(Change::Policy(Event::Applied(policy(false))), 3001);
    assert_eq!(world.answered(), [1, 2, 3]);
    world.tell(Change::Policy(Event::Applied(policy(true))), 3002);
    assert_eq!(world.answered(), [2]);
    // The next tier takes over with the first one's health, and with its endpoints.
    world.hear(0, &BIRCH_DOWN, 3100);
    assert_eq!(world.answered(), [3]);
    world.hear(0, &BOTH_UP, 3200);
    assert_eq!(world.answered(), [2]);
    world.tell(Change::Slice(Event::Deleted(pod("birch", "10.2.0.1"))), 3300);
    assert_eq!(world.answered(), [3]);
    world.tell(Change::Slice(Event::Applied(pod("birch", "10.2.0.1"))), 3301);
    assert_eq!(world.answered(), [2]);
    world.tell(Change::Policy(Event::Deleted(policy(true))), 3302);
    assert_eq!(world.answered(), [1, 2, 3]);
}

#[test]
fn a_cluster_wide_policy_speaks_for_headless_services_too() {
    let mut world = World::new();
    world.hear(0, &BOTH_UP, 3000);
    let rules = json!({ "tiers": [{ "clusters": [{ "local": true }] }], "headless": true });
    let everywhere: ClusterRoutingPolicy =
        object(json!({ "metadata": { "name": "stay" }, "spec": { "overrides": rules } }));
    world.tell(Change::ClusterPolicy(Event::Reset(vec![everywhere])), 3001);
    assert_eq!(world.answered(), [1]);
    world.tell(Change::ClusterPolicy(Event::Reset(vec![])), 3002);
    assert_eq!(world.answered(), [1, 2, 3]);
}

#[test]
fn a_new_list_forgets_what_is_not_in_it() {
    let mut world = World::new();
    world.hear(0, &BOTH_UP, 3000);
    world.tell(Change::Slice(Event::Reset(vec![pod("amber", "10.1.0.1")])), 3001);
    assert_eq!(world.answered(), [1]);
    world.tell(Change::Import(Event::Reset(vec![])), 3002);
    assert!(is_name_error(&world.zone, "db.shop.svc", A));
}
