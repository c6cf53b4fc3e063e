//! [`Ruleset`]: what our nftables table does on one host, compiled to a [`Table`].
//!
//! | chain | hook, priority | does |
//! |---|---|---|
//! | `transit` | prerouting, raw (-300) | on a gateway host: what only passes through is not tracked |
//! | `translate_arriving`, `translate_sent` | prerouting, output, dstnat - 10 | clusterset address → endpoint |
//! | `keep_source` | postrouting, srcnat - 10 | sources survive between members; the host's own clients get an address other clusters can answer; connections are counted |
//! | `count_arriving` | input, srcnat - 10 | connections to the host itself are counted |
//! | `input`, `forward`, `output` | filter (0) | closed until exported; VXLAN from members only; segment size; nothing to a clusterset address untranslated |
//!
//! dstnat and srcnat less ten: before kube-proxy's chains, so that a later masquerade finds the binding claimed.

mod connections;
mod filter;
mod phrase;
mod translate;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};

use connections::CONNECTIONS_CHAIN;
pub use connections::{Targets, connections_counter, counted_cluster};
use filter::untranslated_rules;
use phrase::{address_length, input_device, is_in};
use translate::translate_rules;
pub use translate::{slot_chain, slot_chain_name};

use crate::table::{Chain, ChainKind, Expression, Hook, HookPoint, Register, Rule, SetShape, SetValue, Table, Verdict};
use crate::{Family, Refusal};

/// What the table of one host is asked to do. Who is a member, what is exported and which services exist is in
/// [`crate::Sets`] and [`crate::Service`], and changes without touching the chains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub reachability: PodReachability,
    /// Whether this is a gateway host: packets between members that neither begin nor end here are not tracked.
    pub transit: bool,
    /// UDP port of our VXLAN device, if there is one: then only member nodes may send to it.
    pub vxlan_port: Option<u16>,
    pub host_clients: HostClients,
    /// Netlink log group that refused packets are copied to, if somebody reads them.
    pub log_group: Option<u16>,
    /// Whose endpoints are whose, if new connections to clusterset addresses are to be counted.
    pub targets: Option<Targets>,
}

/// Who may open connections to pods from other clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodReachability {
    /// Only to exported endpoints.
    #[default]
    Closed,
    /// To all pods.
    Open,
}

/// The address per family that connections of the host itself to other clusters come from. None: they keep the source
/// they have, which other clusters may not be able to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostClients {
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
}

// Priorities of <linux/netfilter_ipv4.h>.
const RAW: i32 = -300;
const BEFORE_DESTINATION_NAT: i32 = -100 - 10;
const BEFORE_SOURCE_NAT: i32 = 100 - 10;
const FILTER: i32 = 0;

/// Names of chains made on demand begin so; the table's skeleton does not list them.
pub const SLOT_CHAIN_PREFIX: &str = "slots";

/// The chain a frontend without endpoints is sent to.
pub const NO_ENDPOINT_CHAIN: &str = "no_endpoint";

const NO_SERVICE_CHAIN: &str = "no_service";
const UNTRANSLATED_CHAIN: &str = "untranslated";

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// The name of a per-family set: its stem and 4 or 6.
pub fn set_name(stem: &str, family: Family) -> String {
    format!("{stem}{}", if family == Family::Ipv4 { '4' } else { '6' })
}

impl Ruleset {
    /// The table that does it.
    pub fn table(&self) -> Table {
        let mut chains = BTreeMap::new();
        let mut base = |name: &str, kind, point, priority, rules: Vec<Vec<Expression>>| {
            let hook = Some(Hook { kind, point, priority });
            chains.insert(name.to_string(), Chain { hook, rules: rules.into_iter().map(Rule::new).collect() });
        };
        base("transit", ChainKind::Filter, HookPoint::Prerouting, RAW, self.transit_rules());
        let translate = translate_rules();
        let mut arriving =
            vec![vec![input_device(Register(0)), is_in("tunnels"), Expression::Verdict(Verdict::Return)]];
        arriving.extend(translate.clone());
        base("translate_arriving", ChainKind::Nat, HookPoint::Prerouting, BEFORE_DESTINATION_NAT, arriving);
        base("translate_sent", ChainKind::Nat, HookPoint::Output, BEFORE_DESTINATION_NAT, translate);
        let mut leaving = self.counting_rules();
        leaving.extend(self.source_rules());
        base("keep_source", ChainKind::Nat, HookPoint::Postrouting, BEFORE_SOURCE_NAT, leaving);
        // An endpoint that is this host itself: its connections do not leave. Those that have left are not asked again.
        base("count_arriving", ChainKind::Nat, HookPoint::Input, BEFORE_SOURCE_NAT, self.counting_rules());
        base("input", ChainKind::Filter, HookPoint::Input, FILTER, self.input_rules());
        base("forward", ChainKind::Filter, HookPoint::Forward, FILTER, self.forward_rules());
        base("output", ChainKind::Filter, HookPoint::Output, FILTER, untranslated_rules());
        let mut plain = |name: &str, rules: Vec<Vec<Expression>>| {
            chains.insert(name.to_string(), Chain { hook: None, rules: rules.into_iter().map(Rule::new).collect() });
        };
        plain(NO_SERVICE_CHAIN, self.reject_rules(Refusal::NoService));
        plain(NO_ENDPOINT_CHAIN, self.reject_rules(Refusal::NoEndpoint));
        plain(UNTRANSLATED_CHAIN, self.reject_rules(Refusal::Untranslated));
        plain("admission", self.admission_rules());
        plain("members_only", self.members_only_rules());
        plain(CONNECTIONS_CHAIN, self.targets.iter().flat_map(Targets::rules).collect());
        let refusals = Refusal::ALL.iter().map(|refusal| refusal.name().to_string());
        let counters = refusals.chain(self.targets.iter().flat_map(Targets::counters)).collect();
        Table { sets: set_shapes(), counters, chains }
    }
}

fn set_shapes() -> BTreeMap<String, SetShape> {
    let mut shapes = BTreeMap::new();
    for family in FAMILIES {
        let address = address_length(family);
        for stem in ["remote", "local", "clusterset", "here", "control"] {
            let shape = SetShape { key: address, value: SetValue::Nothing, interval: true };
            shapes.insert(set_name(stem, family), shape);
        }
        let plain = |key, value| SetShape { key, value, interval: false };
        shapes.insert(set_name("nodes", family), plain(address, SetValue::Nothing));
        shapes.insert(set_name("hairpin", family), plain(2 * address, SetValue::Nothing));
        shapes.insert(set_name("exported", family), plain(address + 8, SetValue::Nothing));
        shapes.insert(set_name("echo", family), plain(address, SetValue::Nothing));
        shapes.insert(set_name("services", family), plain(address + 8, SetValue::Verdict));
        shapes.insert(set_name("slots", family), plain(address + 12, SetValue::Bytes(address + 4)));
    }
    let devices = SetShape { key: 16, value: SetValue::Nothing, interval: false };
    shapes.insert("tunnels".to_string(), devices);
    shapes
}
