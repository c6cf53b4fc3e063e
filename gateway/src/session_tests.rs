use gateway_core::{OpenBatch, Outgoing, Received, SealBatch, Session};

use super::*;

const NOW: Instant = Instant::from_millis(1);

/// One lane with one peer, and what the peer's address is.
struct Side {
    sessions: LaneSessions,
    address: SocketAddr,
    link: LinkId,
}

fn key(seed: u8) -> LaneKey {
    LaneKey::new([seed; 32])
}

fn keys(current: u8, next: Option<u8>) -> LaneKeys {
    LaneKeys { current: key(current), next: next.map(key) }
}

fn link(number: u32, own: &LaneKey, peer: &LaneKey) -> Link {
    Link {
        id: LinkId::new(number).unwrap(),
        lane: LaneNumber(0),
        cluster: api::ClusterId::new("birch").unwrap(),
        slot: 0,
        remote_lane: LaneNumber(0),
        own_key: own.public(),
        public_key: peer.public(),
        preshared_key: None,
    }
}

fn side(own: u8, peer: u8, number: u32, limit: u64) -> Side {
    let link = link(number, &key(own), &key(peer));
    let sessions =
        LaneSessions::with_limit(LaneNumber(0), &keys(own, None), limit).changed(&[], std::slice::from_ref(&link));
    Side { sessions, address: SocketAddr::from(([192, 0, 2, own], 51_820)), link: link.id }
}

fn pair() -> (Side, Side) {
    (side(1, 2, 3, 100), side(2, 1, 7, 100))
}

fn arena() -> Arena<Sealed> {
    Arena::new(1 << 16, 64)
}

impl Side {
    fn session(&self) -> &TunnelSession {
        self.sessions.session(self.link).unwrap()
    }

    /// Takes handshake messages and gives what they are answered with.
    fn answer(
        &self,
        messages: &Arena<Sealed>,
        from: SocketAddr,
    ) -> (Arena<Sealed>, Vec<Result<Option<LinkId>, Refusal>>) {
        let mut replies = arena();
        let results =
            messages.iter().map(|(bytes, _)| self.sessions.handshake(bytes, from, &mut replies, NOW)).collect();
        (replies, results)
    }

    fn seal(&self, packets: &[&[u8]], to: SocketAddr) -> Arena<Sealed> {
        let mut plain = Arena::new(1 << 16, 64);
        packets.iter().for_each(|packet| plain.push(packet, Outgoing::default()).unwrap());
        let chosen: Vec<u32> = (0..packets.len() as u32).collect();
        let mut sealed = arena();
        let batch =
            SealBatch { plain: &plain, chosen: &chosen, lane: LaneNumber(0), link: self.link, to, sealed: &mut sealed };
        assert_eq!(self.session().seal_batch(batch, NOW), packets.len());
        sealed
    }

    /// Opens datagrams; gives the packets, and why each datagram was refused.
    fn open(&self, datagrams: &[&[u8]], from: SocketAddr) -> (Vec<Vec<u8>>, Vec<Option<Refusal>>) {
        let mut received = Arena::new(1 << 16, 64);
        datagrams.iter().for_each(|datagram| received.push(datagram, Received::from(from)).unwrap());
        let chosen: Vec<u32> = (0..datagrams.len() as u32).collect();
        let (mut plain, mut replies) = (Arena::new(1 << 16, 64), arena());
        let (lane, link) = (LaneNumber(0), self.link);
        let batch = OpenBatch {
            datagrams: &mut received,
            chosen: &chosen,
            lane,
            link,
            plain: &mut plain,
            replies: &mut replies,
        };
        self.session().open_batch(batch, NOW);
        let packets = plain.iter().map(|(bytes, _)| bytes.to_vec()).collect();
        (packets, received.iter().map(|(_, about)| about.refused).collect())
    }
}

/// Initiation, response, and the keepalive that confirms.
fn shake_hands(one: &Side, other: &Side) {
    let mut initiation = arena();
    one.session().initiate(other.address, &mut initiation, NOW);
    let (response, proven) = other.answer(&initiation, one.address);
    assert_eq!(proven, [Ok(Some(other.link))]);
    let (confirmation, proven) = one.answer(&response, other.address);
    assert_eq!(proven, [Ok(Some(one.link))]);
    let datagrams: Vec<_> = confirmation.iter().map(|(bytes, _)| bytes).collect();
    let (packets, refused) = other.open(&datagrams, one.address);
    assert_eq!((packets, refused), (vec![vec![]], vec![None]), "a keepalive counts as heard");
}

#[test]
fn who_only_answered_has_no_session_until_the_first_data_however_often_it_answered() {
    let (one, other) = pair();
    // More often than boringtun has places for keys.
    for _ in 0..20 {
        let mut initiation = arena();
        one.session().initiate(other.address, &mut initiation, NOW);
        let (response, proven) = other.answer(&initiation, one.address);
        assert_eq!((response.len(), proven), (1, vec![Ok(Some(other.link))]));
        assert!(!other.session().is_established(NOW) && other.session().last_handshake().is_none());
    }
    shake_hands(&one, &other);
    assert!(other.session().is_established(NOW));
    assert_eq!(other.session().last_handshake(), Some(NOW));
}

/// A packet whose header says 28 bytes.
fn packet() -> Vec<u8> {
    let mut packet = vec![0; 28];
    packet[0] = 0x45;
    packet[3] = 28;
    packet[20..].copy_from_slice(b"contents");
    packet
}

#[test]
fn after_a_handshake_packets_pass_both_ways() {
    let (one, other) = pair();
    assert!(!one.session().is_established(NOW) && !other.session().is_established(NOW));
    shake_hands(&one, &other);
    for (from, to) in [(&one, &other), (&other, &one)] {
        assert!(from.session().is_established(NOW));
        let sealed = from.seal(&[&packet(), &packet()], to.address);
        let datagrams: Vec<_> = sealed.iter().map(|(bytes, _)| bytes).collect();
        assert_eq!(to.open(&datagrams, from.address), (vec![packet(), packet()], vec![None, None]));
    }
    let traffic = one.session().traffic();
    assert_eq!((traffic.sent_packets, traffic.sent_bytes, traffic.received_bytes), (2, 56, 56));
}

#[test]
fn without_a_session_nothing_is_sealed_and_nothing_is_kept_for_later() {
    let (one, other) = pair();
    let mut plain = Arena::new(1 << 16, 64);
    plain.push(&packet(), Outgoing::default()).unwrap();
    let mut sealed = arena();
    let to = other.address;
    let batch = SealBatch { plain: &plain, chosen: &[0], lane: LaneNumber(0), link: one.link, to, sealed: &mut sealed };
    assert_eq!(one.session().seal_batch(batch, NOW), 0);
    assert!(sealed.is_empty());
    shake_hands(&one, &other);
    let traffic = one.session().traffic();
    assert_eq!((traffic.sent_packets, traffic.sent_bytes), (0, 0));
}

#[test]
fn a_replayed_a_damaged_and_a_strangers_datagram_are_refused_by_name() {
    let (one, other) = pair();
    shake_hands(&one, &other);
    let sealed = one.seal(&[&packet()], other.address);
    let datagram = sealed.bytes(0).to_vec();
    let mut damaged = one.seal(&[&packet()], other.address).bytes(0).to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let mut elsewhere = datagram.clone();
    elsewhere[4] ^= 8;
    let (packets, refused) = other.open(&[&datagram, &datagram, &damaged, &elsewhere], one.address);
    assert_eq!(packets, [packet()]);
    assert_eq!(
        refused,
        [None, Some(Refusal::ReplayedPacket), Some(Refusal::Unauthentic), Some(Refusal::UnknownSession)]
    );
}

#[test]
fn a_stranger_gets_no_answer_whatever_it_knows() {
    let (_, other) = pair();
    // It knows the public key, so its first MAC is right; its own key is nobody's.
    let stranger = side(9, 2, 3, 100);
    let mut initiation = arena();
    stranger.session().initiate(other.address, &mut initiation, NOW);
    let (replies, results) = other.answer(&initiation, stranger.address);
    assert!(replies.is_empty());
    assert_eq!(results, [Err(Refusal::UnknownPeer)]);
    // It does not even know that.
    let mut blind = initiation.bytes(0).to_vec();
    blind[130] ^= 1;
    let mut replies = arena();
    let result = other.sessions.handshake(&blind, stranger.address, &mut replies, NOW);
    assert_eq!((result, replies.len()), (Err(Refusal::UnknownPeer), 0));
}

#[test]
fn a_replayed_initiation_gets_no_answer() {
    let (one, other) = pair();
    let mut initiation = arena();
    one.session().initiate(other.address, &mut initiation, NOW);
    other.answer(&initiation, one.address);
    let (replies, results) = other.answer(&initiation, one.address);
    assert!(replies.is_empty());
    assert_eq!(results, [Err(Refusal::HandshakeRefused)]);
}

#[test]
fn under_load_a_sender_must_prove_its_address_first() {
    let one = side(1, 2, 3, 100);
    let other = side(2, 1, 7, 0);
    let mut first = arena();
    one.session().initiate(other.address, &mut first, NOW);
    let (cookie, results) = other.answer(&first, one.address);
    assert_eq!(results, [Err(Refusal::CookieRequired)]);
    assert_eq!((cookie.len(), cookie.bytes(0).len()), (1, 64), "a cookie reply is shorter than what it answers");
    let (nothing, proven) = one.answer(&cookie, other.address);
    assert_eq!((nothing.len(), proven), (0, vec![Ok(None)]), "a cookie proves nothing about its sender");
    let mut second = arena();
    one.session().initiate(other.address, &mut second, NOW);
    let (response, results) = other.answer(&second, one.address);
    assert_eq!((response.len(), results), (1, vec![Ok(Some(other.link))]));
    // From another address the same cookie is worth nothing.
    let mut third = arena();
    one.session().initiate(other.address, &mut third, NOW);
    let (_, results) = other.answer(&third, SocketAddr::from(([198, 51, 100, 1], 51_820)));
    assert_eq!(results, [Err(Refusal::CookieRequired)]);
}

#[test]
fn handshakes_that_cross_each_other_leave_a_working_session() {
    let (one, other) = pair();
    let (mut from_one, mut from_other) = (arena(), arena());
    one.session().initiate(other.address, &mut from_one, NOW);
    other.session().initiate(one.address, &mut from_other, NOW);
    let (to_one, _) = other.answer(&from_one, one.address);
    let (to_other, _) = one.answer(&from_other, other.address);
    let (confirm_to_other, _) = one.answer(&to_one, other.address);
    let (confirm_to_one, _) = other.answer(&to_other, one.address);
    other.open(&[confirm_to_other.bytes(0)], one.address);
    one.open(&[confirm_to_one.bytes(0)], other.address);
    for (from, to) in [(&one, &other), (&other, &one)] {
        let sealed = from.seal(&[&packet()], to.address);
        assert_eq!(to.open(&[sealed.bytes(0)], from.address).0, [packet()]);
    }
}

#[test]
fn a_change_of_peers_leaves_other_sessions_undisturbed() {
    let (one, other) = pair();
    shake_hands(&one, &other);
    let newcomer = link(8, &key(1), &key(5));
    let changed = one.sessions.changed(&[], std::slice::from_ref(&newcomer));
    assert!(changed.session(one.link).unwrap().is_established(NOW));
    assert!(changed.session(newcomer.id).is_some() && one.sessions.session(newcomer.id).is_none());
    let gone = changed.changed(&[one.link], &[]);
    assert!(gone.session(one.link).is_none() && gone.session(newcomer.id).is_some());
    // Its key is forgotten too: it is a stranger now.
    let mut initiation = arena();
    other.session().initiate(one.address, &mut initiation, NOW);
    let result = gone.handshake(initiation.bytes(0), other.address, &mut arena(), NOW);
    assert_eq!(result, Err(Refusal::UnknownPeer));
    // Unless the operator blocked it: then it is refused by that name.
    gone.blocked.store(Arc::new([key(2).public().0].into()));
    let result = gone.handshake(initiation.bytes(0), other.address, &mut arena(), NOW);
    assert_eq!(result, Err(Refusal::BlockedPeer));
}

#[test]
fn while_keys_rotate_handshakes_for_both_are_answered_and_then_for_the_new_one_alone() {
    let (mut one, old) = pair();
    shake_hands(&one, &old);
    // The other end has learned the next key of this one, and makes a second link of it.
    let (to_old, to_new) = (link(7, &key(2), &key(1)), link(8, &key(2), &key(9)));
    let new = Side {
        sessions: LaneSessions::with_limit(LaneNumber(0), &keys(2, None), 100).changed(&[], &[to_old, to_new.clone()]),
        address: old.address,
        link: to_new.id,
    };
    let next = link(4, &key(9), &key(2));
    one.sessions = one.sessions.with_keys(&keys(1, Some(9))).changed(&[], std::slice::from_ref(&next));
    assert!(one.session().is_established(NOW), "what was agreed on stays");
    let mut initiation = arena();
    new.session().initiate(one.address, &mut initiation, NOW);
    let (response, results) = one.answer(&initiation, new.address);
    assert_eq!(results, [Ok(Some(next.id))]);
    assert_eq!(new.answer(&response, one.address).1, [Ok(Some(new.link))]);
    // The old key is left.
    one.sessions = one.sessions.with_keys(&keys(9, None)).changed(&[one.link], &[]);
    let mut initiation = arena();
    old.session().initiate(one.address, &mut initiation, NOW);
    assert_eq!(one.answer(&initiation, old.address).1, [Err(Refusal::UnknownPeer)]);
    one.link = next.id;
    let sealed = new.seal(&[&packet()], one.address);
    assert_eq!(one.open(&[sealed.bytes(0)], new.address).0, [packet()], "the new one stays as it was");
}

#[test]
fn a_short_room_is_no_reason_to_panic() {
    let (one, other) = pair();
    shake_hands(&one, &other);
    let mut short = Arena::new(100, 4);
    one.session().initiate(other.address, &mut short, NOW);
    one.session().tick(other.address, &mut short, NOW);
    assert!(short.is_empty());
    let sealed = one.seal(&[&packet()], other.address);
    let mut received = Arena::new(1 << 10, 4);
    received.push(sealed.bytes(0), Received::from(one.address)).unwrap();
    let (mut plain, mut replies) = (Arena::new(10, 4), arena());
    let (lane, link) = (LaneNumber(0), other.link);
    let batch =
        OpenBatch { datagrams: &mut received, chosen: &[0], lane, link, plain: &mut plain, replies: &mut replies };
    other.session().open_batch(batch, NOW);
    assert_eq!(received.meta(0).unwrap().refused, Some(Refusal::NoRoom));
}

proptest::proptest! {
    #[test]
    fn no_datagram_makes_a_session_panic(
        kind in 1u8..=4,
        mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 32..200),
        handshake_length in proptest::prelude::any::<bool>(),
    ) {
        let (one, other) = pair();
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        if handshake_length {
            bytes.resize(match kind { 1 => 148, 2 => 92, 3 => 64, _ => 48 }, 0);
        }
        let mut replies = arena();
        let _ = other.sessions.handshake(&bytes, one.address, &mut replies, NOW);
        proptest::prop_assert!(replies.is_empty());
        let (packets, _) = other.open(&[&bytes], one.address);
        proptest::prop_assert!(packets.is_empty());
    }
}
