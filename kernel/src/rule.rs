//! Rules that lead into our table.

use std::collections::BTreeSet;

use kernel_core::rule::LAST_PRIORITY;
use kernel_core::{DeviceName, Family, PROTOCOL, Rule, Selector};
use nix::errno::Errno;

use crate::Error;
use crate::message::{Message, Received, attributes_after, flag, read_u32, text};
use crate::socket::Socket;

const NEW: u16 = 32;
const DELETE: u16 = 33;
const GET: u16 = 34;
const FIXED: usize = 12;

// <linux/fib_rules.h>
const INPUT_DEVICE: u16 = 3;
const PRIORITY: u16 = 6;
const MARK: u16 = 10;
const TABLE_NUMBER: u16 = 15;
const MARK_MASK: u16 = 16;
const RULE_PROTOCOL: u16 = 21;
const TO_TABLE: u8 = 1;
const INVERT: u32 = 2;

pub(crate) fn add(socket: &mut Socket, rule: &Rule) -> Result<(), Error> {
    if rule.priority == 0 || rule.priority > LAST_PRIORITY {
        let reason = format!("its priority must be 1 to {LAST_PRIORITY}: others' rules begin above");
        return Err(Error::Invalid { object: name(rule), reason });
    }
    match socket.request(message(NEW, flag::CREATE | flag::EXCLUSIVE, rule)) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        other => other.map_err(|error| error.of(name(rule))),
    }
}

pub(crate) fn remove(socket: &mut Socket, rule: &Rule) -> Result<(), Error> {
    match socket.request(message(DELETE, 0, rule)) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
        other => other.map_err(|error| error.of(name(rule))),
    }
}

/// Rules of our protocol number.
pub(crate) fn list(socket: &mut Socket) -> Result<BTreeSet<Rule>, Error> {
    let mut rules = BTreeSet::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        let mut fixed = [0; FIXED];
        fixed[0] = number(family);
        match socket.dump(&Message::new(GET, 0, &fixed), |received| read(received, family)) {
            Ok(found) => rules.extend(found),
            Err(error) if matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)) => {}
            Err(error) => return Err(error.of("list of rules")),
        }
    }
    Ok(rules)
}

pub(crate) fn read(received: Received<'_>, family: Family) -> Option<Rule> {
    let payload = received.payload;
    let inverted = read_u32(payload, 8)? & INVERT != 0;
    let (mut priority, mut mark, mut mask, mut protocol, mut device) = (0, None, u32::MAX, 0, None);
    for (kind, value) in attributes_after(payload, FIXED) {
        match kind {
            PRIORITY => priority = read_u32(value, 0)?,
            MARK => mark = read_u32(value, 0),
            MARK_MASK => mask = read_u32(value, 0)?,
            RULE_PROTOCOL => protocol = *value.first()?,
            INPUT_DEVICE => device = text(value).and_then(|text| DeviceName::new(text).ok()),
            _ => {}
        }
    }
    if protocol != PROTOCOL {
        return None;
    }
    let selector = match (mark, device) {
        (Some(mark), _) if inverted => Selector::NotMarked { mark, mask },
        (_, Some(device)) => Selector::From(device),
        _ => Selector::Everything,
    };
    Some(Rule { family, priority, selector })
}

fn message(kind: u16, flags: u16, rule: &Rule) -> Message {
    let inverted = matches!(rule.selector, Selector::NotMarked { .. });
    let mut fixed = [0; FIXED];
    fixed[0] = number(rule.family);
    fixed[7] = TO_TABLE;
    fixed[8..12].copy_from_slice(&(if inverted { INVERT } else { 0 }).to_ne_bytes());
    let mut message = Message::new(kind, flags, &fixed);
    message
        .put_u32(PRIORITY, rule.priority)
        .put_u32(TABLE_NUMBER, rule.table().number())
        .put_u8(RULE_PROTOCOL, PROTOCOL);
    match &rule.selector {
        Selector::Everything => {}
        Selector::NotMarked { mark, mask } => {
            message.put_u32(MARK, *mark).put_u32(MARK_MASK, *mask);
        }
        Selector::From(device) => {
            message.put_text(INPUT_DEVICE, device.as_str());
        }
    }
    message
}

fn number(family: Family) -> u8 {
    if family == Family::Ipv4 { 2 } else { 10 }
}

fn name(rule: &Rule) -> String {
    let family = if rule.family == Family::Ipv4 { "IPv4" } else { "IPv6" };
    format!("{family} rule {}", rule.priority)
}
