//! Public keys as people and manifests write them.

use alloc::borrow::Cow;
use alloc::string::String;
use core::fmt;
use core::net::Ipv6Addr;
use core::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::{IpNet, Ipv6Net};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Prefix;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not {1}: expected {2}")]
pub struct InvalidKey(String, &'static str, &'static str);

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal, $shape:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $prefix, STANDARD.encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidKey;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let invalid = || InvalidKey(text.chars().take(80).collect(), $what, $shape);
                let encoded = text.strip_prefix($prefix).ok_or_else(invalid)?;
                let bytes = STANDARD.decode(encoded).map_err(|_| invalid())?;
                Ok(Self(bytes.try_into().map_err(|_| invalid())?))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let pattern = concat!("^", $prefix, "[A-Za-z0-9+/]{43}=$");
                schemars::json_schema!({ "type": "string", "maxLength": 64, "pattern": pattern })
            }
        }
    };
}

public_key!(
    /// A cluster's Ed25519 identity (RFC 8032): it signs the member record and is the cluster's TLS key (RFC 7250).
    /// Written `ed25519:` and 44 characters of base64.
    IdentityKey,
    "ed25519:",
    "an identity key",
    "'ed25519:' and 44 characters of base64"
);

public_key!(
    /// A WireGuard static public key, written as `wg` writes it: 44 characters of base64.
    TunnelKey,
    "",
    "a WireGuard public key",
    "44 characters of base64, as 'wg pubkey' prints them"
);

impl IdentityKey {
    /// What people compare by eye: `SHA256:` and the base64 of the key's hash, without padding.
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(self.0);
        format!("SHA256:{}", STANDARD.encode(digest).trim_end_matches('='))
    }

    /// The control prefix of the cluster whose first identity this is (decision 13): a ULA /64 (RFC 4193) from the
    /// key's hash, so that it is unique without anybody handing it out.
    pub fn control_prefix(&self) -> Prefix {
        let digest = Sha256::new().chain_update(b"tombolo control prefix v1").chain_update(self.0).finalize();
        let mut octets = [0u8; 16];
        octets[0] = 0xfd;
        octets[1..8].copy_from_slice(&digest[..7]);
        Prefix::truncating(IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(octets), 64)))
    }
}

/// The control address of the gateway in `slot` of the cluster that owns `control_prefix`.
///
/// Slot 0 gets `::1`, for `::0` is the subnet-router anycast address (RFC 4291, 2.6.1).
pub fn control_address(control_prefix: &Prefix, slot: u16) -> Option<Ipv6Addr> {
    match control_prefix.net() {
        IpNet::V6(net) if net.prefix_len() == 64 => {
            Some(Ipv6Addr::from(u128::from(net.network()) | (u128::from(slot) + 1)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_key_reads_back_as_it_was_written() {
        let key = IdentityKey([7; 32]);
        assert_eq!(key.to_string().parse::<IdentityKey>().unwrap(), key);
        assert!("ed25519:AAAA".parse::<IdentityKey>().is_err());
        assert!(TunnelKey([9; 32]).to_string().parse::<IdentityKey>().is_err());
    }

    #[test]
    fn control_prefixes_of_two_keys_differ_and_are_unique_local() {
        let (a, b) = (IdentityKey([1; 32]).control_prefix(), IdentityKey([2; 32]).control_prefix());
        assert_ne!(a, b);
        let ula: Prefix = "fd00::/8".parse().unwrap();
        assert!(ula.covers(&a) && ula.covers(&b));
        assert!(a.contains(control_address(&a, 3).unwrap().into()));
    }
}
