//! [`Input`]: everything a node is told, by the store, by gateways and by its own kernel.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use api::health::HealthReport;
use api::kubernetes::{EndpointSlice, Node, Service};
use api::{
    ClusterPeer, ClusterRoutingPolicy, LocalCluster, RoutingPolicy, ServiceExport, ServiceImport, TunnelGateway,
};
use kernel_core::DeviceName;

/// Namespace (empty where there is none) and name.
pub type Key = (String, String);

/// One step of following a kind of objects.
#[derive(Clone, Debug, PartialEq)]
pub enum ObjectChange<K> {
    /// Everything that is there; what was known before and is not among them is gone.
    Reset(Vec<K>),
    Applied(K),
    Deleted(K),
}

#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "an input is made, taken and gone; there is no store of them")]
pub enum Input {
    LocalClusters(ObjectChange<LocalCluster>),
    ClusterPeers(ObjectChange<ClusterPeer>),
    TunnelGateways(ObjectChange<TunnelGateway>),
    Nodes(ObjectChange<Node>),
    Services(ObjectChange<Service>),
    ServiceExports(ObjectChange<ServiceExport>),
    ServiceImports(ObjectChange<ServiceImport>),
    EndpointSlices(ObjectChange<EndpointSlice>),
    RoutingPolicies(ObjectChange<RoutingPolicy>),
    ClusterRoutingPolicies(ObjectChange<ClusterRoutingPolicy>),
    /// All network devices of this host that are up.
    Devices(BTreeSet<DeviceName>),
    /// Largest packet, in bytes, of the device that holds this node's own address.
    UnderlayMtu(u32),
    /// The gateway of this slot was asked for a report.
    Asked(u16),
    /// A gateway's verified answer.
    Report(HealthReport),
    /// Nothing but time has passed.
    Tick,
}

impl<K: api::Kind> ObjectChange<K> {
    /// Single steps: what is there now, or nothing. `known` gives the keys known before; only a reset asks for them.
    pub(crate) fn steps<I: IntoIterator<Item = Key>>(self, known: impl FnOnce() -> I) -> Vec<(Key, Option<K>)> {
        match self {
            Self::Applied(object) => Vec::from([(key_of(&object), Some(object))]),
            Self::Deleted(object) => Vec::from([(key_of(&object), None)]),
            Self::Reset(objects) => {
                let present: BTreeSet<Key> = objects.iter().map(key_of).collect();
                let gone =
                    known().into_iter().filter(|key| !present.contains(key)).map(|key| (key, None)).collect::<Vec<_>>();
                gone.into_iter().chain(objects.into_iter().map(|object| (key_of(&object), Some(object)))).collect()
            }
        }
    }
}

pub(crate) fn key_of<K: api::Kind>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}
