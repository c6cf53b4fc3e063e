use alloc::borrow::ToOwned;
use alloc::string::ToString;

use api::ClusterId;
use api::keys::TunnelKey;
use identity::Identity;
use serde_json::json;

use super::*;

fn local() -> LocalCluster {
    serde_json::from_value(json!({
        "metadata": {"name": "local"},
        "spec": {"clusterId": "amber", "clusterSetId": "demo", "podPrefixes": ["10.1.0.0/16", "fd00:1::/48"],
                 "translationPrefixes": ["10.240.0.0/12"]},
    }))
    .unwrap()
}

struct Peer {
    identity: Identity,
    record: MemberRecord,
}

fn peer(name: &str) -> Peer {
    let identity = Identity::generate().unwrap();
    let key = |seed| LaneRecord { key: TunnelKey([seed; 32]), next_key: None, port: 51_820 + u16::from(seed) };
    let slot = |slot: u16, endpoint: &str| SlotRecord {
        slot,
        endpoints: vec![endpoint.to_owned()],
        lanes: vec![key(2 * slot as u8), key(2 * slot as u8 + 1)],
    };
    let record = MemberRecord {
        cluster_set_id: ClusterId::new("demo").unwrap(),
        cluster_id: ClusterId::new(name).unwrap(),
        identity_keys: vec![identity.public()],
        successions: vec![],
        epoch: "one".into(),
        generation: 1,
        control_prefix: identity.public().control_prefix(),
        slots: vec![slot(0, "203.0.113.9"), slot(1, "[2001:db8::9]:6000")],
        prefixes: vec!["10.2.0.0/16".parse().unwrap()],
        labels: BTreeMap::new(),
        protocol: (1, 1),
        state: MemberState::Active,
    };
    Peer { identity, record }
}

fn roster_with(change: impl FnOnce(&mut MemberRecord, &mut serde_json::Value)) -> Roster {
    let mut peer = peer("birch");
    let mut spec = json!({});
    change(&mut peer.record, &mut spec);
    spec["identityKeys"] = json!([peer.identity.public()]);
    spec["record"] = json!(peer.identity.sign_record(&peer.record).to_base64());
    let object = serde_json::from_value(json!({"metadata": {"name": "birch"}, "spec": spec})).unwrap();
    let control = "fd12::1".parse().unwrap();
    Roster::new(&local(), 0, vec![TunnelKey([99; 32]).into()], control, &BTreeMap::from([("birch".to_owned(), object)]))
}

fn addresses(lane: &PeerLane) -> (Vec<String>, Vec<String>) {
    let texts = |list: &[SocketAddr]| list.iter().map(ToString::to_string).collect();
    (texts(&lane.configured), texts(&lane.learned))
}

#[test]
fn each_lane_listens_where_its_record_says_or_at_the_named_port_plus_its_number() {
    let roster = roster_with(|_, _| {});
    let gateways = &roster.topology.peers[0].gateways;
    assert_eq!(addresses(&gateways[0].lanes[1]).1, ["203.0.113.9:51821"]);
    assert_eq!(addresses(&gateways[1].lanes[1]).1, ["[2001:db8::9]:6001"]);
    assert_eq!(roster.problems, Vec::<String>::new());
    assert_eq!(roster.control_prefixes.len(), 1);
}

#[test]
fn what_the_operator_wrote_is_tried_for_the_first_gateway() {
    let roster =
        roster_with(|_, spec| spec["endpoints"] = json!(["198.51.100.7:51820", "[2001:db8::7]", "birch.example"]));
    let gateways = &roster.topology.peers[0].gateways;
    assert_eq!(addresses(&gateways[0].lanes[0]).0, ["198.51.100.7:51820", "[2001:db8::7]:51820"]);
    assert_eq!(addresses(&gateways[1].lanes[0]).0, Vec::<String>::new());
    assert!(roster.problems[0].contains("birch.example"), "{:?}", roster.problems);
}

#[test]
fn a_peer_of_another_clusterset_is_not_used_and_named() {
    let roster = roster_with(|record, _| record.cluster_set_id = ClusterId::new("other").unwrap());
    assert!(roster.topology.peers.is_empty() && roster.control_prefixes.is_empty());
    assert!(roster.problems[0].contains("clusterset other"), "{:?}", roster.problems);
}

#[test]
fn blocked_and_departed_peers_are_cut_off_and_drained_ones_stay_connected() {
    let blocked = roster_with(|_, spec| spec["state"] = json!("Blocked"));
    assert!(blocked.topology.peers.is_empty());
    let keys =
        roster_with(|_, _| {}).topology.peers[0].gateways.iter().map(|gateway| gateway.lanes.len()).sum::<usize>();
    assert_eq!(blocked.blocked_keys.len(), keys, "refused under its own name");
    assert!(roster_with(|record, _| record.state = MemberState::Left).topology.peers.is_empty());
    let standing = |roster: Roster| roster.topology.peers[0].standing;
    assert_eq!(standing(roster_with(|_, spec| spec["state"] = json!("Drained"))), Standing::DrainedHere);
    assert_eq!(standing(roster_with(|record, _| record.state = MemberState::Draining)), Standing::Draining);
}

#[test]
fn a_record_may_not_claim_more_than_the_operator_allows() {
    let roster = roster_with(|record, spec| {
        record.prefixes = vec!["10.2.0.0/16".parse().unwrap(), "10.9.0.0/16".parse().unwrap()];
        spec["allowedPrefixes"] = json!(["10.2.0.0/15"]);
    });
    assert_eq!(roster.topology.peers[0].prefixes, ["10.2.0.0/16".parse().unwrap()]);
}

#[test]
fn an_overlapping_prefix_is_used_as_it_is_seen_here() {
    let mut peer = peer("birch");
    peer.record.prefixes = vec!["10.1.0.0/16".parse().unwrap(), "10.2.0.0/16".parse().unwrap()];
    let translation = json!({"real": "10.1.0.0/16", "seen": "10.241.0.0/16"});
    let object = serde_json::from_value(json!({
        "metadata": {"name": "birch"},
        "spec": {"identityKeys": [peer.identity.public()], "allowOverlap": true,
                 "record": peer.identity.sign_record(&peer.record).to_base64()},
        "status": {"translations": [translation]},
    }))
    .unwrap();
    let control = "fd12::1".parse().unwrap();
    let roster = Roster::new(
        &local(),
        0,
        vec![TunnelKey([99; 32]).into()],
        control,
        &BTreeMap::from([("birch".to_owned(), object)]),
    );
    let birch = &roster.topology.peers[0];
    assert_eq!(birch.prefixes, ["10.2.0.0/16", "10.241.0.0/16"].map(|text| text.parse().unwrap()));
    assert_eq!(birch.translations, [serde_json::from_value(translation).unwrap()]);
}

#[test]
fn a_record_of_no_protocol_is_of_a_plain_wireguard_peer() {
    let roster = roster_with(|record, _| record.protocol = (0, 0));
    assert_eq!(roster.topology.peers[0].gateways[0].control_address, None);
    assert!(roster.control_prefixes.is_empty());
}

#[test]
fn a_record_signed_by_nobody_trusted_is_named() {
    let stranger = Identity::generate().unwrap();
    let object = serde_json::from_value(json!({
        "metadata": {"name": "birch"},
        "spec": {"identityKeys": [stranger.public()], "record": peer("birch").identity.sign_record(&peer("birch").record).to_base64()},
    }))
    .unwrap();
    let roster = Roster::new(
        &local(),
        0,
        vec![TunnelKey([99; 32]).into()],
        "fd12::1".parse().unwrap(),
        &BTreeMap::from([("birch".to_owned(), object)]),
    );
    assert!(roster.topology.peers.is_empty());
    assert!(roster.problems[0].contains("birch"), "{:?}", roster.problems);
}
