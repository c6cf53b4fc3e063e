//! [`Tally`]: what one worker counted. Each worker has its own, so counting shares no cache line; they are added up when
//! somebody reads them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::answer::{Transport, Verdict};
use crate::query::{NotAQuery, record_type};
use crate::response::ResponseCode;

/// Types with a label of their own; all others are `other`, so that foreign numbers cannot make labels.
const TYPES: [(u16, &str); 9] = [
    (record_type::A, "A"),
    (record_type::AAAA, "AAAA"),
    (record_type::SRV, "SRV"),
    (record_type::TXT, "TXT"),
    (record_type::SOA, "SOA"),
    (record_type::NS, "NS"),
    (record_type::PTR, "PTR"),
    (record_type::HTTPS, "HTTPS"),
    (record_type::ANY, "ANY"),
];
const CODES: usize = ResponseCode::ALL.len();

/// Upper bounds of the histogram of answering times in nanoseconds: from a cached name to a stalled machine.
const BOUNDS: [u64; 10] = [1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 10_000_000];

/// Counters of one worker.
#[derive(Debug)]
pub struct Tally {
    transport: Transport,
    responses: [[AtomicU64; TYPES.len() + 1]; CODES],
    ignored: [AtomicU64; 2],
    times: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
    /// TCP connections that were closed because there were too many, and answers that could not be sent.
    pub turned_away: AtomicU64,
    pub unsent: AtomicU64,
}

impl Tally {
    pub fn new(transport: Transport) -> Self {
        Self {
            transport,
            responses: Default::default(),
            ignored: Default::default(),
            times: Default::default(),
            nanoseconds: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
        }
    }

    /// Counts one message and how long it took.
    pub fn add(&self, verdict: Verdict, took: Duration) {
        match verdict {
            Verdict::Ignored(reason) => {
                self.ignored[usize::from(reason == NotAQuery::Response)].fetch_add(1, Relaxed);
            }
            Verdict::Answered { code, record_type } => {
                let column = TYPES.iter().position(|(known, _)| *known == record_type).unwrap_or(TYPES.len());
                let row = ResponseCode::ALL.iter().position(|known| *known == code).unwrap_or(0);
                self.responses[row][column].fetch_add(1, Relaxed);
                let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                let bucket = BOUNDS.iter().position(|bound| nanoseconds <= *bound).unwrap_or(BOUNDS.len());
                self.times[bucket].fetch_add(1, Relaxed);
                self.nanoseconds.fetch_add(nanoseconds, Relaxed);
            }
        }
    }

    pub fn transport(&self) -> &'static str {
        match self.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        }
    }

    /// Every count that is not zero: code, type, count.
    pub fn responses(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        self.responses.iter().zip(ResponseCode::ALL).flat_map(|(row, code)| {
            row.iter().enumerate().filter_map(move |(column, count)| {
                let name = TYPES.get(column).map_or("other", |(_, name)| name);
                let count = count.load(Relaxed);
                (count > 0).then_some((code.as_str(), name, count))
            })
        })
    }

    /// Messages that were not answered, by reason.
    pub fn ignored(&self) -> [(&'static str, u64); 2] {
        [("TooShort", self.ignored[0].load(Relaxed)), ("Response", self.ignored[1].load(Relaxed))]
    }

    /// Seconds in all, answers in all, and answers by upper bound in seconds.
    pub fn times(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let counts: Vec<u64> = self.times.iter().map(|count| count.load(Relaxed)).collect();
        let bounds = BOUNDS.iter().map(|bound| *bound as f64 / 1e9).chain([f64::MAX]);
        let buckets = bounds.zip(&counts).map(|(bound, count)| (bound, *count)).collect();
        (self.nanoseconds.load(Relaxed) as f64 / 1e9, counts.iter().sum(), buckets)
    }
}
