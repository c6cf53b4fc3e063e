//! [`Response`]: writes one message into a buffer, never over its limit and never half a record.

use crate::query::{HEADER, Query, record_type};

/// Response codes (IANA "DNS RCODEs"); those over 15 need EDNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum ResponseCode {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    NameError = 3,
    NotImplemented = 4,
    Refused = 5,
    BadVersion = 16,
}

impl ResponseCode {
    pub const ALL: [Self; 7] = [
        Self::NoError,
        Self::FormatError,
        Self::ServerFailure,
        Self::NameError,
        Self::NotImplemented,
        Self::Refused,
        Self::BadVersion,
    ];

    /// As `dig` prints it, and as the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoError => "NOERROR",
            Self::FormatError => "FORMERR",
            Self::ServerFailure => "SERVFAIL",
            Self::NameError => "NXDOMAIN",
            Self::NotImplemented => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::BadVersion => "BADVERS",
        }
    }
}

/// Why in more detail (RFC 8914); told to clients that speak EDNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ExtendedError {
    /// The first state is not there yet.
    NotReady = 14,
    /// The name is outside the zone.
    NotAuthoritative = 20,
}

/// Bytes an OPT record takes: eleven, and an extended error of six.
const OPT_RESERVE: usize = 17;

/// Sections after the question, by the place of their count in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Answer = 6,
    Authority = 8,
    Additional = 10,
}

/// A message being written. [`Response::finish`] completes it.
pub struct Response<'a> {
    out: &'a mut Vec<u8>,
    limit: usize,
    truncated: bool,
    pub authoritative: bool,
    pub extended_error: Option<ExtendedError>,
}

/// A message of a header alone, for what cannot be read further: its sections may be anything.
pub fn header_only(request: &[u8], code: ResponseCode, out: &mut Vec<u8>) {
    out.clear();
    let Some(header) = request.first_chunk::<HEADER>() else {
        return;
    };
    out.extend_from_slice(&[header[0], header[1], 0x80 | (header[2] & 0x79), code as u8]);
    out.resize(HEADER, 0);
}

impl<'a> Response<'a> {
    /// Begins with the header and the question as it was asked, its case included. `limit` is the longest message.
    pub fn start(out: &'a mut Vec<u8>, request: &[u8], query: &Query, limit: usize) -> Self {
        out.clear();
        out.extend_from_slice(&request[..query.question_end]);
        // Counts of the request's other sections.
        out[6..HEADER].fill(0);
        let limit = if query.edns.is_some() { limit.saturating_sub(OPT_RESERVE) } else { limit };
        Self { out, limit, truncated: false, authoritative: false, extended_error: None }
    }

    /// Where the next record will begin.
    pub fn position(&self) -> usize {
        self.out.len()
    }

    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    fn count(&mut self, section: Section, records: usize) {
        let place = section as usize;
        let count = usize::from(u16::from_be_bytes([self.out[place], self.out[place + 1]])) + records;
        // A message of 65,535 bytes holds no more than 6,000 records.
        self.out[place..place + 2].copy_from_slice(&(count as u16).to_be_bytes());
    }

    /// Adds one record. One that does not fit is left out: from the additional section silently, else the message says
    /// it is truncated (RFC 2181, section 9) and takes nothing more.
    pub fn add(&mut self, section: Section, record: &[u8]) -> bool {
        if self.truncated || self.out.len() + record.len() > self.limit {
            self.truncated |= section != Section::Additional;
            return false;
        }
        self.out.extend_from_slice(record);
        self.count(section, 1);
        true
    }

    /// Adds a run of answers of `length` bytes each, as many as fit.
    pub fn add_run(&mut self, records: &[u8], length: usize) {
        if self.truncated {
            return;
        }
        let room = self.limit.saturating_sub(self.out.len()) / length * length;
        let taken = records.len().min(room);
        self.out.extend_from_slice(&records[..taken]);
        self.count(Section::Answer, taken / length);
        self.truncated = taken < records.len();
    }

    /// Completes header and OPT. `payload` is the largest UDP message this server takes.
    pub fn finish(self, query: &Query, code: ResponseCode, payload: u16) {
        let code = code as u16;
        let kept = self.out[2] & 0x01;
        self.out[2] = 0x80 | if self.authoritative { 0x04 } else { 0 } | if self.truncated { 0x02 } else { 0 } | kept;
        // Checking disabled comes back as it was (RFC 4035, section 3.1.6); recursion is not available.
        self.out[3] = (self.out[3] & 0x10) | (code & 0x0f) as u8;
        let Some(edns) = query.edns else {
            return;
        };
        self.out.push(0);
        self.out.extend_from_slice(&record_type::OPT.to_be_bytes());
        self.out.extend_from_slice(&payload.to_be_bytes());
        self.out.extend_from_slice(&[(code >> 4) as u8, 0, if edns.dnssec_ok { 0x80 } else { 0 }, 0]);
        match self.extended_error {
            None => self.out.extend_from_slice(&[0, 0]),
            Some(error) => {
                // Option 15 with the code alone: the text would only make the answer longer.
                self.out.extend_from_slice(&[0, 6, 0, 15, 0, 2]);
                self.out.extend_from_slice(&(error as u16).to_be_bytes());
            }
        }
        let additional = u16::from_be_bytes([self.out[10], self.out[11]]) + 1;
        self.out[10..12].copy_from_slice(&additional.to_be_bytes());
    }
}
