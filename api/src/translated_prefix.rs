//! [`TranslatedPrefix`]: a prefix of a peer that overlaps somebody else's, and the one it is seen as here (decision 7).
//!
//! Translation is one to one and keeps the host bits, so it needs no table of flows (as RFC 6296 has it for IPv6).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Prefix;

/// Handed out by this cluster's controller, used by its gateways. It means nothing in any other cluster.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TranslatedPrefix {
    /// As the peer's record claims it, and as packets between the clusters carry it.
    pub real: Prefix,
    /// As clients, names, policies and routes of this cluster have it; of the same family and length.
    pub seen: Prefix,
}

impl TranslatedPrefix {
    /// Whether both prefixes are of one family and one length: anything else cannot be translated back.
    pub fn is_well_formed(&self) -> bool {
        self.real.is_ipv4() == self.seen.is_ipv4() && self.real.net().prefix_len() == self.seen.net().prefix_len()
    }

    /// How an address of the peer is seen here; `None` when it is not in this prefix.
    pub fn seen_of(&self, real: IpAddr) -> Option<IpAddr> {
        moved(real, &self.real, &self.seen)
    }

    /// Which address of the peer is meant by one that is seen here; `None` when it is not in this prefix.
    pub fn real_of(&self, seen: IpAddr) -> Option<IpAddr> {
        moved(seen, &self.seen, &self.real)
    }
}

/// How an address of a peer is seen here, by the longest of its translated prefixes; `None` when none of them has it.
pub fn seen(translations: &[TranslatedPrefix], real: IpAddr) -> Option<IpAddr> {
    let longest = translations
        .iter()
        .filter(|translation| translation.real.contains(real))
        .max_by_key(|translation| translation.real.net().prefix_len());
    longest.and_then(|translation| translation.seen_of(real))
}

/// The peer's own address for one that is seen here; `None` when none of its translated prefixes has it.
pub fn real(translations: &[TranslatedPrefix], seen: IpAddr) -> Option<IpAddr> {
    translations.iter().find_map(|translation| translation.real_of(seen))
}

fn moved(address: IpAddr, from: &Prefix, to: &Prefix) -> Option<IpAddr> {
    if !from.contains(address) {
        return None;
    }
    match (address, to.net()) {
        (IpAddr::V4(address), IpNet::V4(to)) => {
            let host = address.to_bits() & to.hostmask().to_bits();
            Some(Ipv4Addr::from_bits(to.network().to_bits() | host).into())
        }
        (IpAddr::V6(address), IpNet::V6(to)) => {
            let host = address.to_bits() & to.hostmask().to_bits();
            Some(Ipv6Addr::from_bits(to.network().to_bits() | host).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn translated(real: &str, seen: &str) -> TranslatedPrefix {
        TranslatedPrefix { real: real.parse().unwrap(), seen: seen.parse().unwrap() }
    }

    #[test]
    fn an_address_keeps_its_host_bits_in_both_families() {
        let all = [translated("10.1.0.0/16", "10.240.0.0/16"), translated("fd00:1::/48", "fd00:f000:7::/48")];
        for (there, here) in [("10.1.2.3", "10.240.2.3"), ("fd00:1:0:9::1", "fd00:f000:7:9::1")] {
            let (there, here): (IpAddr, IpAddr) = (there.parse().unwrap(), here.parse().unwrap());
            assert_eq!(seen(&all, there), Some(here));
            assert_eq!(real(&all, here), Some(there));
            assert_eq!((seen(&all, here), real(&all, there)), (None, None));
        }
    }

    #[test]
    fn of_nested_prefixes_the_longest_says_how_an_address_is_seen() {
        let all = [translated("10.0.0.0/8", "11.0.0.0/8"), translated("10.1.0.0/16", "10.240.0.0/16")];
        assert_eq!(seen(&all, "10.1.2.3".parse().unwrap()), "10.240.2.3".parse().ok());
        assert_eq!(seen(&all, "10.2.2.3".parse().unwrap()), "11.2.2.3".parse().ok());
    }

    proptest! {
        #[test]
        fn there_and_back_is_the_same_address(bits: u128, length in 1u8..=128, network: u128) {
            let net = |bits: u128| Prefix::truncating(ipnet::Ipv6Net::new(bits.into(), length).unwrap().into());
            let pair = TranslatedPrefix { real: net(bits), seen: net(network) };
            let address = IpAddr::V6(bits.into());
            let there = pair.seen_of(address).unwrap();
            prop_assert!(pair.seen.contains(there));
            prop_assert_eq!(pair.real_of(there), Some(address));
        }
    }
}
