use api::cluster_peer::{Accept, ClusterPeerSpec};
use api::member_record::bytes_to_sign;
use ed25519_dalek::{Signer, SigningKey};

use super::*;
use crate::testing::cluster;

fn signing(seed: u8) -> (SigningKey, IdentityKey) {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let identity = IdentityKey(key.verifying_key().to_bytes());
    (key, identity)
}

fn local() -> LocalCluster {
    let spec = serde_json::from_value(serde_json::json!({
        "clusterId": "birch", "clusterSetId": "demo", "podPrefixes": ["10.2.0.0/16"],
        "gateways": { "slots": 2, "lanes": 2, "externalAddresses": ["203.0.113.9"] }
    }));
    LocalCluster::new("local", spec.unwrap())
}

fn record(epoch: &str, generation: u64, identity: IdentityKey) -> MemberRecord {
    let keys = SlotKeys::from([(0, vec![TunnelKey([1; 32]), TunnelKey([2; 32])].into())]);
    MemberRecord { generation, ..own_record(&local(), &identity.into(), epoch, &keys, [].into_iter()) }
}

fn signed(seed: u8, epoch: &str, generation: u64) -> SignedRecord {
    let (key, identity) = signing(seed);
    let bytes = serde_json::to_vec(&record(epoch, generation, identity)).unwrap();
    let signature = key.sign(&bytes_to_sign(&bytes)).to_bytes().to_vec();
    SignedRecord { record: bytes, key: identity, signature }
}

fn peer() -> ClusterPeer {
    let spec = ClusterPeerSpec {
        identity_keys: vec![signing(1).1],
        record: signed(1, "e1", 5).to_base64(),
        endpoints: vec![],
        allowed_prefixes: vec![],
        allow_overlap: false,
        accept: Accept::default(),
        state: PeerState::Active,
    };
    ClusterPeer::new("birch", spec)
}

#[test]
fn our_record_names_the_lanes_ports_and_what_gateways_found_and_the_operator_wrote() {
    let keys = SlotKeys::from([
        (0, vec![TunnelKey([1; 32]), TunnelKey([2; 32])].into()),
        (1, vec![TunnelKey([3; 32]), TunnelKey([4; 32])].into()),
        (7, vec![].into()),
    ]);
    let mut gateway = TunnelGateway::default();
    gateway.status.get_or_insert_default().endpoints = vec!["192.0.2.1:51820".into(), "203.0.113.9".into()];
    let record = own_record(&local(), &signing(1).1.into(), "e", &keys, [&gateway].into_iter());
    assert_eq!(record.slots.len(), 2);
    assert_eq!(record.slots[0].endpoints, ["203.0.113.9", "192.0.2.1:51820"]);
    assert_eq!(record.slots[1].lanes.iter().map(|lane| lane.port).collect::<Vec<_>>(), [51820, 51821]);
}

#[test]
fn a_generation_grows_with_a_change_and_only_then() {
    let (_, identity) = signing(1);
    let first = next_generation(None, record("e", 0, identity)).unwrap();
    assert_eq!(first.generation, 1);
    assert_eq!(next_generation(Some(&first), record("e", 0, identity)), None);
    let mut changed = record("e", 0, identity);
    changed.labels.insert("region".into(), "eu".into());
    assert_eq!(next_generation(Some(&first), changed).unwrap().generation, 2);
    assert_eq!(next_generation(Some(&first), record("other", 0, identity)).unwrap().generation, 1);
}

#[test]
fn only_a_newer_record_of_the_trusted_identity_replaces_the_known_one() {
    let demo = cluster("demo");
    let judge = |seed, epoch, generation, heard| judge_record(&peer(), &demo, &signed(seed, epoch, generation), heard);
    assert!(matches!(judge(1, "e1", 6, Heard::PassedOn), RecordVerdict::Newer(record) if record.generation == 6));
    assert_eq!(judge(1, "e1", 5, Heard::Directly), RecordVerdict::Known);
    assert_eq!(judge(1, "e1", 4, Heard::Directly), RecordVerdict::Known);
    assert!(matches!(judge(1, "e2", 1, Heard::Directly), RecordVerdict::Newer(_)));
    assert_eq!(judge(1, "e0", 9, Heard::PassedOn), RecordVerdict::Known, "an old epoch played again");
    assert!(matches!(judge(2, "e1", 9, Heard::PassedOn), RecordVerdict::Refused(Reason::IdClash, _)));
    assert!(matches!(judge(2, "e1", 9, Heard::Directly), RecordVerdict::Refused(Reason::UntrustedIdentity, _)));
    let other = judge_record(&peer(), &cluster("other"), &signed(1, "e1", 6), Heard::Directly);
    assert!(matches!(other, RecordVerdict::Refused(Reason::Invalid, _)));
}

#[test]
fn the_exported_manifest_is_a_cluster_peer_with_this_record_and_identity() {
    let mut local = local();
    assert_eq!(cluster_peer_manifest(&local), Err(NoManifest::NoRecord));
    let status = local.status.get_or_insert_default();
    status.identity_key = Some(signing(1).1);
    status.record = signed(1, "e1", 5).to_base64();
    let manifest = cluster_peer_manifest(&local).unwrap();
    let after = manifest.split("record: |-\n").nth(1).unwrap();
    let again = SignedRecord::from_base64(after).unwrap();
    assert_eq!(again, signed(1, "e1", 5));
    for line in ["kind: ClusterPeer", "  name: \"birch\"", &format!("  - \"{}\"", signing(1).1), "  - \"10.2.0.0/16\""]
    {
        assert!(manifest.contains(line), "{line} is not in\n{manifest}");
    }
}
