//! Our nftables table as typed values: sets, counters, chains, rules, expressions.
//!
//! What the expressions mean is in the kernel's `nf_tables.h`; the names here are those of `nft(8)` where it has one.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};

use crate::Family;

/// Name of our table, in the family `inet`.
pub const NAME: &str = "tombolo";

/// A table without the elements of its sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub sets: BTreeMap<String, SetShape>,
    pub counters: BTreeSet<String>,
    pub chains: BTreeMap<String, Chain>,
}

impl Table {
    /// Whether `self` can be put in place of `other` without taking the table away: what cannot be changed in place
    /// (sets' types, chains' hooks) is the same wherever both have it.
    pub fn fits(&self, other: &Self) -> bool {
        self.sets.iter().all(|(name, shape)| other.sets.get(name).is_none_or(|there| there == shape))
            && self
                .chains
                .iter()
                .all(|(name, chain)| other.chains.get(name).is_none_or(|there| there.hook == chain.hook))
    }
}

/// What a set or map of the table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SetShape {
    /// Length of a key in bytes, each field padded to four.
    pub key: u32,
    pub value: SetValue,
    /// Whether elements are intervals.
    pub interval: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SetValue {
    /// A plain set.
    Nothing,
    /// A map to a verdict.
    Verdict,
    /// A map to as many bytes.
    Bytes(u32),
}

/// A chain; with a hook, packets come to it by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

/// Where a base chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hook {
    pub kind: ChainKind,
    pub point: HookPoint,
    /// Smaller is earlier.
    pub priority: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainKind {
    Filter,
    Nat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HookPoint {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// A rule, told from others by a tag made of its expressions and kept in the kernel beside it.
///
/// An observed rule has its tag only: two rules are equal when their tags are.
#[derive(Clone, Debug)]
pub struct Rule {
    pub tag: u64,
    pub expressions: Vec<Expression>,
}

impl Rule {
    pub fn new(expressions: Vec<Expression>) -> Self {
        let mut hasher = Fnv(FNV_OFFSET);
        expressions.hash(&mut hasher);
        Self { tag: hasher.finish(), expressions }
    }

    /// A rule found in the kernel.
    pub const fn observed(tag: u64) -> Self {
        Self { tag, expressions: Vec::new() }
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.tag == other.tag
    }
}

impl Eq for Rule {}

/// One of the sixteen four-byte registers a rule computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(pub u8);

/// One step of a rule. A comparison or lookup that fails ends the rule; the next one follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expression {
    Meta {
        key: Meta,
        to: Register,
    },
    Payload {
        base: Base,
        offset: u32,
        length: u32,
        to: Register,
    },
    Immediate {
        to: Register,
        data: Vec<u8>,
    },
    Compare {
        from: Register,
        equal: bool,
        data: Vec<u8>,
    },
    /// Keeps the bits of the mask.
    Mask {
        register: Register,
        mask: Vec<u8>,
    },
    /// Into network byte order, two bytes.
    NetworkOrder16 {
        register: Register,
    },
    Lookup {
        set: String,
        from: Register,
        inverted: bool,
    },
    /// Looks a value up in a map; a miss ends the rule.
    Map {
        set: String,
        from: Register,
        to: Register,
    },
    /// Looks a verdict up in a map; a miss ends the rule.
    VerdictMap {
        set: String,
        from: Register,
    },
    ConntrackState {
        to: Register,
    },
    ConntrackStatus {
        to: Register,
    },
    /// Where the connection's first packet was sent, before any translation.
    OriginalDestination {
        family: Family,
        to: Register,
    },
    /// Kind of the source address as the routing tables see it (`fib saddr type`).
    SourceKind {
        to: Register,
    },
    /// One when the way back to the source leads out of the device the packet came by, else zero.
    SourceBelongsToDevice {
        to: Register,
    },
    /// A number below `modulus`, in host order.
    Random {
        modulus: u32,
        to: Register,
    },
    /// A hash below `modulus` of `length` bytes, in host order.
    Hash {
        from: Register,
        length: u32,
        modulus: u32,
        to: Register,
    },
    /// The largest TCP segment the route allows both ways, in host order.
    RouteMss {
        to: Register,
    },
    /// Lowers the maximum segment size a SYN announces to the value of the register; never raises it.
    ClampMss {
        from: Register,
    },
    /// Adds to the counter of that name.
    Count(String),
    Log {
        prefix: String,
        group: u16,
    },
    DestinationNat {
        family: Family,
        address: Register,
        port: Register,
    },
    SourceNat {
        family: Family,
        address: Register,
    },
    Masquerade,
    Notrack,
    RejectTcpReset,
    RejectPortUnreachable,
    Verdict(Verdict),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Meta {
    /// Address family of the packet, one byte.
    Family,
    /// Transport protocol, one byte.
    Transport,
    /// Name of the device the packet came by, sixteen bytes.
    InputDevice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    Network,
    Transport,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// FNV-1a, 64 bits (RFC 9923): tags need to differ by accident only, and to be the same on every start.
struct Fnv(u64);

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        }
    }
}
