//! [`Endpoints`]: where a peer's lane may be listening, and where it was last heard.

use alloc::vec::Vec;
use core::net::SocketAddr;

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
    fn a_peer_without_any_endpoint_is_waited_for() {
        let mut endpoints = Endpoints::default();
        endpoints.replace(&[], &[]);
        assert_eq!(endpoints.next_attempt(), None);
        endpoints.heard(address(5));
        assert_eq!(endpoints.next_attempt(), Some(address(5)));
    }
}
