//! The table without its elements: sets, counters, chains and their rules, as messages.

use kernel_core::table::{Chain, ChainKind, HookPoint, Rule, SetShape, SetValue, Table};

use super::{expression, kind, message};
use crate::message::{Message, flag};

/// `NFT_OBJECT_COUNTER`.
pub(crate) const COUNTER: u32 = 1;

// Attributes of <linux/netfilter/nf_tables.h>; the first of each is the table.
pub(crate) const CHAIN_NAME: u16 = 3;
pub(crate) const CHAIN_HOOK: u16 = 4;
pub(crate) const CHAIN_KIND: u16 = 7;
pub(crate) const HOOK_POINT: u16 = 1;
pub(crate) const HOOK_PRIORITY: u16 = 2;
pub(crate) const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
pub(crate) const RULE_USER_DATA: u16 = 7;
pub(crate) const SET_NAME: u16 = 2;
pub(crate) const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
pub(crate) const SET_KEY_LENGTH: u16 = 5;
pub(crate) const SET_DATA_TYPE: u16 = 6;
pub(crate) const SET_DATA_LENGTH: u16 = 7;
const SET_ID: u16 = 10;
const SET_USER_DATA: u16 = 13;
pub(crate) const OBJECT_NAME: u16 = 2;
pub(crate) const OBJECT_KIND: u16 = 3;
pub(crate) const OBJECT_DATA: u16 = 4;

pub(crate) const INTERVALS: u32 = 0x4;
pub(crate) const MAP: u32 = 0x8;
/// `NFT_DATA_VERDICT`.
pub(crate) const VERDICTS: u32 = 0xffff_ff00;

/// What nft(8) wants to be told of names in a set, or it shows them empty: keys are in host order. A type, a length, a
/// number in host order.
const IN_HOST_ORDER: [u8; 6] = {
    let [a, b, c, d] = 1u32.to_ne_bytes();
    [0, 4, a, b, c, d]
};

/// A comment in the user data of a rule, as nft(8) shows it.
const COMMENT: u8 = 0;

/// What is in the kernel of our table by name, so that what is not wanted any more can be taken away.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) chains: Vec<String>,
    pub(crate) sets: Vec<String>,
    pub(crate) counters: Vec<String>,
}

/// Messages that make the table, or put its chains in place of those `there`.
pub(crate) fn set(table: &Table, there: &Names) -> Vec<Message> {
    let mut messages = vec![message(kind::NEW_TABLE, flag::CREATE)];
    for name in table.counters.iter().filter(|name| !there.counters.contains(name)) {
        messages.push(counter(name));
    }
    for (number, (name, shape)) in (1..).zip(&table.sets) {
        messages.push(set_of_shape(name, *shape, number));
    }
    for (name, chain) in &table.chains {
        messages.push(new_chain(name, chain));
    }
    let ours = |name: &str| table.chains.contains_key(name) || super::slots::is_slot_chain(name);
    let leaving: Vec<&String> = there.chains.iter().filter(|name| !ours(name)).collect();
    messages.extend(table.chains.keys().map(|name| flush_chain(name)));
    messages.extend(leaving.iter().map(|name| flush_chain(name)));
    for (name, chain) in &table.chains {
        messages.extend(chain.rules.iter().map(|rule| new_rule(name, rule)));
    }
    for name in leaving {
        let mut gone = message(kind::DELETE_CHAIN, 0);
        gone.put_text(CHAIN_NAME, name);
        messages.push(gone);
    }
    for name in there.sets.iter().filter(|name| !table.sets.contains_key(*name)) {
        let mut gone = message(kind::DELETE_SET, 0);
        gone.put_text(SET_NAME, name);
        messages.push(gone);
    }
    for name in there.counters.iter().filter(|name| !table.counters.contains(*name)) {
        let mut gone = message(kind::DELETE_OBJECT, 0);
        gone.put_text(OBJECT_NAME, name).put_be32(OBJECT_KIND, COUNTER);
        messages.push(gone);
    }
    messages
}

/// Messages that make a chain that may be there, with these rules and no others.
pub(crate) fn set_chain(name: &str, chain: &Chain) -> Vec<Message> {
    let mut messages = vec![new_chain(name, chain), flush_chain(name)];
    messages.extend(chain.rules.iter().map(|rule| new_rule(name, rule)));
    messages
}

fn counter(name: &str) -> Message {
    let mut message = message(kind::NEW_OBJECT, flag::CREATE);
    message.put_text(OBJECT_NAME, name).put_be32(OBJECT_KIND, COUNTER).nest(OBJECT_DATA, |_| {});
    message
}

fn set_of_shape(name: &str, shape: SetShape, number: u32) -> Message {
    let mut message = message(kind::NEW_SET, flag::CREATE);
    let map = if shape.value == SetValue::Nothing { 0 } else { MAP };
    let intervals = if shape.interval { INTERVALS } else { 0 };
    message.put_text(SET_NAME, name).put_be32(SET_FLAGS, map | intervals);
    message.put_be32(SET_KEY_TYPE, shown_type(name)).put_be32(SET_KEY_LENGTH, shape.key);
    match shape.value {
        SetValue::Nothing => {}
        SetValue::Verdict => {
            message.put_be32(SET_DATA_TYPE, VERDICTS);
        }
        SetValue::Bytes(length) => {
            let address = if name.ends_with('4') { IPV4 } else { IPV6 };
            message.put_be32(SET_DATA_TYPE, concatenated(&[address, PORT])).put_be32(SET_DATA_LENGTH, length);
        }
    }
    message.put_be32(SET_ID, number);
    if shown_type(name) == DEVICE {
        message.put(SET_USER_DATA, &IN_HOST_ORDER);
    }
    message
}

// Types of nft(8), which shows elements by them. The kernel keeps the number and does not look at it.
const IPV4: u32 = 7;
const IPV6: u32 = 8;
const TRANSPORT: u32 = 12;
const PORT: u32 = 13;
const MARK: u32 = 19;
const DEVICE: u32 = 41;

fn shown_type(name: &str) -> u32 {
    let address = if name.ends_with('4') { IPV4 } else { IPV6 };
    match name.trim_end_matches(['4', '6']) {
        "tunnels" => DEVICE,
        "hairpin" => concatenated(&[address, address]),
        "exported" | "services" => concatenated(&[address, TRANSPORT, PORT]),
        "slots" => concatenated(&[address, TRANSPORT, PORT, MARK]),
        _ => address,
    }
}

/// Six bits each.
fn concatenated(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, one| all << 6 | one)
}

fn new_chain(name: &str, chain: &Chain) -> Message {
    let mut message = message(kind::NEW_CHAIN, flag::CREATE);
    message.put_text(CHAIN_NAME, name);
    if let Some(hook) = chain.hook {
        message.nest(CHAIN_HOOK, |nest| {
            nest.put_be32(HOOK_POINT, point_number(hook.point));
            nest.put_be32(HOOK_PRIORITY, hook.priority.cast_unsigned());
        });
        message.put_text(CHAIN_KIND, kind_name(hook.kind));
    }
    message
}

fn flush_chain(name: &str) -> Message {
    let mut message = message(kind::DELETE_RULE, 0);
    message.put_text(RULE_CHAIN, name);
    message
}

fn new_rule(chain: &str, rule: &Rule) -> Message {
    let mut message = message(kind::NEW_RULE, flag::CREATE | flag::APPEND);
    message.put_text(RULE_CHAIN, chain);
    message.nest(RULE_EXPRESSIONS, |list| expression::put(list, &rule.expressions));
    let mut comment = vec![COMMENT, 17];
    comment.extend_from_slice(format!("{:016x}\0", rule.tag).as_bytes());
    message.put(RULE_USER_DATA, &comment);
    message
}

/// The tag in the user data of a rule. A rule without one is not ours, and equals none of ours.
pub(crate) fn read_tag(user_data: &[u8]) -> Option<u64> {
    let hexadecimal = std::str::from_utf8(user_data.strip_prefix(&[COMMENT, 17])?.get(..16)?).ok()?;
    u64::from_str_radix(hexadecimal, 16).ok()
}

/// `NF_INET_PRE_ROUTING` and so on.
const POINTS: [HookPoint; 5] =
    [HookPoint::Prerouting, HookPoint::Input, HookPoint::Forward, HookPoint::Output, HookPoint::Postrouting];

fn point_number(point: HookPoint) -> u32 {
    (0..).zip(POINTS).find(|(_, known)| *known == point).map_or(0, |(number, _)| number)
}

pub(crate) fn point(number: u32) -> Option<HookPoint> {
    POINTS.get(usize::try_from(number).ok()?).copied()
}

fn kind_name(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
    }
}

pub(crate) fn chain_kind(name: &str) -> Option<ChainKind> {
    [ChainKind::Filter, ChainKind::Nat].into_iter().find(|kind| kind_name(*kind) == name)
}
