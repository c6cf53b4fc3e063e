//! [`Ruleset`]: what our nftables table does on one host, compiled to a [`Table`].
//!
//! | chain | hook, priority | does |
//! |---|---|---|
//! | `transit` | prerouting, raw (-300) | on a gateway host: what only passes through is not tracked |
//! | `translate_arriving`, `translate_sent` | prerouting, output, dstnat - 10 | clusterset address → endpoint |
//! | `keep_source` | postrouting, srcnat - 10 | sources survive between members; the host's own clients get an address other clusters can answer |
//! | `input`, `forward`, `output` | filter (0) | closed until exported; VXLAN from members only; segment size; nothing to a clusterset address untranslated |
//!
//! dstnat and srcnat less ten: before kube-proxy's chains, so that a later masquerade finds the binding claimed.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};

use crate::table::{
    Base, Chain, ChainKind, Expression, Hook, HookPoint, Meta, Register, Rule, SetShape, SetValue, Table, Verdict,
};
use crate::{Affinity, Family, Refusal};

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

/// The name of the chain that serves frontends of so many slots.
pub fn slot_chain_name(family: Family, affinity: Affinity, slots: usize) -> String {
    let way = if affinity == Affinity::None { "random" } else { "client" };
    format!("{}_{way}_{slots}", set_name(SLOT_CHAIN_PREFIX, family))
}

/// The chain that serves frontends of so many slots (at least one): picks a slot, looks its endpoint up, translates. A
/// slot that is not there ends in a refusal.
pub fn slot_chain(family: Family, affinity: Affinity, slots: usize) -> Chain {
    let modulus = u32::try_from(slots.max(1)).unwrap_or(u32::MAX);
    let words = address_words(family);
    let slot = Register(words + 2);
    let pick = match affinity {
        Affinity::None => vec![Expression::Random { modulus, to: slot }],
        // The source is read beside the key: it must not be part of it.
        Affinity::ClientAddress => vec![
            source(family, Register(words + 3)),
            Expression::Hash { from: Register(words + 3), length: address_length(family), modulus, to: slot },
        ],
    };
    let mut expressions = frontend_key(family);
    expressions.extend(pick);
    expressions.push(Expression::Map { set: set_name("slots", family), from: Register(0), to: Register(0) });
    expressions.push(Expression::DestinationNat { family, address: Register(0), port: Register(words) });
    let miss = vec![Expression::Verdict(Verdict::Goto(NO_ENDPOINT_CHAIN.to_string()))];
    Chain { hook: None, rules: vec![Rule::new(expressions), Rule::new(miss)] }
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
        base("keep_source", ChainKind::Nat, HookPoint::Postrouting, BEFORE_SOURCE_NAT, self.source_rules());
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
        let counters = Refusal::ALL.iter().map(|refusal| refusal.name().to_string()).collect();
        Table { sets: set_shapes(), counters, chains }
    }

    /// Packets of other hosts' pods and clients: another gateway may see the other half of the flow.
    fn transit_rules(&self) -> Vec<Vec<Expression>> {
        if !self.transit {
            return Vec::new();
        }
        FAMILIES
            .into_iter()
            .flat_map(|family| {
                let passing = |from: &str, to: &str, here: fn(Family, Register) -> Expression| {
                    let mut rule = of_family(family);
                    rule.extend(source_in(from, family));
                    rule.extend(destination_in(to, family));
                    rule.push(here(family, Register(0)));
                    rule.push(is_not_in(&set_name("here", family)));
                    rule.push(Expression::Notrack);
                    rule
                };
                [passing("local", "remote", source), passing("remote", "local", destination)]
            })
            .collect()
    }

    fn source_rules(&self) -> Vec<Vec<Expression>> {
        let mut rules = Vec::new();
        for family in FAMILIES {
            // A pod that was given itself: without another source its answer would not pass the host again.
            let mut hairpin = of_family(family);
            hairpin.push(Expression::ConntrackStatus { to: Register(0) });
            hairpin.push(mask_word(Register(0), DESTINATION_TRANSLATED));
            hairpin.push(not_zero(Register(0)));
            hairpin.push(source(family, Register(0)));
            hairpin.push(destination(family, Register(address_words(family))));
            hairpin.push(is_in(&set_name("hairpin", family)));
            hairpin.push(Expression::Masquerade);
            rules.push(hairpin);

            if let Some(address) = self.host_clients.of(family) {
                let mut host = of_family(family);
                host.extend(destination_in("remote", family));
                host.push(Expression::SourceKind { to: Register(0) });
                host.push(equals(Register(0), LOCAL_ADDRESS.to_ne_bytes().to_vec()));
                host.push(Expression::Immediate { to: Register(0), data: address });
                host.push(Expression::SourceNat { family, address: Register(0) });
                rules.push(host);
            }

            for (from, to) in [("local", "remote"), ("remote", "local")] {
                let mut keep = of_family(family);
                keep.extend(source_in(from, family));
                keep.extend(destination_in(to, family));
                keep.push(source(family, Register(0)));
                keep.push(Expression::SourceNat { family, address: Register(0) });
                rules.push(keep);
            }
        }
        rules
    }

    fn input_rules(&self) -> Vec<Vec<Expression>> {
        let mut rules = Vec::new();
        if let Some(port) = self.vxlan_port {
            let mut arriving_by_pod = to_port(UDP, port);
            arriving_by_pod.extend([input_device(Register(0)), is_in("pods")]);
            arriving_by_pod.extend(self.refuse(Refusal::VxlanStranger));
            rules.push(arriving_by_pod);
            for family in FAMILIES {
                // A pod may forge a node's address, but the way back to that address is not the pod's device.
                let mut member = of_family(family);
                member.extend(to_port(UDP, port));
                member.extend(source_in("nodes", family));
                member.push(Expression::SourceBelongsToDevice { to: Register(0) });
                member.push(equals(Register(0), vec![1]));
                member.push(Expression::Verdict(Verdict::Accept));
                rules.push(member);
            }
            let mut stranger = to_port(UDP, port);
            stranger.extend(self.refuse(Refusal::VxlanStranger));
            rules.push(stranger);
        }
        rules.push(vec![
            input_device(Register(0)),
            is_in("tunnels"),
            Expression::Verdict(Verdict::Jump("members_only".to_string())),
        ]);
        for family in FAMILIES {
            let mut control = of_family(family);
            control.extend(source_in("control", family));
            control.push(Expression::Verdict(Verdict::Accept));
            rules.push(control);
        }
        rules.extend(self.new_flow_rules());
        rules
    }

    fn forward_rules(&self) -> Vec<Vec<Expression>> {
        let mut rules = Vec::new();
        if let Some(port) = self.vxlan_port {
            // Masqueraded, a pod's packet would reach the other node with this node's address.
            for family in FAMILIES {
                let mut injected = of_family(family);
                injected.extend(to_port(UDP, port));
                injected.extend(destination_in("nodes", family));
                injected.extend(self.refuse(Refusal::VxlanStranger));
                rules.push(injected);
            }
        }
        rules.push(vec![
            input_device(Register(0)),
            is_in("tunnels"),
            Expression::Verdict(Verdict::Jump("members_only".to_string())),
        ]);
        for family in FAMILIES {
            for end in [source_in("remote", family), destination_in("remote", family)] {
                let mut clamp = of_family(family);
                clamp.extend(end);
                clamp.extend(opening_tcp());
                clamp.push(Expression::RouteMss { to: Register(0) });
                clamp.push(Expression::NetworkOrder16 { register: Register(0) });
                clamp.push(Expression::ClampMss { from: Register(0) });
                rules.push(clamp);
            }
        }
        rules.extend(untranslated_rules());
        rules.extend(self.new_flow_rules());
        rules
    }

    /// New flows from other clusters, sent to `admission`.
    fn new_flow_rules(&self) -> Vec<Vec<Expression>> {
        if self.reachability == PodReachability::Open {
            return Vec::new();
        }
        FAMILIES
            .into_iter()
            .map(|family| {
                let mut rule = of_family(family);
                rule.extend(source_in("remote", family));
                rule.push(Expression::ConntrackState { to: Register(0) });
                rule.push(mask_word(Register(0), NEW));
                rule.push(not_zero(Register(0)));
                rule.push(Expression::Verdict(Verdict::Goto("admission".to_string())));
                rule
            })
            .collect()
    }

    fn admission_rules(&self) -> Vec<Vec<Expression>> {
        let mut rules = Vec::new();
        for family in FAMILIES {
            let mut exported = frontend_key(family);
            exported.splice(0..0, of_family(family));
            exported.push(is_in(&set_name("exported", family)));
            exported.push(Expression::Verdict(Verdict::Accept));
            rules.push(exported);
        }
        for (protocol, refusal) in [(TCP, Refusal::UnexportedTcp), (UDP, Refusal::UnexportedUdp)] {
            let mut rule = transport_is(protocol);
            rule.extend(self.refuse(refusal));
            rules.push(rule);
        }
        for (protocol, kind) in [(ICMP, ECHO_REQUEST_V4), (ICMPV6, ECHO_REQUEST_V6)] {
            let mut rule = transport_is(protocol);
            rule.push(Expression::Payload { base: Base::Transport, offset: 0, length: 1, to: Register(0) });
            rule.push(equals(Register(0), vec![kind]));
            rule.extend(self.refuse(Refusal::UnexportedEcho));
            rules.push(rule);
        }
        rules.push(self.refuse(Refusal::UnexportedOther));
        rules
    }

    /// What comes out of a tunnel is from a member, or from a peer's gateway itself.
    fn members_only_rules(&self) -> Vec<Vec<Expression>> {
        let mut rules = Vec::new();
        for family in FAMILIES {
            for set in ["remote", "local", "control"] {
                let mut known = of_family(family);
                known.extend(source_in(set, family));
                known.push(Expression::Verdict(Verdict::Return));
                rules.push(known);
            }
        }
        rules.push(self.refuse(Refusal::ForeignSource));
        rules
    }

    /// Counted, copied to the log, dropped.
    fn refuse(&self, refusal: Refusal) -> Vec<Expression> {
        let mut expressions = self.note(refusal);
        expressions.push(Expression::Verdict(Verdict::Drop));
        expressions
    }

    /// Counted, copied to the log, and the client told.
    fn reject_rules(&self, refusal: Refusal) -> Vec<Vec<Expression>> {
        let mut tcp = transport_is(TCP);
        tcp.push(Expression::RejectTcpReset);
        vec![self.note(refusal), tcp, vec![Expression::RejectPortUnreachable]]
    }

    fn note(&self, refusal: Refusal) -> Vec<Expression> {
        let mut expressions = vec![Expression::Count(refusal)];
        if let Some(group) = self.log_group {
            expressions.push(Expression::Log { prefix: refusal.name().to_string(), group });
        }
        expressions
    }
}

impl HostClients {
    fn of(&self, family: Family) -> Option<Vec<u8>> {
        match family {
            Family::Ipv4 => self.ipv4.map(|address| address.octets().to_vec()),
            Family::Ipv6 => self.ipv6.map(|address| address.octets().to_vec()),
        }
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
        shapes.insert(set_name("services", family), plain(address + 8, SetValue::Verdict));
        shapes.insert(set_name("slots", family), plain(address + 12, SetValue::Bytes(address + 4)));
    }
    let devices = SetShape { key: 16, value: SetValue::Nothing, interval: false };
    shapes.insert("tunnels".to_string(), devices);
    shapes.insert("pods".to_string(), devices);
    shapes
}

fn translate_rules() -> Vec<Vec<Expression>> {
    let mut rules = Vec::new();
    for family in FAMILIES {
        let mut serve = frontend_key(family);
        serve.splice(0..0, of_family(family));
        serve.push(Expression::VerdictMap { set: set_name("services", family), from: Register(0) });
        rules.push(serve);
        let mut unknown = of_family(family);
        unknown.extend(destination_in("clusterset", family));
        unknown.push(Expression::Verdict(Verdict::Goto(NO_SERVICE_CHAIN.to_string())));
        rules.push(unknown);
    }
    rules
}

fn untranslated_rules() -> Vec<Vec<Expression>> {
    FAMILIES
        .into_iter()
        .map(|family| {
            let mut rule = of_family(family);
            rule.extend(destination_in("clusterset", family));
            rule.push(Expression::Verdict(Verdict::Goto(UNTRANSLATED_CHAIN.to_string())));
            rule
        })
        .collect()
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const NEW: u32 = 8;
/// `IPS_DST_NAT`.
const DESTINATION_TRANSLATED: u32 = 1 << 5;
/// `RTN_LOCAL`.
const LOCAL_ADDRESS: u32 = 2;
/// SYN and RST: only a SYN announces a segment size.
const SYN_RST: u8 = 0x06;
const SYN: u8 = 0x02;

const fn address_length(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 16,
    }
}

const fn address_words(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 1,
        Family::Ipv6 => 4,
    }
}

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
fn of_family(family: Family) -> Vec<Expression> {
    let number = if family == Family::Ipv4 { 2 } else { 10 };
    vec![Expression::Meta { key: Meta::Family, to: Register(0) }, equals(Register(0), vec![number])]
}

fn source(family: Family, to: Register) -> Expression {
    let offset = if family == Family::Ipv4 { 12 } else { 8 };
    Expression::Payload { base: Base::Network, offset, length: address_length(family), to }
}

fn destination(family: Family, to: Register) -> Expression {
    let offset = if family == Family::Ipv4 { 16 } else { 24 };
    Expression::Payload { base: Base::Network, offset, length: address_length(family), to }
}

/// Destination, protocol and port, in registers from zero on.
fn frontend_key(family: Family) -> Vec<Expression> {
    let words = address_words(family);
    vec![
        destination(family, Register(0)),
        Expression::Meta { key: Meta::Transport, to: Register(words) },
        Expression::Payload { base: Base::Transport, offset: 2, length: 2, to: Register(words + 1) },
    ]
}

fn input_device(to: Register) -> Expression {
    Expression::Meta { key: Meta::InputDevice, to }
}

fn transport_is(protocol: u8) -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::Transport, to: Register(0) }, equals(Register(0), vec![protocol])]
}

fn to_port(protocol: u8, port: u16) -> Vec<Expression> {
    let mut expressions = transport_is(protocol);
    expressions.push(Expression::Payload { base: Base::Transport, offset: 2, length: 2, to: Register(0) });
    expressions.push(equals(Register(0), port.to_be_bytes().to_vec()));
    expressions
}

fn opening_tcp() -> Vec<Expression> {
    let mut expressions = transport_is(TCP);
    expressions.push(Expression::Payload { base: Base::Transport, offset: 13, length: 1, to: Register(0) });
    expressions.push(Expression::Mask { register: Register(0), mask: vec![SYN_RST] });
    expressions.push(equals(Register(0), vec![SYN]));
    expressions
}

fn source_in(stem: &str, family: Family) -> Vec<Expression> {
    vec![source(family, Register(0)), is_in(&set_name(stem, family))]
}

fn destination_in(stem: &str, family: Family) -> Vec<Expression> {
    vec![destination(family, Register(0)), is_in(&set_name(stem, family))]
}

fn is_in(set: &str) -> Expression {
    Expression::Lookup { set: set.to_string(), from: Register(0), inverted: false }
}

fn is_not_in(set: &str) -> Expression {
    Expression::Lookup { set: set.to_string(), from: Register(0), inverted: true }
}

fn equals(from: Register, data: Vec<u8>) -> Expression {
    Expression::Compare { from, equal: true, data }
}

fn mask_word(register: Register, mask: u32) -> Expression {
    Expression::Mask { register, mask: mask.to_ne_bytes().to_vec() }
}

fn not_zero(from: Register) -> Expression {
    Expression::Compare { from, equal: false, data: vec![0; 4] }
}
