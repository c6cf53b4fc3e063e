//! The phrases rules are made of.

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use super::set_name;
use crate::Family;
use crate::table::{Base, Expression, Meta, Register};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP: u8 = 1;
pub(super) const ICMPV6: u8 = 58;
pub(super) const ECHO_REQUEST_V4: u8 = 8;
pub(super) const ECHO_REQUEST_V6: u8 = 128;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
pub(super) const NEW: u32 = 8;
/// `IPS_DST_NAT`.
pub(super) const DESTINATION_TRANSLATED: u32 = 1 << 5;
/// `RTN_LOCAL`.
pub(super) const LOCAL_ADDRESS: u32 = 2;
/// SYN and RST: only a SYN announces a segment size.
pub(super) const SYN_RST: u8 = 0x06;
pub(super) const SYN: u8 = 0x02;

pub(super) const fn address_length(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 16,
    }
}

pub(super) const fn address_words(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 1,
        Family::Ipv6 => 4,
    }
}

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
pub(super) fn of_family(family: Family) -> Vec<Expression> {
    let number = if family == Family::Ipv4 { 2 } else { 10 };
    vec![Expression::Meta { key: Meta::Family, to: Register(0) }, equals(Register(0), vec![number])]
}

pub(super) fn source(family: Family, to: Register) -> Expression {
    let offset = if family == Family::Ipv4 { 12 } else { 8 };
    Expression::Payload { base: Base::Network, offset, length: address_length(family), to }
}

pub(super) fn destination(family: Family, to: Register) -> Expression {
    let offset = if family == Family::Ipv4 { 16 } else { 24 };
    Expression::Payload { base: Base::Network, offset, length: address_length(family), to }
}

/// Destination, protocol and port, in registers from zero on.
pub(super) fn frontend_key(family: Family) -> Vec<Expression> {
    let words = address_words(family);
    vec![
        destination(family, Register(0)),
        Expression::Meta { key: Meta::Transport, to: Register(words) },
        Expression::Payload { base: Base::Transport, offset: 2, length: 2, to: Register(words + 1) },
    ]
}

pub(super) fn input_device(to: Register) -> Expression {
    Expression::Meta { key: Meta::InputDevice, to }
}

pub(super) fn transport_is(protocol: u8) -> Vec<Expression> {
    vec![Expression::Meta { key: Meta::Transport, to: Register(0) }, equals(Register(0), vec![protocol])]
}

pub(super) fn to_port(protocol: u8, port: u16) -> Vec<Expression> {
    let mut expressions = transport_is(protocol);
    expressions.push(Expression::Payload { base: Base::Transport, offset: 2, length: 2, to: Register(0) });
    expressions.push(equals(Register(0), port.to_be_bytes().to_vec()));
    expressions
}

pub(super) fn echo_request(family: Family) -> Vec<Expression> {
    let (protocol, kind) = match family {
        Family::Ipv4 => (ICMP, ECHO_REQUEST_V4),
        Family::Ipv6 => (ICMPV6, ECHO_REQUEST_V6),
    };
    let mut expressions = transport_is(protocol);
    expressions.push(Expression::Payload { base: Base::Transport, offset: 0, length: 1, to: Register(0) });
    expressions.push(equals(Register(0), vec![kind]));
    expressions
}

pub(super) fn opening_tcp() -> Vec<Expression> {
    let mut expressions = transport_is(TCP);
    expressions.push(Expression::Payload { base: Base::Transport, offset: 13, length: 1, to: Register(0) });
    expressions.push(Expression::Mask { register: Register(0), mask: vec![SYN_RST] });
    expressions.push(equals(Register(0), vec![SYN]));
    expressions
}

pub(super) fn source_in(stem: &str, family: Family) -> Vec<Expression> {
    vec![source(family, Register(0)), is_in(&set_name(stem, family))]
}

pub(super) fn destination_in(stem: &str, family: Family) -> Vec<Expression> {
    vec![destination(family, Register(0)), is_in(&set_name(stem, family))]
}

pub(super) fn is_in(set: &str) -> Expression {
    Expression::Lookup { set: set.to_string(), from: Register(0), inverted: false }
}

pub(super) fn is_not_in(set: &str) -> Expression {
    Expression::Lookup { set: set.to_string(), from: Register(0), inverted: true }
}

pub(super) fn equals(from: Register, data: Vec<u8>) -> Expression {
    Expression::Compare { from, equal: true, data }
}

pub(super) fn mask_word(register: Register, mask: u32) -> Expression {
    Expression::Mask { register, mask: mask.to_ne_bytes().to_vec() }
}

pub(super) fn not_zero(from: Register) -> Expression {
    Expression::Compare { from, equal: false, data: vec![0; 4] }
}
