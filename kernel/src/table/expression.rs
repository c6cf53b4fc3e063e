//! Rules as the kernel reads them: a list of named expressions with attributes each.

use kernel_core::Family;
use kernel_core::table::{Base, Expression, Meta, Register, Verdict};

use crate::message::Message;

const LIST_ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// `NFT_REG32_00`: registers of four bytes are numbered from here.
const FIRST_REGISTER: u32 = 8;
const VERDICT_REGISTER: u32 = 0;
/// The seed of the hash for affinity. Fixed, so that a client keeps its endpoint over a restart of ours.
const SEED: u32 = 0x746d_626c;
/// Of a logged packet so many bytes are copied: both headers, and no more of what people say to each other.
const LOGGED_BYTES: u32 = 128;

/// Adds the expressions to a rule.
pub(crate) fn put(list: &mut Message, expressions: &[Expression]) {
    for expression in expressions {
        list.nest(LIST_ELEMENT, |element| put_one(element, expression));
    }
}

fn put_one(element: &mut Message, expression: &Expression) {
    use Expression as E;
    match expression {
        E::Meta { key, to } => {
            // NFT_META_IIFNAME, NFPROTO, L4PROTO
            let key = match key {
                Meta::InputDevice => 6,
                Meta::Family => 15,
                Meta::Transport => 16,
            };
            named(element, "meta", |data| {
                data.put_be32(1, number(*to)).put_be32(2, key);
            });
        }
        E::Payload { base, offset, length, to } => {
            let base = match base {
                Base::Network => 1,
                Base::Transport => 2,
            };
            named(element, "payload", |data| {
                data.put_be32(1, number(*to)).put_be32(2, base).put_be32(3, *offset).put_be32(4, *length);
            });
        }
        E::Immediate { to, data: bytes } => named(element, "immediate", |data| {
            data.put_be32(1, number(*to));
            put_value(data, 2, bytes);
        }),
        E::Compare { from, equal, data: bytes } => named(element, "cmp", |data| {
            data.put_be32(1, number(*from)).put_be32(2, u32::from(!equal));
            put_value(data, 3, bytes);
        }),
        E::Mask { register, mask } => named(element, "bitwise", |data| {
            let length = u32::try_from(mask.len()).unwrap_or_default();
            data.put_be32(1, number(*register)).put_be32(2, number(*register)).put_be32(3, length);
            put_value(data, 4, mask);
            put_value(data, 5, &vec![0; mask.len()]);
        }),
        E::NetworkOrder16 { register } => named(element, "byteorder", |data| {
            const HOST_TO_NETWORK: u32 = 1;
            data.put_be32(1, number(*register)).put_be32(2, number(*register));
            data.put_be32(3, HOST_TO_NETWORK).put_be32(4, 2).put_be32(5, 2);
        }),
        E::Lookup { set, from, inverted } => named(element, "lookup", |data| {
            data.put_text(1, set).put_be32(2, number(*from));
            if *inverted {
                data.put_be32(5, 1);
            }
        }),
        E::Map { set, from, to } => named(element, "lookup", |data| {
            data.put_text(1, set).put_be32(2, number(*from)).put_be32(3, number(*to));
        }),
        E::VerdictMap { set, from } => named(element, "lookup", |data| {
            data.put_text(1, set).put_be32(2, number(*from)).put_be32(3, VERDICT_REGISTER);
        }),
        E::ConntrackState { to } => named(element, "ct", |data| {
            data.put_be32(1, number(*to)).put_be32(2, 0);
        }),
        E::ConntrackStatus { to } => named(element, "ct", |data| {
            data.put_be32(1, number(*to)).put_be32(2, 2);
        }),
        E::OriginalDestination { family, to } => named(element, "ct", |data| {
            // NFT_CT_DST_IP, NFT_CT_DST_IP6, of the direction the connection was opened in.
            const ORIGINAL: u8 = 0;
            let key = if *family == Family::Ipv4 { 20 } else { 22 };
            data.put_be32(1, number(*to)).put_be32(2, key).put_u8(3, ORIGINAL);
        }),
        E::SourceKind { to } => {
            const ADDRESS_TYPE: u32 = 3;
            const SOURCE: u32 = 1;
            put_fib(element, *to, ADDRESS_TYPE, SOURCE);
        }
        E::SourceBelongsToDevice { to } => {
            const OUTPUT_DEVICE: u32 = 1;
            const SOURCE_BY_INPUT_DEVICE_PRESENT: u32 = 1 | 8 | 32;
            put_fib(element, *to, OUTPUT_DEVICE, SOURCE_BY_INPUT_DEVICE_PRESENT);
        }
        E::Random { modulus, to } => named(element, "numgen", |data| {
            const AT_RANDOM: u32 = 1;
            data.put_be32(1, number(*to)).put_be32(2, *modulus).put_be32(3, AT_RANDOM).put_be32(4, 0);
        }),
        E::Hash { from, length, modulus, to } => named(element, "hash", |data| {
            data.put_be32(1, number(*from)).put_be32(2, number(*to)).put_be32(3, *length);
            data.put_be32(4, *modulus).put_be32(5, SEED);
        }),
        E::RouteMss { to } => named(element, "rt", |data| {
            const TCP_MSS: u32 = 3;
            data.put_be32(1, number(*to)).put_be32(2, TCP_MSS);
        }),
        E::ClampMss { from } => named(element, "exthdr", |data| {
            const MAXIMUM_SEGMENT_SIZE: u8 = 2;
            const TCP_OPTION: u32 = 1;
            data.put_u8(2, MAXIMUM_SEGMENT_SIZE).put_be32(3, 2).put_be32(4, 2);
            data.put_be32(6, TCP_OPTION).put_be32(7, number(*from));
        }),
        E::Count(counter) => named(element, "objref", |data| {
            data.put_be32(1, super::skeleton::COUNTER).put_text(2, counter);
        }),
        E::Log { prefix, group } => named(element, "log", |data| {
            data.put(1, &group.to_be_bytes()).put_text(2, prefix).put_be32(3, LOGGED_BYTES);
        }),
        E::DestinationNat { family, address, port } => named(element, "nat", |data| {
            data.put_be32(1, 1).put_be32(2, protocol_family(*family)).put_be32(3, number(*address));
            data.put_be32(5, number(*port));
        }),
        E::SourceNat { family, address } => named(element, "nat", |data| {
            data.put_be32(1, 0).put_be32(2, protocol_family(*family)).put_be32(3, number(*address));
        }),
        E::Masquerade => named(element, "masq", |_| {}),
        E::Notrack => named(element, "notrack", |_| {}),
        E::RejectTcpReset => named(element, "reject", |data| {
            const TCP_RESET: u32 = 1;
            data.put_be32(1, TCP_RESET).put_u8(2, 0);
        }),
        E::RejectPortUnreachable => named(element, "reject", |data| {
            const EITHER_FAMILY: u32 = 2;
            const PORT_UNREACHABLE: u8 = 1;
            data.put_be32(1, EITHER_FAMILY).put_u8(2, PORT_UNREACHABLE);
        }),
        E::Verdict(verdict) => named(element, "immediate", |data| {
            data.put_be32(1, VERDICT_REGISTER).nest(2, |nest| put_verdict(nest, verdict));
        }),
    }
}

/// A verdict as data, also as the value of a map.
pub(crate) fn put_verdict(data: &mut Message, verdict: &Verdict) {
    // NF_DROP, NF_ACCEPT, and NFT_RETURN, NFT_GOTO, NFT_JUMP of the kernel's own, which are negative.
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Return => (-5_i32, None),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Jump(chain) => (-3, Some(chain)),
    };
    data.nest(VERDICT, |verdict| {
        verdict.put_be32(VERDICT_CODE, code.cast_unsigned());
        if let Some(chain) = chain {
            verdict.put_text(VERDICT_CHAIN, chain);
        }
    });
}

/// The chain a verdict in a map goes to.
pub(crate) fn read_goto(data: &[u8]) -> Option<&str> {
    use crate::message::{find, text};
    find(find(data, VERDICT)?, VERDICT_CHAIN).and_then(text)
}

/// Bytes as data.
pub(crate) fn put_value(message: &mut Message, attribute: u16, bytes: &[u8]) {
    message.nest(attribute, |data| {
        data.put(VALUE, bytes);
    });
}

/// The bytes of data.
pub(crate) fn read_value(data: &[u8]) -> Option<&[u8]> {
    crate::message::find(data, VALUE)
}

fn put_fib(element: &mut Message, to: Register, result: u32, flags: u32) {
    named(element, "fib", |data| {
        data.put_be32(1, number(to)).put_be32(2, result).put_be32(3, flags);
    });
}

fn named(element: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    element.put_text(NAME, name).nest(DATA, fill);
}

fn number(register: Register) -> u32 {
    FIRST_REGISTER + u32::from(register.0)
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
fn protocol_family(family: Family) -> u32 {
    if family == Family::Ipv4 { 2 } else { 10 }
}
