//! Promises of the health messages.

use alloc::format;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

fn master() -> MasterKey {
    MasterKey { id: 7, secret: [1; 32] }
}

fn peer(name: &str) -> PeerHealth {
    PeerHealth {
        cluster: ClusterId::new(name).unwrap(),
        reachability: Reachability::Up,
        reason: PathReason::Answering,
        age: Duration::from_millis(1234),
        round_trip: Some(Duration::from_micros(5678)),
        loss_permille: 3,
        mtu: 1420,
        lanes: 0b11,
    }
}

const NONCE: Nonce = [9; 16];

#[test]
fn a_request_is_believed_with_the_agents_key_and_no_other() {
    let request = HealthRequest { agent: "node-1".into(), nonce: NONCE, saw_draining: true };
    let bytes = request.encode(&master().agent_key("node-1"));
    let unverified = UnverifiedRequest::decode(&bytes).unwrap();
    assert_eq!((unverified.key_id, unverified.agent), (7, "node-1"));
    assert_eq!(unverified.verify(&master().agent_key("node-1")), Ok(request));
    assert_eq!(unverified.verify(&master().agent_key("node-2")), Err(InvalidMessage::Forged));
    let rotated = MasterKey { id: 8, ..master() };
    assert_eq!(unverified.verify(&rotated.agent_key("node-1")), Err(InvalidMessage::UnknownKey(7)));
}

#[test]
fn no_agent_can_claim_anothers_name() {
    // node-2 signs with its own key and writes node-1's name.
    let forged = HealthRequest { agent: "node-1".into(), nonce: NONCE, saw_draining: false };
    let bytes = forged.encode(&master().agent_key("node-2"));
    let unverified = UnverifiedRequest::decode(&bytes).unwrap();
    let derived = master().agent_key(unverified.agent);
    assert_eq!(unverified.verify(&derived), Err(InvalidMessage::Forged));
}

#[test]
fn an_answer_to_another_request_is_not_believed() {
    let key = master().agent_key("node-1");
    let report = HealthReport { slot: 1, draining: false, peers: [peer("birch")].into() };
    let pages = report.encode(&NONCE, &key);
    assert_eq!(ReplyPage::decode(&pages[0], &key, &[8; 16]), Err(InvalidMessage::WrongNonce));
    assert_eq!(ReplyPage::decode(&pages[0], &master().agent_key("node-2"), &NONCE), Err(InvalidMessage::Forged));
}

#[test]
fn a_hundred_peers_come_in_pages_that_fit_any_path_in_any_order() {
    let key = master().agent_key("dns-0");
    let peers: Vec<_> = (0..100).map(|number| peer(&format!("cluster-{number}-{}", "x".repeat(50)))).collect();
    let report = HealthReport { slot: 2, draining: true, peers };
    let datagrams = report.encode(&NONCE, &key);
    assert!(datagrams.len() > 1 && datagrams.iter().all(|datagram| datagram.len() <= MAX_MESSAGE));
    let mut pages = ReplyPages::default();
    let mut whole = None;
    for datagram in datagrams.iter().rev() {
        assert_eq!(whole, None);
        whole = pages.add(ReplyPage::decode(datagram, &key, &NONCE).unwrap());
    }
    assert_eq!(whole, Some(report));
}

#[test]
fn a_gateway_without_peers_says_so_in_one_page() {
    let key = master().agent_key("node-1");
    let report = HealthReport { slot: 0, draining: false, peers: Vec::new() };
    let datagrams = report.encode(&NONCE, &key);
    assert_eq!(datagrams.len(), 1);
    let page = ReplyPage::decode(&datagrams[0], &key, &NONCE).unwrap();
    assert_eq!(ReplyPages::default().add(page), Some(report));
}

#[test]
fn keys_read_back_as_they_were_written_and_never_show_in_logs() {
    let key = master().agent_key("node-1");
    assert_eq!(AgentKey::from_text(&format!("{}\n", key.to_text())), Some(key.clone()));
    assert_eq!(MasterKey::from_text(&master().to_text()), Some(master()));
    assert_eq!(AgentKey::from_text("7"), None);
    assert_eq!(format!("{key:?}"), "AgentKey(7)");
    assert_ne!(key.secret, master().agent_key("node-10").secret);
}

fn any_peer() -> impl Strategy<Value = PeerHealth> {
    let numbers = (any::<u32>(), proptest::option::of(0..u32::MAX), any::<u16>(), any::<[u16; 2]>());
    ("[a-z][a-z0-9]{0,40}", 0..3usize, 0..REASONS.len(), numbers).prop_map(|(id, state, reason, numbers)| PeerHealth {
        cluster: ClusterId::new(&id).unwrap(),
        reachability: [Reachability::Unknown, Reachability::Up, Reachability::Down][state],
        reason: REASONS[reason],
        age: Duration::from_millis(numbers.0.into()),
        round_trip: numbers.1.map(|micros| Duration::from_micros(micros.into())),
        loss_permille: numbers.2,
        mtu: numbers.3[0],
        lanes: numbers.3[1],
    })
}

proptest! {
    #[test]
    fn every_report_reads_back_as_it_was_written(
        slot in any::<u16>(), draining in any::<bool>(), peers in proptest::collection::vec(any_peer(), 0..40),
    ) {
        let key = master().agent_key("node-1");
        let report = HealthReport { slot, draining, peers };
        let mut pages = ReplyPages::default();
        let mut whole = None;
        for datagram in report.encode(&NONCE, &key) {
            whole = pages.add(ReplyPage::decode(&datagram, &key, &NONCE).unwrap());
        }
        prop_assert_eq!(whole, Some(report));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0..3u8, sign in any::<bool>(),
    ) {
        let key = master().agent_key("node-1");
        if kind > 0 && bytes.len() >= 12 {
            bytes[..4].copy_from_slice(MAGIC);
            bytes[4] = VERSION;
            bytes[5] = kind;
        }
        // Bytes of an agent gone bad reach what lies behind the authenticator.
        if sign {
            if bytes.len() >= 32 {
                bytes[12..16].copy_from_slice(&key.id.to_be_bytes());
                bytes[16..32].copy_from_slice(&NONCE);
            }
            authenticate(&mut bytes, &key);
        }
        if let Ok(request) = UnverifiedRequest::decode(&bytes) {
            let _ = request.verify(&key);
        }
        let _ = ReplyPage::decode(&bytes, &key, &NONCE);
    }

    #[test]
    fn any_changed_bit_is_noticed(position in 0..usize::MAX, bit in 0..8u8) {
        let key = master().agent_key("node-1");
        let report = HealthReport { slot: 1, draining: false, peers: [peer("birch"), peer("cedar")].into() };
        let mut bytes = report.encode(&NONCE, &key).remove(0);
        let position = position % bytes.len();
        bytes[position] ^= 1 << bit;
        prop_assert!(ReplyPage::decode(&bytes, &key, &NONCE).is_err());
    }
}
