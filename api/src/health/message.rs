//! How agents (nodes, DNS servers) ask a gateway for its [`HealthReport`], and how it answers: over UDP, authenticated
//! with a key that this agent and the gateways alone have, so that no agent can forge another's health.
//!
//! All numbers are big-endian. Every message ends in 16 bytes of HMAC-SHA256 (RFC 2104, truncated as its section 5
//! allows) over everything before.
//!
//! | request | bytes | | reply, one of several pages | bytes |
//! |---|---|---|---|---|
//! | `TmbH` | 4 | | `TmbH` | 4 |
//! | version, 1 | 1 | | version, 1 | 1 |
//! | 1 | 1 | | 2 | 1 |
//! | flags: 1 draining was seen | 1 | | flags: 1 draining | 1 |
//! | length of the agent's name | 1 | | page, counted from 0 | 1 |
//! | key id | 4 | | number of pages | 1 |
//! | nonce | 16 | | number of peers on this page | 1 |
//! | agent's name | 1 to 253 | | slot | 2 |
//! | authenticator | 16 | | key id | 4 |
//! | | | | nonce of the request | 16 |
//! | | | | peers | 17 and the length of an id each |
//! | | | | authenticator | 16 |
//!
//! A peer is: length of its cluster id (1), id, reachability (1), reason (1), age in milliseconds (4), round trip in
//! microseconds (4, all ones for none), loss in thousandths (2), MTU (2), lanes that reach it (2, bit i for lane i).
//!
//! A reply is only believed if it carries the nonce of a request just made, so an old one cannot be played again. A
//! page that is lost costs its peers one round.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::{HealthReport, PathReason, PeerHealth, Reachability};
use crate::ClusterId;

/// The largest UDP payload that every IPv6 path carries: 1280 less 40 and 8.
pub const MAX_MESSAGE: usize = 1232;
/// Kubernetes names of nodes are DNS subdomains.
pub const MAX_AGENT_NAME: usize = 253;

const MAGIC: &[u8; 4] = b"TmbH";
const VERSION: u8 = 1;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const AUTHENTICATOR: usize = 16;
const REPLY_HEADER: usize = 32;
/// What one byte can count.
const MAX_PAGES: usize = 255;
const NO_ROUND_TRIP: u32 = u32::MAX;

/// A number used once: the asking agent draws it at random for each request.
pub type Nonce = [u8; 16];

/// Why a message is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    #[error("not a health message of a version known here")]
    Unreadable,
    #[error(
        "authenticated with key {0}, which is not known here: the master key was rotated and this agent has not heard yet"
    )]
    UnknownKey(u32),
    #[error("the authenticator is wrong: the agent's key is not the one the gateways derive, or somebody made this up")]
    Forged,
    #[error("answers another request than the last")]
    WrongNonce,
}

/// The secret from which the gateways derive every agent's key. Only gateways and the controller have it.
#[derive(Clone, PartialEq, Eq)]
pub struct MasterKey {
    /// Names the key in packets, so that it can be replaced while agents still use the one before.
    pub id: u32,
    pub secret: [u8; 32],
}

/// One agent's key.
#[derive(Clone, PartialEq, Eq)]
pub struct AgentKey {
    pub id: u32,
    pub secret: [u8; 32],
}

impl MasterKey {
    /// The key of an agent: HKDF-SHA256 (RFC 5869) over the master, bound to its id and the agent's name.
    pub fn agent_key(&self, agent: &str) -> AgentKey {
        let id = self.id.to_be_bytes();
        let info = [b"tombolo health agent v1".as_slice(), &id, agent.as_bytes()];
        let mut secret = [0; 32];
        Hkdf::<Sha256>::new(None, &self.secret)
            .expand_multi_info(&info, &mut secret)
            .expect("HKDF-SHA256 gives up to 8160 bytes");
        AgentKey { id: self.id, secret }
    }
}

macro_rules! key_text {
    ($name:ident) => {
        impl $name {
            /// As it stands in a Secret or a file: the id, a colon, and the secret in base64.
            pub fn to_text(&self) -> String {
                alloc::format!("{}:{}", self.id, STANDARD.encode(self.secret))
            }

            /// Reads [`to_text`](Self::to_text), white space around it aside.
            pub fn from_text(text: &str) -> Option<Self> {
                let (id, secret) = text.trim().split_once(':')?;
                let secret = STANDARD.decode(secret).ok()?.try_into().ok()?;
                Some(Self { id: id.parse().ok()?, secret })
            }
        }

        /// Never shows the secret.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.id)
            }
        }
    };
}
key_text!(MasterKey);
key_text!(AgentKey);

/// An agent's question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthRequest {
    pub agent: String,
    pub nonce: Nonce,
    /// The agent knows that this gateway is going away, and uses another.
    pub saw_draining: bool,
}

impl HealthRequest {
    /// The datagram to send. A name longer than [`MAX_AGENT_NAME`] is cut, and then not believed by the gateway.
    pub fn encode(&self, key: &AgentKey) -> Vec<u8> {
        let name = self.agent.as_bytes();
        let name = name.get(..MAX_AGENT_NAME).unwrap_or(name);
        let mut bytes = Vec::with_capacity(28 + name.len() + AUTHENTICATOR);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[VERSION, REQUEST, u8::from(self.saw_draining), name.len() as u8]);
        bytes.extend_from_slice(&key.id.to_be_bytes());
        bytes.extend_from_slice(&self.nonce);
        bytes.extend_from_slice(name);
        authenticate(&mut bytes, key);
        bytes
    }
}

/// A request as it arrived: it says who asks, and nothing proves it yet.
#[derive(Clone, Copy, Debug)]
pub struct UnverifiedRequest<'a> {
    bytes: &'a [u8],
    pub key_id: u32,
    pub agent: &'a str,
}

impl<'a> UnverifiedRequest<'a> {
    pub fn decode(bytes: &'a [u8]) -> Result<Self, InvalidMessage> {
        let mut reader = Reader::new(bytes, REQUEST)?;
        let [_flags, name_len] = reader.take()?;
        let key_id = u32::from_be_bytes(reader.take()?);
        let _nonce: Nonce = reader.take()?;
        let name = reader.slice(usize::from(name_len))?;
        let agent = core::str::from_utf8(name).map_err(|_| InvalidMessage::Unreadable)?;
        if agent.is_empty() || agent.len() > MAX_AGENT_NAME || reader.left() != AUTHENTICATOR {
            return Err(InvalidMessage::Unreadable);
        }
        Ok(Self { bytes, key_id, agent })
    }

    /// Believes the request if `key` made its authenticator.
    pub fn verify(self, key: &AgentKey) -> Result<HealthRequest, InvalidMessage> {
        if key.id != self.key_id {
            return Err(InvalidMessage::UnknownKey(self.key_id));
        }
        verify(self.bytes, key)?;
        let mut reader = Reader::new(self.bytes, REQUEST)?;
        let [flags, _] = reader.take()?;
        let _: [u8; 4] = reader.take()?;
        Ok(HealthRequest { agent: self.agent.to_string(), nonce: reader.take()?, saw_draining: flags & 1 != 0 })
    }
}

impl HealthReport {
    /// The datagrams that answer a request, none longer than [`MAX_MESSAGE`]. Peers that do not fit into 255 pages (more
    /// than 3000) are left out, and so unknown to the agent.
    pub fn encode(&self, nonce: &Nonce, key: &AgentKey) -> Vec<Vec<u8>> {
        let mut bodies: Vec<(u8, Vec<u8>)> = alloc::vec![(0, Vec::new())];
        for peer in &self.peers {
            let entry = encode_peer(peer);
            let room = MAX_MESSAGE - REPLY_HEADER - AUTHENTICATOR;
            match bodies.last_mut() {
                Some((count, body)) if body.len() + entry.len() <= room => {
                    *count += 1;
                    body.extend_from_slice(&entry);
                }
                _ => bodies.push((1, entry)),
            }
        }
        bodies.truncate(MAX_PAGES);
        let pages = bodies.len() as u8;
        let page = |(number, (count, body)): (usize, &(u8, Vec<u8>))| {
            let mut bytes = Vec::with_capacity(REPLY_HEADER + body.len() + AUTHENTICATOR);
            bytes.extend_from_slice(MAGIC);
            bytes.extend_from_slice(&[VERSION, REPLY, u8::from(self.draining), number as u8, pages, *count]);
            bytes.extend_from_slice(&self.slot.to_be_bytes());
            bytes.extend_from_slice(&key.id.to_be_bytes());
            bytes.extend_from_slice(nonce);
            bytes.extend_from_slice(body);
            authenticate(&mut bytes, key);
            bytes
        };
        bodies.iter().enumerate().map(page).collect()
    }
}

/// One page of an answer. Each stands for itself: what it says of its peers is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyPage {
    pub page: u8,
    pub pages: u8,
    pub slot: u16,
    pub draining: bool,
    pub peers: Vec<PeerHealth>,
}

impl ReplyPage {
    /// Believes a page if `key` made its authenticator and it answers the request with this nonce.
    pub fn decode(bytes: &[u8], key: &AgentKey, nonce: &Nonce) -> Result<Self, InvalidMessage> {
        let mut reader = Reader::new(bytes, REPLY)?;
        let [flags, page, pages, count] = reader.take()?;
        let slot = u16::from_be_bytes(reader.take()?);
        let key_id = u32::from_be_bytes(reader.take()?);
        if key_id != key.id {
            return Err(InvalidMessage::UnknownKey(key_id));
        }
        verify(bytes, key)?;
        if reader.take::<16>()? != *nonce {
            return Err(InvalidMessage::WrongNonce);
        }
        let mut peers = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            peers.push(decode_peer(&mut reader)?);
        }
        if page >= pages || reader.left() != AUTHENTICATOR {
            return Err(InvalidMessage::Unreadable);
        }
        Ok(Self { page, pages, slot, draining: flags & 1 != 0, peers })
    }
}

/// The pages of one answer, put together as they come.
#[derive(Clone, Debug, Default)]
pub struct ReplyPages {
    pages: Vec<Option<ReplyPage>>,
}

impl ReplyPages {
    /// Takes a page; gives the whole report once the last missing one is there. Start anew for each nonce.
    pub fn add(&mut self, page: ReplyPage) -> Option<HealthReport> {
        if self.pages.len() != usize::from(page.pages) {
            self.pages = alloc::vec![None; usize::from(page.pages)];
        }
        let (slot, draining, number) = (page.slot, page.draining, usize::from(page.page));
        *self.pages.get_mut(number)? = Some(page);
        if self.pages.iter().any(Option::is_none) {
            return None;
        }
        let peers = self.pages.drain(..).flatten().flat_map(|page| page.peers).collect();
        Some(HealthReport { slot, draining, peers })
    }
}

fn encode_peer(peer: &PeerHealth) -> Vec<u8> {
    let id = peer.cluster.as_str().as_bytes();
    let age = u32::try_from(peer.age.as_millis()).unwrap_or(u32::MAX);
    let round_trip = peer
        .round_trip
        .map_or(NO_ROUND_TRIP, |time| u32::try_from(time.as_micros()).unwrap_or(NO_ROUND_TRIP).min(NO_ROUND_TRIP - 1));
    let mut entry = Vec::with_capacity(17 + id.len());
    // A cluster id has at most 63 characters.
    entry.push(id.len() as u8);
    entry.extend_from_slice(id);
    entry.extend_from_slice(&[reachability_code(peer.reachability), reason_code(peer.reason)]);
    entry.extend_from_slice(&age.to_be_bytes());
    entry.extend_from_slice(&round_trip.to_be_bytes());
    entry.extend_from_slice(&peer.loss_permille.to_be_bytes());
    entry.extend_from_slice(&peer.mtu.to_be_bytes());
    entry.extend_from_slice(&peer.lanes.to_be_bytes());
    entry
}

fn decode_peer(reader: &mut Reader<'_>) -> Result<PeerHealth, InvalidMessage> {
    let [len] = reader.take()?;
    let id = core::str::from_utf8(reader.slice(usize::from(len))?).map_err(|_| InvalidMessage::Unreadable)?;
    let cluster = ClusterId::new(id).map_err(|_| InvalidMessage::Unreadable)?;
    let [reachability, reason] = reader.take()?;
    let reachability = [Reachability::Unknown, Reachability::Up, Reachability::Down]
        .into_iter()
        .find(|known| reachability_code(*known) == reachability)
        .ok_or(InvalidMessage::Unreadable)?;
    let reason = REASONS.into_iter().find(|known| reason_code(*known) == reason).ok_or(InvalidMessage::Unreadable)?;
    let age = Duration::from_millis(u32::from_be_bytes(reader.take()?).into());
    let round_trip = u32::from_be_bytes(reader.take()?);
    Ok(PeerHealth {
        cluster,
        reachability,
        reason,
        age,
        round_trip: (round_trip != NO_ROUND_TRIP).then(|| Duration::from_micros(round_trip.into())),
        loss_permille: u16::from_be_bytes(reader.take()?),
        mtu: u16::from_be_bytes(reader.take()?),
        lanes: u16::from_be_bytes(reader.take()?),
    })
}

const fn reachability_code(reachability: Reachability) -> u8 {
    match reachability {
        Reachability::Unknown => 0,
        Reachability::Up => 1,
        Reachability::Down => 2,
    }
}

const REASONS: [PathReason; 6] = [
    PathReason::Answering,
    PathReason::NoHandshakeYet,
    PathReason::SilentPeer,
    PathReason::PeerDoesNotHearUs,
    PathReason::PeerDraining,
    PathReason::DrainedHere,
];

const fn reason_code(reason: PathReason) -> u8 {
    match reason {
        PathReason::Answering => 0,
        PathReason::NoHandshakeYet => 1,
        PathReason::SilentPeer => 2,
        PathReason::PeerDoesNotHearUs => 3,
        PathReason::PeerDraining => 4,
        PathReason::DrainedHere => 5,
    }
}

fn hmac(key: &AgentKey, bytes: &[u8]) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&key.secret).expect("HMAC takes keys of any length");
    mac.update(bytes);
    mac
}

fn authenticate(bytes: &mut Vec<u8>, key: &AgentKey) {
    let tag = hmac(key, bytes).finalize().into_bytes();
    bytes.extend_from_slice(&tag[..AUTHENTICATOR]);
}

fn verify(bytes: &[u8], key: &AgentKey) -> Result<(), InvalidMessage> {
    let (message, tag) = bytes.split_last_chunk::<AUTHENTICATOR>().ok_or(InvalidMessage::Unreadable)?;
    hmac(key, message).verify_truncated_left(tag).map_err(|_| InvalidMessage::Forged)
}

/// Walks over foreign bytes; whatever is missing is an error, never a panic.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Checks what both kinds of message begin with.
    fn new(bytes: &'a [u8], kind: u8) -> Result<Self, InvalidMessage> {
        let mut reader = Self { rest: bytes };
        let magic: [u8; 4] = reader.take()?;
        if magic != *MAGIC || reader.take()? != [VERSION, kind] || bytes.len() > MAX_MESSAGE {
            return Err(InvalidMessage::Unreadable);
        }
        Ok(reader)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], InvalidMessage> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(InvalidMessage::Unreadable)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn slice(&mut self, len: usize) -> Result<&'a [u8], InvalidMessage> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(InvalidMessage::Unreadable)?;
        self.rest = rest;
        Ok(taken)
    }

    fn left(&self) -> usize {
        self.rest.len()
    }
}

#[cfg(test)]
mod tests;
