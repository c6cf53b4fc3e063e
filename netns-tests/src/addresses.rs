//! Every address of the world, computed from a cluster's number and a node's or pod's place in it.
//!
//! | range | whose |
//! |---|---|
//! | `10.<cluster>.<node>.0/24`, `fd00:<cluster>:<node>::/64` | pods of one node; the node's bridge has `.1` |
//! | `10.<100 + cluster>.0.0/16`, `fd01:<cluster>::/112` | clusterset addresses that the cluster hands out |
//! | `10.<200 + cluster>.0.0/24`, `fd02:<cluster>::/64` | one infrastructure address for each node |
//! | `172.31.<cluster>.0/24`, `fdff:<cluster>::/64` | the cluster's LAN; its router has `.1` |
//! | `172.30.<cluster>.0/24`, `fdfe:<cluster>::/64` | the wire between that router (`.2`) and the internet (`.1`) |

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The highest cluster number: above it the infrastructure ranges would leave 10.0.0.0/8's second byte.
pub const MAX_CLUSTERS: u8 = 50;

/// A value for each address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dual<A, B> {
    pub v4: A,
    pub v6: B,
}

/// A place in both families.
pub type Addresses = Dual<Ipv4Addr, Ipv6Addr>;
/// A range in both families.
pub type Ranges = Dual<Ipv4Net, Ipv6Net>;

impl Addresses {
    /// IPv4 first.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Both with `port`, IPv4 first.
    pub fn with_port(self, port: u16) -> [SocketAddr; 2] {
        self.both().map(|address| SocketAddr::new(address, port))
    }
}

impl Ranges {
    /// IPv4 first.
    pub fn both(self) -> [IpNet; 2] {
        [self.v4.into(), self.v6.into()]
    }

    pub fn contains(self, address: IpAddr) -> bool {
        self.both().iter().any(|range| range.contains(&address))
    }

    /// The `place`-th address of the range.
    pub fn at(self, place: u8) -> Addresses {
        Addresses {
            v4: Ipv4Addr::from_bits(self.v4.network().to_bits() | u32::from(place)),
            v6: Ipv6Addr::from_bits(self.v6.network().to_bits() | u128::from(place)),
        }
    }
}

impl<A: fmt::Display, B: fmt::Display> fmt::Display for Dual<A, B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, {}", self.v4, self.v6)
    }
}

/// The ranges of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterRanges {
    number: u8,
    /// Differs from `number` where a test wants clusters whose pods overlap.
    pods_number: u8,
}

impl ClusterRanges {
    /// `number` is 1 to [`MAX_CLUSTERS`]; `pods_number` is the number whose pod ranges the cluster uses.
    pub fn new(number: u8, pods_number: u8) -> Self {
        Self { number, pods_number }
    }

    /// All pods of the cluster.
    pub fn pods(self) -> Ranges {
        ranges([10, self.pods_number, 0, 0], 16, [0xfd00, self.pods_number.into(), 0], 32)
    }

    /// The pods of one node.
    pub fn pods_of_node(self, node: u8) -> Ranges {
        ranges([10, self.pods_number, node, 0], 24, [0xfd00, self.pods_number.into(), node.into()], 64)
    }

    pub fn clusterset(self) -> Ranges {
        ranges([10, 100 + self.number, 0, 0], 16, [0xfd01, self.number.into(), 0], 112)
    }

    pub fn infrastructure(self) -> Ranges {
        ranges([10, 200 + self.number, 0, 0], 24, [0xfd02, self.number.into(), 0], 64)
    }

    /// The LAN that joins the cluster's nodes and its router.
    pub fn underlay(self) -> Ranges {
        ranges([172, 31, self.number, 0], 24, [0xfdff, self.number.into(), 0], 64)
    }

    /// The wire between the cluster's router and the internet.
    pub fn transit(self) -> Ranges {
        ranges([172, 30, self.number, 0], 24, [0xfdfe, self.number.into(), 0], 64)
    }
}

fn ranges(v4: [u8; 4], v4_length: u8, v6: [u16; 3], v6_length: u8) -> Ranges {
    let v6 = Ipv6Addr::new(v6[0], v6[1], v6[2], 0, 0, 0, 0, 0);
    Ranges { v4: Ipv4Net::new_assert(v4.into(), v4_length), v6: Ipv6Net::new_assert(v6, v6_length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_ranges_of_two_clusters_overlap() {
        let all: Vec<IpNet> = [ClusterRanges::new(1, 1), ClusterRanges::new(MAX_CLUSTERS, MAX_CLUSTERS)]
            .iter()
            .flat_map(|c| [c.pods(), c.clusterset(), c.infrastructure(), c.underlay(), c.transit()])
            .flat_map(Ranges::both)
            .collect();
        for (place, one) in all.iter().enumerate() {
            for other in &all[place + 1..] {
                assert!(!one.contains(other) && !other.contains(one), "{one} meets {other}");
            }
        }
    }

    #[test]
    fn a_place_in_a_range_has_both_families() {
        let node = ClusterRanges::new(3, 3).pods_of_node(2).at(1);
        assert_eq!(node.to_string(), "10.3.2.1, fd00:3:2::1");
    }
}
