//! [`Exports`]: which endpoints of our cluster a peer may open connections to (DESIGN, decision 9).

use alloc::collections::BTreeSet;
use core::net::IpAddr;

/// An address and port that an exported service answers on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportedEndpoint {
    pub address: IpAddr,
    /// IANA protocol number: 6 TCP, 17 UDP, 132 SCTP.
    pub protocol: u8,
    pub port: u16,
}

/// One change of what is exported. Costs what one endpoint costs, whatever the number of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportChange {
    Add(ExportedEndpoint),
    Remove(ExportedEndpoint),
    /// `podReachability: Open`: every address of our prefixes may be reached.
    SetOpen(bool),
    /// Forget everything: a full list follows.
    Clear,
}

/// Owned by a lane's receiving thread; changes reach it as messages.
#[derive(Clone, Debug, Default)]
pub struct Exports {
    endpoints: BTreeSet<ExportedEndpoint>,
    open: bool,
}

impl Exports {
    pub fn apply(&mut self, change: ExportChange) {
        match change {
            ExportChange::Add(endpoint) => {
                self.endpoints.insert(endpoint);
            }
            ExportChange::Remove(endpoint) => {
                self.endpoints.remove(&endpoint);
            }
            ExportChange::SetOpen(open) => self.open = open,
            ExportChange::Clear => self.endpoints.clear(),
        }
    }

    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether a peer may open a connection here.
    pub fn admits(&self, address: IpAddr, protocol: u8, port: u16) -> bool {
        self.open || self.endpoints.contains(&ExportedEndpoint { address, protocol, port })
    }

    /// Whether a peer may ping this address: something on it is exported.
    pub fn admits_echo(&self, address: IpAddr) -> bool {
        let first = ExportedEndpoint { address, protocol: 0, port: 0 };
        self.open || self.endpoints.range(first..).next().is_some_and(|endpoint| endpoint.address == address)
    }

    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str, protocol: u8, port: u16) -> ExportedEndpoint {
        ExportedEndpoint { address: address.parse().unwrap(), protocol, port }
    }

    #[test]
    fn an_export_admits_its_address_protocol_and_port_and_nothing_else() {
        let mut exports = Exports::default();
        exports.apply(ExportChange::Add(endpoint("10.1.0.5", 6, 80)));
        let address = "10.1.0.5".parse().unwrap();
        assert!(exports.admits(address, 6, 80));
        assert!(!exports.admits(address, 6, 81) && !exports.admits(address, 132, 80));
        assert!(!exports.admits("10.1.0.6".parse().unwrap(), 6, 80));
        assert!(exports.admits_echo(address) && !exports.admits_echo("10.1.0.4".parse().unwrap()));
        exports.apply(ExportChange::Remove(endpoint("10.1.0.5", 6, 80)));
        assert!(!exports.admits(address, 6, 80) && !exports.admits_echo(address));
    }

    #[test]
    fn open_reachability_admits_everything() {
        let mut exports = Exports::default();
        exports.apply(ExportChange::SetOpen(true));
        assert!(exports.admits("10.1.0.5".parse().unwrap(), 6, 80) && exports.admits_echo("fd00::1".parse().unwrap()));
    }
}
