//! Why a packet is refused. Each reason is a counter of our nftables table and the prefix of its log messages.

/// A reason our filters refuse a packet for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// A new TCP connection from another cluster to something not exported.
    UnexportedTcp,
    /// The first UDP datagram of a flow from another cluster to something not exported.
    UnexportedUdp,
    /// An ICMP echo request from another cluster.
    UnexportedEcho,
    /// Any other new flow from another cluster to something not exported.
    UnexportedOther,
    /// Out of a tunnel, with a source that belongs to no member.
    ForeignSource,
    /// To our VXLAN port, from an address that is not a member node's, or by a device that is not the way to it.
    VxlanStranger,
    /// To a clusterset address, but to no service and port known there.
    NoService,
    /// To a service without a ready endpoint.
    NoEndpoint,
    /// To a clusterset address, past the translation: its connection began before the service was known, or is not
    /// tracked.
    Untranslated,
}

impl Refusal {
    /// All reasons, in the order of their names' first use in the table.
    pub const ALL: [Self; 9] = [
        Self::UnexportedTcp,
        Self::UnexportedUdp,
        Self::UnexportedEcho,
        Self::UnexportedOther,
        Self::ForeignSource,
        Self::VxlanStranger,
        Self::NoService,
        Self::NoEndpoint,
        Self::Untranslated,
    ];

    /// The name: counter, metric label and log prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnexportedTcp => "unexported_tcp",
            Self::UnexportedUdp => "unexported_udp",
            Self::UnexportedEcho => "unexported_echo",
            Self::UnexportedOther => "unexported_other",
            Self::ForeignSource => "foreign_source",
            Self::VxlanStranger => "vxlan_stranger",
            Self::NoService => "no_service",
            Self::NoEndpoint => "no_endpoint",
            Self::Untranslated => "untranslated",
        }
    }

    /// The reason of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.name() == name)
    }
}
