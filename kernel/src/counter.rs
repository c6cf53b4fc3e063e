//! What our table counts: refused packets, and connections to clusterset addresses.

use std::collections::BTreeMap;

use kernel_core::Refusal;

/// What one named counter of the table has counted since the table was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// Everything counted since the table was made, or since a peer was known. The counts outlive whoever reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub refused: BTreeMap<Refusal, Counter>,
    /// Connections that were given to an endpoint, by the cluster it is of.
    pub connections: BTreeMap<String, u64>,
}
