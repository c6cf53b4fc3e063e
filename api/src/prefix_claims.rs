//! Which of the prefixes a peer's record claims are in force here: within what the operator allows, and nobody else's
//! (DESIGN, decisions 7 and 15). Gateways, nodes and the controller must agree on it, so it is one function.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::cluster_peer::PeerState;
use crate::local_cluster::LocalClusterSpec;
use crate::member_record::SignedRecord;
use crate::{ClusterId, ClusterPeer, Prefix};

/// What one peer may be sent, and may send from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixClaims {
    /// The record's prefixes inside the allowed ones, without those that belong to somebody else.
    pub accepted: Vec<Prefix>,
    /// What was claimed and refused, as an operator would say it: `10.9.0.0/16 overlaps 10.9.0.0/16 of this cluster`.
    pub refused: Vec<String>,
}

/// The claims of every peer with a record, by cluster. Blocked peers claim nothing.
///
/// Two peers that claim the same range: the older `ClusterPeer` keeps it, then the one whose name comes first, so that
/// a newcomer never takes a range away.
pub fn judge<'a>(
    local: &LocalClusterSpec,
    peers: impl IntoIterator<Item = &'a ClusterPeer>,
) -> BTreeMap<ClusterId, PrefixClaims> {
    let mut ordered: Vec<(&ClusterPeer, ClusterId)> = peers
        .into_iter()
        .filter(|peer| peer.spec.state != PeerState::Blocked)
        .filter_map(|peer| Some((peer, ClusterId::new(peer.metadata.name.as_deref()?).ok()?)))
        .collect();
    ordered.sort_by(|(a, a_id), (b, b_id)| {
        let age = |peer: &ClusterPeer| peer.metadata.creation_timestamp.clone().map(|time| time.0);
        // A peer without a time was not stored yet: it is the newest.
        (age(a).is_none(), age(a), a_id).cmp(&(age(b).is_none(), age(b), b_id))
    });
    let ours = local
        .pod_prefixes
        .iter()
        .chain(&local.infrastructure_prefixes)
        .chain(&local.cluster_set_prefixes)
        .chain(&local.translation_prefixes);
    let mut owners: Vec<(Prefix, String)> = ours.map(|prefix| (*prefix, String::from("this cluster"))).collect();
    let mut all = BTreeMap::new();
    for (peer, id) in ordered {
        let Some(record) = peer.newest_record() else { continue };
        let allowed = allowed(peer);
        let mut claims = PrefixClaims::default();
        for claimed in &record.prefixes {
            let inside: Vec<Prefix> = allowed.iter().filter_map(|bound| intersection(claimed, bound)).collect();
            if !inside.contains(claimed) {
                claims.refused.push(format!("{claimed} is not within the allowed prefixes of ClusterPeer {id}"));
            }
            for prefix in inside {
                match owners.iter().find(|(owned, _)| owned.overlaps(&prefix)) {
                    Some((owned, owner)) => {
                        claims.refused.push(format!("{prefix} overlaps {owned} of {owner}"));
                    }
                    None if !claims.accepted.contains(&prefix) => claims.accepted.push(prefix),
                    None => {}
                }
            }
        }
        owners.extend(claims.accepted.iter().map(|prefix| (*prefix, format!("cluster {id}"))));
        claims.refused.dedup();
        all.insert(id, claims);
    }
    all
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
}
