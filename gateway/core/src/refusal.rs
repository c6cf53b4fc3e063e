//! [`Refusal`]: every reason to drop a datagram or a packet, each a metric label and a sentence for the operator.

use core::fmt;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident: $sentence:literal,)+) => {
        /// Why something was dropped. Nothing is ever dropped without one of these being counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Refusal { $($(#[$doc])* $name),+ }

        impl Refusal {
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The metric label.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }

            /// What happened and what to check.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence),+ }
            }
        }
    };
}

refusals! {
    // Datagrams, before they are opened.
    /// Not one of the four WireGuard message types at its length.
    MalformedDatagram: "The datagram is not a WireGuard message; something else is sending to the tunnel's port.",
    UnknownSession: "No session has this receiver index; usual for a moment after a gateway restarted.",
    UnknownPeer: "A handshake with a key no peer of this lane has; check that both sides know each other's current keys.",
    BlockedPeer: "A handshake of a peer that the operator blocked; 'tombolo peers block NAME --undo' lets it in again.",
    HandshakeRefused: "A handshake from a known peer was not valid; check that the clocks of both gateways did not go back.",
    CookieRequired: "Under load: the sender was asked to prove its address first.",
    Unauthentic: "The datagram does not open with the session's key; it was damaged or forged.",
    ReplayedPacket: "The datagram's counter was seen before, or is too old.",
    ExpiredSession: "The session's keys are too old; a new handshake is on its way.",
    NoRoom: "The batch was full; the packet was dropped as by a full queue.",

    // Packets, of either direction.
    MalformedPacket: "Not an IPv4 or IPv6 packet whose lengths agree.",
    TooManyExtensionHeaders: "The chain of IPv6 extension headers is longer than any real one.",
    TinyFragment: "A fragment that hides the transport header, or would overwrite it (RFC 1858, RFC 7112).",
    SourceRouted: "The packet asks to be routed by its sender (RFC 5095), past the filters.",

    // Packets from a peer.
    WrongSource: "The source address is not the sending peer's; check the prefixes in its member record.",
    WrongDestination: "The destination is not in this cluster; check the prefixes of both clusters.",
    Unexported: "A new connection to something that is not exported; export the service, or set podReachability to Open.",
    ForbiddenIcmp: "An ICMP message that only neighbours may send, such as a redirect.",
    UnsupportedProtocol: "A protocol other than TCP, UDP, SCTP and ICMP; only podReachability Open lets it in.",
    ControlRefused: "Something other than probes, the control relay and transit was sent to this gateway's control address.",
    MalformedProbe: "A probe that cannot be read; check that both gateways speak a common version.",

    // Datagrams that one cluster passes on for others.
    MalformedTransit: "A transit frame that cannot be read; check that all gateways speak a common version.",
    UnknownTransit: "A transit frame from, of or for a gateway that is not known here; join the clusters with each other.",
    TransitNotAllowed: "A peer wants this cluster to pass its datagrams on; allow it in LocalCluster.spec.transit if it shall.",
    TooManyHubs: "A datagram passed as many hubs as it may; check that hubs do not name each other in 'via:' endpoints.",
    NoTransitPath: "This cluster is a hub for a peer that it does not reach itself now; check the tunnel to that peer.",
    TransitFull: "More ways by hubs than any clusterset needs; restart the gateway and tell us.",

    // Questions for health.
    MalformedHealthRequest: "Not a health request of a version known here; something else is sending to the health port.",
    UnknownHealthKey: "A health request under a key this gateway does not have; usual for a moment after the master key was rotated.",
    ForgedHealthRequest: "A health request whose authenticator is wrong; check that the agent has its own key.",
    HealthAskedTooOften: "An agent asks for health more often than any agent should; restart it and tell us.",

    // Packets of our own cluster.
    NeighbourTraffic: "Multicast or link-local chatter of the TUN device itself; harmless.",
    NoRoute: "No peer has the destination; check that the peer is joined and which prefixes it announces.",
    ForeignSource: "The source address is in no prefix of this cluster, so the peer would refuse it; add the prefix, or check source NAT.",
    NoSession: "No handshake with the peer has succeeded; check its endpoint, and that UDP gets through.",
    NoEndpoint: "Nobody knows where the peer's gateway listens; it has to call first, or an endpoint has to be configured.",
    TooBig: "The packet is larger than the path to the peer; its sender was told so.",
    TooBigUnanswered: "The packet is larger than the path to the peer, and too many senders were told so lately to tell this one.",
}

impl Refusal {
    /// How many there are: the size of a table with a counter for each.
    pub const COUNT: usize = Self::ALL.len();

    /// Position in [`ALL`](Self::ALL).
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn every_refusal_has_its_own_label_and_a_full_sentence() {
        let labels: BTreeSet<_> = Refusal::ALL.iter().map(|refusal| refusal.name()).collect();
        assert_eq!(labels.len(), Refusal::COUNT);
        for (index, refusal) in Refusal::ALL.iter().enumerate() {
            assert_eq!(refusal.index(), index);
            assert!(refusal.sentence().ends_with('.'), "{refusal}");
        }
    }
}
