//! [`Problem`]: what is wrong with an object, by name. The object's other parts, and all other objects, go on.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::input::Key;

/// What could not be used, and what to check.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// A text that should be an address.
    BadAddress(String),
    /// A text that should be a prefix.
    BadPrefix(String),
    BadClusterId(String),
    /// Neither TCP, UDP nor SCTP.
    BadProtocol(String),
    /// Outside 1 to 65535.
    BadPort(i64),
    BadDevice(String),
    /// A ClusterPeer without a record that a trusted identity signed.
    NoRecord,
    /// What the record claims and is not in force.
    PrefixRefused(String),
    /// Another service has this clusterset address, protocol and port already.
    AddressTaken(String),
    /// A node of this cluster without an address we can send to.
    NodeWithoutAddress,
}

impl Problem {
    /// The metric label.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::BadAddress(_) => "BadAddress",
            Self::BadPrefix(_) => "BadPrefix",
            Self::BadClusterId(_) => "BadClusterId",
            Self::BadProtocol(_) => "BadProtocol",
            Self::BadPort(_) => "BadPort",
            Self::BadDevice(_) => "BadDevice",
            Self::NoRecord => "NoRecord",
            Self::PrefixRefused(_) => "PrefixRefused",
            Self::AddressTaken(_) => "AddressTaken",
            Self::NodeWithoutAddress => "NodeWithoutAddress",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A hostile object must not become a log line of a megabyte.
        let short = |text: &str| text.chars().take(80).collect::<String>();
        match self {
            Self::BadAddress(text) => write!(f, "'{}' is not an IP address", short(text)),
            Self::BadPrefix(text) => write!(f, "'{}' is not a prefix", short(text)),
            Self::BadClusterId(text) => write!(f, "'{}' is not a cluster id", short(text)),
            Self::BadProtocol(text) => write!(f, "protocol '{}' is neither TCP, UDP nor SCTP", short(text)),
            Self::BadPort(port) => write!(f, "port {port} is outside 1 to 65535"),
            Self::BadDevice(text) => write!(f, "'{}' cannot be the name of a network device", short(text)),
            Self::NoRecord => f.write_str("no record of it is signed by a trusted identity: see spec.identityKeys"),
            Self::PrefixRefused(text) => write!(f, "prefix not in force: {}", short(text)),
            Self::AddressTaken(text) => write!(f, "{} belongs to another service already", short(text)),
            Self::NodeWithoutAddress => f.write_str("has no InternalIP in status.addresses: nothing can be sent to it"),
        }
    }
}

/// The kind of an object with a problem, its namespace and name.
pub type Subject = (&'static str, Key);

/// All problems known now, by object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(BTreeMap<Subject, Vec<Problem>>);

impl Problems {
    /// Replaces what is known about one object.
    pub(crate) fn set(&mut self, kind: &'static str, key: &Key, problems: Vec<Problem>) {
        let subject = (kind, key.clone());
        if problems.is_empty() {
            self.0.remove(&subject);
        } else {
            self.0.insert(subject, problems);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Subject, &Problem)> {
        self.0.iter().flat_map(|(subject, problems)| problems.iter().map(move |problem| (subject, problem)))
    }
}
