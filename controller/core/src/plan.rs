//! What the controller writes: [`Write`]s, each against an object it has seen, and what became of them.

use alloc::string::String;

use api::kubernetes::{EndpointSlice, Node};
use api::{
    ClusterMember, ClusterPeer, ClusterRoutingPolicy, LocalCluster, RoutingPolicy, ServiceExport, ServiceImport,
    TunnelGateway,
};

use crate::advertisement::ServiceName;

macro_rules! objects {
    ($($kind:ident),+ $(,)?) => {
        /// An object of one of the kinds the controller writes.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object { $($kind(Box<$kind>)),+ }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        })+

        impl Object {
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$kind(_) => stringify!($kind)),+ }
            }
            pub fn metadata(&self) -> &api::kubernetes::ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata),+ }
            }
        }
    };
}

use alloc::boxed::Box;
objects!(
    ServiceImport,
    EndpointSlice,
    ServiceExport,
    ClusterPeer,
    ClusterMember,
    TunnelGateway,
    RoutingPolicy,
    ClusterRoutingPolicy,
    LocalCluster,
    Node,
);

/// What is done with an object. Updates and deletes carry the uid and resource version that were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Create,
    Update,
    UpdateStatus,
    Delete,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::UpdateStatus => "update_status",
            Self::Delete => "delete",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub verb: Verb,
    pub object: Object,
}

impl Write {
    pub fn new(verb: Verb, object: impl Into<Object>) -> Self {
        Self { verb, object: object.into() }
    }
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The object as it is now.
    Written(Object),
    Deleted(Object),
    /// It was not as it was seen: as it is now, or gone.
    Conflict {
        attempted: Object,
        now: Option<Object>,
    },
    /// The store refuses it as it is; asking again would not help.
    Refused {
        object: Object,
        reason: String,
    },
    /// The store cannot be reached, or this replica may not write now.
    Failed {
        object: Object,
        reason: String,
    },
}

/// What is planned as one: its writes never overlap, those of others run beside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    LocalCluster,
    Gateways,
    Node(String),
    Peer(String),
    Member(String),
    Service(ServiceName),
    /// The routing policies of a namespace.
    Policies(String),
    ClusterPolicies,
}

impl Subject {
    /// A label for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::LocalCluster => "LocalCluster",
            Self::Gateways => "TunnelGateway",
            Self::Node(_) => "Node",
            Self::Peer(_) => "ClusterPeer",
            Self::Member(_) => "ClusterMember",
            Self::Service(_) => "Service",
            Self::Policies(_) => "RoutingPolicy",
            Self::ClusterPolicies => "ClusterRoutingPolicy",
        }
    }
}
