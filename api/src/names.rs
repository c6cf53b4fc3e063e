//! Every name that two parts must spell alike, once.

/// The group of Tombolo's own kinds.
pub const GROUP: &str = "tombolo.dev";
/// The version of Tombolo's own kinds.
pub const VERSION: &str = "v1alpha1";
/// The name of the one [`LocalCluster`](crate::LocalCluster).
pub const LOCAL_CLUSTER: &str = "local";
/// The namespace of what belongs to Tombolo itself: slots, keys, leases.
pub const SYSTEM_NAMESPACE: &str = "tombolo-system";

/// The DNS zone of the clusterset (KEP-1645).
pub const CLUSTERSET_ZONE: &str = "clusterset.local";

/// The [`ClusterProperty`](crate::ClusterProperty) that holds a cluster's id (KEP-2149).
pub const CLUSTER_ID_PROPERTY: &str = "cluster.clusterset.k8s.io";
/// The [`ClusterProperty`](crate::ClusterProperty) that holds the id of the clusterset it belongs to (KEP-2149).
pub const CLUSTER_SET_ID_PROPERTY: &str = "clusterset.k8s.io";

/// Labels and annotations of the Multi-Cluster Services API (KEP-1645).
pub mod mcs {
    pub const SERVICE_NAME: &str = "multicluster.kubernetes.io/service-name";
    pub const SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";
    pub const DERIVED_SERVICE: &str = "multicluster.kubernetes.io/derived-service";
}

/// Labels of Kubernetes itself.
pub mod kubernetes {
    /// On an EndpointSlice: the Service it belongs to in its own cluster.
    pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
    /// On an EndpointSlice: who writes it.
    pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
    pub const TOPOLOGY_ZONE: &str = "topology.kubernetes.io/zone";
}

/// The value of [`kubernetes::MANAGED_BY`] on slices the controller imports.
pub const MANAGED_BY_TOMBOLO: &str = "controller.tombolo.dev";

/// On a Node: its addresses in the infrastructure prefixes, one a family, separated by commas. Written by the controller.
pub const INFRASTRUCTURE_ADDRESSES: &str = "tombolo.dev/infrastructure-addresses";
/// On a Node: when its agent was last ready (RFC 3339). Written by the controller.
pub const AGENT_READY: &str = "tombolo.dev/agent-ready";
/// On an imported EndpointSlice or ServiceImport: the oldest export's time (RFC 3339), so that a rebuilt cluster does
/// not flip winners.
pub const FIRST_EXPORTED: &str = "tombolo.dev/first-exported";

/// On a ClusterPeer (`Drained`, `Blocked`) or on the LocalCluster, a TunnelGateway or a Node (`Draining`): the operator's
/// order of the moment, beside what the spec says for good; the stricter of both is in force. `tombolo peers drain` and its
/// like write it, so that no tool that keeps specs as a repository has them takes it back.
pub const STATE: &str = "tombolo.dev/state";

/// On a Node with [`STATE`]: since when (RFC 3339).
pub const STATE_SINCE: &str = "tombolo.dev/state-since";
/// On a ClusterPeer that is `Blocked` by an order: the order that stood before and that stands again once the block is
/// taken back.
pub const STATE_BEFORE: &str = "tombolo.dev/state-before";

/// On the Lease of a node's agent, while something is drained: what is open on that host, a
/// [`HostFlows`](crate::report::HostFlows) as JSON.
pub const OPEN_FLOWS: &str = "tombolo.dev/open-flows";

/// On an EndpointSlice of a plain host: how the endpoints' node finds out whether they are ready: `tcp`, `tcp:8080`,
/// `http:/healthz` or `http:8080/healthz`. Without a port it is the slice's first.
pub const CHECK: &str = "tombolo.dev/check";

/// On the Secret of a gateway slot: since when its keys rotate (RFC 3339). Gone with the old keys.
pub const ROTATING_SINCE: &str = "tombolo.dev/rotating-since";

/// Why the manager is on an object that Tombolo made.
pub const FIELD_MANAGER: &str = "tombolo";

/// How the names of [`slot_secret`] begin.
pub const SLOT_SECRETS: &str = "gateway-slot-";
/// The name of the Secret with the WireGuard keys of a gateway slot.
pub fn slot_secret(slot: u16) -> alloc::string::String {
    alloc::format!("{SLOT_SECRETS}{slot}")
}
/// The entry of [`slot_secret`] that holds the private key of a lane: 32 bytes.
pub fn lane_key(lane: u16) -> alloc::string::String {
    alloc::format!("lane-{lane}")
}
/// The entry of [`slot_secret`] that holds the private key that comes after [`lane_key`], while the slot's keys rotate.
pub fn next_lane_key(lane: u16) -> alloc::string::String {
    alloc::format!("next-lane-{lane}")
}
/// The name of the Lease by which a gateway holds a slot.
pub fn slot_lease(slot: u16) -> alloc::string::String {
    alloc::format!("gateway-slot-{slot}")
}
/// The name of the Lease of a node's agent, which only that agent writes.
pub fn node_lease(node: &str) -> alloc::string::String {
    alloc::format!("node-{node}")
}
/// The node whose Lease has that name; none where it is no node's.
pub fn node_of_lease(name: &str) -> Option<&str> {
    name.strip_prefix("node-")
}
/// The name of a gateway's [`TunnelGateway`](crate::TunnelGateway) object.
pub fn slot_gateway(slot: u16) -> alloc::string::String {
    alloc::format!("gateway-{slot}")
}
/// The Secret with the master key behind probes and health reports; only gateways may read it.
pub const PROBE_MASTER_SECRET: &str = "probe-master";
/// The Secret with one agent's probe key, derived from the master; only that agent may read it.
pub fn agent_secret(agent: &str) -> alloc::string::String {
    alloc::format!("agent-{agent}")
}

/// The entry of [`agent_secret`] that holds the key, as [`AgentKey::to_text`](crate::health::message::AgentKey::to_text) writes it.
pub const AGENT_KEY_DATA: &str = "key";
/// The Lease of the controller replica that writes (DESIGN, decision 12).
pub const CONTROLLER_LEASE: &str = "controller";
/// The Secret with what all replicas of a controller on Kubernetes have in common: the cluster's identity, its epoch, the
/// record signed last, what enrols agents. Its entries are named as the files in a controller's state folder.
pub const IDENTITY_SECRET: &str = "cluster-identity";
/// The ConfigMap that tells agents on Kubernetes which identity their controllers prove; they mount it.
pub const AGENTS_CONFIG_MAP: &str = "agents";
/// The entry of [`AGENTS_CONFIG_MAP`] that holds it, in the form of an enrolment file.
pub const ENROLMENT_DATA: &str = "enrolment";
/// Whom the tokens are for that agents on Kubernetes show their controllers: a token for the API server is none of them.
pub const TOKEN_AUDIENCE: &str = "tombolo.dev";
/// What the names of the agents' ServiceAccounts begin with; the role follows: `tombolo-node`.
pub const SERVICE_ACCOUNTS: &str = "tombolo-";

/// Ports, all changeable by flag or by [`LocalCluster`](crate::LocalCluster).
pub mod ports {
    /// WireGuard of lane 0; lane i listens on this plus i.
    pub const TUNNEL: u16 = 51820;
    /// The controller's TLS port: feed for agents, sync for peers.
    pub const CONTROLLER: u16 = 7443;
    /// The gateway's in-tunnel TCP port that splices to its controller.
    pub const CONTROL_RELAY: u16 = 7444;
    /// The gateway's UDP port that answers the probes of nodes and DNS servers.
    pub const HEALTH: u16 = 7445;
    /// The inner UDP port of probes between gateways.
    pub const PROBE: u16 = 7446;
    /// VXLAN inside the cluster: 4789 and 8472 are taken by Flannel, Cilium and Calico.
    pub const VXLAN: u16 = 7447;
    /// The inner UDP port by which gateways of a hub take datagrams that they are to pass on.
    pub const TRANSIT: u16 = 7448;
    pub const DNS: u16 = 53;
}

/// The VXLAN network identifier inside the cluster.
pub const VXLAN_ID: u32 = 7447;
/// The mark on outer packets of tunnels and VXLAN, so that they skip our routing table and cannot be routed into
/// themselves. One bit in a nibble that kube-proxy (0x4000, 0x8000) and Cilium (0x0f00) leave alone.
pub const OUTER_MARK: u32 = 0x0080_0000;
