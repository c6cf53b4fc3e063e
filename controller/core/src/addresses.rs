//! [`AddressPool`]: addresses out of prefixes, each for one owner, for as long as the owner lives.
//!
//! Nothing is written down here: the addresses in use are read back from the objects that carry them, and a new owner
//! gets an address by the hash of its name. So a cluster that lost its state mostly hands out what it did before.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::Prefix;
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::advertisement::Family;

/// Addresses of a prefix that are handed out at most: more would only make the search for a free one longer.
const MAX_SIZE: u128 = 1 << 32;

#[derive(Debug, Default)]
pub struct AddressPool {
    prefixes: Vec<Prefix>,
    owners: BTreeMap<IpAddr, String>,
    held: BTreeMap<(String, Family), IpAddr>,
}

impl AddressPool {
    /// The prefixes to hand out of. Addresses outside them are released; returns the owners that lost one.
    pub fn set_prefixes(&mut self, prefixes: &[Prefix]) -> Vec<String> {
        if self.prefixes == prefixes {
            return Vec::new();
        }
        self.prefixes = prefixes.to_vec();
        let lost: Vec<(String, Family)> =
            self.held.iter().filter(|(_, address)| !self.contains(**address)).map(|(key, _)| key.clone()).collect();
        for key in &lost {
            if let Some(address) = self.held.remove(key) {
                self.owners.remove(&address);
            }
        }
        lost.into_iter().map(|(owner, _)| owner).collect()
    }

    /// Whether there are addresses of a family at all.
    pub fn has_family(&self, family: Family) -> bool {
        self.prefixes.iter().any(|prefix| prefix.is_ipv4() == (family == Family::V4))
    }

    /// Notes that an owner has an address. False when it is not ours to give, or another's: then it must get a new one.
    pub fn claim(&mut self, owner: &str, address: IpAddr) -> bool {
        let key = (String::from(owner), Family::of(address));
        if self.held.get(&key) == Some(&address) {
            return true;
        }
        if !self.contains(address) || self.owners.contains_key(&address) || self.held.contains_key(&key) {
            return false;
        }
        self.owners.insert(address, owner.into());
        self.held.insert(key, address);
        true
    }

    /// The owner's address of a family, a new one where it has none; `None` when there is none left.
    pub fn obtain(&mut self, owner: &str, family: Family) -> Option<IpAddr> {
        let key = (String::from(owner), family);
        if let Some(address) = self.held.get(&key) {
            return Some(*address);
        }
        let digest = Sha256::digest(owner.as_bytes());
        let seed = digest[..8].iter().fold(0u128, |sum, byte| sum << 8 | u128::from(*byte));
        let address = self
            .prefixes
            .iter()
            .filter(|prefix| prefix.is_ipv4() == (family == Family::V4))
            .find_map(|prefix| self.first_free(prefix, seed))?;
        self.owners.insert(address, owner.into());
        self.held.insert(key, address);
        Some(address)
    }

    /// The owner is gone; its addresses are free. True when it had one.
    pub fn release(&mut self, owner: &str) -> bool {
        let mut had = false;
        for family in [Family::V4, Family::V6] {
            if let Some(address) = self.held.remove(&(String::from(owner), family)) {
                self.owners.remove(&address);
                had = true;
            }
        }
        had
    }

    pub fn len(&self) -> usize {
        self.owners.len()
    }
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| {
            let (first, size) = range(prefix);
            let number = number(address);
            prefix.is_ipv4() == address.is_ipv4() && number >= first && number - first < size
        })
    }

    /// The first free address at or after the seed's place, around the end. Taken addresses are looked up, not
    /// walked one by one, only when they lie in the way: at most as many steps as addresses are in use.
    fn first_free(&self, prefix: &Prefix, seed: u128) -> Option<IpAddr> {
        let (first, size) = range(prefix);
        let start = seed.checked_rem(size)?;
        let steps = size.min(self.owners.len() as u128 + 1);
        (0..steps)
            .map(|step| address(first + (start + step) % size, prefix.is_ipv4()))
            .find(|candidate| !self.owners.contains_key(candidate))
    }
}

/// The first usable address of a prefix and how many there are. The network's and the broadcast address of IPv4, and
/// the subnet-router anycast address of IPv6 (RFC 4291, 2.6.1), mean something already.
fn range(prefix: &Prefix) -> (u128, u128) {
    let (first, bits) = match prefix.net() {
        IpNet::V4(net) => (u128::from(u32::from(net.network())), 32 - u32::from(net.prefix_len())),
        IpNet::V6(net) => (u128::from(net.network()), 128 - u32::from(net.prefix_len())),
    };
    let size = if bits >= 32 { MAX_SIZE } else { 1 << bits };
    match (prefix.is_ipv4(), size) {
        (_, 1) => (first, 1),
        (true, 2) => (first, 2), // RFC 3021
        (true, size) => (first + 1, size - 2),
        (false, size) => (first + 1, size - 1),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(number: u128, is_ipv4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if is_ipv4 => IpAddr::V4(Ipv4Addr::from(number)),
        _ => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(prefixes: &[&str]) -> AddressPool {
        let mut pool = AddressPool::default();
        pool.set_prefixes(&prefixes.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>());
        pool
    }

    #[test]
    fn an_owner_keeps_its_address_and_gets_the_same_after_all_state_was_lost() {
        let mut first = pool(&["10.200.0.0/16", "fd00:200::/112"]);
        let addresses = [Family::V4, Family::V6].map(|family| first.obtain("shop/web", family).unwrap());
        assert_eq!([Family::V4, Family::V6].map(|family| first.obtain("shop/web", family).unwrap()), addresses);
        let mut again = pool(&["10.200.0.0/16", "fd00:200::/112"]);
        assert_eq!([Family::V4, Family::V6].map(|family| again.obtain("shop/web", family).unwrap()), addresses);
    }

    #[test]
    fn what_is_read_back_is_kept_and_a_second_owner_of_it_is_refused() {
        let mut pool = pool(&["10.200.0.0/24"]);
        let address: IpAddr = "10.200.0.9".parse().unwrap();
        assert!(pool.claim("a", address) && pool.claim("a", address));
        assert!(!pool.claim("b", address));
        assert!(!pool.claim("b", "10.201.0.9".parse().unwrap()), "not of our prefixes");
        assert!(!pool.claim("b", "10.200.0.0".parse().unwrap()), "the network's own address");
        assert_eq!(pool.obtain("a", Family::V4), Some(address));
    }

    #[test]
    fn an_exhausted_prefix_says_so_and_a_released_address_is_given_again() {
        let mut pool = pool(&["10.200.0.0/30"]);
        assert!(pool.obtain("a", Family::V4).is_some() && pool.obtain("b", Family::V4).is_some());
        assert_eq!(pool.obtain("c", Family::V4), None);
        assert_eq!(pool.obtain("c", Family::V6), None);
        assert!(pool.release("a"));
        assert!(pool.obtain("c", Family::V4).is_some());
    }

    #[test]
    fn owners_outside_changed_prefixes_are_named() {
        let mut pool = pool(&["10.200.0.0/24"]);
        pool.obtain("a", Family::V4);
        assert_eq!(pool.set_prefixes(&["10.201.0.0/24".parse().unwrap()]), ["a"]);
        assert!(pool.obtain("a", Family::V4).unwrap().to_string().starts_with("10.201.0."));
    }

    proptest! {
        #[test]
        fn no_two_owners_share_an_address(owners in proptest::collection::btree_set("[a-z]{1,6}", 1..60), bits in 24..31u8) {
            let mut pool = pool(&[&format!("10.200.0.0/{bits}")]);
            let given: Vec<_> = owners.iter().filter_map(|owner| pool.obtain(owner, Family::V4)).collect();
            let distinct: alloc::collections::BTreeSet<_> = given.iter().collect();
            prop_assert_eq!(distinct.len(), given.len());
            prop_assert_eq!(given.len(), owners.len().min((1 << (32 - bits)) - 2));
        }
    }

    use alloc::string::ToString;
}
