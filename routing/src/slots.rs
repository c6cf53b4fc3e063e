//! From weights to a table of slots that a kernel draws from: each new connection takes one slot at random, or by a hash
//! of its source.
//!
//! One slot of a full table of 256 is worth 0.4 % of the connections: that is how exact a weight can be. Tables are no
//! larger than the weights need: ten equal endpoints take ten slots.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};

use crate::Share;
use crate::fraction::{Fraction, greatest_common_divisor};
use api::ClusterId;

/// Weight of each endpoint: its cluster's share, divided evenly among the cluster's endpoints given. Smallest whole
/// numbers. Endpoints of clusters without a share are left out, whatever their state.
pub fn endpoint_weights<E: Ord + Clone>(shares: &[Share], endpoints: &BTreeMap<ClusterId, Vec<E>>) -> BTreeMap<E, u64> {
    let whole: u64 = shares.iter().map(|share| share.weight).sum();
    let each = shares.iter().filter_map(|share| {
        let list = endpoints.get(&share.cluster).filter(|list| !list.is_empty())?;
        let of_cluster = Fraction::new(u128::from(share.weight), u128::from(whole.max(1)));
        // A list of endpoints is shorter than 2^64.
        let of_endpoint = of_cluster.times(Fraction::new(1, list.len() as u128));
        Some(list.iter().map(move |endpoint| (endpoint.clone(), of_endpoint)))
    });
    let (names, fractions): (Vec<E>, Vec<Fraction>) = each.flatten().unzip();
    let mut weights = BTreeMap::new();
    for (endpoint, weight) in names.into_iter().zip(Fraction::proportions(&fractions)) {
        *weights.entry(endpoint).or_insert(0) += weight;
    }
    weights
}

/// How many slots each endpoint gets, of at most `most` together, by largest remainder. Exact when the weights in
/// lowest terms fit into `most`.
///
/// With more endpoints than slots some get none; `seed` decides among equals, so that hosts with different seeds leave
/// out different ones.
pub fn quotas<E: Ord + Clone + Hash>(weights: &BTreeMap<E, u64>, most: usize, seed: u64) -> BTreeMap<E, usize> {
    let divisor = weights.values().fold(0, |a, b| greatest_common_divisor(a, u128::from(*b))).max(1);
    let whole: u128 = weights.values().map(|weight| u128::from(*weight) / divisor).sum();
    if whole == 0 || most == 0 {
        return BTreeMap::new();
    }
    let size = whole.min(most as u128);
    let mut given: Vec<(&E, u128, u128)> = weights
        .iter()
        .map(|(endpoint, weight)| {
            let exact = u128::from(*weight) / divisor * size;
            (endpoint, exact / whole, exact % whole)
        })
        .collect();
    // Remainders are below one each, so what is missing is less than one slot an endpoint.
    let missing = usize::try_from(size - given.iter().map(|(_, floor, _)| floor).sum::<u128>()).unwrap_or(0);
    given.sort_by_cached_key(|(endpoint, _, remainder)| {
        (core::cmp::Reverse(*remainder), stable_hash(&(seed, *endpoint)), (*endpoint).clone())
    });
    given.iter_mut().take(missing).for_each(|(_, slots, _)| *slots += 1);
    given
        .into_iter()
        .filter(|(_, slots, _)| *slots > 0)
        .map(|(endpoint, slots, _)| (endpoint.clone(), usize::try_from(slots).unwrap_or(most)))
        .collect()
}

/// A table for drawing at random. Endpoints keep the slots they have in `previous` as far as their quota goes: when one
/// of n equal endpoints leaves, its slot is filled by the one at the end, and no other slot changes.
pub fn random_slots<E: Ord + Clone>(quotas: &BTreeMap<E, usize>, previous: &[E]) -> Vec<E> {
    let size = quotas.values().sum();
    let mut left = quotas.clone();
    let mut table: Vec<Option<E>> = alloc::vec![None; size];
    for (slot, endpoint) in table.iter_mut().zip(previous) {
        if let Some(quota) = left.get_mut(endpoint).filter(|quota| **quota > 0) {
            *quota -= 1;
            *slot = Some(endpoint.clone());
        }
    }
    let mut rest = left.into_iter().flat_map(|(endpoint, quota)| core::iter::repeat_n(endpoint, quota));
    table.into_iter().filter_map(|slot| slot.or_else(|| rest.next())).collect()
}

/// A table for drawing by a hash of the client, always of `size` slots while there is an endpoint, and the same on every
/// host: each endpoint claims slots in an order of its own until its quota is full (after Maglev, NSDI 2016, section
/// 3.4). When an endpoint leaves, mostly its own slots change hands.
pub fn client_slots<E: Ord + Clone + Hash>(weights: &BTreeMap<E, u64>, size: usize) -> Vec<E> {
    let whole: u128 = weights.values().map(|weight| u128::from(*weight)).sum();
    if whole == 0 || size == 0 {
        return Vec::new();
    }
    let mut claims: Vec<(E, usize, Vec<usize>)> = full_quotas(weights, whole, size)
        .into_iter()
        .map(|(endpoint, quota)| {
            let mut order: Vec<usize> = (0..size).collect();
            order.sort_by_cached_key(|slot| (stable_hash(&(&endpoint, *slot)), *slot));
            // Taken from the end.
            order.reverse();
            (endpoint, quota, order)
        })
        .collect();
    let mut table: Vec<Option<E>> = alloc::vec![None; size];
    let mut open = size;
    while open > 0 {
        let before = open;
        for (endpoint, quota, order) in &mut claims {
            if *quota == 0 {
                continue;
            }
            while let Some(slot) = order.pop() {
                if let Some(place) = table.get_mut(slot).filter(|place| place.is_none()) {
                    *place = Some(endpoint.clone());
                    *quota -= 1;
                    open -= 1;
                    break;
                }
            }
        }
        if open == before {
            break;
        }
    }
    table.into_iter().flatten().collect()
}

/// Quotas of exactly `size` slots together.
fn full_quotas<E: Ord + Clone + Hash>(weights: &BTreeMap<E, u64>, whole: u128, size: usize) -> BTreeMap<E, usize> {
    // Weights in lowest terms may need fewer slots than `size`; the same proportions in larger numbers do not.
    let factor = (size as u128).div_ceil(whole).max(1);
    let exact = |weight: u64| u128::from(weight) * factor * size as u128;
    let whole = whole * factor;
    let mut given: Vec<(&E, u128, u128)> =
        weights.iter().map(|(e, weight)| (e, exact(*weight) / whole, exact(*weight) % whole)).collect();
    let missing = usize::try_from(size as u128 - given.iter().map(|(_, floor, _)| floor).sum::<u128>()).unwrap_or(0);
    given.sort_by_cached_key(|(e, _, remainder)| (core::cmp::Reverse(*remainder), stable_hash(*e), (*e).clone()));
    given.iter_mut().take(missing).for_each(|(_, slots, _)| *slots += 1);
    given.into_iter().map(|(e, slots, _)| (e.clone(), usize::try_from(slots).unwrap_or(size))).collect()
}

/// FNV-1a with a final mix (splitmix64): the same on every host and in every build, which the standard hashers do not
/// promise. Nobody gains by choosing an address that collides here.
struct StableHasher(u64);

impl Hasher for StableHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    fn finish(&self) -> u64 {
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// A hash that is the same on every host of the same byte order.
pub fn stable_hash<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = StableHasher(0xcbf2_9ce4_8422_2325);
    value.hash(&mut hasher);
    hasher.finish()
}
