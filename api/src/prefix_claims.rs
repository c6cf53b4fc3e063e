//! Which of the prefixes a peer's record claims are in force here: within what the operator allows, and nobody else's
//! (DESIGN, decisions 7 and 15). Gateways, nodes and the controller must agree on it, so it is one function.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::cluster_peer::PeerState;
use crate::local_cluster::LocalClusterSpec;
use crate::member_record::SignedRecord;
use crate::{ClusterId, ClusterPeer, Prefix, TranslatedPrefix};

/// How many prefixes of one peer are translated: each packet looks through them. As many as `allowedPrefixes` may have.
pub const MAX_TRANSLATIONS: usize = 64;

/// What one peer may be sent, and may send from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixClaims {
    /// The record's prefixes inside the allowed ones, without those that belong to somebody else.
    pub accepted: Vec<Prefix>,
    /// Those that may overlap, each with the prefix it is seen as here (decision 7).
    pub translated: Vec<TranslatedPrefix>,
    /// Those that may overlap and do, and that the controller has not given a prefix to be seen as.
    pub untranslated: Vec<Untranslated>,
    /// What was claimed and refused, as an operator would say it: `10.9.0.0/16 overlaps 10.9.0.0/16 of this cluster`.
    pub refused: Vec<String>,
}

/// A prefix that is not in use before it is translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untranslated {
    pub real: Prefix,
    /// `10.9.0.0/16 overlaps 10.9.0.0/16 of this cluster`.
    pub overlap: String,
}

impl Untranslated {
    /// What the operator is told while there is no prefix for it.
    pub fn reason(&self) -> String {
        let length = self.real.net().prefix_len();
        format!("{}, and translationPrefixes of the LocalCluster have no /{length} left for it", self.overlap)
    }
}

impl PrefixClaims {
    /// The peer's prefixes as this cluster sees them: what is routed to it.
    pub fn seen(&self) -> impl Iterator<Item = Prefix> {
        self.accepted.iter().copied().chain(self.translated.iter().map(|translation| translation.seen))
    }
}

/// The claims of every peer with a record, by cluster. Blocked peers claim nothing.
///
/// Two peers that claim the same range: the older `ClusterPeer` keeps it, then the one whose name comes first, so that
/// a newcomer never takes a range away. With `allowOverlap` the newcomer's is translated, and stays so when the other
/// leaves: flows that run must not change their addresses.
pub fn judge<'a>(
    local: &LocalClusterSpec,
    peers: impl IntoIterator<Item = &'a ClusterPeer>,
) -> BTreeMap<ClusterId, PrefixClaims> {
    let mut ordered: Vec<(&ClusterPeer, ClusterId)> = peers
        .into_iter()
        .filter(|peer| peer.state() != PeerState::Blocked)
        .filter_map(|peer| Some((peer, ClusterId::new(peer.metadata.name.as_deref()?).ok()?)))
        .collect();
    ordered.sort_by(|(a, a_id), (b, b_id)| {
        let age = |peer: &ClusterPeer| peer.metadata.creation_timestamp.clone().map(|time| time.0);
        // A peer without a time was not stored yet: it is the newest.
        (age(a).is_none(), age(a), a_id).cmp(&(age(b).is_none(), age(b), b_id))
    });
    let mut owners: Vec<(Prefix, String)> =
        local.own_prefixes().map(|prefix| (*prefix, String::from("this cluster"))).collect();
    let mut seen_already: Vec<Prefix> = Vec::new();
    let mut all = BTreeMap::new();
    for (peer, id) in ordered {
        let Some(record) = peer.newest_record() else { continue };
        let allowed = allowed(peer);
        let mut claims = PrefixClaims::default();
        let mut inside: Vec<Prefix> = Vec::new();
        for claimed in &record.prefixes {
            let parts: Vec<Prefix> = allowed.iter().filter_map(|bound| intersection(claimed, bound)).collect();
            if !parts.contains(claimed) {
                claims.refused.push(format!("{claimed} is not within the allowed prefixes of ClusterPeer {id}"));
            }
            inside.extend(parts);
        }
        claims.translated = in_force(local, peer, &inside, &seen_already);
        for prefix in inside {
            // What lies in a translated prefix is translated with it.
            if claims.translated.iter().any(|translation| translation.real.covers(&prefix)) {
                continue;
            }
            match owners.iter().find(|(owned, _)| owned.overlaps(&prefix)) {
                Some((owned, owner)) => {
                    let overlap = format!("{prefix} overlaps {owned} of {owner}");
                    if peer.spec.allow_overlap {
                        claims.untranslated.push(Untranslated { real: prefix, overlap });
                    } else {
                        claims.refused.push(overlap);
                    }
                }
                None if !claims.accepted.contains(&prefix) => claims.accepted.push(prefix),
                None => {}
            }
        }
        widest(&mut claims.untranslated);
        let room = MAX_TRANSLATIONS.saturating_sub(claims.translated.len()).min(claims.untranslated.len());
        claims.refused.extend(claims.untranslated.drain(room..).map(|waiting| {
            format!("{}, and no more than {MAX_TRANSLATIONS} prefixes of a peer are translated", waiting.overlap)
        }));
        owners.extend(claims.accepted.iter().map(|prefix| (*prefix, format!("cluster {id}"))));
        seen_already.extend(claims.translated.iter().map(|translation| translation.seen));
        claims.refused.dedup();
        all.insert(id, claims);
    }
    all
}

/// What of the translations that were handed out for a peer still holds: the operator allows it, the peer claims the
/// prefix, and the one it is seen as is ours to give and nobody else's.
fn in_force(
    local: &LocalClusterSpec,
    peer: &ClusterPeer,
    inside: &[Prefix],
    seen_already: &[Prefix],
) -> Vec<TranslatedPrefix> {
    let mut kept: Vec<TranslatedPrefix> = Vec::new();
    for translation in peer.translations().iter().take(MAX_TRANSLATIONS).filter(|_| peer.spec.allow_overlap) {
        let given = local.translation_prefixes.iter().any(|prefix| prefix.covers(&translation.seen));
        let mut others = seen_already.iter().chain(kept.iter().map(|kept| &kept.seen));
        let free = !others.any(|other| other.overlaps(&translation.seen));
        let once = kept.iter().all(|kept| kept.real != translation.real);
        if translation.is_well_formed() && inside.contains(&translation.real) && given && free && once {
            kept.push(*translation);
        }
    }
    kept
}

/// Keeps the prefixes that lie in no other: those within are translated with them.
fn widest(waiting: &mut Vec<Untranslated>) {
    waiting.sort_by_key(|waiting| (waiting.real.net().prefix_len(), waiting.real));
    let mut kept: Vec<Untranslated> = Vec::new();
    for prefix in waiting.drain(..) {
        if !kept.iter().any(|wider| wider.real.covers(&prefix.real)) {
            kept.push(prefix);
        }
    }
    *waiting = kept;
}

/// The upper bound of what a peer may claim: what the operator wrote, else what its bootstrap record claims.
fn allowed(peer: &ClusterPeer) -> Vec<Prefix> {
    if !peer.spec.allowed_prefixes.is_empty() {
        return peer.spec.allowed_prefixes.clone();
    }
    SignedRecord::from_base64(&peer.spec.record)
        .and_then(|signed| signed.verify(&peer.spec.identity_keys))
        .map(|record| record.prefixes)
        .unwrap_or_default()
}

fn intersection(a: &Prefix, b: &Prefix) -> Option<Prefix> {
    if b.covers(a) {
        Some(*a)
    } else if a.covers(b) {
        Some(*b)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use ed25519_dalek::{Signer, SigningKey};

    use super::*;
    use crate::cluster_peer::ClusterPeerSpec;
    use crate::keys::IdentityKey;
    use crate::member_record::{MemberRecord, MemberState, bytes_to_sign};

    fn peer(name: &str, seed: u8, claims: &[&str], allowed: &[&str]) -> ClusterPeer {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let identity = IdentityKey(key.verifying_key().to_bytes());
        let record = MemberRecord {
            cluster_set_id: ClusterId::new("demo").unwrap(),
            cluster_id: ClusterId::new(name).unwrap(),
            identity_keys: vec![identity],
            successions: vec![],
            epoch: "e".into(),
            generation: 1,
            control_prefix: identity.control_prefix(),
            slots: vec![],
            prefixes: claims.iter().map(|text| text.parse().unwrap()).collect(),
            labels: BTreeMap::new(),
            protocol: (1, 1),
            state: MemberState::Active,
        };
        let bytes = serde_json::to_vec(&record).unwrap();
        let signature = key.sign(&bytes_to_sign(&bytes)).to_bytes().to_vec();
        let signed = SignedRecord { record: bytes, key: identity, signature };
        let mut peer = ClusterPeer::new(
            name,
            ClusterPeerSpec {
                identity_keys: vec![identity],
                record: signed.to_base64(),
                endpoints: vec![],
                allowed_prefixes: allowed.iter().map(|text| text.parse().unwrap()).collect(),
                allow_overlap: false,
                accept: Default::default(),
                state: PeerState::Active,
            },
        );
        peer.metadata.name = Some(name.to_string());
        peer
    }

    fn local() -> LocalClusterSpec {
        serde_json::from_value(serde_json::json!({
            "clusterId": "amber", "clusterSetId": "demo",
            "podPrefixes": ["10.1.0.0/16"], "clusterSetPrefixes": ["10.200.0.0/16"]
        }))
        .unwrap()
    }

    #[test]
    fn a_prefix_that_is_ours_is_refused_by_name_and_the_rest_is_accepted() {
        let birch = peer("birch", 1, &["10.2.0.0/16", "10.1.7.0/24", "10.200.0.0/24"], &[]);
        let claims = &judge(&local(), [&birch])[&ClusterId::new("birch").unwrap()];
        assert_eq!(claims.accepted, ["10.2.0.0/16".parse().unwrap()]);
        assert_eq!(
            claims.refused,
            [
                "10.1.7.0/24 overlaps 10.1.0.0/16 of this cluster",
                "10.200.0.0/24 overlaps 10.200.0.0/16 of this cluster"
            ]
        );
    }

    #[test]
    fn what_is_outside_the_allowed_prefixes_is_refused_and_what_is_inside_kept() {
        let birch = peer("birch", 1, &["10.2.0.0/15"], &["10.2.0.0/16"]);
        let claims = &judge(&local(), [&birch])[&ClusterId::new("birch").unwrap()];
        assert_eq!(claims.accepted, ["10.2.0.0/16".parse().unwrap()]);
        assert_eq!(claims.refused.len(), 1);
    }

    #[test]
    fn of_two_peers_with_one_range_the_first_keeps_it_in_any_order() {
        let (birch, cedar) = (peer("birch", 1, &["10.2.0.0/16"], &[]), peer("cedar", 2, &["10.2.3.0/24"], &[]));
        let claims = judge(&local(), [&cedar, &birch]);
        assert_eq!(claims, judge(&local(), [&birch, &cedar]));
        assert_eq!(claims[&ClusterId::new("birch").unwrap()].accepted.len(), 1);
        assert_eq!(
            claims[&ClusterId::new("cedar").unwrap()].refused,
            ["10.2.3.0/24 overlaps 10.2.0.0/16 of cluster birch"]
        );
    }

    fn translated(real: &str, seen: &str) -> TranslatedPrefix {
        TranslatedPrefix { real: real.parse().unwrap(), seen: seen.parse().unwrap() }
    }

    /// A peer that may overlap, with what the controller handed out for it.
    fn overlapping(name: &str, seed: u8, claims: &[&str], translations: &[TranslatedPrefix]) -> ClusterPeer {
        let mut peer = peer(name, seed, claims, &[]);
        peer.spec.allow_overlap = true;
        let translations = translations.to_vec();
        peer.status = Some(crate::cluster_peer::ClusterPeerStatus { translations, ..Default::default() });
        peer
    }

    fn translating() -> LocalClusterSpec {
        let mut local = local();
        local.translation_prefixes = vec!["10.240.0.0/12".parse().unwrap()];
        local
    }

    #[test]
    fn an_overlapping_prefix_waits_for_its_translation_and_is_then_in_force_as_it_is_seen() {
        let id = ClusterId::new("birch").unwrap();
        let waiting = overlapping("birch", 1, &["10.1.0.0/16", "10.2.0.0/16"], &[]);
        let claims = &judge(&translating(), [&waiting])[&id];
        assert_eq!(claims.seen().collect::<Vec<_>>(), ["10.2.0.0/16".parse().unwrap()]);
        assert_eq!(
            claims.untranslated[0].reason(),
            "10.1.0.0/16 overlaps 10.1.0.0/16 of this cluster, and translationPrefixes of the LocalCluster have no /16 left for it"
        );
        let given = translated("10.1.0.0/16", "10.241.0.0/16");
        let birch = overlapping("birch", 1, &["10.1.0.0/16", "10.2.0.0/16"], &[given]);
        let claims = &judge(&translating(), [&birch])[&id];
        assert_eq!(
            claims.seen().collect::<Vec<_>>(),
            ["10.2.0.0/16", "10.241.0.0/16"].map(|text| text.parse().unwrap())
        );
        assert!(claims.untranslated.is_empty() && claims.refused.is_empty());
    }

    #[test]
    fn a_translation_that_is_not_ours_to_give_or_not_claimed_or_not_allowed_is_not_in_force() {
        let id = ClusterId::new("birch").unwrap();
        let in_force = |peer: &ClusterPeer| judge(&translating(), [peer])[&id].translated.len();
        let good = translated("10.1.0.0/16", "10.241.0.0/16");
        assert_eq!(in_force(&overlapping("birch", 1, &["10.1.0.0/16"], &[good])), 1);
        for bad in [
            translated("10.1.0.0/16", "10.99.0.0/16"),
            translated("10.1.0.0/16", "10.241.0.0/24"),
            translated("10.7.0.0/16", "10.241.0.0/16"),
        ] {
            assert_eq!(in_force(&overlapping("birch", 1, &["10.1.0.0/16"], &[bad])), 0, "{bad:?}");
        }
        assert_eq!(in_force(&overlapping("birch", 1, &["10.1.0.0/16"], &[good, good])), 1, "said twice");
        let mut refused = overlapping("birch", 1, &["10.1.0.0/16"], &[good]);
        refused.spec.allow_overlap = false;
        assert_eq!(in_force(&refused), 0);
    }

    #[test]
    fn of_two_peers_seen_as_one_prefix_only_the_first_is() {
        let seen = "10.241.0.0/16";
        let birch = overlapping("birch", 1, &["10.1.0.0/16"], &[translated("10.1.0.0/16", seen)]);
        let cedar = overlapping("cedar", 2, &["10.1.0.0/16"], &[translated("10.1.0.0/16", seen)]);
        let claims = judge(&translating(), [&cedar, &birch]);
        assert_eq!(claims[&ClusterId::new("birch").unwrap()].translated.len(), 1);
        let cedars = &claims[&ClusterId::new("cedar").unwrap()];
        assert_eq!((cedars.translated.len(), cedars.untranslated.len()), (0, 1));
    }

    #[test]
    fn what_was_translated_stays_so_when_nothing_overlaps_any_more() {
        let given = translated("10.9.0.0/16", "10.241.0.0/16");
        let cedar = overlapping("cedar", 2, &["10.9.0.0/16"], &[given]);
        let claims = judge(&translating(), [&cedar]);
        assert_eq!(claims[&ClusterId::new("cedar").unwrap()].translated, [given]);
    }

    #[test]
    fn prefixes_within_a_translated_one_are_translated_with_it() {
        let claimed = ["10.1.7.0/24", "10.1.0.0/16", "10.1.8.0/24"];
        let waiting = overlapping("birch", 1, &claimed, &[]);
        let id = ClusterId::new("birch").unwrap();
        assert_eq!(judge(&translating(), [&waiting])[&id].untranslated.len(), 1);
        let birch = overlapping("birch", 1, &claimed, &[translated("10.1.0.0/16", "10.241.0.0/16")]);
        let claims = &judge(&translating(), [&birch])[&id];
        assert_eq!(claims.seen().collect::<Vec<_>>(), ["10.241.0.0/16".parse().unwrap()]);
    }
}
