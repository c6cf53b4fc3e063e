//! [`RouteTable`]: whose an address is, and by which links one gets there. An immutable snapshot that [`crate::Paths`]
//! makes and every thread reads.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use api::{ClusterId, Prefix};
use ipnet::IpNet;

use crate::link::{LaneNumber, LinkId};
use crate::topology::Topology;
use crate::translation::Translation;

/// Whose an address is. Clusters are numbers within one table: see [`RouteTable::cluster`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    Ours,
    /// This gateway's own address inside the tunnels.
    OurControl,
    Peer(u16),
    /// The control address of one gateway of a peer.
    PeerControl {
        cluster: u16,
        slot: u16,
    },
}

/// What the packet threads need to know of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkRoute {
    pub id: LinkId,
    pub lane: LaneNumber,
    pub cluster: u16,
    pub slot: u16,
    /// Where datagrams go now; `None` until the peer calls.
    pub endpoint: Option<SocketAddr>,
    /// Largest packet, in bytes.
    pub mtu: u16,
    /// Not even that arrives whole: datagrams must be cut.
    pub is_too_narrow: bool,
    /// How much this link is to be preferred: only links of the best rank that have a session are used.
    pub rank: Rank,
}

/// From best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Up for long enough to be believed.
    Up,
    /// Up, but only just: it must prove itself before it is used beside proven ones.
    Fresh,
    /// Up, but the gateway is going away.
    Draining,
    /// Not measured yet.
    Unknown,
    /// Better than nothing: a path that only looks dead still carries.
    Down,
}

#[derive(Clone, Debug)]
pub struct RouteTable {
    owners: Arc<Owners>,
    clusters: Arc<[ClusterId]>,
    /// By link number.
    links: Vec<Option<LinkRoute>>,
    /// By owner position, then lane: links from the best rank to the worst.
    choices: Vec<Vec<Vec<LinkId>>>,
}

/// The part that changes only with the topology; path changes share it.
#[derive(Debug, Default)]
struct Owners {
    list: Vec<Owner>,
    /// By cluster number.
    translations: Vec<Translation>,
    ipv4: Ranges,
    ipv6: Ranges,
}

impl RouteTable {
    /// `links` may come in any order. The topology's prefixes must not overlap between clusters: see
    /// [`crate::Paths::reconfigure`], which refuses those that do.
    pub fn new(topology: &Topology, links: &[LinkRoute]) -> Self {
        let mut list = alloc::vec![Owner::Ours, Owner::OurControl];
        let mut claims: Vec<(Prefix, u32)> = topology.ours.prefixes.iter().map(|prefix| (*prefix, 0)).collect();
        claims.push((control(topology.ours.control_address), 1));
        for (number, peer) in (0u16..).zip(&topology.peers) {
            let position = list.len() as u32;
            list.push(Owner::Peer(number));
            claims.extend(peer.prefixes.iter().map(|prefix| (*prefix, position)));
            for gateway in &peer.gateways {
                if let Some(address) = gateway.control_address {
                    claims.push((control(address), list.len() as u32));
                    list.push(Owner::PeerControl { cluster: number, slot: gateway.slot });
                }
            }
        }
        let translations = topology.peers.iter().map(|peer| Translation::new(&peer.translations)).collect();
        let (ipv4, ipv6) = (Ranges::new(&claims, true), Ranges::new(&claims, false));
        let owners = Owners { list, translations, ipv4, ipv6 };
        let clusters = topology.peers.iter().map(|peer| peer.id.clone()).collect();
        let empty = Self { owners: Arc::new(owners), clusters, links: Vec::new(), choices: Vec::new() };
        empty.with_links(links)
    }

    /// The same owners with other links: what a change of paths or endpoints costs.
    pub fn with_links(&self, links: &[LinkRoute]) -> Self {
        let mut by_number = Vec::new();
        for link in links {
            if by_number.len() <= link.id.slot() {
                by_number.resize(link.id.slot() + 1, None);
            }
            by_number[link.id.slot()] = Some(*link);
        }
        let lanes = links.iter().map(|link| usize::from(link.lane.0) + 1).max().unwrap_or(0);
        let choices = choices(&self.owners.list, lanes, links);
        Self { owners: Arc::clone(&self.owners), clusters: Arc::clone(&self.clusters), links: by_number, choices }
    }

    /// Whose an address is, by longest prefix.
    pub fn owner(&self, address: IpAddr) -> Option<Owner> {
        self.position(address).and_then(|position| self.owners.list.get(position)).copied()
    }

    /// Whose an address is, and the links of a lane that lead there, from the best rank to the worst.
    pub fn route(&self, address: IpAddr, lane: LaneNumber) -> Option<(Owner, &[LinkId])> {
        let position = self.position(address)?;
        let owner = self.owners.list.get(position)?;
        let links = self.choices.get(position).and_then(|lanes| lanes.get(usize::from(lane.0)));
        Some((*owner, links.map_or(&[], Vec::as_slice)))
    }

    pub fn link(&self, link: LinkId) -> Option<&LinkRoute> {
        self.links.get(link.slot())?.as_ref()
    }

    pub fn links(&self) -> impl Iterator<Item = &LinkRoute> {
        self.links.iter().flatten()
    }

    /// The name of a cluster number of this table.
    pub fn cluster(&self, number: u16) -> Option<&ClusterId> {
        self.clusters.get(usize::from(number))
    }

    /// The cluster at the other end of a link.
    pub fn cluster_of(&self, link: LinkId) -> Option<&ClusterId> {
        self.link(link).and_then(|link| self.cluster(link.cluster))
    }

    /// How packets of the cluster at the other end of a link are to be rewritten; `None` where nothing overlaps.
    pub fn translation(&self, link: LinkId) -> Option<&Translation> {
        let translation = self.owners.translations.get(usize::from(self.link(link)?.cluster))?;
        (!translation.is_empty()).then_some(translation)
    }

    fn position(&self, address: IpAddr) -> Option<usize> {
        let found = match address {
            IpAddr::V4(address) => self.owners.ipv4.find(address.to_bits().into()),
            IpAddr::V6(address) => self.owners.ipv6.find(address.to_bits()),
        };
        found.map(|position| position as usize)
    }
}

fn control(address: Ipv6Addr) -> Prefix {
    Prefix::host(address.into())
}

/// Each link leads to its cluster, and to its gateway's control address.
fn choices(owners: &[Owner], lanes: usize, links: &[LinkRoute]) -> Vec<Vec<Vec<LinkId>>> {
    let positions: BTreeMap<Owner, usize> = owners.iter().copied().zip(0..).collect();
    let mut ranked: Vec<&LinkRoute> = links.iter().collect();
    ranked.sort_unstable_by_key(|link| (link.rank, link.id));
    let mut choices = alloc::vec![alloc::vec![Vec::new(); lanes]; owners.len()];
    for link in ranked {
        for owner in [Owner::Peer(link.cluster), Owner::PeerControl { cluster: link.cluster, slot: link.slot }] {
            if let Some(position) = positions.get(&owner) {
                choices[*position][usize::from(link.lane.0)].push(link.id);
            }
        }
    }
    choices
}

/// Nested prefixes laid flat: ranges of addresses that do not overlap, each with the owner of the longest prefix. Looking
/// one up is a binary search over plain numbers.
#[derive(Debug, Default)]
struct Ranges {
    /// First address of each range, and its owner; a range ends where the next begins.
    starts: Vec<(u128, Option<u32>)>,
}

impl Ranges {
    fn new(claims: &[(Prefix, u32)], ipv4: bool) -> Self {
        let mut claims: Vec<(u128, u128, u32)> = claims
            .iter()
            .filter(|(prefix, _)| prefix.is_ipv4() == ipv4)
            .map(|(prefix, owner)| {
                let (first, last) = bounds(prefix.net());
                (first, last, *owner)
            })
            .collect();
        // The outer prefix before those inside it.
        claims.sort_unstable_by_key(|(first, last, owner)| (*first, u128::MAX - *last, *owner));
        let mut ranges = Self::default();
        let mut open: Vec<(u128, u32)> = Vec::new();
        for (first, last, owner) in claims {
            ranges.close(&mut open, Some(first));
            ranges.begin(first, Some(owner));
            open.push((last, owner));
        }
        ranges.close(&mut open, None);
        ranges
    }

    /// Ends the open prefixes that lie wholly before `next`; all of them when nothing follows.
    fn close(&mut self, open: &mut Vec<(u128, u32)>, next: Option<u128>) {
        while let Some((last, _)) = open.pop_if(|(last, _)| next.is_none_or(|next| *last < next)) {
            if let Some(after) = last.checked_add(1) {
                self.begin(after, open.last().map(|(_, owner)| *owner));
            }
        }
    }

    fn begin(&mut self, first: u128, owner: Option<u32>) {
        match self.starts.last_mut() {
            Some((start, known)) if *start == first => *known = owner,
            _ => self.starts.push((first, owner)),
        }
    }

    fn find(&self, address: u128) -> Option<u32> {
        let behind = self.starts.partition_point(|(start, _)| *start <= address);
        self.starts.get(behind.checked_sub(1)?)?.1
    }
}

fn bounds(net: IpNet) -> (u128, u128) {
    match net {
        IpNet::V4(net) => (net.network().to_bits().into(), net.broadcast().to_bits().into()),
        IpNet::V6(net) => (net.network().to_bits(), net.broadcast().to_bits()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_prefix_owns_an_address() {
        let claims: Vec<(Prefix, u32)> =
            [("10.0.0.0/8", 1), ("10.1.0.0/16", 2), ("10.1.2.0/24", 3), ("10.9.0.0/16", 4)]
                .map(|(prefix, owner)| (prefix.parse().unwrap(), owner))
                .into();
        let ranges = Ranges::new(&claims, true);
        let find = |address: &str| ranges.find(address.parse::<core::net::Ipv4Addr>().unwrap().to_bits().into());
        assert_eq!(find("9.255.255.255"), None);
        assert_eq!(find("10.0.0.0"), Some(1));
        assert_eq!(find("10.1.1.255"), Some(2));
        assert_eq!(find("10.1.2.7"), Some(3));
        assert_eq!(find("10.1.3.0"), Some(2));
        assert_eq!(find("10.2.0.0"), Some(1));
        assert_eq!(find("10.9.3.1"), Some(4));
        assert_eq!(find("10.255.255.255"), Some(1));
        assert_eq!(find("11.0.0.0"), None);
    }

    proptest! {
        #[test]
        fn ranges_agree_with_a_walk_over_all_prefixes(
            claims in proptest::collection::vec((any::<u128>(), 0u8..=128), 0..40),
            probes in proptest::collection::vec(any::<u128>(), 20),
        ) {
            // Few distinct bits, so that prefixes nest and touch.
            let squeeze = |bits: u128| bits & 0xf000_0000_0000_0000_0000_0000_0000_f00f;
            let claims: Vec<(Prefix, u32)> = (0u32..)
                .zip(&claims)
                .map(|(owner, (bits, len))| {
                    let net = ipnet::Ipv6Net::new(Ipv6Addr::from_bits(squeeze(*bits)), *len).unwrap();
                    (Prefix::truncating(net.into()), owner)
                })
                .collect();
            let ranges = Ranges::new(&claims, false);
            for bits in probes {
                let address = Ipv6Addr::from_bits(squeeze(bits));
                let longest = claims
                    .iter()
                    .filter(|(prefix, _)| prefix.contains(address.into()))
                    .max_by_key(|(prefix, owner)| (prefix.net().prefix_len(), *owner))
                    .map(|(_, owner)| *owner);
                prop_assert_eq!(ranges.find(address.to_bits()), longest);
            }
        }
    }
}
