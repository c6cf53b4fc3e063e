//! [`Translation`]: packets of a peer whose prefixes overlap somebody else's, rewritten in place (decision 7).
//!
//! Prefix to prefix, one to one, without a table of flows: any gateway can translate any packet, so nothing is lost with
//! one. On the wire between two clusters every address is the real one of the cluster that owns it; each cluster
//! translates, at its own gateways, how *it* sees the other:
//!
//! | | packet | quoted in an ICMP error |
//! |---|---|---|
//! | to the peer, before sealing | destination: as seen → real | source: as seen → real |
//! | from the peer, after its source was checked | source: real → as seen | destination: real → as seen |
//!
//! Checksums are carried along by the difference (RFC 1624), so a packet that was damaged before stays damaged, and the
//! other fragments of a datagram need not be here. Not covered, for nothing outside the packet could be right: addresses
//! inside payloads, SCTP's INIT and ASCONF among them (an association of one address a side works, for its checksum has
//! no pseudo-header), and IPsec's authentication header, which protects the very addresses.

mod difference;
mod layout;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::net::IpAddr;

use api::TranslatedPrefix;
use api::translated_prefix::{real, seen};

use crate::packet::Packet;
use difference::Difference;
use layout::{Checksum, Layout};

/// How one peer's overlapping prefixes are seen here. Few, so that looking through all of them is the fastest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    prefixes: Vec<TranslatedPrefix>,
}

/// Which of a packet's two addresses is the peer's, and which way it changes.
#[derive(Clone, Copy)]
enum Change {
    /// Of a packet from the peer, or quoted by one to it.
    Source(Way),
    /// Of a packet to the peer, or quoted by one from it.
    Destination(Way),
}

#[derive(Clone, Copy)]
enum Way {
    ToSeen,
    ToReal,
}

impl Translation {
    /// Prefixes that cannot be translated back are left out; those that are seen as one another's must not overlap.
    pub fn new(prefixes: &[TranslatedPrefix]) -> Self {
        Self { prefixes: prefixes.iter().filter(|prefix| prefix.is_well_formed()).copied().collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }

    /// How a source address on the wire is seen here. `None` when it is one we made up ourselves: no peer has it.
    pub fn seen_source(&self, source: IpAddr) -> Option<IpAddr> {
        match seen(&self.prefixes, source) {
            Some(seen) => Some(seen),
            None if real(&self.prefixes, source).is_some() => None,
            None => Some(source),
        }
    }

    /// Rewrites a packet of our cluster on its way to the peer. `packet` is what was read of `bytes`.
    pub fn rewrite_outbound(&self, packet: &Packet, bytes: &mut [u8]) {
        self.rewrite(packet, bytes, Change::Destination(Way::ToReal), Change::Source(Way::ToReal));
    }

    /// Rewrites a packet of the peer on its way to our cluster.
    pub fn rewrite_inbound(&self, packet: &Packet, bytes: &mut [u8]) {
        self.rewrite(packet, bytes, Change::Source(Way::ToSeen), Change::Destination(Way::ToSeen));
    }

    fn rewrite(&self, packet: &Packet, bytes: &mut [u8], change: Change, change_of_quoted: Change) {
        let Some(bytes) = bytes.get_mut(..packet.len) else { return };
        let layout = Layout::of(packet);
        let quoted = layout.quoted_at(bytes).and_then(|at| bytes.get_mut(at..));
        let in_payload = quoted.map_or(Difference::NONE, |quoted| match Layout::of_quoted(quoted) {
            Some(layout) => self.apply(quoted, &layout, change_of_quoted, Difference::NONE),
            None => Difference::NONE,
        });
        self.apply(bytes, &layout, change, in_payload);
    }

    /// Changes one address and every checksum it is part of. Gives the difference of all that was changed.
    fn apply(&self, bytes: &mut [u8], layout: &Layout, change: Change, in_payload: Difference) -> Difference {
        let (at, way) = match change {
            Change::Source(way) => (layout.source_at(), way),
            Change::Destination(way) => (layout.destination_at(), way),
        };
        let mut all = in_payload;
        let mut address_difference = Difference::NONE;
        let moved = layout.address(bytes, at).and_then(|address| match way {
            Way::ToSeen => seen(&self.prefixes, address),
            Way::ToReal => real(&self.prefixes, address),
        });
        match moved {
            Some(IpAddr::V4(address)) => address_difference.replace(bytes, at, &address.octets()),
            Some(IpAddr::V6(address)) => address_difference.replace(bytes, at, &address.octets()),
            None => {}
        }
        all.add(address_difference);
        if let Some(at) = layout.header_checksum_at() {
            all.add(address_difference.carry(bytes, at, false));
        }
        if let Some(Checksum { at, has_pseudo_header, zero_is_none }) = layout.checksum() {
            let mut covered = in_payload;
            if has_pseudo_header {
                covered.add(address_difference);
            }
            all.add(covered.carry(bytes, at, zero_is_none));
        }
        all
    }
}
