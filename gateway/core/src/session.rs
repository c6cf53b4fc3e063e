//! [`Session`] and [`Sessions`]: what the core needs of cryptography, in batches.
//!
//! The `gateway` crate implements both with boringtun, the simulation with a pretend cipher. All three threads of a
//! lane call them, so they take `&self`; an implementation keeps its own peace inside.

use core::net::SocketAddr;

use api::time::Instant;

use crate::arena::Arena;
use crate::link::{LaneNumber, LinkId};
use crate::outbound::Outgoing;
use crate::refusal::Refusal;

pub use crate::inbound::Verdict;

/// A sealed datagram becomes this much longer than its packet: 16 bytes of header, 16 of tag, and padding to a multiple
/// of 16 (WireGuard whitepaper, 5.4.6).
pub const SEALED_OVERHEAD: usize = 16 + 16 + 15;

/// The longest handshake message (initiation, WireGuard whitepaper 5.4.2), and so the least room a session may ask for.
pub const HANDSHAKE_ROOM: usize = 148;

/// About a datagram to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// From which lane's socket.
    pub lane: LaneNumber,
    pub to: SocketAddr,
    /// `None` for a cookie reply: its receiver has not yet said who it is.
    pub link: Option<LinkId>,
    /// It must arrive whole or not at all: it asks how large a packet may be. A session writes `false`.
    pub whole: bool,
}

/// About a datagram that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub from: SocketAddr,
    /// Which link its receiver index names. The core writes this.
    pub link: Option<LinkId>,
    /// Why it was dropped, if it was. The core and the session write this.
    pub refused: Option<Refusal>,
}

impl Received {
    pub const fn from(from: SocketAddr) -> Self {
        Self { from, link: None, refused: None }
    }
}

/// About a packet that came out of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub link: LinkId,
    /// Where the datagram came from: the link's endpoint, if this is news.
    pub from: SocketAddr,
    /// What to do with it. A session writes [`Verdict::Unjudged`]; [`crate::Inbound`] judges.
    pub verdict: Verdict,
}

/// Packets of one link to be sealed.
#[derive(Debug)]
pub struct SealBatch<'a> {
    pub plain: &'a Arena<Outgoing>,
    /// Which packets of `plain`, in this order.
    pub chosen: &'a [u32],
    pub lane: LaneNumber,
    pub link: LinkId,
    pub to: SocketAddr,
    /// Where datagrams go, each with `Sealed { lane, to, link: Some(link), whole: false }`.
    pub sealed: &'a mut Arena<Sealed>,
}

/// Datagrams of one link to be opened.
#[derive(Debug)]
pub struct OpenBatch<'a> {
    /// What cannot be opened gets its `refused` written.
    pub datagrams: &'a mut Arena<Received>,
    /// Which of `datagrams`, in this order.
    pub chosen: &'a [u32],
    pub lane: LaneNumber,
    pub link: LinkId,
    /// Where packets go, each with its datagram's `from`. A keepalive is a packet of no bytes, so that it counts as heard.
    pub plain: &'a mut Arena<Opened>,
    /// What the protocol wants sent at once, such as a keepalive or a new handshake.
    pub replies: &'a mut Arena<Sealed>,
}

/// The WireGuard protocol with one peer.
pub trait Session {
    /// Whether a packet can be sealed now, without waiting for a handshake. An end that only answered an initiation cannot
    /// yet: it may have been an old one, sent again; the first data under the new keys proves them.
    fn is_established(&self, now: Instant) -> bool;

    /// Seals packets in order. Returns how many were sealed: all, or as many as came before the keys were gone or `sealed`
    /// was full. Nothing is queued for later.
    fn seal_batch(&self, batch: SealBatch<'_>, now: Instant) -> usize;

    /// Opens datagrams in order, refusing each that is not authentic, is replayed, or belongs to a key that is gone.
    fn open_batch(&self, batch: OpenBatch<'_>, now: Instant);

    /// Writes a handshake initiation to `to`, also when one is under way. The core asks at most once a second.
    fn initiate(&self, to: SocketAddr, out: &mut Arena<Sealed>, now: Instant);

    /// Lets the protocol's timers run: keepalives and rekeys, to `to`. Called every [`crate::paths::TICK`].
    fn tick(&self, to: SocketAddr, out: &mut Arena<Sealed>, now: Instant);

    /// When the keys in use were agreed.
    fn last_handshake(&self) -> Option<Instant>;
}

/// All sessions of one lane.
pub trait Sessions {
    type Session: Session + ?Sized;

    /// The session of a link of this lane; `None` when the link is not, or no longer, there.
    fn session(&self, link: LinkId) -> Option<&Self::Session>;

    /// Takes a handshake initiation, response or cookie reply: checks its MACs, asks for a cookie under load, finds the
    /// link by static key or receiver index, and writes the answer to `replies`.
    ///
    /// Gives the link when the sender proved to be its peer, `None` when nothing is proven yet (a cookie changed hands).
    /// Nothing is written for a stranger: refuse with [`Refusal::UnknownPeer`] in silence.
    fn handshake(
        &self,
        datagram: &[u8],
        from: SocketAddr,
        replies: &mut Arena<Sealed>,
        now: Instant,
    ) -> Result<Option<LinkId>, Refusal>;
}
