//! [`Prefix`]: an address prefix of either family, written without host bits.

use alloc::borrow::Cow;
use alloc::string::{String, ToString};
use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An IPv4 or IPv6 prefix. `10.1.2.3/16` is refused: host bits in a prefix are a typing mistake more often than not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(IpNet);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPrefix {
    #[error("'{0}' is not a prefix: write it as 10.1.0.0/16 or fd00:1::/48")]
    Syntax(String),
    #[error("'{0}' has host bits set: did you mean {1}?")]
    HostBits(String, IpNet),
}

impl Prefix {
    /// Takes a network, dropping host bits.
    pub fn truncating(net: IpNet) -> Self {
        Self(net.trunc())
    }
    /// The prefix that holds this address alone.
    pub fn host(address: IpAddr) -> Self {
        Self(IpNet::from(address))
    }
    pub fn net(&self) -> IpNet {
        self.0
    }
    pub fn is_ipv4(&self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
    /// Whether every address of `other` is in this prefix.
    pub fn covers(&self, other: &Self) -> bool {
        self.0.contains(&other.0)
    }
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }
    /// Whether this is a range no member may claim: everything, loopback, link-local, multicast, unspecified.
    pub fn is_forbidden_to_members(&self) -> bool {
        const FORBIDDEN: [&str; 8] =
            ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "0.0.0.0/8", "fe80::/10", "ff00::/8", "::1/128", "::/128"];
        self.0.prefix_len() == 0 || FORBIDDEN.iter().any(|text| text.parse().is_ok_and(|net| self.overlaps(&Self(net))))
    }
}

impl FromStr for Prefix {
    type Err = InvalidPrefix;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shown = || text.chars().take(80).collect::<String>();
        let net: IpNet = text.parse().map_err(|_| InvalidPrefix::Syntax(shown()))?;
        if net.trunc() != net {
            return Err(InvalidPrefix::HostBits(shown(), net.trunc()));
        }
        Ok(Self(net))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Prefix {
    fn schema_name() -> Cow<'static, str> {
        "Prefix".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "maxLength": 49, "pattern": "^[0-9a-fA-F.:]+/[0-9]{1,3}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_refused_with_the_prefix_that_was_meant() {
        let error = "10.1.2.3/16".parse::<Prefix>().unwrap_err();
        assert!(error.to_string().contains("10.1.0.0/16"), "{error}");
    }

    #[test]
    fn no_member_may_claim_everything_loopback_link_local_or_multicast() {
        for text in ["0.0.0.0/0", "::/0", "127.0.0.0/8", "169.254.7.0/24", "fe80::/64", "ff02::/16", "224.0.0.0/3"] {
            assert!(text.parse::<Prefix>().unwrap().is_forbidden_to_members(), "{text}");
        }
        for text in ["10.0.0.0/8", "fd00::/8", "2001:db8::/32", "192.168.0.0/16"] {
            assert!(!text.parse::<Prefix>().unwrap().is_forbidden_to_members(), "{text}");
        }
    }
}
