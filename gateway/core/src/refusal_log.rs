//! [`RefusalLog`]: how often each refusal happened, and the latest ones with their 5-tuples.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use api::time::Instant;

use crate::link::LinkId;
use crate::packet::Flow;
use crate::refusal::Refusal;

/// Records kept. At 128 bytes each a lane's two logs are 64 KiB, and a screen of `tombolo refusals` is far less.
pub const CAPACITY: usize = 256;

/// One reason for one flow of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusalRecord {
    pub reason: Refusal,
    /// `None` for a stranger, and where no peer was found.
    pub link: Option<LinkId>,
    /// Where the datagram came from; `None` for packets of our own cluster.
    pub from: Option<SocketAddr>,
    /// `None` where the packet could not be opened or read.
    pub flow: Option<Flow>,
    pub first: Instant,
    pub last: Instant,
    pub count: u64,
}

/// Owned by one thread. The same reason for the same flow is one record with a count, so a flood of one kind does not
/// push the others out.
#[derive(Clone, Debug)]
pub struct RefusalLog {
    counts: [u64; Refusal::COUNT],
    /// The part of each count that is known to be a link's, by link number.
    link_counts: Vec<[u64; Refusal::COUNT]>,
    records: Vec<RefusalRecord>,
    /// Digest of each record's key, so that looking for one is a walk over 2 KiB.
    keys: Vec<u64>,
    /// Where the next new record goes once the log is full: over the oldest by arrival.
    next: usize,
}

impl Default for RefusalLog {
    fn default() -> Self {
        Self {
            counts: [0; Refusal::COUNT],
            link_counts: Vec::new(),
            records: Vec::with_capacity(CAPACITY),
            keys: Vec::with_capacity(CAPACITY),
            next: 0,
        }
    }
}

impl RefusalLog {
    /// Counts one refusal. Allocates only for a link with a higher number than any before.
    pub fn record(
        &mut self,
        reason: Refusal,
        link: Option<LinkId>,
        from: Option<SocketAddr>,
        flow: Option<Flow>,
        now: Instant,
    ) {
        if let Some(count) = self.counts.get_mut(reason.index()) {
            *count += 1;
        }
        if let Some(link) = link {
            if self.link_counts.len() <= link.slot() {
                self.link_counts.resize(link.slot() + 1, [0; Refusal::COUNT]);
            }
            let counts = self.link_counts.get_mut(link.slot());
            if let Some(count) = counts.and_then(|counts| counts.get_mut(reason.index())) {
                *count += 1;
            }
        }
        // Strangers choose their ports at will: one record for an address, or a scan fills the log.
        let from = from.map(|from| if link.is_none() { SocketAddr::new(from.ip(), 0) } else { from });
        let key = digest(reason, link, from, flow);
        let same = |record: &RefusalRecord| {
            record.reason == reason && record.link == link && record.from == from && record.flow == flow
        };
        let found = self.keys.iter().zip(&mut self.records).find(|(known, record)| **known == key && same(record));
        if let Some((_, record)) = found {
            record.count += 1;
            record.last = now;
            return;
        }
        let record = RefusalRecord { reason, link, from, flow, first: now, last: now, count: 1 };
        if self.records.len() < CAPACITY {
            self.records.push(record);
            self.keys.push(key);
        } else if let (Some(old), Some(old_key)) = (self.records.get_mut(self.next), self.keys.get_mut(self.next)) {
            *old = record;
            *old_key = key;
            self.next = (self.next + 1) % CAPACITY;
        }
    }

    /// How often this happened since the start.
    pub fn count(&self, reason: Refusal) -> u64 {
        self.counts.get(reason.index()).copied().unwrap_or_default()
    }

    /// How often this happened on a link with this number since the start. Numbers are used again: whoever shows this
    /// by peer takes differences while the link is the peer's.
    pub fn count_on(&self, link: LinkId, reason: Refusal) -> u64 {
        let counts = self.link_counts.get(link.slot());
        counts.and_then(|counts| counts.get(reason.index())).copied().unwrap_or_default()
    }

    /// All refusals since the start: whether there is anything new to publish.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The records kept, in no particular order.
    pub fn records(&self) -> &[RefusalRecord] {
        &self.records
    }
}

fn digest(reason: Refusal, link: Option<LinkId>, from: Option<SocketAddr>, flow: Option<Flow>) -> u64 {
    let mut state = mix(reason.index() as u64, link.map_or(u64::MAX, |link| u64::from(link.number())));
    if let Some(from) = from {
        state = mix(mix_address(state, from.ip()), u64::from(from.port()));
    }
    flow.map_or(state, |flow| mix(state, flow.digest()))
}

/// One step of a hash that only has to spread well: attackers gain nothing from a collision but a longer compare.
pub(crate) const fn mix(state: u64, value: u64) -> u64 {
    // The multiplier is 2^64 divided by the golden ratio, odd, which spreads consecutive values farthest apart.
    let mixed = (state ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

pub(crate) fn mix_address(state: u64, address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => mix(state, u64::from(address.to_bits())),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            mix(mix(state, (bits >> 64) as u64), bits as u64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_millis(1);

    #[test]
    fn a_flood_of_one_kind_is_one_record_with_a_count() {
        let mut log = RefusalLog::default();
        for port in 1..=1000u16 {
            let from = SocketAddr::new("192.0.2.7".parse().unwrap(), port);
            log.record(Refusal::UnknownPeer, None, Some(from), None, NOW);
        }
        log.record(Refusal::NoRoute, None, None, None, NOW);
        assert_eq!(log.count(Refusal::UnknownPeer), 1000);
        assert_eq!(log.records().len(), 2);
        assert_eq!(log.records()[0].count, 1000);
    }

    #[test]
    fn the_log_is_bounded_and_keeps_the_latest() {
        let mut log = RefusalLog::default();
        for number in 0..1000 {
            log.record(Refusal::Unexported, LinkId::new(number), None, None, Instant::from_millis(number.into()));
        }
        assert_eq!(log.records().len(), CAPACITY);
        assert!(log.records().iter().any(|record| record.link == LinkId::new(999)));
        assert!(log.records().iter().all(|record| record.link >= LinkId::new(1000 - CAPACITY as u32)));
        assert_eq!(log.total(), 1000);
        let seven = LinkId::new(7).unwrap();
        assert_eq!((log.count_on(seven, Refusal::Unexported), log.count_on(seven, Refusal::NoRoute)), (1, 0));
    }
}
