//! What is known of a link, in words an operator reads.

use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;

use api::health::{PathReason, Reachability};
use api::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathState {
    /// Nothing was measured yet. Not down, and never healthy.
    Unknown,
    Up,
    Down,
}

/// Why a path is in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No session yet, or no probe answered yet.
    NoHandshakeYet,
    Answering,
    SilentPeer,
    /// We hear the peer, it does not hear us.
    PeerDoesNotHearUs,
    /// The other end is another WireGuard program: a handshake is all one can see.
    HandshakeAgreed,
    HandshakeExpired,
}

impl Cause {
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NoHandshakeYet => {
                "no handshake was answered yet; check the endpoint, the keys, and that UDP gets through"
            }
            Self::Answering => "probes are answered",
            Self::SilentPeer => "nothing authentic came for too long; check the peer's gateway and the network between",
            Self::PeerDoesNotHearUs => "the peer is heard but does not hear us; check what drops UDP in our direction",
            Self::HandshakeAgreed => "a handshake was agreed; this peer is not one that answers probes",
            Self::HandshakeExpired => "no handshake for three minutes; check the peer",
        }
    }

    pub const fn reason(self) -> PathReason {
        match self {
            Self::NoHandshakeYet => PathReason::NoHandshakeYet,
            Self::Answering | Self::HandshakeAgreed => PathReason::Answering,
            Self::SilentPeer | Self::HandshakeExpired => PathReason::SilentPeer,
            Self::PeerDoesNotHearUs => PathReason::PeerDoesNotHearUs,
        }
    }
}

impl From<PathState> for Reachability {
    fn from(state: PathState) -> Self {
        match state {
            PathState::Unknown => Self::Unknown,
            PathState::Up => Self::Up,
            PathState::Down => Self::Down,
        }
    }
}

impl fmt::Display for PathState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unknown => "Unknown",
            Self::Up => "Up",
            Self::Down => "Down",
        })
    }
}

/// What an operator sees of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathStatus {
    pub state: PathState,
    pub cause: Cause,
    /// When this state began.
    pub since: Instant,
    pub endpoint: Option<SocketAddr>,
    /// An average over many answers, and of the latest one.
    pub round_trip: Option<Duration>,
    pub last_round_trip: Option<Duration>,
    /// Lost probes of the last 64, in thousandths.
    pub loss_permille: u16,
    /// Since the link exists. A probe counts as lost when 64 later ones were sent.
    pub probes_sent: u64,
    pub probes_lost: u64,
    /// When anything authentic last came.
    pub last_heard: Option<Instant>,
    pub peer_draining: bool,
    /// Largest inner packet that passes, at least 1280.
    pub mtu: u16,
    /// Since when, by measurement; `None` while it is only what is configured.
    pub mtu_measured_since: Option<Instant>,
    /// Whether not even 1280 bytes pass whole: outer packets are then cut on their way.
    pub is_too_narrow: bool,
}
