//! [`Object`]: one object of any kind that the parts of a cluster read or write.

use api::kubernetes::{EndpointSlice, Namespace, Node, ObjectMeta, Service};
use api::{
    ClusterMember, ClusterPeer, ClusterRoutingPolicy, LocalCluster, RoutingPolicy, ServiceExport, ServiceImport,
    TunnelGateway,
};
use controller_core::plan;

/// Kind, namespace (empty where there is none) and name.
pub(crate) type Key = (&'static str, String, String);

/// A kind that the pretend store can hold.
pub(crate) trait Held: Sized + Clone + 'static {
    const KIND: &'static str;
    fn of(object: &Object) -> Option<&Self>;
}

macro_rules! kinds {
    ($($kind:ident),+ $(,)?) => {
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) enum Object { $($kind(Box<$kind>)),+ }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        }
        impl Held for $kind {
            const KIND: &'static str = stringify!($kind);
            fn of(object: &Object) -> Option<&Self> {
                if let Object::$kind(object) = object { Some(object) } else { None }
            }
        })+

        impl Object {
            pub(crate) fn kind(&self) -> &'static str {
                match self { $(Self::$kind(_) => stringify!($kind)),+ }
            }
            pub(crate) fn meta(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata),+ }
            }
            pub(crate) fn meta_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Self::$kind(object) => &mut object.metadata),+ }
            }
        }
    };
}

kinds!(
    LocalCluster,
    ClusterPeer,
    ClusterMember,
    TunnelGateway,
    Service,
    ServiceExport,
    ServiceImport,
    EndpointSlice,
    Namespace,
    Node,
    RoutingPolicy,
    ClusterRoutingPolicy,
);

impl Object {
    pub(crate) fn key(&self) -> Key {
        let meta = self.meta();
        (self.kind(), meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

macro_rules! planned {
    ($($kind:ident),+ $(,)?) => {
        impl From<plan::Object> for Object {
            fn from(object: plan::Object) -> Self {
                match object { $(plan::Object::$kind(object) => Self::$kind(object)),+ }
            }
        }

        impl Object {
            /// As the controller speaks of it. It plans no others.
            pub(crate) fn into_planned(self) -> Option<plan::Object> {
                match self {
                    $(Self::$kind(object) => Some(plan::Object::$kind(object)),)+
                    Self::Service(_) | Self::Namespace(_) => None,
                }
            }
        }
    };
}

planned!(
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
