//! A query as it came: header, one question and EDNS, read by hand. Everything else in it is stepped over.

use crate::name::{MAX_LABEL, QueryName};

/// Length of the header (RFC 1035, section 4.1.1), and so where the question begins.
pub const HEADER: usize = 12;

/// Types of records this server has something to say about (IANA "DNS Parameters").
pub mod record_type {
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const HINFO: u16 = 13;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const HTTPS: u16 = 65;
    pub const TKEY: u16 = 249;
    pub const TSIG: u16 = 250;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const MAILB: u16 = 253;
    pub const MAILA: u16 = 254;
    pub const ANY: u16 = 255;
}

/// The Internet: the only class there is data for.
pub const CLASS_IN: u16 = 1;
/// The opcode of a standard query.
pub const OPCODE_QUERY: u8 = 0;

/// What a client says by its OPT record (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    pub version: u8,
    /// Largest UDP message the client takes, as it wrote it.
    pub payload: u16,
    /// The DO bit: it has to come back as it was (RFC 3225, section 3).
    pub dnssec_ok: bool,
}

/// One well-formed query.
#[derive(Clone)]
pub struct Query {
    pub name: QueryName,
    pub record_type: u16,
    pub class: u16,
    /// Where the question ends in the message.
    pub question_end: usize,
    pub edns: Option<Edns>,
}

/// Why a message is not looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAQuery {
    /// Never answered: shorter than a header.
    TooShort,
    /// Never answered: two servers that answer answers would talk for ever.
    Response,
    /// An operation this server does not do: update, notify, status.
    OtherOpcode,
    /// Not a query by the rules.
    Malformed,
}

/// Reads a message, whatever its bytes.
pub fn read(message: &[u8]) -> Result<Query, NotAQuery> {
    let header = message.first_chunk::<HEADER>().ok_or(NotAQuery::TooShort)?;
    if header[2] & 0x80 != 0 {
        return Err(NotAQuery::Response);
    }
    if (header[2] >> 3) & 0x0f != OPCODE_QUERY {
        return Err(NotAQuery::OtherOpcode);
    }
    read_query(message, header).ok_or(NotAQuery::Malformed)
}

fn read_query(message: &[u8], header: &[u8; HEADER]) -> Option<Query> {
    let count = |index: usize| u16::from_be_bytes([header[index], header[index + 1]]);
    // One question, no more and no less (RFC 9619).
    if count(4) != 1 {
        return None;
    }
    let (name, end) = QueryName::read(message, HEADER).ok()?;
    let question_end = end + 4;
    let fixed = message.get(end..question_end)?;
    let mut query = Query {
        name,
        record_type: u16::from_be_bytes([fixed[0], fixed[1]]),
        class: u16::from_be_bytes([fixed[2], fixed[3]]),
        question_end,
        edns: None,
    };
    // OPT is a record of the additional section; as a question it means nothing.
    if query.record_type == record_type::OPT {
        return None;
    }
    let mut position = question_end;
    let before = u32::from(count(6)) + u32::from(count(8));
    for _ in 0..before {
        position = Record::read(message, position)?.end;
    }
    for _ in 0..count(10) {
        let record = Record::read(message, position)?;
        position = record.end;
        if record.record_type == record_type::OPT {
            // At most one, and its owner is the root (RFC 6891, section 6.1.1).
            if query.edns.is_some() || !record.at_root {
                return None;
            }
            query.edns = Some(record.edns());
        }
    }
    (position == message.len()).then_some(query)
}

/// The parts of a record that matter for stepping over it and for EDNS.
struct Record {
    at_root: bool,
    record_type: u16,
    class: u16,
    ttl: u32,
    end: usize,
}

impl Record {
    fn read(message: &[u8], at: usize) -> Option<Self> {
        let mut position = at;
        // An owner's name is stepped over, never followed: a pointer ends it.
        loop {
            let length = *message.get(position)?;
            match length {
                0 => {
                    position += 1;
                    break;
                }
                0xc0..=0xff => {
                    position += 2;
                    break;
                }
                _ if usize::from(length) <= MAX_LABEL => position += 1 + usize::from(length),
                _ => return None,
            }
        }
        let at_root = message.get(at) == Some(&0);
        let fixed: &[u8; 10] = message.get(position..)?.first_chunk()?;
        let end = position + 10 + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        (end <= message.len()).then_some(Self {
            at_root,
            record_type: u16::from_be_bytes([fixed[0], fixed[1]]),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
            ttl: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            end,
        })
    }

    /// OPT keeps the payload size in the class, and version and flags in the TTL (RFC 6891, section 6.1.2).
    fn edns(&self) -> Edns {
        let [_, version, flags, _] = self.ttl.to_be_bytes();
        Edns { version, payload: self.class, dnssec_ok: flags & 0x80 != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(question: u16, additional: u16) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0];
        for count in [question, 0, 0, additional] {
            bytes.extend_from_slice(&count.to_be_bytes());
        }
        bytes
    }

    fn with(counts: (u16, u16), rest: &[&[u8]]) -> Result<Query, NotAQuery> {
        let mut bytes = header(counts.0, counts.1);
        rest.iter().for_each(|part| bytes.extend_from_slice(part));
        read(&bytes)
    }

    fn refusal(counts: (u16, u16), rest: &[&[u8]]) -> Option<NotAQuery> {
        with(counts, rest).err()
    }

    const QUESTION: &[u8] = b"\x01a\x01b\x00\x00\x01\x00\x01";
    const OPT: &[u8] = b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00";

    #[test]
    fn the_opt_record_says_payload_version_and_do() {
        let query = with((1, 1), &[QUESTION, OPT]).ok().unwrap();
        assert_eq!(query.edns, Some(Edns { version: 0, payload: 1232, dnssec_ok: true }));
        assert_eq!((query.record_type, query.class), (record_type::A, CLASS_IN));
    }

    #[test]
    fn zero_or_two_questions_two_opts_and_bytes_left_over_are_malformed() {
        assert_eq!(refusal((0, 0), &[]), Some(NotAQuery::Malformed));
        assert_eq!(refusal((2, 0), &[QUESTION, QUESTION]), Some(NotAQuery::Malformed));
        assert_eq!(refusal((1, 2), &[QUESTION, OPT, OPT]), Some(NotAQuery::Malformed));
        assert_eq!(refusal((1, 0), &[QUESTION, b"x"]), Some(NotAQuery::Malformed));
        assert_eq!(refusal((1, 1), &[QUESTION, b"\x01a", OPT]), Some(NotAQuery::Malformed));
    }

    #[test]
    fn what_is_no_query_is_told_apart() {
        assert_eq!(read(b"short").err(), Some(NotAQuery::TooShort));
        let mut response = header(1, 0);
        response[2] |= 0x80;
        assert_eq!(read(&response).err(), Some(NotAQuery::Response));
        let mut update = header(1, 0);
        update[2] = 5 << 3;
        assert_eq!(read(&update).err(), Some(NotAQuery::OtherOpcode));
    }
}
