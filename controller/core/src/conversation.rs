//! The sync conversation as two state machines, one for each end. No socket, no clock: messages and the time go in,
//! messages and what was learned come out.
//!
//! ```text
//! import side                         export side
//! Ask {token, own record}      ──▶
//!                              ◀──   Answer {own record, resumed}
//!                              ◀──   Page, Page, Page last      (a snapshot, unless resumed)
//!                              ◀──   Delta, Delta, Records, …
//! Remember {older exports}     ──▶
//! Trust {identities}           ──▶
//! Alive {what it holds}        ◀─▶   Alive
//! ```

mod export_side;
mod import_side;
mod pulse;

use alloc::string::String;

use crate::message::VERSIONS;

pub use export_side::{ExportHeard, ExportSide};
pub use import_side::{ImportHeard, ImportSide};
pub use pulse::{HEARTBEAT, OVERDUE_AFTER, SILENT_AFTER};

/// Why an end of the conversation ends it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("the peer speaks versions {0} to {1} of the sync protocol, this program {ours_low} to {ours_high}: update the older one", ours_low = VERSIONS.0, ours_high = VERSIONS.1)]
    NoCommonVersion(u16, u16),
    #[error("the peer sent '{0}' where the protocol has no place for it")]
    OutOfTurn(&'static str),
    #[error("the peer's snapshot is more than twice what it may say in all")]
    SnapshotTooLarge,
    #[error("the peer remembers more exports of this cluster than there can have been")]
    RemembersTooMuch,
    #[error("the peer names more identities of this cluster than a ClusterPeer may")]
    TrustsTooMany,
    #[error("nothing was heard of the peer for {} s", SILENT_AFTER.as_secs())]
    Silent,
    #[error("the peer ended the conversation: {0}")]
    Refused(String),
}

impl Ended {
    /// A label for counters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoCommonVersion(..) => "NoCommonVersion",
            Self::OutOfTurn(_) => "OutOfTurn",
            Self::SnapshotTooLarge => "SnapshotTooLarge",
            Self::RemembersTooMuch => "RemembersTooMuch",
            Self::TrustsTooMany => "TrustsTooMany",
            Self::Silent => "Silent",
            Self::Refused(_) => "Refused",
        }
    }
}

/// The highest version both speak.
fn common_version(theirs: (u16, u16)) -> Option<u16> {
    let highest = theirs.1.min(VERSIONS.1);
    (highest >= theirs.0.max(VERSIONS.0)).then_some(highest)
}

#[cfg(test)]
mod tests;
