//! [`LaneSessions`]: every peer's session of one lane, and who a handshake is from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use api::keys::TunnelKey;
use api::time::Instant;
use arc_swap::ArcSwap;
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use gateway_core::datagram::Message;
use gateway_core::session::HANDSHAKE_ROOM;
use gateway_core::{Arena, LaneNumber, Link, LinkId, Refusal, Sealed, Sessions};

use crate::session::{LaneKey, TunnelSession, refusal_of};

/// Handshakes a second before senders are asked to prove their address: every gateway of 100 clusters may call once a
/// second without being asked, and a flood costs a tenth of a core at most (each takes about 100 µs).
const HANDSHAKES_PER_SECOND: u64 = 200;

/// All sessions of a lane at one moment. Immutable and cheap to clone: a change of peers makes a new value that shares
/// every session that stays, so nothing is dropped that need not be.
#[derive(Clone)]
pub(crate) struct LaneSessions {
    lane: LaneNumber,
    crypto: Arc<LaneCrypto>,
    members: Arc<Members>,
    blocked: BlockedKeys,
}

/// The keys of peers that the operator blocked: their handshakes are refused as any stranger's, but under their own name.
/// One for all lanes.
pub(crate) type BlockedKeys = Arc<ArcSwap<BTreeSet<[u8; 32]>>>;

struct LaneCrypto {
    key: LaneKey,
    /// Verifies handshakes once and asks for cookies under load.
    limiter: RateLimiter,
    /// For the sessions, which would verify again: never under load.
    unlimited: Arc<RateLimiter>,
}

#[derive(Clone, Default)]
struct Members {
    /// By link number; links are small numbers.
    by_link: Vec<Option<Arc<TunnelSession>>>,
    by_key: BTreeMap<[u8; 32], LinkId>,
}

impl LaneSessions {
    pub(crate) fn new(lane: LaneNumber, key: LaneKey, blocked: BlockedKeys) -> Self {
        Self { blocked, ..Self::with_limit(lane, key, HANDSHAKES_PER_SECOND) }
    }

    fn with_limit(lane: LaneNumber, key: LaneKey, handshakes_per_second: u64) -> Self {
        let limiter = RateLimiter::new(&key.public, handshakes_per_second);
        let unlimited = Arc::new(RateLimiter::new(&key.public, u64::MAX));
        Self {
            lane,
            crypto: Arc::new(LaneCrypto { key, limiter, unlimited }),
            members: Arc::default(),
            blocked: BlockedKeys::default(),
        }
    }

    /// The same with some links gone and others new. Links of other lanes are passed over.
    pub(crate) fn changed(&self, removed: &[LinkId], added: &[Link]) -> Self {
        let mut next = self.clone();
        let members = Arc::make_mut(&mut next.members);
        for link in removed {
            if let Some(session) = members.by_link.get_mut(slot_of(*link)).and_then(Option::take) {
                members.by_key.remove(&session.link().public_key.0);
            }
        }
        for link in added.iter().filter(|link| link.lane == self.lane) {
            let slot = slot_of(link.id);
            if members.by_link.len() <= slot {
                members.by_link.resize(slot + 1, None);
            }
            let session = TunnelSession::new(&self.crypto.key, link, &self.crypto.unlimited);
            members.by_link[slot] = Some(Arc::new(session));
            members.by_key.insert(link.public_key.0, link.id);
        }
        next
    }

    pub(crate) fn get(&self, link: LinkId) -> Option<&Arc<TunnelSession>> {
        self.members.by_link.get(slot_of(link))?.as_ref()
    }

    pub(crate) fn public_key(&self) -> TunnelKey {
        self.crypto.key.public()
    }

    /// Lets a new second's worth of handshakes in. Called about once a second.
    pub(crate) fn reset_limit(&self) {
        self.crypto.limiter.reset_count();
        self.crypto.unlimited.reset_count();
    }
}

fn slot_of(link: LinkId) -> usize {
    link.number() as usize
}

impl Sessions for LaneSessions {
    type Session = TunnelSession;

    fn session(&self, link: LinkId) -> Option<&TunnelSession> {
        self.get(link).map(AsRef::as_ref)
    }

    fn handshake(
        &self,
        datagram: &[u8],
        from: SocketAddr,
        replies: &mut Arena<Sealed>,
        now: Instant,
    ) -> Result<Option<LinkId>, Refusal> {
        let room = replies.room();
        if room.len() < HANDSHAKE_ROOM {
            return Err(Refusal::NoRoom);
        }
        let packet = match self.crypto.limiter.verify_packet(Some(from.ip()), datagram, room) {
            Ok(packet) => packet,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                let len = cookie.len();
                let about = Sealed { lane: self.lane, to: from, link: None, whole: false };
                replies.commit(len, about).map_err(|_| Refusal::NoRoom)?;
                return Err(Refusal::CookieRequired);
            }
            // Whoever does not know our public key cannot make this MAC.
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => return Err(Refusal::UnknownPeer),
            Err(TunnResult::Err(error)) => return Err(refusal_of(&error)),
            Err(_) => return Err(Refusal::MalformedDatagram),
        };
        let (link, proves) = match packet {
            Packet::HandshakeInit(initiation) => {
                let half = parse_handshake_anon(&self.crypto.key.secret, &self.crypto.key.public, &initiation)
                    .map_err(|_| Refusal::UnknownPeer)?;
                let stranger = || match self.blocked.load().contains(&half.peer_static_public) {
                    true => Refusal::BlockedPeer,
                    false => Refusal::UnknownPeer,
                };
                let link = *self.members.by_key.get(&half.peer_static_public).ok_or_else(stranger)?;
                (link, true)
            }
            Packet::HandshakeResponse(_) | Packet::PacketCookieReply(_) => match Message::parse(datagram) {
                Some(Message::HandshakeResponse(link)) => (link, true),
                Some(Message::CookieReply(link)) => (link, false),
                _ => return Err(Refusal::MalformedDatagram),
            },
            Packet::PacketData(_) => return Err(Refusal::MalformedDatagram),
        };
        let session = self.get(link).ok_or(Refusal::UnknownSession)?;
        session.take_handshake(datagram, from, replies, now)?;
        Ok(proves.then_some(link))
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
