//! Address translation: clusterset address to endpoint, sources between members; and what is not tracked at all.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::phrase::*;
use super::{FAMILIES, HostClients, NO_ENDPOINT_CHAIN, NO_SERVICE_CHAIN, Ruleset, SLOT_CHAIN_PREFIX, set_name};
use crate::table::{Chain, Expression, Register, Rule, Verdict};
use crate::{Affinity, Family};

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

pub(super) fn translate_rules() -> Vec<Vec<Expression>> {
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

impl Ruleset {
    /// Packets of other hosts' pods and clients: another gateway may see the other half of the flow.
    pub(super) fn transit_rules(&self) -> Vec<Vec<Expression>> {
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

    pub(super) fn source_rules(&self) -> Vec<Vec<Expression>> {
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
}

impl HostClients {
    fn of(&self, family: Family) -> Option<Vec<u8>> {
        match family {
            Family::Ipv4 => self.ipv4.map(|address| address.octets().to_vec()),
            Family::Ipv6 => self.ipv6.map(|address| address.octets().to_vec()),
        }
    }
}
