//! [`Endpoints`]: where a peer's lane may be listening, and where it was last heard.

use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::transit;

/// Addresses that are called at once when a peer falls silent: those the operator wrote down, or two families of a gateway
/// and two hubs.
pub(crate) const CALLED_AT_ONCE: usize = 8;

/// The candidates of one link. What is authentic wins over what is written: the address a packet came from is used from
/// then on (WireGuard whitepaper, 2.1), and the others are tried again when that one falls silent.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// Configured ones first, then those of the member record.
    candidates: Vec<SocketAddr>,
    /// Where the last authentic packet came from, if it is no candidate.
    roamed: Option<SocketAddr>,
    current: Option<SocketAddr>,
    /// How many attempts were made since the peer was last heard.
    attempts: usize,
    /// How often a candidate without a hub was asked for.
    direct_attempts: usize,
}

impl Endpoints {
    /// Takes a new list. Where the peer was last heard stays in use.
    pub(crate) fn replace(&mut self, configured: &[SocketAddr], learned: &[SocketAddr]) {
        self.candidates.clear();
        for candidate in configured.iter().chain(learned) {
            if !self.candidates.contains(candidate) {
                self.candidates.push(*candidate);
            }
        }
        let known = self.current.is_some_and(|now| self.candidates.contains(&now) || self.roamed == Some(now));
        if !known {
            self.current = self.roamed.or_else(|| self.candidates.first().copied());
        }
    }

    /// Where to send now.
    pub fn current(&self) -> Option<SocketAddr> {
        self.current
    }

    /// All addresses that may be tried.
    pub fn candidates(&self) -> impl Iterator<Item = SocketAddr> {
        self.candidates.iter().copied().chain(self.roamed)
    }

    /// An authentic packet came from `from`. Gives the endpoint it replaces, if it replaces one.
    pub(crate) fn heard(&mut self, from: SocketAddr) -> Option<Option<SocketAddr>> {
        self.attempts = 0;
        if self.current == Some(from) {
            return None;
        }
        self.roamed = (!self.candidates.contains(&from)).then_some(from);
        Some(self.current.replace(from))
    }

    /// Where to send the next handshake: the endpoint in use first, then each candidate in turn.
    pub(crate) fn next_attempt(&mut self) -> Option<SocketAddr> {
        let attempt = self.attempts;
        self.attempts += 1;
        if attempt == 0 {
            return self.current;
        }
        let others = || self.candidates().filter(|candidate| Some(*candidate) != self.current);
        match others().count() {
            0 => self.current,
            // The endpoint in use takes its turn after the others.
            count => others().nth((attempt - 1) % (count + 1)).or(self.current),
        }
    }

    /// Where else the peer may be, the likeliest first and no more than can be called at once.
    pub(crate) fn others(&self) -> Vec<SocketAddr> {
        self.candidates().filter(|candidate| Some(*candidate) != self.current).take(CALLED_AT_ONCE).collect()
    }

    /// Where to look for a way without a hub: each candidate that has none, in turn.
    pub(crate) fn next_direct(&mut self) -> Option<SocketAddr> {
        let direct = || self.candidates.iter().filter(|candidate| !transit::is_by_hub(**candidate));
        let next = direct().nth(self.direct_attempts % direct().count().max(1)).copied();
        self.direct_attempts += 1;
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::new("192.0.2.1".parse().unwrap(), port)
    }

    #[test]
    fn candidates_are_tried_in_order_and_then_again() {
        let mut endpoints = Endpoints::default();
        endpoints.replace(&[address(1)], &[address(2), address(1), address(3)]);
        let tried: Vec<_> = (0..7).filter_map(|_| endpoints.next_attempt()).map(|address| address.port()).collect();
        assert_eq!(tried, [1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn an_authentic_address_is_used_until_another_is_heard() {
        let mut endpoints = Endpoints::default();
        endpoints.replace(&[address(1)], &[]);
        assert_eq!(endpoints.heard(address(9)), Some(Some(address(1))));
        assert_eq!(endpoints.heard(address(9)), None);
        endpoints.replace(&[address(2)], &[]);
        assert_eq!(endpoints.current(), Some(address(9)), "a new record does not move a working link");
        assert_eq!(endpoints.next_attempt(), Some(address(9)));
        assert_eq!(endpoints.next_attempt(), Some(address(2)), "silent there, it is sought elsewhere");
    }

    #[test]
    fn candidates_without_a_hub_are_looked_for_in_turn() {
        let mut endpoints = Endpoints::default();
        let hub: SocketAddr = "127.0.0.1:4000".parse().unwrap();
        endpoints.replace(&[address(1), hub], &[address(2)]);
        endpoints.heard(hub);
        let looked: Vec<_> = (0..3).filter_map(|_| endpoints.next_direct()).map(|address| address.port()).collect();
        assert_eq!(looked, [1, 2, 1]);
        endpoints.replace(&[hub], &[]);
        assert_eq!(endpoints.next_direct(), None);
    }

    #[test]
    fn a_peer_without_any_endpoint_is_waited_for() {
        let mut endpoints = Endpoints::default();
        endpoints.replace(&[], &[]);
        assert_eq!(endpoints.next_attempt(), None);
        endpoints.heard(address(5));
        assert_eq!(endpoints.next_attempt(), Some(address(5)));
    }
}
