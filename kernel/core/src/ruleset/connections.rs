//! New connections to clusterset addresses, counted by the cluster they are given to.
//!
//! The kernel asks chains of address translation once a connection, when its first packet has passed every filter, so
//! what is counted are connections and neither packets nor what was refused. Slots may change meanwhile: the counters
//! are named after clusters and stay.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::IpAddr;

use ipnet::IpNet;

use super::phrase::*;
use super::{FAMILIES, Ruleset, set_name};
use crate::table::{Expression, Register, Verdict};
use crate::{Family, sets};

/// Names of counters of connections begin so; the cluster's id follows. No [`Refusal`](crate::Refusal) has such a name.
const COUNTER_PREFIX: &str = "to_";

/// The chain that finds the cluster a connection is given to.
pub(super) const CONNECTIONS_CHAIN: &str = "connections";

/// Whose endpoints are whose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// This cluster: whatever belongs to no other is its own.
    pub local: String,
    /// The prefixes of each other cluster.
    pub remote: BTreeMap<String, BTreeSet<IpNet>>,
}

/// The counter of connections that are given to a cluster.
pub fn connections_counter(cluster: &str) -> String {
    format!("{COUNTER_PREFIX}{cluster}")
}

/// The cluster whose connections the counter of that name counts; none for a counter of something else.
pub fn counted_cluster(counter: &str) -> Option<&str> {
    counter.strip_prefix(COUNTER_PREFIX)
}

impl Targets {
    pub(super) fn counters(&self) -> impl Iterator<Item = String> {
        self.remote.keys().chain([&self.local]).map(|cluster| connections_counter(cluster))
    }

    /// The rules of the chain.
    pub(super) fn rules(&self) -> Vec<Vec<Expression>> {
        let mut rules = Vec::new();
        for (cluster, prefixes) in &self.remote {
            for net in sets::fewest(prefixes) {
                let mut rule = of_family(Family::of_net(&net));
                rule.push(destination(Family::of_net(&net), Register(0)));
                rule.extend(inside(&net));
                rule.push(Expression::Count(connections_counter(cluster)));
                rule.push(Expression::Verdict(Verdict::Return));
                rules.push(rule);
            }
        }
        rules.push(vec![Expression::Count(connections_counter(&self.local))]);
        rules
    }
}

impl Ruleset {
    /// Sends what was meant for a clusterset address to the chain that counts.
    pub(super) fn counting_rules(&self) -> Vec<Vec<Expression>> {
        if self.targets.is_none() {
            return Vec::new();
        }
        FAMILIES
            .into_iter()
            .map(|family| {
                let mut rule = of_family(family);
                rule.push(Expression::ConntrackStatus { to: Register(0) });
                rule.push(mask_word(Register(0), DESTINATION_TRANSLATED));
                rule.push(not_zero(Register(0)));
                rule.push(Expression::OriginalDestination { family, to: Register(0) });
                rule.push(is_in(&set_name("clusterset", family)));
                rule.push(Expression::Verdict(Verdict::Jump(CONNECTIONS_CHAIN.to_string())));
                rule
            })
            .collect()
    }
}

/// Whether the address in the first register is inside the prefix.
fn inside(net: &IpNet) -> [Expression; 2] {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mask = Expression::Mask { register: Register(0), mask: bytes(net.netmask()) };
    [mask, equals(Register(0), bytes(net.network()))]
}
