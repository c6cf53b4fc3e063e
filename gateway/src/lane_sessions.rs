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

use crate::session::{LaneKey, LaneKeys, TunnelSession, refusal_of};

/// Handshakes a second before senders are asked to prove their address: every gateway of 100 clusters may call once a
/// second without being asked, and a flood costs a tenth of a core at most (each takes about 100 µs).
const HANDSHAKES_PER_SECOND: u64 = 200;

/// All sessions of a lane at one moment. Immutable and cheap to clone: a change of peers makes a new value that shares
/// every session that stays, so nothing is dropped that need not be.
#[derive(Clone)]
pub(crate) struct LaneSessions {
    lane: LaneNumber,
    /// The current key's first; while keys rotate, the next one's too.
    crypto: Vec<Arc<LaneCrypto>>,
    members: Arc<Members>,
    blocked: BlockedKeys,
}

/// The keys of peers that the operator blocked: their handshakes are refused as any stranger's, but under their own name.
/// One for all lanes.
pub(crate) type BlockedKeys = Arc<ArcSwap<BTreeSet<[u8; 32]>>>;

struct LaneCrypto {
    key: LaneKey,
    handshakes_per_second: u64,
    /// Verifies handshakes once and asks for cookies under load.
    limiter: RateLimiter,
    /// For the sessions, which would verify again: never under load.
    unlimited: Arc<RateLimiter>,
}

#[derive(Clone, Default)]
struct Members {
    /// By link number; links are small numbers.
    by_link: Vec<Option<Arc<TunnelSession>>>,
    /// By our key and theirs.
    by_keys: BTreeMap<(TunnelKey, TunnelKey), LinkId>,
}

impl LaneCrypto {
    fn new(key: LaneKey, handshakes_per_second: u64) -> Arc<Self> {
        let limiter = RateLimiter::new(&key.public, handshakes_per_second);
        let unlimited = Arc::new(RateLimiter::new(&key.public, u64::MAX));
        Arc::new(Self { key, handshakes_per_second, limiter, unlimited })
    }
}

impl LaneSessions {
    pub(crate) fn new(lane: LaneNumber, keys: &LaneKeys, blocked: BlockedKeys) -> Self {
        Self { blocked, ..Self::with_limit(lane, keys, HANDSHAKES_PER_SECOND) }
    }

    fn with_limit(lane: LaneNumber, keys: &LaneKeys, handshakes_per_second: u64) -> Self {
        let crypto = keys.all().map(|key| LaneCrypto::new(key.clone(), handshakes_per_second)).collect();
        Self { lane, crypto, members: Arc::default(), blocked: BlockedKeys::default() }
    }

    /// The same with these keys of ours. The links of keys that are not among them must be removed by the next
    /// [`changed`](Self::changed).
    pub(crate) fn with_keys(&self, keys: &LaneKeys) -> Self {
        let limit = self.crypto.first().map_or(HANDSHAKES_PER_SECOND, |crypto| crypto.handshakes_per_second);
        let held = |key: &LaneKey| self.crypto.iter().find(|crypto| crypto.key == *key).cloned();
        let crypto = keys.all().map(|key| held(key).unwrap_or_else(|| LaneCrypto::new(key.clone(), limit)));
        Self { crypto: crypto.collect(), ..self.clone() }
    }

    /// The same with some links gone and others new. Links of other lanes are passed over.
    pub(crate) fn changed(&self, removed: &[LinkId], added: &[Link]) -> Self {
        let mut next = self.clone();
        let members = Arc::make_mut(&mut next.members);
        for link in removed {
            if let Some(session) = members.by_link.get_mut(slot_of(*link)).and_then(Option::take) {
                members.by_keys.remove(&(session.link().own_key, session.link().public_key));
            }
        }
        for link in added.iter().filter(|link| link.lane == self.lane) {
            let Some(crypto) = self.crypto.iter().find(|crypto| crypto.key.public() == link.own_key) else { continue };
            let slot = slot_of(link.id);
            if members.by_link.len() <= slot {
                members.by_link.resize(slot + 1, None);
            }
            let session = TunnelSession::new(&crypto.key, link, &crypto.unlimited);
            members.by_link[slot] = Some(Arc::new(session));
            members.by_keys.insert((link.own_key, link.public_key), link.id);
        }
        next
    }

    pub(crate) fn get(&self, link: LinkId) -> Option<&Arc<TunnelSession>> {
        self.members.by_link.get(slot_of(link))?.as_ref()
    }

    /// Lets a new second's worth of handshakes in. Called about once a second.
    pub(crate) fn reset_limit(&self) {
        for crypto in &self.crypto {
            crypto.limiter.reset_count();
            crypto.unlimited.reset_count();
        }
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
        if replies.room().len() < HANDSHAKE_ROOM {
            return Err(Refusal::NoRoom);
        }
        // Whoever knows none of our public keys cannot make this MAC.
        let mut refused = Refusal::UnknownPeer;
        let mut verified = None;
        for crypto in &self.crypto {
            match crypto.limiter.verify_packet(Some(from.ip()), datagram, replies.room()) {
                Ok(packet) => {
                    verified = Some((crypto, packet));
                    break;
                }
                Err(TunnResult::WriteToNetwork(cookie)) => {
                    let len = cookie.len();
                    let about = Sealed { lane: self.lane, to: from, link: None, whole: false };
                    replies.commit(len, about).map_err(|_| Refusal::NoRoom)?;
                    return Err(Refusal::CookieRequired);
                }
                // Made for the other key, perhaps.
                Err(TunnResult::Err(WireGuardError::InvalidMac)) => {}
                Err(TunnResult::Err(error)) => refused = refusal_of(&error),
                Err(_) => refused = Refusal::MalformedDatagram,
            }
        }
        let (crypto, packet) = verified.ok_or(refused)?;
        let (link, proves) = match packet {
            Packet::HandshakeInit(initiation) => {
                let half = parse_handshake_anon(&crypto.key.secret, &crypto.key.public, &initiation)
                    .map_err(|_| Refusal::UnknownPeer)?;
                let stranger = || match self.blocked.load().contains(&half.peer_static_public) {
                    true => Refusal::BlockedPeer,
                    false => Refusal::UnknownPeer,
                };
                let keys = (crypto.key.public(), TunnelKey(half.peer_static_public));
                let link = *self.members.by_keys.get(&keys).ok_or_else(stranger)?;
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
