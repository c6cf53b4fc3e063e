//! [`answer`]: a zone and the bytes of a question in, the bytes of the answer out. Read this file first.
//!
//! Everything a client can see is decided here and in [`Zone::find`], which says what a name is. Nothing here waits,
//! locks or asks the time; answers of addresses are copied from records that were made when the zone was.
//!
//! | name below `clusterset.local` | has |
//! |---|---|
//! | `<service>.<namespace>.svc` | the clusterset addresses, or all ready endpoints of a headless service; SRV |
//! | `_<port>._<protocol>.<service>.<namespace>.svc` | SRV of that port |
//! | `<hostname>.<cluster>.<service>.<namespace>.svc` | one endpoint of a headless service |
//! | `<cluster>.<service>.<namespace>.svc` | nothing (D-8), unless `LocalCluster.spec.dns` says otherwise |
//! | `dns-version` | TXT: the schema these rules are of |
//! | the zone itself, `ns.dns` | SOA and NS; the addresses of this server |
//!
//! The rules are KEP-1645's DNS specification; tests name them D-1 to D-18.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::query::{self, CLASS_IN, HEADER, NotAQuery, Query, record_type};
use crate::record;
use crate::response::{ExtendedError, Response, ResponseCode, Section, header_only};
use crate::service::{Cluster, Service};
use crate::slice::{Protocol, Slice};
use crate::srv;
use crate::zone::{Found, Zone};

/// Longest UDP answer to a client without EDNS (RFC 1035, section 4.2.1).
pub const PLAIN_UDP_LIMIT: usize = 512;
/// Longest UDP answer to any client: fits every path without fragments (DNS Flag Day 2020), and bounds what a forged
/// source can make us send.
pub const UDP_LIMIT: u16 = 1232;
/// Longest message over TCP: its length prefix has two bytes.
pub const TCP_LIMIT: usize = 65_535;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What was done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The answer is in the buffer. The type is 0 where no question could be read.
    Answered { code: ResponseCode, record_type: u16 },
    /// Nothing is to be sent.
    Ignored(NotAQuery),
}

/// Answers `request` into `out`, whatever its bytes.
///
/// `turn` is any number, a new one each time: answers of several addresses begin at a different one by it, so that
/// clients that take the first spread out.
pub fn answer(zone: &Zone, request: &[u8], transport: Transport, turn: u32, out: &mut Vec<u8>) -> Verdict {
    out.clear();
    let query = match query::read(request) {
        Ok(query) => query,
        Err(reason @ (NotAQuery::TooShort | NotAQuery::Response)) => return Verdict::Ignored(reason),
        Err(reason) => {
            let other = reason == NotAQuery::OtherOpcode;
            let code = if other { ResponseCode::NotImplemented } else { ResponseCode::FormatError };
            header_only(request, code, out);
            return Verdict::Answered { code, record_type: 0 };
        }
    };
    let limit = match (transport, query.edns) {
        (Transport::Tcp, _) => TCP_LIMIT,
        (Transport::Udp, None) => PLAIN_UDP_LIMIT,
        // Less than 512 means 512 (RFC 6891, section 6.2.3).
        (Transport::Udp, Some(edns)) => usize::from(edns.payload.min(UDP_LIMIT)).max(PLAIN_UDP_LIMIT),
    };
    let mut response = Response::start(out, request, &query, limit);
    let code = fill(zone, &query, turn, &mut response);
    response.finish(&query, code, UDP_LIMIT);
    Verdict::Answered { code, record_type: query.record_type }
}

fn fill(zone: &Zone, query: &Query, turn: u32, response: &mut Response<'_>) -> ResponseCode {
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return ResponseCode::BadVersion;
    }
    match query.record_type {
        // The zone is not for copying: it is different in every cluster.
        record_type::AXFR | record_type::IXFR => return ResponseCode::Refused,
        record_type::MAILA | record_type::MAILB | record_type::TKEY | record_type::TSIG => {
            return ResponseCode::NotImplemented;
        }
        _ => {}
    }
    let found = if query.class == CLASS_IN { zone.find(&query.name) } else { None };
    let Some(found) = found else {
        response.extended_error = Some(ExtendedError::NotAuthoritative);
        return ResponseCode::Refused;
    };
    // Denying a name before everything is known would be believed for as long as negative answers are kept (D-16).
    if !zone.known {
        response.extended_error = Some(ExtendedError::NotReady);
        return ResponseCode::ServerFailure;
    }
    response.authoritative = true;
    let context = Context { zone, query, turn };
    let before = response.position();
    match found {
        Found::Nothing => {
            context.deny(response);
            return ResponseCode::NameError;
        }
        Found::Between => {}
        // One record instead of all (RFC 8482, section 4.2).
        _ if query.record_type == record_type::ANY => context.any(response),
        Found::Apex => context.apex(response),
        Found::Version => context.version(response),
        Found::NameServer => context.addresses(zone.name_servers.iter().copied(), record::APEX_TTL, response),
        Found::Service(service) => context.service(service, response),
        Found::Port { service, protocol, port } => context.port(service, protocol, port, response),
        Found::Cluster { service, cluster } => context.cluster(service, cluster, response),
        Found::Endpoint { cluster, hostname } => {
            context.addresses(cluster.addresses_of(hostname).into_iter(), record::HEADLESS_TTL, response);
        }
    }
    if response.position() == before && !response.is_truncated() {
        context.deny(response);
    }
    ResponseCode::NoError
}

/// What every kind of answer needs.
struct Context<'z> {
    zone: &'z Zone,
    query: &'z Query,
    turn: u32,
}

impl<'z> Context<'z> {
    /// The family asked for; `None` when the question is not for addresses.
    fn family(&self) -> Option<bool> {
        match self.query.record_type {
            record_type::A => Some(false),
            record_type::AAAA => Some(true),
            _ => None,
        }
    }

    /// A pointer to the zone's name, which is the end of every question here.
    fn origin_pointer(&self) -> [u8; 2] {
        let name = &self.query.name;
        let start = HEADER + name.wire().len() - self.zone.origin.wire().len();
        [0xc0 | (start >> 8) as u8, start as u8]
    }

    fn soa(&self, ttl: u32) -> Vec<u8> {
        let pointer = self.origin_pointer();
        let mut data = Vec::with_capacity(64);
        data.extend_from_slice(b"\x02ns\x03dns");
        data.extend_from_slice(&pointer);
        data.extend_from_slice(b"\x0ahostmaster");
        data.extend_from_slice(&pointer);
        // Refresh, retry and expire are for secondaries, which there are none of; the last is the negative TTL.
        for number in [self.zone.serial, 7200, 1800, 86_400, record::NEGATIVE_TTL] {
            data.extend_from_slice(&number.to_be_bytes());
        }
        self.owned_by_origin(record_type::SOA, ttl, &data)
    }

    fn owned_by_origin(&self, record_type: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
        let mut record = Vec::with_capacity(12 + data.len());
        record.extend_from_slice(&self.origin_pointer());
        record::push_fixed(&mut record, record_type, ttl, data.len() as u16);
        record.extend_from_slice(data);
        record
    }

    /// Says that there is nothing, and for how long (RFC 2308, section 3; D-15).
    fn deny(&self, response: &mut Response<'_>) {
        response.add(Section::Authority, &self.soa(record::NEGATIVE_TTL));
    }

    fn owned_by_question(&self, record_type: u16, ttl: u32, data: &[u8], response: &mut Response<'_>) {
        let mut record = vec![0xc0, HEADER as u8];
        record::push_fixed(&mut record, record_type, ttl, data.len() as u16);
        record.extend_from_slice(data);
        response.add(Section::Answer, &record);
    }

    fn any(&self, response: &mut Response<'_>) {
        self.owned_by_question(record_type::HINFO, record::SERVICE_TTL, b"\x07RFC8482\x00", response);
    }

    fn version(&self, response: &mut Response<'_>) {
        if self.query.record_type == record_type::TXT {
            let mut text = vec![record::VERSION.len() as u8];
            text.extend_from_slice(record::VERSION);
            self.owned_by_question(record_type::TXT, record::VERSION_TTL, &text, response);
        }
    }

    fn apex(&self, response: &mut Response<'_>) {
        match self.query.record_type {
            record_type::SOA => {
                response.add(Section::Answer, &self.soa(record::APEX_TTL));
            }
            record_type::NS => {
                let mut data = b"\x02ns\x03dns".to_vec();
                data.extend_from_slice(&self.origin_pointer());
                // The data comes after the owner's pointer and the ten fixed bytes.
                let target = response.position() + 12;
                response.add(Section::Answer, &self.owned_by_origin(record_type::NS, record::APEX_TTL, &data));
                srv::add_glue(response, target, self.zone.name_servers.iter().copied(), record::APEX_TTL);
            }
            _ => {}
        }
    }

    /// Those of `addresses` that are of the family asked for.
    fn addresses(&self, addresses: impl Iterator<Item = IpAddr>, ttl: u32, response: &mut Response<'_>) {
        let Some(ipv6) = self.family() else {
            return;
        };
        let mut record = Vec::with_capacity(record::AAAA_LENGTH);
        for address in addresses.filter(|address| address.is_ipv6() == ipv6) {
            record.clear();
            record::push_address(&mut record, ttl, address);
            response.add(Section::Answer, &record);
        }
    }

    fn service(&self, service: &'z Service, response: &mut Response<'_>) {
        let Some(import) = &service.import else {
            return;
        };
        match (import.headless, self.query.record_type) {
            (_, record_type::SRV) => self.service_ports(service, None, response),
            (false, _) => self.addresses(import.addresses(), record::SERVICE_TTL, response),
            (true, _) => self.endpoints(service, service.answering(&self.zone.reach), response),
        }
    }

    fn port(&self, service: &'z Service, protocol: Protocol, port: &[u8], response: &mut Response<'_>) {
        if self.query.record_type == record_type::SRV {
            self.service_ports(service, Some((protocol, port)), response);
        }
    }

    fn service_ports(&self, service: &'z Service, port: Option<(Protocol, &[u8])>, response: &mut Response<'_>) {
        match &service.import {
            Some(import) if import.headless => {
                srv::add_endpoints(self.zone, service, service.answering(&self.zone.reach), port, response);
            }
            Some(import) => srv::add_service(self.zone, service, import, port, response),
            None => {}
        }
    }

    fn cluster(&self, service: &'z Service, cluster: &'z Cluster, response: &mut Response<'_>) {
        match self.query.record_type {
            record_type::SRV if service.is_headless() => {
                srv::add_endpoints(self.zone, service, std::iter::once(cluster), None, response);
            }
            record_type::SRV => srv::add_cluster(self.zone, service, cluster, response),
            _ => self.endpoints(service, std::iter::once(cluster), response),
        }
    }

    /// All ready endpoints of `clusters`, each address once, beginning at a different one each time (D-5).
    fn endpoints(
        &self,
        service: &Service,
        clusters: impl Iterator<Item = &'z Cluster> + Clone,
        response: &mut Response<'_>,
    ) {
        let Some(ipv6) = self.family() else {
            return;
        };
        let length = record::address_record_length(ipv6);
        let slices = clusters.flat_map(|cluster| cluster.slices.values()).filter(|slice| slice.ipv6 == ipv6);
        let count = |slice: &Slice| slice.records.len() / length;
        let total: usize = slices.clone().map(|slice| count(slice)).sum();
        if total == 0 {
            return;
        }
        let first = self.turn as usize % total;
        let mut seen = BTreeSet::new();
        for (from, to) in [(first, total), (0, first)] {
            let mut at = 0;
            for slice in slices.clone() {
                let (begin, end) = (from.max(at), to.min(at + count(slice)));
                if begin < end {
                    let run = &slice.records[(begin - at) * length..(end - at) * length];
                    if service.repeats {
                        for record in run.chunks_exact(length).filter(|record| seen.insert(*record)) {
                            response.add_run(record, length);
                        }
                    } else {
                        response.add_run(run, length);
                    }
                }
                at += count(slice);
            }
        }
    }
}
