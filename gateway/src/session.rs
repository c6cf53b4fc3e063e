//! [`TunnelSession`]: the WireGuard protocol with one peer, on boringtun. [`crate::lane_sessions`] has all of a lane.
//!
//! boringtun's `Tunn` has habits that must not reach the rest:
//!
//! | it | so |
//! |---|---|
//! | queues packets while there is no session, and bursts them later | nothing is given to it without a session |
//! | panics on a short buffer | room is checked before each call |
//! | verifies handshakes itself, against its own limit | one limiter for the lane verifies once and sends cookies; those inside never refuse |
//! | retries an initiation after 5 s only | the core asks for initiations, once a second, and they are forced |
//! | takes its time stamps from the wall clock when it is made | [`crate::wall_clock`] reports a clock that went back |
//! | says the same of keys it only answered for as of keys the peer has shown to have | [`Agreement`] tells them apart |
//! | does not pad | accepted by every implementation; lengths of packets can be seen from outside |

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::keys::TunnelKey;
use api::time::Instant;
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use gateway_core::datagram::Message;
use gateway_core::session::{HANDSHAKE_ROOM, SEALED_OVERHEAD};
use gateway_core::{Arena, Link, OpenBatch, Opened, OurLane, Refusal, SealBatch, Sealed, Session, Verdict};

use crate::agreement::{Agreement, index_at};

/// A lane's key pair.
#[derive(Clone)]
pub(crate) struct LaneKey {
    pub(crate) secret: StaticSecret,
    pub(crate) public: PublicKey,
}

impl LaneKey {
    /// `secret` is 32 bytes as `wg genkey` makes them, not in base64.
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        let secret = StaticSecret::from(secret);
        let public = PublicKey::from(&secret);
        Self { secret, public }
    }

    pub(crate) fn public(&self) -> TunnelKey {
        TunnelKey(self.public.to_bytes())
    }
}

/// The keys of one lane: while they rotate, it answers to both.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LaneKeys {
    pub(crate) current: LaneKey,
    pub(crate) next: Option<LaneKey>,
}

impl LaneKeys {
    pub(crate) fn public(&self) -> OurLane {
        OurLane { key: self.current.public(), next_key: self.next.as_ref().map(LaneKey::public) }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &LaneKey> {
        std::iter::once(&self.current).chain(&self.next)
    }
}

/// One public key has one secret.
impl PartialEq for LaneKey {
    fn eq(&self, other: &Self) -> bool {
        self.public == other.public
    }
}

impl fmt::Debug for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaneKey({})", self.public())
    }
}

/// The cryptography of one link.
pub(crate) struct TunnelSession {
    link: Link,
    /// Taken once for each batch. The receiving, the sending and the control thread share it.
    state: Mutex<State>,
}

struct State {
    tunnel: Tunn,
    agreement: Agreement,
    /// Which local address this remote address sends to: answers leave from there.
    asked: Option<(SocketAddr, IpAddr)>,
    traffic: Traffic,
}

/// What went through a link since it exists. Bytes are those of inner packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) sent_packets: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_packets: u64,
    pub(crate) received_bytes: u64,
}

impl TunnelSession {
    pub(crate) fn new(key: &LaneKey, link: &Link, unlimited: &Arc<RateLimiter>) -> Self {
        let tunnel = Tunn::new(
            key.secret.clone(),
            PublicKey::from(link.public_key.0),
            link.preshared_key,
            None,
            link.id.number(),
            Some(Arc::clone(unlimited)),
        );
        Self {
            link: link.clone(),
            state: Mutex::new(State {
                tunnel,
                agreement: Agreement::default(),
                asked: None,
                traffic: Traffic::default(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panics ends the process, so a poisoned lock is never seen twice.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.state().traffic
    }

    /// Takes a handshake message that belongs to this session and writes what it is answered with.
    pub(crate) fn take_handshake(
        &self,
        datagram: &[u8],
        from: SocketAddr,
        replies: &mut Arena<Sealed>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let message = Message::parse(datagram);
        let mut state = self.state();
        let len =
            self.step(&mut state, from, replies, |tunnel, room| tunnel.decapsulate(Some(from.ip()), datagram, room))?;
        match (message, len) {
            // Our index is where the sender's stands in a response (WireGuard whitepaper, 5.4.3).
            (Some(Message::HandshakeInitiation), 1..) => {
                state.agreement.answered(index_at(replies.bytes(replies.len() - 1), 4), now);
            }
            (Some(Message::HandshakeResponse(_)), _) => state.agreement.agreed(index_at(datagram, 8), now),
            _ => {}
        }
        Ok(())
    }

    /// Remembers which of our addresses the peer sends to.
    pub(crate) fn remember_asked(&self, from: SocketAddr, local: IpAddr) {
        self.state().asked = Some((from, local));
    }

    /// The local address to send to `to` from, if it is known.
    pub(crate) fn source_for(&self, to: SocketAddr) -> Option<IpAddr> {
        self.state().asked.filter(|(from, _)| *from == to).map(|(_, local)| local)
    }

    fn sealed(&self, to: SocketAddr) -> Sealed {
        Sealed { lane: self.link.lane, to, link: Some(self.link.id), whole: false }
    }

    /// Runs one step of the protocol that may want something sent.
    fn send_result(
        &self,
        to: SocketAddr,
        out: &mut Arena<Sealed>,
        step: impl for<'a> FnOnce(&mut Tunn, &'a mut [u8]) -> TunnResult<'a>,
    ) -> Result<(), Refusal> {
        self.step(&mut self.state(), to, out, step).map(|_| ())
    }

    /// The same for who has the lock. Gives how many bytes are to be sent.
    fn step(
        &self,
        state: &mut State,
        to: SocketAddr,
        out: &mut Arena<Sealed>,
        step: impl for<'a> FnOnce(&mut Tunn, &'a mut [u8]) -> TunnResult<'a>,
    ) -> Result<usize, Refusal> {
        let room = out.room();
        if room.len() < HANDSHAKE_ROOM {
            return Err(Refusal::NoRoom);
        }
        let len = match step(&mut state.tunnel, room) {
            TunnResult::WriteToNetwork(bytes) => bytes.len(),
            TunnResult::Err(error) => return Err(refusal_of(&error)),
            TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => return Ok(0),
        };
        out.commit(len, self.sealed(to)).map_err(|_| Refusal::NoRoom)?;
        Ok(len)
    }
}

impl State {
    fn is_established(&self, now: Instant) -> bool {
        // The tunnel forgets keys by a clock of its own, and without keys it would queue.
        self.tunnel.time_since_last_handshake().is_some() && self.agreement.holds(now)
    }

    /// Opens one datagram into `plain`.
    fn open(&mut self, datagram: &[u8], plain: &mut Arena<Opened>, opened: Opened) -> Result<(), Refusal> {
        let room = plain.room();
        if room.len() < datagram.len() {
            return Err(Refusal::NoRoom);
        }
        let len = match self.tunnel.decapsulate(None, datagram, room) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => packet.len(),
            TunnResult::Done => 0,
            TunnResult::Err(error) => return Err(refusal_of(&error)),
            // Only handshakes are answered, and the core sends those elsewhere.
            TunnResult::WriteToNetwork(_) => return Err(Refusal::MalformedDatagram),
        };
        self.agreement.heard(index_at(datagram, 4));
        self.traffic.received_packets += 1;
        self.traffic.received_bytes += len as u64;
        plain.commit(len, opened).map_err(|_| Refusal::NoRoom)
    }
}

impl Session for TunnelSession {
    fn is_established(&self, now: Instant) -> bool {
        self.state().is_established(now)
    }

    fn seal_batch(&self, batch: SealBatch<'_>, now: Instant) -> usize {
        let mut state = self.state();
        if !state.is_established(now) {
            return 0;
        }
        let about = Sealed { lane: batch.lane, to: batch.to, link: Some(batch.link), whole: false };
        let mut count = 0;
        for index in batch.chosen {
            let packet = batch.plain.bytes(*index as usize);
            let room = batch.sealed.room();
            if room.len() < (packet.len() + SEALED_OVERHEAD).max(HANDSHAKE_ROOM) {
                break;
            }
            let TunnResult::WriteToNetwork(sealed) = state.tunnel.encapsulate(packet, room) else { break };
            let len = sealed.len();
            if batch.sealed.commit(len, about).is_err() {
                break;
            }
            state.traffic.sent_packets += 1;
            state.traffic.sent_bytes += packet.len() as u64;
            count += 1;
        }
        count
    }

    fn open_batch(&self, batch: OpenBatch<'_>, _now: Instant) {
        let mut state = self.state();
        for index in batch.chosen {
            let index = *index as usize;
            let Some(from) = batch.datagrams.meta(index).map(|received| received.from) else { continue };
            let opened = Opened { link: batch.link, from, verdict: Verdict::Unjudged };
            let result = state.open(batch.datagrams.bytes(index), batch.plain, opened);
            if let (Err(refusal), Some(received)) = (result, batch.datagrams.meta_mut(index)) {
                received.refused = Some(refusal);
            }
        }
    }

    fn initiate(&self, to: SocketAddr, out: &mut Arena<Sealed>, _now: Instant) {
        // A failure here is a full arena; the core asks again within a second.
        let _ = self.send_result(to, out, |tunnel, room| tunnel.format_handshake_initiation(room, true));
    }

    fn tick(&self, to: SocketAddr, out: &mut Arena<Sealed>, _now: Instant) {
        // The one error is that the session has expired; is_established says so from then on.
        let _ = self.send_result(to, out, |tunnel, room| tunnel.update_timers(room));
    }

    fn last_handshake(&self) -> Option<Instant> {
        self.state().agreement.since()
    }
}

pub(crate) fn refusal_of(error: &WireGuardError) -> Refusal {
    match error {
        WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter => Refusal::ReplayedPacket,
        WireGuardError::InvalidAeadTag => Refusal::Unauthentic,
        WireGuardError::NoCurrentSession | WireGuardError::ConnectionExpired => Refusal::ExpiredSession,
        WireGuardError::WrongIndex => Refusal::UnknownSession,
        WireGuardError::UnderLoad => Refusal::CookieRequired,
        WireGuardError::InvalidMac
        | WireGuardError::WrongKey
        | WireGuardError::UnexpectedPacket
        | WireGuardError::InvalidTai64nTimestamp
        | WireGuardError::WrongTai64nTimestamp => Refusal::HandshakeRefused,
        // What boringtun says of an opened packet that is not IP.
        WireGuardError::InvalidPacket => Refusal::MalformedPacket,
        WireGuardError::DestinationBufferTooSmall
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::WrongPacketType
        | WireGuardError::LockFailed => Refusal::MalformedDatagram,
    }
}
