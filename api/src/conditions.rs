//! Condition types and reasons. A reason that is not here cannot be written.

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The exact spelling in the object.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant)),+ }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words!(
    /// The type of a condition.
    ConditionType {
        /// ServiceExport: it can be exported at all.
        Valid,
        /// ServiceExport, ServiceImport, TunnelGateway: it does its work.
        Ready,
        /// ServiceExport: clusters disagree on what the service is.
        Conflict,
        /// RoutingPolicy, ClusterRoutingPolicy, ClusterPeer: it is in force.
        Accepted,
        /// RoutingPolicy: another policy decides for one of its targets.
        Conflicted,
        /// ClusterPeer: packets reach it.
        Connected,
        /// ClusterPeer: its advertisement is known and current.
        Synced,
        /// ClusterPeer: neither operator of the two clusters keeps new connections from it. LocalCluster: the operator
        /// asks no member to do so.
        Used,
    }
);

words!(
    /// The reason of a ServiceExport's or ServiceImport's condition, as KEP-1645 spells it.
    ServiceReason {
        Valid, NoService, InvalidServiceType,
        Exported, Ready, Pending, Failed,
        NoConflicts, PortConflict, TypeConflict, SessionAffinityConflict, SessionAffinityConfigConflict,
        AnnotationsConflict, LabelsConflict, InternalTrafficPolicyConflict, TrafficDistributionConflict, IPFamilyConflict,
        IPFamilyNotSupported,
        /// Ours: the clusterset prefixes have no address left.
        AddressesExhausted,
        /// Ours: another controller manages the object.
        ForeignController,
        /// Ours: the endpoint's node has no ready agent.
        NodeNotConnected,
    }
);

words!(
    /// The reason of a condition on one of Tombolo's own kinds.
    Reason {
        Accepted, Invalid, Superseded, NotTargeted,
        Connected, NeverConnected, SilentPeer, Drained, Blocked,
        Synced, NeverSynced, Stale, Refused,
        /// Its record claims prefixes its ClusterPeer does not allow, or that are another's.
        PrefixRefused,
        /// Its cluster id is already pinned to another identity.
        IdClash,
        /// Its record is signed by a key that is not trusted.
        UntrustedIdentity,
        /// Its record is signed by an identity that another one took the place of.
        RetiredIdentity,
        RecordOutdated,
        Ready, Starting, Draining,
        Active, Left,
    }
);
