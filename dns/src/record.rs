//! Records as bytes, and the constants they carry.

use std::net::IpAddr;

use crate::query::{CLASS_IN, record_type};

/// Seconds an answer with a clusterset address is kept. The address is stable, so this only bounds how long a name
/// outlives its last export; 5 is what CoreDNS and Lighthouse use.
pub const SERVICE_TTL: u32 = 5;
/// Seconds an answer with endpoints is kept. A dead cluster's endpoints are gone from here within 2 seconds, and a
/// longer life in caches would undo that.
pub const HEADLESS_TTL: u32 = 1;
/// Seconds a name's absence is kept (RFC 2308, section 5). A name appears with its export, which is to be seen at once.
pub const NEGATIVE_TTL: u32 = 1;
/// Seconds `dns-version` is kept: the example of the specification (D-1).
pub const VERSION_TTL: u32 = 28_800;
/// Seconds the zone's own SOA and NS are kept.
pub const APEX_TTL: u32 = 5;

/// The schema of the clusterset's DNS specification that is answered (D-1).
pub const VERSION: &[u8] = b"1.0.0";

/// A pointer to the name of the question, which always begins right after the header (RFC 1035, section 4.1.4).
const QUESTION_POINTER: [u8; 2] = [0xc0, 12];

/// Bytes of an A record owned by the name of the question.
pub const A_LENGTH: usize = 16;
/// The same for AAAA.
pub const AAAA_LENGTH: usize = 28;

/// Appends type, class, TTL and length of the data.
pub fn push_fixed(out: &mut Vec<u8>, record_type: u16, ttl: u32, length: u16) {
    out.extend_from_slice(&record_type.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

/// Appends everything of an address record but its owner.
pub fn push_address_data(out: &mut Vec<u8>, ttl: u32, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            push_fixed(out, record_type::A, ttl, 4);
            out.extend_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            push_fixed(out, record_type::AAAA, ttl, 16);
            out.extend_from_slice(&address.octets());
        }
    }
}

/// Appends an A or AAAA record owned by the name of the question.
pub fn push_address(out: &mut Vec<u8>, ttl: u32, address: IpAddr) {
    out.extend_from_slice(&QUESTION_POINTER);
    push_address_data(out, ttl, address);
}

/// Length of one record of a run of address records of one family.
pub const fn address_record_length(ipv6: bool) -> usize {
    if ipv6 { AAAA_LENGTH } else { A_LENGTH }
}
