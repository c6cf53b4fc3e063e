//! Which prefix each overlapping one of a peer is seen as (decision 7): given once, kept in the ClusterPeer's status while
//! the peer claims it, never moved.
//!
//! Where a search begins follows from the peer's id and its prefix, so a controller that lost everything gives the same
//! again, as long as there is room.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};

use api::local_cluster::LocalClusterSpec;
use api::prefix_claims::PrefixClaims;
use api::{ClusterId, ClusterPeer, Prefix, TranslatedPrefix};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sha2::{Digest, Sha256};

/// What each peer's status should say, as [`ClusterPeerStatus`](api::cluster_peer::ClusterPeerStatus) has it.
///
/// `before` is what was decided last and may not stand in any status yet. A peer that is not to be judged (blocked, or
/// without a record that can be read) keeps what it has: it may come back, and nobody else may be taken for it.
pub fn allocate<'a>(
    local: &LocalClusterSpec,
    peers: impl IntoIterator<Item = &'a ClusterPeer>,
    claims: &BTreeMap<ClusterId, PrefixClaims>,
    before: &BTreeMap<ClusterId, Vec<TranslatedPrefix>>,
) -> BTreeMap<ClusterId, Vec<TranslatedPrefix>> {
    let mut all: BTreeMap<ClusterId, Vec<TranslatedPrefix>> = BTreeMap::new();
    for peer in peers {
        let Some(id) = peer.metadata.name.as_deref().and_then(|name| ClusterId::new(name).ok()) else { continue };
        let kept = claims.get(&id).map_or_else(|| peer.translations().to_vec(), |claims| claims.translated.clone());
        all.insert(id, kept);
    }
    let mut taken: Vec<Prefix> = all.values().flatten().map(|translation| translation.seen).collect();
    // What was decided and is not written yet comes before what is new.
    for remembered in [true, false] {
        for (id, claims) in claims {
            let Some(given) = all.get_mut(id) else { continue };
            for waiting in &claims.untranslated {
                if given.iter().any(|translation| translation.real == waiting.real) {
                    continue;
                }
                let seen = if remembered {
                    let decided = before.get(id).into_iter().flatten().find(|decided| decided.real == waiting.real);
                    decided.map(|decided| decided.seen).filter(|seen| is_free(local, &taken, seen))
                } else {
                    first_free(local, &taken, id, &waiting.real)
                };
                if let Some(seen) = seen {
                    taken.push(seen);
                    given.push(TranslatedPrefix { real: waiting.real, seen });
                }
            }
        }
    }
    all
}

fn is_free(local: &LocalClusterSpec, taken: &[Prefix], wanted: &Prefix) -> bool {
    local.translation_prefixes.iter().any(|pool| pool.covers(wanted))
        && !taken.iter().any(|other| other.overlaps(wanted))
}

/// The first free range of the length of `real`, from a place that its owner's name gives, around the end.
fn first_free(local: &LocalClusterSpec, taken: &[Prefix], id: &ClusterId, real: &Prefix) -> Option<Prefix> {
    let length = real.net().prefix_len();
    let pools = local.translation_prefixes.iter();
    let mut fitting = pools.filter(|pool| pool.is_ipv4() == real.is_ipv4() && pool.net().prefix_len() <= length);
    let digest = Sha256::digest(format!("{id} {real}").as_bytes());
    let seed = digest[..16].iter().fold(0u128, |sum, byte| sum << 8 | u128::from(*byte));
    fitting.find_map(|pool| free_in(pool, taken, length, seed))
}

fn free_in(pool: &Prefix, taken: &[Prefix], length: u8, seed: u128) -> Option<Prefix> {
    let bits = u32::from(length - pool.net().prefix_len());
    // 0 stands for 2^128, of which nobody can ask the last.
    let places = 1u128.checked_shl(bits).unwrap_or(u128::MAX);
    let start = seed % places;
    // From the start to the end, then from the beginning: what is taken is stepped over in one step each.
    for from in [start, 0] {
        let mut place = from;
        while place < places {
            let candidate = range(pool, length, place)?;
            let Some(other) = taken.iter().find(|other| other.overlaps(&candidate)) else { return Some(candidate) };
            place = behind(pool, length, other)?.max(place + 1);
        }
    }
    None
}

/// The range of a length at a place within the pool.
fn range(pool: &Prefix, length: u8, place: u128) -> Option<Prefix> {
    match pool.net() {
        IpNet::V4(net) => {
            let offset = u32::try_from(place).ok()?.checked_shl(32 - u32::from(length)).unwrap_or(0);
            let first = Ipv4Addr::from_bits(net.network().to_bits() | offset);
            Some(Prefix::truncating(Ipv4Net::new(first, length).ok()?.into()))
        }
        IpNet::V6(net) => {
            let offset = place.checked_shl(128 - u32::from(length)).unwrap_or(0);
            let first = Ipv6Addr::from_bits(net.network().to_bits() | offset);
            Some(Prefix::truncating(Ipv6Net::new(first, length).ok()?.into()))
        }
    }
}

/// The first place of the pool that lies wholly behind a range; `None` when that is beyond all numbers.
fn behind(pool: &Prefix, length: u8, other: &Prefix) -> Option<u128> {
    let (width, first, last) = match (pool.net(), other.net()) {
        (IpNet::V4(net), IpNet::V4(other)) => {
            (32, u128::from(net.network().to_bits()), u128::from(other.broadcast().to_bits()))
        }
        (IpNet::V6(net), IpNet::V6(other)) => (128, net.network().to_bits(), other.broadcast().to_bits()),
        _ => return None,
    };
    let place = last.saturating_sub(first).checked_shr(width - u32::from(length)).unwrap_or(0);
    place.checked_add(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::cluster;
    use api::prefix_claims::Untranslated;

    fn local(pools: &[&str]) -> LocalClusterSpec {
        serde_json::from_value(serde_json::json!({
            "clusterId": "amber", "clusterSetId": "demo", "podPrefixes": ["10.1.0.0/16"], "translationPrefixes": pools
        }))
        .unwrap()
    }

    fn peer(name: &str, translations: &[TranslatedPrefix]) -> ClusterPeer {
        serde_json::from_value(serde_json::json!({
            "metadata": { "name": name }, "spec": { "identityKeys": [], "record": "", "allowOverlap": true },
            "status": { "translations": translations }
        }))
        .unwrap()
    }

    fn waiting(prefixes: &[&str]) -> PrefixClaims {
        let untranslated = |text: &&str| Untranslated { real: text.parse().unwrap(), overlap: String::new() };
        PrefixClaims { untranslated: prefixes.iter().map(untranslated).collect(), ..PrefixClaims::default() }
    }

    fn pair(real: &str, seen: &str) -> TranslatedPrefix {
        TranslatedPrefix { real: real.parse().unwrap(), seen: seen.parse().unwrap() }
    }

    use alloc::string::String;

    #[test]
    fn each_overlapping_prefix_gets_a_range_of_its_length_and_the_same_after_all_state_was_lost() {
        let local = local(&["10.240.0.0/12", "fd00:f000::/32"]);
        let peers = [peer("birch", &[]), peer("cedar", &[])];
        let claims = BTreeMap::from([
            (cluster("birch"), waiting(&["10.1.0.0/16", "fd00:1::/48"])),
            (cluster("cedar"), waiting(&["10.1.0.0/16"])),
        ]);
        let given = allocate(&local, &peers, &claims, &BTreeMap::new());
        let all: Vec<&TranslatedPrefix> = given.values().flatten().collect();
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|pair| pair.is_well_formed()));
        assert!(all.iter().all(|pair| local.translation_prefixes.iter().any(|pool| pool.covers(&pair.seen))));
        assert_ne!(given[&cluster("birch")][0].seen, given[&cluster("cedar")][0].seen);
        assert_eq!(given, allocate(&local, &peers, &claims, &BTreeMap::new()));
    }

    #[test]
    fn what_is_in_force_stays_and_a_blocked_peers_range_is_given_to_nobody() {
        let local = local(&["10.240.0.0/15"]);
        let (kept, blocked) = (pair("10.1.0.0/16", "10.240.0.0/16"), pair("10.1.0.0/16", "10.241.0.0/16"));
        let peers = [peer("birch", &[kept]), peer("cedar", &[blocked]), peer("dogwood", &[])];
        let claims = BTreeMap::from([
            (cluster("birch"), PrefixClaims { translated: vec![kept], ..PrefixClaims::default() }),
            (cluster("dogwood"), waiting(&["10.1.0.0/16"])),
        ]);
        let given = allocate(&local, &peers, &claims, &BTreeMap::new());
        assert_eq!(given[&cluster("birch")], [kept]);
        assert_eq!(given[&cluster("cedar")], [blocked]);
        assert_eq!(given[&cluster("dogwood")], [], "no room is left");
    }

    #[test]
    fn what_was_decided_and_not_written_yet_is_decided_again() {
        let local = local(&["10.240.0.0/12"]);
        let claims = BTreeMap::from([(cluster("birch"), waiting(&["10.1.0.0/16"]))]);
        let decided = BTreeMap::from([(cluster("birch"), vec![pair("10.1.0.0/16", "10.255.0.0/16")])]);
        assert_eq!(allocate(&local, &[peer("birch", &[])], &claims, &decided), decided);
    }

    #[test]
    fn what_is_not_claimed_any_more_is_free_again() {
        let local = local(&["10.240.0.0/16"]);
        let peers = [peer("birch", &[pair("10.1.0.0/16", "10.240.0.0/16")]), peer("cedar", &[])];
        let claims = BTreeMap::from([
            (cluster("birch"), PrefixClaims::default()),
            (cluster("cedar"), waiting(&["10.1.0.0/16"])),
        ]);
        let given = allocate(&local, &peers, &claims, &BTreeMap::new());
        assert_eq!(given[&cluster("birch")], []);
        assert_eq!(given[&cluster("cedar")], [pair("10.1.0.0/16", "10.240.0.0/16")]);
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_only_a_full_pool_gives_none(
            lengths in proptest::collection::vec(20u8..=26, 1..40), v6: bool,
        ) {
            let local = local(&["10.240.0.0/20", "fd00:f000::/20"]);
            let mut taken: Vec<Prefix> = Vec::new();
            for (number, length) in lengths.into_iter().enumerate() {
                let id = cluster(&format!("peer-{number}"));
                let text = if v6 { format!("fd00::/{length}") } else { format!("10.0.0.0/{length}") };
                let real: Prefix = text.parse().unwrap();
                // Every range of this length, one by one.
                let pool = local.translation_prefixes[usize::from(v6)];
                let any = (0..1u128 << (length - 20)).any(|place| {
                    let candidate = range(&pool, length, place).unwrap();
                    taken.iter().all(|other| !other.overlaps(&candidate))
                });
                let given = first_free(&local, &taken, &id, &real);
                prop_assert_eq!(given.is_some(), any);
                if let Some(seen) = given {
                    prop_assert!(pool.covers(&seen) && taken.iter().all(|other| !other.overlaps(&seen)));
                    prop_assert_eq!(seen.net().prefix_len(), length);
                    taken.push(seen);
                }
            }
        }
    }
}
