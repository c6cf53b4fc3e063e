//! What is known of the talk with each peer.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use api::keys::IdentityKey;
use api::time::WallTime;

use crate::advertisement::ContentHash;

/// What is known of the talk with one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Talk {
    /// A conversation is open and has brought everything.
    pub synced: bool,
    pub ever_synced: bool,
    /// Why the last conversation ended; empty before the first.
    pub ended: String,
    /// What of its records was refused, by reason.
    pub refused_records: BTreeMap<&'static str, String>,
    /// When it became synced, or stopped to be.
    pub since: Option<WallTime>,
    /// Which of our identities it says to trust.
    pub trusts: Vec<IdentityKey>,
    /// It asks us, now: what it says to have taken of what we say.
    pub taken: Option<Taken>,
}

/// What a peer says to have taken of what we say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The content of our advertisement.
    pub holding: Option<ContentHash>,
    /// The generation of our record.
    pub record: Option<u64>,
}
