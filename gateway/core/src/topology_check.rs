//! What a topology may not say: claims that are refused by name while everything else goes on.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::Ipv6Addr;

use api::keys::TunnelKey;
use api::{ClusterId, Prefix};

use crate::topology::{OurGateway, PeerCluster, Topology};

/// One thing a peer claims and does not get.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedClaim {
    #[error("{0} is this cluster's own id: a peer cannot have it; check for a copied member record")]
    OurOwnId(ClusterId),
    #[error("{0} is configured twice: the first one counts")]
    ClusterTwice(ClusterId),
    #[error("{cluster} claims {prefix}, which no cluster may have; remove it from its prefixes")]
    Forbidden { cluster: ClusterId, prefix: Prefix },
    #[error("{cluster} claims {prefix}, which overlaps our own {ours}; allow translation for it, or renumber one")]
    OverlapsOurs { cluster: ClusterId, prefix: Prefix, ours: Prefix },
    #[error(
        "{cluster} claims {prefix}, which overlaps {theirs} of {holder}; allow translation for it, or renumber one"
    )]
    OverlapsPeer { cluster: ClusterId, prefix: Prefix, holder: ClusterId, theirs: Prefix },
    #[error("gateway {slot} of {cluster} claims control address {address}, which another gateway has")]
    ControlAddressTaken { cluster: ClusterId, slot: u16, address: Ipv6Addr },
    #[error("{cluster} has gateway {slot} twice: the first one counts")]
    SlotTwice { cluster: ClusterId, slot: u16 },
    #[error("{cluster} uses WireGuard key {key} in two places; each lane needs its own")]
    KeyTwice { cluster: ClusterId, key: TunnelKey },
}

/// Takes out what cannot be. What a cluster held in `before` and still claims, no other can take from it.
pub(crate) fn admissible(topology: &Topology, before: &Topology) -> (Topology, Vec<RefusedClaim>) {
    let mut check = Check::new(&topology.ours);
    for peer in &topology.peers {
        let held = before.peers.iter().filter(|held| held.id == peer.id).flat_map(|held| &held.prefixes);
        let kept = held.filter(|prefix| peer.prefixes.contains(prefix)).map(|prefix| (*prefix, peer.id.clone()));
        check.prefixes.extend(kept);
    }
    let known = |peer: &PeerCluster| before.peers.iter().any(|held| held.id == peer.id);
    let mut order: Vec<&PeerCluster> = topology.peers.iter().collect();
    order.sort_by_key(|peer| (!known(peer), &peer.id));
    let mut peers: Vec<PeerCluster> = order.into_iter().filter_map(|peer| check.peer(peer)).collect();
    peers.sort_by(|a, b| a.id.cmp(&b.id));
    (Topology { ours: topology.ours.clone(), peers }, check.refused)
}

struct Check<'a> {
    ours: &'a OurGateway,
    clusters: BTreeSet<ClusterId>,
    prefixes: Vec<(Prefix, ClusterId)>,
    control_addresses: BTreeSet<Ipv6Addr>,
    keys: BTreeMap<TunnelKey, ClusterId>,
    refused: Vec<RefusedClaim>,
}

impl<'a> Check<'a> {
    fn new(ours: &'a OurGateway) -> Self {
        Self {
            ours,
            clusters: BTreeSet::new(),
            prefixes: Vec::new(),
            control_addresses: BTreeSet::from([ours.control_address]),
            keys: BTreeMap::new(),
            refused: Vec::new(),
        }
    }

    fn peer(&mut self, peer: &PeerCluster) -> Option<PeerCluster> {
        if peer.id == self.ours.cluster {
            self.refused.push(RefusedClaim::OurOwnId(peer.id.clone()));
            return None;
        }
        if !self.clusters.insert(peer.id.clone()) {
            self.refused.push(RefusedClaim::ClusterTwice(peer.id.clone()));
            return None;
        }
        let mut accepted = peer.clone();
        accepted.prefixes.retain(|prefix| self.accept_or_name(self.prefix_fault(&peer.id, *prefix)));
        self.prefixes.extend(accepted.prefixes.iter().map(|prefix| (*prefix, peer.id.clone())));
        let PeerCluster { prefixes, translations, .. } = &mut accepted;
        translations.retain(|translation| prefixes.contains(&translation.seen));
        let mut slots = BTreeSet::new();
        accepted.gateways.retain(|gateway| {
            let fault = RefusedClaim::SlotTwice { cluster: peer.id.clone(), slot: gateway.slot };
            self.accept_or_name((!slots.insert(gateway.slot)).then_some(fault))
        });
        for gateway in &mut accepted.gateways {
            if let Some(address) = gateway.control_address {
                let free = !self.ours.prefixes.iter().any(|prefix| prefix.contains(address.into()))
                    && self.control_addresses.insert(address);
                let fault = RefusedClaim::ControlAddressTaken { cluster: peer.id.clone(), slot: gateway.slot, address };
                if !self.accept_or_name((!free).then_some(fault)) {
                    gateway.lanes.clear();
                }
            }
            gateway.lanes.retain_mut(|lane| {
                if lane.next_key.is_some_and(|next| self.keys.insert(next, peer.id.clone()).is_some()) {
                    lane.next_key = None;
                }
                let taken = self.keys.insert(lane.public_key, peer.id.clone()).is_some();
                let fault = RefusedClaim::KeyTwice { cluster: peer.id.clone(), key: lane.public_key };
                self.accept_or_name(taken.then_some(fault))
            });
        }
        Some(accepted)
    }

    fn prefix_fault(&self, cluster: &ClusterId, prefix: Prefix) -> Option<RefusedClaim> {
        let cluster = || cluster.clone();
        if prefix.is_forbidden_to_members() {
            return Some(RefusedClaim::Forbidden { cluster: cluster(), prefix });
        }
        let own = Prefix::host(self.ours.control_address.into());
        if let Some(ours) = self.ours.prefixes.iter().chain([&own]).find(|ours| ours.overlaps(&prefix)) {
            return Some(RefusedClaim::OverlapsOurs { cluster: cluster(), prefix, ours: *ours });
        }
        // Nesting within one cluster is its own affair.
        let others = self.prefixes.iter().filter(|(_, holder)| *holder != cluster());
        let (theirs, holder) = others.into_iter().find(|(theirs, _)| theirs.overlaps(&prefix))?;
        Some(RefusedClaim::OverlapsPeer { cluster: cluster(), prefix, holder: holder.clone(), theirs: *theirs })
    }

    fn accept_or_name(&mut self, fault: Option<RefusedClaim>) -> bool {
        let accepted = fault.is_none();
        self.refused.extend(fault);
        accepted
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::topology::{PeerGateway, PeerLane, Standing};

    fn peer(name: &str, number: u8) -> PeerCluster {
        let lane = PeerLane {
            public_key: TunnelKey([number; 32]),
            next_key: None,
            preshared_key: None,
            configured: Vec::new(),
            learned: Vec::new(),
        };
        PeerCluster {
            id: ClusterId::new(name).unwrap(),
            prefixes: [alloc::format!("10.{number}.0.0/16").parse().unwrap()].into(),
            translations: Vec::new(),
            standing: Standing::Active,
            gateways: [PeerGateway {
                slot: 0,
                control_address: alloc::format!("fdcc:{number}::1").parse().ok(),
                lanes: [lane].into(),
            }]
            .into(),
        }
    }

    fn topology(peers: &[PeerCluster]) -> Topology {
        let ours = OurGateway {
            cluster: ClusterId::new("amber").unwrap(),
            slot: 0,
            lanes: [TunnelKey([1; 32]).into()].into(),
            control_address: "fdcc:1::1".parse().unwrap(),
            prefixes: ["10.1.0.0/16".parse().unwrap()].into(),
            inner_mtu: 1380,
        };
        Topology { ours, peers: peers.to_vec() }
    }

    #[test]
    fn a_copy_of_our_own_record_is_not_a_peer() {
        let (accepted, refused) = admissible(&topology(&[peer("amber", 2), peer("birch", 3)]), &topology(&[]));
        assert_eq!(accepted.peers, [peer("birch", 3)]);
        assert_eq!(refused, [RefusedClaim::OurOwnId(ClusterId::new("amber").unwrap())]);
    }

    #[test]
    fn keys_slots_and_control_addresses_are_had_once() {
        let mut birch = peer("birch", 2);
        birch.gateways.push(birch.gateways[0].clone());
        let mut cedar = peer("cedar", 3);
        cedar.gateways[0].lanes[0].public_key = TunnelKey([2; 32]);
        let mut dogwood = peer("dogwood", 4);
        dogwood.gateways[0].control_address = "fdcc:1::1".parse().ok();
        let (accepted, refused) = admissible(&topology(&[birch, cedar, dogwood]), &topology(&[]));
        assert!(matches!(
            refused[..],
            [
                RefusedClaim::SlotTwice { .. },
                RefusedClaim::KeyTwice { .. },
                RefusedClaim::ControlAddressTaken { slot: 0, .. }
            ]
        ));
        let lanes = |peer: &PeerCluster| peer.gateways.iter().map(|gateway| gateway.lanes.len()).sum::<usize>();
        assert_eq!(accepted.peers.iter().map(lanes).collect::<Vec<_>>(), [1, 0, 0]);
    }

    #[test]
    fn who_held_a_prefix_keeps_it_whatever_its_name() {
        let before = topology(&[peer("zelkova", 5)]);
        let (accepted, refused) = admissible(&topology(&[peer("birch", 5), peer("zelkova", 5)]), &before);
        assert_eq!(accepted.peers[1].prefixes, before.peers[0].prefixes);
        assert!(accepted.peers[0].prefixes.is_empty());
        assert!(refused[0].to_string().contains("overlaps 10.5.0.0/16 of zelkova"), "{}", refused[0]);
    }
}
