//! [`Event`]: what the operator should know of a link, for the journal on disk.

use core::fmt;
use core::net::SocketAddr;

use api::ClusterId;
use api::time::Instant;

use crate::link::{LaneNumber, LinkId};
use crate::path::{Cause, PathState};
use crate::transit::is_by_hub;

/// Something about a link changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub at: Instant,
    pub link: LinkId,
    pub lane: LaneNumber,
    pub cluster: ClusterId,
    pub slot: u16,
    pub kind: EventKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The path went from one state to another, and why.
    PathChanged { from: PathState, to: PathState, cause: Cause },
    /// Authenticated packets now come from somewhere else.
    EndpointMoved { from: Option<SocketAddr>, to: SocketAddr },
    /// The other gateway said that it is going away, or that it stays after all.
    PeerDraining(bool),
    /// The other gateway is a new process.
    PeerRestarted,
    /// Another size of packet passes than before, in bytes inside the tunnel.
    MtuChanged { from: u16, to: u16 },
    /// Not even the smallest MTU of IPv6 passes whole, or it does again.
    PathTooNarrow(bool),
}

impl EventKind {
    /// A metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PathChanged { to: PathState::Up, .. } => "PathUp",
            Self::PathChanged { to: PathState::Down, .. } => "PathDown",
            Self::PathChanged { to: PathState::Unknown, .. } => "PathUnknown",
            Self::EndpointMoved { .. } => "EndpointMoved",
            Self::PeerDraining(true) => "PeerDraining",
            Self::PeerDraining(false) => "PeerStays",
            Self::PeerRestarted => "PeerRestarted",
            Self::MtuChanged { .. } => "MtuChanged",
            Self::PathTooNarrow(true) => "PathTooNarrow",
            Self::PathTooNarrow(false) => "PathWideEnough",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} gateway {} lane {}: {}", self.cluster, self.slot, self.lane.0, self.kind.name())?;
        match self.kind {
            EventKind::PathChanged { cause, .. } => write!(f, ": {}", cause.sentence()),
            EventKind::EndpointMoved { from: Some(from), to } => write!(f, ": from {} to {}", Place(from), Place(to)),
            EventKind::EndpointMoved { from: None, to } => write!(f, ": to {}", Place(to)),
            EventKind::MtuChanged { from, to } => write!(f, ": from {from} to {to}"),
            EventKind::PeerDraining(_) | EventKind::PathTooNarrow(_) | EventKind::PeerRestarted => Ok(()),
        }
    }
}

/// An endpoint in words: a port that stands for a hub says nothing to an operator.
struct Place(SocketAddr);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_by_hub(self.0) { f.write_str("a hub") } else { self.0.fmt(f) }
    }
}
