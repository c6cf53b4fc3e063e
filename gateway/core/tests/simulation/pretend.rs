//! A pretend WireGuard: the real messages' sizes, indices, key changes, replay window and silence to strangers, with
//! arithmetic in place of cryptography. Not secure, and as strict as the real one about who may say what.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use api::keys::TunnelKey;
use api::time::Instant;
use gateway_core::datagram::Message;
use gateway_core::{
    Arena, LaneNumber, Link, LinkId, OpenBatch, Opened, Refusal, SealBatch, Sealed, Session, Sessions, Verdict,
};

const REKEY_AFTER: Duration = Duration::from_secs(120);
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// A Mersenne prime: multiplying below it fits twice into 128 bits.
const PRIME: u64 = (1 << 61) - 1;
const GENERATOR: u64 = 37;
const HEADER: usize = 16;
const TAG: usize = 16;

fn power(base: u64, exponent: u64) -> u64 {
    let (mut result, mut base, mut exponent) = (1u128, u128::from(base % PRIME), exponent);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result * base % u128::from(PRIME);
        }
        base = base * base % u128::from(PRIME);
        exponent >>= 1;
    }
    result as u64
}

fn digest(key: u64, bytes: &[u8]) -> u64 {
    let mut state = key ^ 0x51_7c_c1_b7_27_22_0a_95;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = (state.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        state ^= state >> 32;
    }
    state ^ bytes.len() as u64
}

pub(crate) fn public_key(secret: u64) -> TunnelKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&power(GENERATOR, secret).to_le_bytes());
    TunnelKey(bytes)
}

fn agree(secret: u64, public: &TunnelKey) -> u64 {
    power(number(&public.0, 0), secret)
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn index(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Keys both ends agreed on.
#[derive(Debug)]
struct Keys {
    local: u32,
    remote: u32,
    secret: u64,
    we_initiated: bool,
    agreed: Instant,
    /// The responder sends under new keys only once the initiator has shown that it has them.
    confirmed: bool,
    sent: u64,
    window: Window,
}

/// Which counters were seen: the last 2048, as the whitepaper wants.
#[derive(Debug)]
struct Window {
    next: u64,
    bits: [u64; 32],
}

impl Window {
    fn take(&mut self, counter: u64) -> bool {
        if counter + 2048 <= self.next {
            return false;
        }
        while self.next <= counter {
            self.bits[(self.next % 2048 / 64) as usize] &= !(1 << (self.next % 64));
            self.next += 1;
        }
        let (word, bit) = ((counter % 2048 / 64) as usize, 1 << (counter % 64));
        let fresh = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        fresh
    }
}

#[derive(Debug, Default)]
struct State {
    generation: u8,
    /// Index and ephemeral of an initiation of ours that may still be answered.
    pending: Option<(u32, u64)>,
    keys: Vec<Keys>,
    /// The newest initiation of the peer's: an older or equal one is a replay.
    newest_initiation: u64,
}

#[derive(Debug)]
pub(crate) struct PretendSession {
    link: LinkId,
    lane: LaneNumber,
    ours: TunnelKey,
    peer: TunnelKey,
    shared: u64,
    state: RefCell<State>,
    ephemeral: Cell<u64>,
}

impl PretendSession {
    fn next_index(&self, state: &mut State) -> u32 {
        state.generation = state.generation.wrapping_add(1);
        self.link.number() << 8 | u32::from(state.generation)
    }

    fn next_ephemeral(&self, now: Instant) -> u64 {
        self.ephemeral.set(self.ephemeral.get() + 1);
        digest(self.shared ^ now.as_micros(), &self.ephemeral.get().to_le_bytes())
    }

    fn install(&self, state: &mut State, keys: Keys) {
        // Room for the current keys, the ones before, and the ones to come.
        while state.keys.len() >= 3 {
            state.keys.remove(0);
        }
        state.keys.push(keys);
    }

    fn seal_one(&self, plain: &[u8], to: SocketAddr, sealed: &mut Arena<Sealed>, now: Instant) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(keys) = state.keys.iter_mut().rev().find(|keys| keys.confirmed && alive(keys, now)) else {
            return false;
        };
        let len = HEADER + plain.len() + TAG;
        let Some(room) = sealed.room().get_mut(..len) else { return false };
        room[..4].copy_from_slice(&4u32.to_le_bytes());
        room[4..8].copy_from_slice(&keys.remote.to_le_bytes());
        room[8..16].copy_from_slice(&keys.sent.to_le_bytes());
        room[HEADER..len - TAG].copy_from_slice(plain);
        let tag = tag(keys, keys.we_initiated, &room[..len - TAG]);
        room[len - TAG..].copy_from_slice(&tag);
        keys.sent += 1;
        sealed.commit(len, Sealed { lane: self.lane, to, link: Some(self.link), whole: false }).is_ok()
    }

    fn open_one<'a>(&self, datagram: &'a [u8], now: Instant) -> Result<&'a [u8], Refusal> {
        let mut state = self.state.borrow_mut();
        let receiver = index(datagram, 4);
        let keys = state.keys.iter_mut().find(|keys| keys.local == receiver).ok_or(Refusal::UnknownSession)?;
        if !alive(keys, now) {
            return Err(Refusal::ExpiredSession);
        }
        let (message, claimed) = datagram.split_at(datagram.len() - TAG);
        if tag(keys, !keys.we_initiated, message) != claimed {
            return Err(Refusal::Unauthentic);
        }
        if !keys.window.take(number(datagram, 8)) {
            return Err(Refusal::ReplayedPacket);
        }
        keys.confirmed = true;
        Ok(&message[HEADER..])
    }

    fn answer_initiation(
        &self,
        datagram: &[u8],
        from: SocketAddr,
        out: &mut Arena<Sealed>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let stamp = number(datagram, 40);
        let mut state = self.state.borrow_mut();
        let proof = digest(self.shared, &datagram[..64]);
        if number(datagram, 64) != proof || stamp <= state.newest_initiation {
            return Err(Refusal::HandshakeRefused);
        }
        state.newest_initiation = stamp;
        let ephemeral = self.next_ephemeral(now);
        let local = self.next_index(&mut state);
        let remote = index(datagram, 4);
        let secret = digest(self.shared ^ ephemeral, &datagram[48..56]);
        let keys = Keys::new(local, remote, secret, false, now);
        self.install(&mut state, keys);
        let mut response = [0u8; 92];
        response[..4].copy_from_slice(&2u32.to_le_bytes());
        response[4..8].copy_from_slice(&local.to_le_bytes());
        response[8..12].copy_from_slice(&remote.to_le_bytes());
        response[12..20].copy_from_slice(&ephemeral.to_le_bytes());
        let proof = digest(secret, &response[..20]);
        response[20..28].copy_from_slice(&proof.to_le_bytes());
        let _ = out.push(&response, Sealed { lane: self.lane, to: from, link: Some(self.link), whole: false });
        Ok(())
    }

    fn take_response(
        &self,
        datagram: &[u8],
        from: SocketAddr,
        out: &mut Arena<Sealed>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let mut state = self.state.borrow_mut();
        let (local, ephemeral) =
            state.pending.filter(|(local, _)| *local == index(datagram, 8)).ok_or(Refusal::HandshakeRefused)?;
        let secret = digest(self.shared ^ number(datagram, 12), &ephemeral.to_le_bytes());
        if number(datagram, 20) != digest(secret, &datagram[..20]) {
            return Err(Refusal::HandshakeRefused);
        }
        state.pending = None;
        let keys = Keys::new(local, index(datagram, 4), secret, true, now);
        self.install(&mut state, keys);
        drop(state);
        self.seal_one(&[], from, out, now);
        Ok(())
    }
}

impl Keys {
    fn new(local: u32, remote: u32, secret: u64, we_initiated: bool, agreed: Instant) -> Self {
        let window = Window { next: 0, bits: [0; 32] };
        Self { local, remote, secret, we_initiated, agreed, confirmed: we_initiated, sent: 0, window }
    }
}

fn alive(keys: &Keys, now: Instant) -> bool {
    now.since(keys.agreed) < REJECT_AFTER
}

fn tag(keys: &Keys, by_initiator: bool, message: &[u8]) -> [u8; TAG] {
    let direction = if by_initiator { 1 } else { 2 };
    let (left, right) = (digest(keys.secret ^ direction, message), digest(!keys.secret ^ direction, message));
    let mut tag = [0; TAG];
    tag[..8].copy_from_slice(&left.to_le_bytes());
    tag[8..].copy_from_slice(&right.to_le_bytes());
    tag
}

impl Session for PretendSession {
    fn is_established(&self, now: Instant) -> bool {
        self.state.borrow().keys.iter().any(|keys| keys.confirmed && alive(keys, now))
    }

    fn seal_batch(&self, batch: SealBatch<'_>, now: Instant) -> usize {
        let plain = batch.plain;
        let seal = |index: &&u32| self.seal_one(plain.bytes(**index as usize), batch.to, batch.sealed, now);
        batch.chosen.iter().take_while(seal).count()
    }

    fn open_batch(&self, batch: OpenBatch<'_>, now: Instant) {
        for position in batch.chosen {
            let position = *position as usize;
            let opened = self.open_one(batch.datagrams.bytes(position), now);
            let from = batch.datagrams.meta(position).unwrap().from;
            let opened = opened.and_then(|packet| {
                let meta = Opened { link: self.link, from, verdict: Verdict::Unjudged };
                batch.plain.push(packet, meta).map_err(|_| Refusal::NoRoom)
            });
            batch.datagrams.meta_mut(position).unwrap().refused = opened.err();
        }
    }

    fn initiate(&self, to: SocketAddr, out: &mut Arena<Sealed>, now: Instant) {
        let mut state = self.state.borrow_mut();
        let ephemeral = self.next_ephemeral(now);
        let local = self.next_index(&mut state);
        state.pending = Some((local, ephemeral));
        let mut message = [0u8; 148];
        message[..4].copy_from_slice(&1u32.to_le_bytes());
        message[4..8].copy_from_slice(&local.to_le_bytes());
        message[8..40].copy_from_slice(&self.ours.0);
        message[40..48].copy_from_slice(&now.as_micros().to_le_bytes());
        message[48..56].copy_from_slice(&ephemeral.to_le_bytes());
        message[56..64].copy_from_slice(&number(&self.peer.0, 0).to_le_bytes());
        let proof = digest(self.shared, &message[..64]);
        message[64..72].copy_from_slice(&proof.to_le_bytes());
        let _ = out.push(&message, Sealed { lane: self.lane, to, link: Some(self.link), whole: false });
    }

    fn tick(&self, to: SocketAddr, out: &mut Arena<Sealed>, now: Instant) {
        let stale = self.last_handshake().is_some_and(|at| now.since(at) >= REKEY_AFTER);
        let ours = self.state.borrow().keys.last().is_some_and(|keys| keys.we_initiated && alive(keys, now));
        if stale && ours {
            self.initiate(to, out, now);
        }
    }

    fn last_handshake(&self) -> Option<Instant> {
        self.state.borrow().keys.iter().map(|keys| keys.agreed).max()
    }
}

/// The sessions of one lane.
#[derive(Debug)]
pub(crate) struct PretendLane {
    lane: LaneNumber,
    /// More than one while keys rotate.
    pub(crate) secrets: Vec<u64>,
    sessions: BTreeMap<LinkId, PretendSession>,
}

impl PretendLane {
    pub(crate) fn new(lane: LaneNumber, secrets: &[u64]) -> Self {
        Self { lane, secrets: secrets.to_vec(), sessions: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, link: &Link) {
        let secret = self.secrets.iter().copied().find(|secret| public_key(*secret) == link.own_key);
        let secret = secret.expect("a link is made for a key that is held");
        let session = PretendSession {
            link: link.id,
            lane: self.lane,
            ours: link.own_key,
            peer: link.public_key,
            shared: agree(secret, &link.public_key),
            state: RefCell::default(),
            ephemeral: Cell::new(0),
        };
        self.sessions.insert(link.id, session);
    }

    pub(crate) fn remove(&mut self, link: LinkId) {
        self.sessions.remove(&link);
    }
}

impl Sessions for PretendLane {
    type Session = PretendSession;

    fn session(&self, link: LinkId) -> Option<&PretendSession> {
        self.sessions.get(&link)
    }

    fn handshake(
        &self,
        datagram: &[u8],
        from: SocketAddr,
        replies: &mut Arena<Sealed>,
        now: Instant,
    ) -> Result<Option<LinkId>, Refusal> {
        match Message::parse(datagram) {
            Some(Message::HandshakeInitiation) => {
                let claimed = &datagram[8..40];
                let called = number(datagram, 56);
                let is_meant =
                    |session: &&PretendSession| session.peer.0 == *claimed && number(&session.ours.0, 0) == called;
                let session = self.sessions.values().find(is_meant);
                let session = session.ok_or(Refusal::UnknownPeer)?;
                session.answer_initiation(datagram, from, replies, now)?;
                Ok(Some(session.link))
            }
            Some(Message::HandshakeResponse(link)) => {
                let session = self.sessions.get(&link).ok_or(Refusal::UnknownSession)?;
                session.take_response(datagram, from, replies, now)?;
                Ok(Some(link))
            }
            _ => Err(Refusal::HandshakeRefused),
        }
    }
}
