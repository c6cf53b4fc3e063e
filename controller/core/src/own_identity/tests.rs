use alloc::collections::BTreeMap;

use api::conditions::Reason;
use api::member_record::{MemberRecord, SignedRecord, bytes_to_sign};
use api::succession::succession_to_sign;
use api::{ClusterPeer, LocalCluster};
use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::membership::{Heard, RecordVerdict, SlotKeys, judge_record, next_generation, own_record};
use crate::testing::cluster;

const T0: WallTime = WallTime::from_millis(1_700_000_000_000);

fn local_cluster() -> LocalCluster {
    let spec = json!({ "clusterId": "amber", "clusterSetId": "demo" });
    serde_json::from_value(json!({ "metadata": { "name": "local" }, "spec": spec })).unwrap()
}

fn key(seed: u8) -> (SigningKey, IdentityKey) {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let identity = IdentityKey(key.verifying_key().to_bytes());
    (key, identity)
}

fn succession(from: u8, to: u8) -> Succession {
    let (from, to, cluster) = (key(from), key(to), cluster("amber"));
    let bytes = succession_to_sign(&cluster, &from.1, &to.1);
    let sign = |key: &SigningKey| key.sign(&bytes).to_bytes().to_vec();
    Succession { cluster, from: from.1, to: to.1, named: sign(&from.0), accepted: sign(&to.0) }
}

fn signed(seed: u8, record: &MemberRecord) -> SignedRecord {
    let bytes = serde_json::to_vec(record).unwrap();
    let (key, identity) = key(seed);
    let signature = key.sign(&bytes_to_sign(&bytes)).to_bytes().to_vec();
    SignedRecord { record: bytes, key: identity, signature }
}

/// The cluster whose identity changes. Its disk is `identity`, `seed` and `record`.
struct Amber {
    /// Which key is the current one; the next has the number after it.
    seed: u8,
    identity: OwnIdentity,
    record: MemberRecord,
    trusts: BTreeMap<usize, Vec<IdentityKey>>,
    /// Everything it ever signed.
    said: Vec<SignedRecord>,
}

impl Amber {
    fn new() -> Self {
        let identity = OwnIdentity::from(key(1).1);
        let record = own_record(&local_cluster(), &identity, "e", &SlotKeys::new(), [].into_iter());
        let said = vec![signed(1, &record)];
        Self { seed: 1, identity, record, trusts: BTreeMap::new(), said }
    }

    fn sign(&mut self) {
        let wanted = own_record(&local_cluster(), &self.identity, "e", &SlotKeys::new(), [].into_iter());
        if let Some(record) = next_generation(Some(&self.record), wanted) {
            self.said.push(signed(self.seed, &record));
            self.record = record;
        }
    }

    fn rotate(&mut self) {
        if let Some(begun) = self.identity.begun(succession(self.seed, self.seed + 1), T0) {
            self.identity = begun;
            self.sign();
        }
    }

    fn retire(&mut self, by_order: bool) {
        let Some(next) = self.identity.next else { return };
        let all = (0..2).all(|peer| self.trusts.get(&peer).is_some_and(|trusts| trusts.contains(&next.key)));
        if all || by_order {
            self.identity = self.identity.retired().unwrap();
            self.seed += 1;
            self.sign();
        }
    }

    fn newest(&self) -> SignedRecord {
        self.said.last().unwrap().clone()
    }
}

/// A cluster that trusts it. Its disk is `object`.
struct Peer {
    object: ClusterPeer,
    learned: Option<SignedRecord>,
}

impl Peer {
    fn of(amber: &Amber) -> Self {
        let record = amber.newest();
        let object = serde_json::from_value(json!({ "metadata": { "name": "amber" },
            "spec": { "identityKeys": [record.key], "record": record.to_base64() } }));
        Self { object: object.unwrap(), learned: None }
    }

    fn trusts(&self, key: &IdentityKey) -> bool {
        self.object.trusted_identities().contains(key)
    }

    fn hear(&mut self, record: SignedRecord, heard: Heard) -> RecordVerdict {
        let verdict = judge_record(&self.object, &cluster("demo"), &record, heard);
        if matches!(verdict, RecordVerdict::Newer(_)) {
            self.learned = Some(record);
        }
        verdict
    }

    fn keep(&mut self) {
        // The store is asked again before it is written: what came between is judged anew.
        if let Some(record) = self.learned.take()
            && matches!(self.hear(record.clone(), Heard::Directly), RecordVerdict::Newer(_))
        {
            self.learned = None;
            self.object.status.get_or_insert_default().record = record.to_base64();
        }
    }

    fn newest(&self) -> SignedRecord {
        let status = self.object.status.as_ref().map(|status| status.record.as_str()).filter(|text| !text.is_empty());
        SignedRecord::from_base64(status.unwrap_or(&self.object.spec.record)).unwrap()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Rotate,
    RetireWhenAllTrustIt,
    /// Whoever does not know the next one.
    RetireByOrder,
    /// It forgets who trusts what.
    RestartAmber,
    /// A conversation with a peer: its record is heard.
    Tell(usize),
    /// And the peer says whom it trusts.
    Trust(usize),
    Keep(usize),
    RestartPeer(usize),
    /// What one peer has on disk is passed on to the other.
    PassOn(usize),
    /// Somebody says again what amber once said.
    Replay(usize, usize),
}

fn steps(by_order: bool) -> impl Strategy<Value = Vec<Step>> {
    let peer = 0..2usize;
    let end = if by_order { Step::RetireByOrder } else { Step::RetireWhenAllTrustIt };
    let step = prop_oneof![
        2 => Just(Step::Rotate),
        4 => Just(Step::RetireWhenAllTrustIt),
        1 => Just(end),
        1 => Just(Step::RestartAmber),
        4 => peer.clone().prop_map(Step::Tell),
        4 => peer.clone().prop_map(Step::Trust),
        4 => peer.clone().prop_map(Step::Keep),
        1 => peer.clone().prop_map(Step::RestartPeer),
        2 => peer.clone().prop_map(Step::PassOn),
        2 => (peer, 0..40usize).prop_map(|(peer, which)| Step::Replay(peer, which)),
    ];
    proptest::collection::vec(step, 0..60)
}

fn take(step: Step, amber: &mut Amber, peers: &mut [Peer; 2]) -> Result<(), TestCaseError> {
    match step {
        Step::Rotate if amber.seed < 30 => amber.rotate(),
        Step::Rotate => {}
        Step::RetireWhenAllTrustIt => amber.retire(false),
        Step::RetireByOrder => amber.retire(true),
        Step::RestartAmber => amber.trusts.clear(),
        // TLS lets in who proves a trusted identity, and amber proves the current one.
        Step::Tell(peer) if peers[peer].trusts(&amber.identity.current) => {
            let verdict = peers[peer].hear(amber.newest(), Heard::Directly);
            prop_assert!(!matches!(verdict, RecordVerdict::Refused(..)), "{verdict:?}");
        }
        Step::Trust(peer) if peers[peer].trusts(&amber.identity.current) => {
            amber.trusts.insert(peer, peers[peer].object.trusted_identities());
        }
        Step::Tell(_) | Step::Trust(_) => {}
        Step::Keep(peer) => peers[peer].keep(),
        Step::RestartPeer(peer) => peers[peer].learned = None,
        Step::PassOn(peer) => {
            let record = peers[peer].newest();
            let verdict = peers[1 - peer].hear(record, Heard::PassedOn);
            prop_assert!(!matches!(verdict, RecordVerdict::Refused(..)), "{verdict:?}");
        }
        Step::Replay(peer, which) => {
            let record = amber.said[which % amber.said.len()].clone();
            for heard in [Heard::PassedOn, Heard::Directly] {
                let verdict = judge_record(&peers[peer].object, &cluster("demo"), &record, heard);
                let is_news = matches!(verdict, RecordVerdict::Newer(_));
                let known = peers[peer].object.newest_record().unwrap().generation;
                let said: MemberRecord = serde_json::from_slice(&record.record).unwrap();
                prop_assert_eq!(is_news, said.generation > known, "{:?}", verdict);
            }
        }
    }
    for peer in peers.iter() {
        let record = peer.object.newest_record().unwrap();
        for gone in record.left_behind() {
            prop_assert!(!peer.trusts(&gone), "a retired identity is let in");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn in_any_order_of_news_cuts_and_restarts_every_peer_can_talk_and_none_lets_a_retired_identity_in(steps in steps(false)) {
        let mut amber = Amber::new();
        let mut peers = [Peer::of(&amber), Peer::of(&amber)];
        for step in steps {
            take(step, &mut amber, &mut peers)?;
            for peer in &peers {
                prop_assert!(peer.trusts(&amber.identity.current), "a peer is cut off");
            }
        }
        // In the end everybody is up.
        for _ in 0..2 {
            for step in [Step::Tell(0), Step::Tell(1), Step::Keep(0), Step::Keep(1), Step::Trust(0), Step::Trust(1), Step::RetireWhenAllTrustIt] {
                take(step, &mut amber, &mut peers)?;
            }
        }
        for peer in &peers {
            prop_assert_eq!(peer.object.trusted_identities(), vec![amber.identity.current]);
        }
        prop_assert_eq!(amber.identity.next, None);
        prop_assert_eq!(amber.record.control_prefix, key(1).1.control_prefix());
    }

    #[test]
    fn a_peer_that_an_order_left_without_joins_again_by_another_member(steps in steps(true)) {
        let mut amber = Amber::new();
        let mut peers = [Peer::of(&amber), Peer::of(&amber)];
        for step in steps {
            take(step, &mut amber, &mut peers)?;
        }
        // One of the two is given what 'tombolo peers export' prints.
        peers[0] = Peer::of(&amber);
        for step in [Step::PassOn(0), Step::Keep(1), Step::Tell(1), Step::Keep(1)] {
            take(step, &mut amber, &mut peers)?;
        }
        prop_assert!(peers[1].trusts(&amber.identity.current));
    }
}

/// A peer that knows the change from key 1 to key 2 as done.
fn changed() -> (Amber, Peer) {
    let mut amber = Amber::new();
    let mut birch = Peer::of(&amber);
    amber.rotate();
    birch.hear(amber.newest(), Heard::Directly);
    birch.keep();
    assert_eq!(birch.object.trusted_identities(), [key(1).1, key(2).1]);
    amber.retire(true);
    birch.hear(amber.newest(), Heard::Directly);
    birch.keep();
    assert_eq!(birch.object.trusted_identities(), [key(2).1]);
    (amber, birch)
}

#[test]
fn whoever_has_the_old_key_is_refused_by_name_whatever_generation_is_claimed() {
    let (amber, mut birch) = changed();
    let forged = MemberRecord { generation: u64::MAX, identity_keys: vec![key(1).1], ..amber.record };
    let bare = MemberRecord { successions: vec![], ..forged.clone() };
    // The old key leads to another one of the thief's, which is then shown.
    let usurped = MemberRecord { identity_keys: vec![key(9).1], successions: vec![succession(1, 9)], ..forged.clone() };
    for (seed, record, reason) in
        [(1, &forged, Reason::RetiredIdentity), (1, &bare, Reason::RetiredIdentity), (9, &usurped, Reason::IdClash)]
    {
        for heard in [Heard::Directly, Heard::PassedOn] {
            let verdict = birch.hear(signed(seed, record), heard);
            assert!(matches!(&verdict, RecordVerdict::Refused(named, _) if *named == reason), "{verdict:?}");
        }
    }
    // A new epoch only the cluster itself can say, and TLS lets the old key in no more.
    let rebuilt = MemberRecord { epoch: "thief".into(), ..bare };
    assert_eq!(birch.hear(signed(1, &rebuilt), Heard::PassedOn), RecordVerdict::Known);
    assert!(!birch.trusts(&key(1).1));
}

#[test]
fn a_thief_who_was_heard_first_does_not_keep_the_new_identity_out() {
    let mut amber = Amber::new();
    let mut birch = Peer::of(&amber);
    let forged = MemberRecord { generation: u64::MAX, ..amber.record.clone() };
    birch.hear(signed(1, &forged), Heard::PassedOn);
    birch.keep();
    assert_eq!(birch.object.newest_record().unwrap().generation, u64::MAX);
    amber.rotate();
    amber.retire(true);
    assert!(matches!(birch.hear(amber.newest(), Heard::PassedOn), RecordVerdict::Newer(_)));
    birch.keep();
    assert_eq!(birch.object.trusted_identities(), [key(2).1]);
}

#[test]
fn a_key_that_is_only_named_is_not_trusted() {
    let amber = Amber::new();
    let mut birch = Peer::of(&amber);
    let named = MemberRecord { generation: 9, identity_keys: vec![key(1).1, key(3).1], ..amber.record };
    birch.hear(signed(1, &named), Heard::Directly);
    birch.keep();
    assert_eq!(birch.object.trusted_identities(), [key(1).1]);
    let half = Succession { accepted: vec![0; 64], ..succession(1, 3) };
    let half = MemberRecord { generation: 10, successions: vec![half], ..named };
    let verdict = birch.hear(signed(1, &half), Heard::Directly);
    assert!(matches!(verdict, RecordVerdict::Refused(Reason::Invalid, _)), "{verdict:?}");
}
