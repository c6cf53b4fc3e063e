//! Clusterset addresses: each new connection to a frontend is given to the backend in one of its slots.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;

use crate::Family;

/// Most slots of one service. One slot is then worth 0.4 % of the connections; more would cost kernel memory (about 107
/// bytes an element) without anybody seeing the difference.
pub const MOST_SLOTS: usize = 256;

/// A transport protocol a service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol of a number in an IP header, if a service can have it.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// What a client connects to: a clusterset address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

/// What answers: an endpoint's address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
}

/// How a connection finds its slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Affinity {
    /// At random: shares are exactly the shares of slots.
    #[default]
    None,
    /// By a hash of the client's address. Stateless, so a timeout is not honoured; clients move when slots do, and only
    /// those whose slot changed.
    ClientAddress,
}

/// The slots of one frontend. Without any slot a connection is refused at once, and counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    slots: Arc<[Backend]>,
    affinity: Affinity,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidService {
    #[error("{0} slots: a service has at most 256; scale the weights down")]
    TooManySlots(usize),
    #[error("backends of both address families: a frontend has one address, so give each family its own service")]
    MixedFamilies,
}

impl Service {
    /// Takes the slots in order. A backend's share is the number of slots it stands in. Keep a backend in its slots from
    /// one change to the next: only slots that differ are touched.
    pub fn new(slots: Vec<Backend>, affinity: Affinity) -> Result<Self, InvalidService> {
        if slots.len() > MOST_SLOTS {
            return Err(InvalidService::TooManySlots(slots.len()));
        }
        if slots.windows(2).any(|two| two[0].address.is_ipv4() != two[1].address.is_ipv4()) {
            return Err(InvalidService::MixedFamilies);
        }
        // Without slots there is nothing to be bound to: one empty service equals another.
        let affinity = if slots.is_empty() { Affinity::None } else { affinity };
        Ok(Self { slots: slots.into(), affinity })
    }

    pub fn slots(&self) -> &[Backend] {
        &self.slots
    }

    pub fn affinity(&self) -> Affinity {
        self.affinity
    }

    /// The family of its backends; none when it has no slot.
    pub fn family(&self) -> Option<Family> {
        self.slots.first().map(|backend| Family::of(backend.address))
    }

    /// Whether it can stand behind `frontend`: the kernel does not translate from one family to the other.
    pub fn fits(&self, frontend: &Frontend) -> bool {
        self.family().is_none_or(|family| family == Family::of(frontend.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_service_of_two_families_or_of_too_many_slots_is_refused() {
        let four = Backend { address: "10.0.0.1".parse().unwrap(), port: 80 };
        let six = Backend { address: "fd00::1".parse().unwrap(), port: 80 };
        assert_eq!(Service::new(vec![four, six], Affinity::None), Err(InvalidService::MixedFamilies));
        assert_eq!(Service::new(vec![four; 257], Affinity::None), Err(InvalidService::TooManySlots(257)));
        assert_eq!(Service::new(vec![four; 256], Affinity::None).unwrap().slots().len(), 256);
    }
}
