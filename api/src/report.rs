//! What the parts answer to an operator's questions; `-o json` prints these very types.
//!
//! Every time is an age in seconds, for the asker's clock need not agree with the part's. `None` is unknown, which is
//! neither zero nor good.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::TranslatedPrefix;
use crate::health::{PathReason, Reachability};

/// `status` of a controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ControllerReport {
    pub cluster_id: String,
    pub cluster_set_id: String,
    /// Of this cluster's identity.
    pub fingerprint: String,
    /// Whether this replica writes.
    pub leader: bool,
    /// `Active`, or `Draining` where every member is asked to give this cluster no new connections.
    pub state: String,
    /// Time in this state, once it is written to the LocalCluster.
    pub state_age: Option<f64>,
    pub exports: usize,
    pub imports: usize,
    /// Services, as `namespace/name`, that nobody can answer for now.
    pub unserved: Vec<String>,
    /// Exports, as `namespace/name`, with endpoints whose readiness nobody checks or states: `Unchecked`.
    pub unchecked: Vec<String>,
    /// Documents that are not in force as they are written now.
    pub broken_documents: Vec<BrokenDocument>,
    /// While this cluster's identity is replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_rotation: Option<IdentityRotationReport>,
    /// Gateways whose keys are being replaced; none until the keys were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotations: Option<Vec<RotationReport>>,
    pub peers: Vec<PeerSync>,
    /// Agents known to this controller.
    pub agents: Vec<AgentReport>,
    /// The nodes of this cluster.
    pub nodes: Vec<NodeState>,
    /// What is open on each of them, while something is drained.
    pub hosts: Vec<HostFlows>,
    /// The generation of this cluster's record, and the state it says; none and empty before it is signed.
    pub record_generation: Option<u64>,
    pub record_state: String,
    /// How many times what this cluster exports has changed since the controller started.
    pub exports_revision: u64,
    /// Whether the API server tells of changes; a folder always does.
    pub objects: FeedReport,
}

/// What is open between one host of this cluster and others, while something is drained; as its node agent counts it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostFlows {
    pub node: String,
    /// Since the controller heard it; none: it was there before the controller was, and may be old.
    pub age: Option<f64>,
    /// Peers with whom something is open, or could be.
    pub flows: Vec<FlowReport>,
    /// Connections of this cluster's own clients on other hosts to exported endpoints on this one.
    pub own: u64,
    /// What this host knows to be drained: `peer birch`, `cluster`, `node worker`.
    pub drained: Vec<String>,
    /// A number that grows with each time it is said.
    pub counted: u64,
}

/// A node of this cluster, as the controller knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeState {
    pub node: String,
    /// Whether an order takes its endpoints out of service.
    pub draining: bool,
    /// For how long, where the order says when it was given.
    pub draining_age: Option<f64>,
    /// Slots of the gateways on it.
    pub gateways: Vec<u16>,
}

/// The cluster's identity on its way to be replaced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IdentityRotationReport {
    /// The fingerprint of the one that comes.
    pub next: String,
    pub age: f64,
    /// In so many seconds the old one is retired, whoever does not know the next one.
    pub ends_in: f64,
    /// Whether the controller knows its peers yet.
    pub told: bool,
    /// Peers that have not said yet that they trust the next one.
    pub waiting_for: Vec<String>,
}

/// The keys of one gateway on their way to be replaced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RotationReport {
    pub slot: u16,
    pub age: f64,
    /// In so many seconds the old keys are taken away, whoever still needs them.
    pub ends_in: f64,
    /// Whether the gateway itself has told yet who needs the old keys.
    pub told: bool,
    /// Peers that still need them.
    pub waiting_for: Vec<String>,
}

/// A document of the manifests folder that is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BrokenDocument {
    pub file: String,
    /// From 1; 0 when it is the whole file.
    pub line: usize,
    /// `Service shop/web`; empty where it cannot be told.
    pub object: String,
    pub reason: String,
    /// Whether what it defined before is still in force.
    pub last_good_in_force: bool,
}

/// What the controller knows of one peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerSync {
    pub peer: String,
    /// `Active`, `Drained` or `Blocked`: what the operator wants.
    pub state: String,
    /// The same, or `Draining` or `Left` where the peer says so of itself: why it gets no new connections.
    pub used: String,
    /// Time since it gets them, or does not.
    pub used_age: Option<f64>,
    /// Whether an order such as `tombolo peers drain` says so, and not the manifest alone.
    pub ordered: bool,
    pub fingerprint: String,
    /// While it replaces its identity: the one that comes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub next_fingerprint: String,
    pub record_generation: Option<u64>,
    /// It listens to what this cluster says, now.
    pub told: bool,
    /// The generation of our record that it says to have in force.
    pub record_taken: Option<u64>,
    /// Which [`exports_revision`](ControllerReport::exports_revision) of ours it says to hold.
    pub exports_taken: Option<u64>,
    /// A conversation is open now.
    pub synced: bool,
    /// Since the last message of it.
    pub last_sync_age: Option<f64>,
    /// Why it is not synced, in words; empty when it is.
    pub reason: String,
    pub services_in: usize,
    pub services_out: usize,
    /// What is routed to it: its prefixes as they are seen here.
    pub prefixes: Vec<String>,
    /// Which of these are not its own, and what they are there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub translations: Vec<TranslatedPrefix>,
    /// What of its record or advertisement was refused, in words.
    pub refused: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentReport {
    pub name: String,
    /// `gateway`, `node` or `dns`.
    pub role: String,
    pub connected: bool,
    pub age: Option<f64>,
}

/// `status` of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayReport {
    pub node: String,
    /// The slot it holds; none while it waits for one.
    pub slot: Option<u16>,
    pub draining: bool,
    pub lanes: Vec<LaneReport>,
    pub peers: Vec<PathReport>,
    /// Peers, or parts of them, that are not used as configured, and what is wrong with this host, in words.
    pub problems: Vec<String>,
    pub feed: FeedReport,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LaneReport {
    pub lane: u16,
    pub device: String,
    pub port: u16,
    pub public_key: String,
}

/// How packets reach one peer from one gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathReport {
    pub peer: String,
    pub reachability: Reachability,
    pub reason: PathReason,
    /// Time in this state.
    pub age: f64,
    pub round_trip_ms: Option<f64>,
    pub loss_percent: Option<f64>,
    /// The largest packet that passes by every path to it; what is configured until that was measured.
    pub mtu: Option<u16>,
    /// Time since that was found by measurement; none until it was.
    #[serde(default)]
    pub mtu_age: Option<f64>,
    /// Which of its prefixes are seen here as others, and what they are there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub translations: Vec<TranslatedPrefix>,
    pub sessions: Vec<SessionReport>,
}

/// One session: one lane here with one lane of one gateway there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionReport {
    pub lane: u16,
    pub peer_slot: u16,
    pub peer_lane: u16,
    /// Where its packets go now.
    pub endpoint: Option<String>,
    pub handshake_age: Option<f64>,
    /// Whether packets come through here.
    pub reachability: Option<Reachability>,
    /// Time in that state.
    pub age: f64,
    /// The largest packet that passes here; none until measured.
    pub mtu: Option<u16>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// How long a part has been without its controller; all empty while it has one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FeedReport {
    pub interrupted_for: Option<f64>,
    pub reason: String,
}

/// `status` of a node agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeReport {
    pub node: String,
    /// Differences between the kernel and what is wanted, found at the last look and mended.
    pub kernel_differences: usize,
    pub services: usize,
    pub gateways: Vec<GatewaySeen>,
    pub clusters: Vec<ClusterSeen>,
    pub feed: FeedReport,
}

/// One gateway as a node or a DNS server sees it by its probes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySeen {
    pub slot: u16,
    pub address: String,
    pub answering: bool,
    pub draining: bool,
    pub last_answer_age: Option<f64>,
}

/// One peer as routing sees it now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSeen {
    pub cluster: String,
    pub reachability: Reachability,
    pub reason: PathReason,
    pub age: f64,
    pub round_trip_ms: Option<f64>,
}

/// One entry of `routes?peer=` of a node agent: where the kernel of this host sends packets for a prefix of a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteReport {
    pub prefix: String,
    /// The number of the routing table; none where no route carries.
    pub table: Option<u32>,
    pub metric: Option<u32>,
    /// The largest packet, bytes, where the route says one.
    pub mtu: Option<u32>,
    pub hops: Vec<HopReport>,
    /// Empty where packets go by a route of ours; else a name such as `Blackhole`.
    pub reason: String,
    /// What the operator should check; empty where nothing is amiss.
    pub remedy: String,
}

impl RouteReport {
    /// The reason where nobody measured yet whether the way reaches the peer.
    pub const PEER_UNKNOWN: &str = "PeerUnknown";

    /// Whether the kernel has the way, and only its measurement is missing: not good, and not bad either.
    pub fn is_unknown(&self) -> bool {
        self.reason == Self::PEER_UNKNOWN
    }
}

/// One way out of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HopReport {
    pub device: String,
    pub via: Option<String>,
    /// The node that VXLAN's outer packets are sent to.
    pub node: Option<String>,
    /// The gateway slot on that node, or on this host where the device is its tunnel.
    pub gateway: Option<u16>,
}

/// `status` of a DNS server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DnsReport {
    /// Age of the zone that answers now; none before the first state.
    pub zone_age: Option<f64>,
    pub services: usize,
    pub records: usize,
    pub gateways: Vec<GatewaySeen>,
    /// Clusters whose endpoints are left out of answers.
    pub out_of_service: Vec<ClusterSeen>,
    pub feed: FeedReport,
}

/// `services` of a node agent: one line a service and port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceReport {
    /// `namespace/name`.
    pub service: String,
    /// `ClusterSetIP` or `Headless`.
    pub service_type: String,
    pub addresses: Vec<String>,
    pub ports: Vec<PortReport>,
}

/// `explain?service=` of a node agent: for one port, who answers and why the others do not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortReport {
    /// The port's name; empty for the unnamed one.
    pub name: String,
    pub protocol: String,
    pub port: u16,
    /// `RoutingPolicy shop/web`, or `local first` where no policy speaks.
    pub policy: String,
    pub policy_generation: Option<i64>,
    pub clusters: Vec<ClusterShare>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterShare {
    pub cluster: String,
    /// Its tier, from 1; none where no tier names it.
    pub tier: Option<usize>,
    pub ready: u32,
    pub total: u32,
    /// `Used`, `Standby` or `Excluded`.
    pub verdict: String,
    /// A name such as `SilentPeer` or `HigherTierServes`.
    pub reason: String,
    /// What the policy asks for, in percent.
    pub asked_percent: f64,
    /// What the installed slots give, in percent.
    pub installed_percent: f64,
}

/// One entry of `whatif?` of a node agent: a port whose new connections would go elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MoveReport {
    /// `namespace/name`.
    pub service: String,
    /// The port's name; empty for the unnamed one.
    pub port: String,
    pub before: Vec<MoveShare>,
    /// Empty: nobody would answer.
    pub after: Vec<MoveShare>,
    /// Ready endpoints of this cluster now, and how many of them would leave; both 0 where no node is drained.
    pub endpoints: u32,
    pub leaving: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MoveShare {
    pub cluster: String,
    pub percent: f64,
}

/// One entry of `flows?` of a node agent: what is open between this host, with its pods, and one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FlowReport {
    pub peer: String,
    /// Connections opened here and answered there.
    pub outward: u64,
    /// Connections opened there and answered here.
    pub inward: u64,
    /// What tells the inward ones apart: a number that is new belongs to a connection that is new. The first 10,000.
    pub inward_ids: Vec<u32>,
}

/// What became of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OrderReport {
    /// The peer, or this cluster itself.
    pub subject: String,
    /// The state in force before and after.
    pub before: String,
    pub after: String,
    /// Whether anything was written.
    pub changed: bool,
}

/// One entry of `refusals`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RefusalReport {
    /// The metric label: `Unexported`, `WrongSource`.
    pub reason: String,
    /// The peer it came from or was meant for; empty when unknown.
    pub peer: String,
    /// `10.2.1.4:43210`; without a port where the protocol has none.
    pub source: String,
    pub destination: String,
    pub protocol: String,
    pub count: u64,
    /// Since the last one.
    pub age: f64,
}

/// One entry of `events`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EventReport {
    pub sequence: u64,
    /// Milliseconds since 1970-01-01 UTC.
    pub at: u64,
    /// `path amber→birch`, `gateway 0`.
    pub subject: String,
    pub before: String,
    pub after: String,
    pub reason: String,
    /// The sequence number of the event that caused this one.
    pub cause: Option<u64>,
}

/// `ping?peer=` of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PingReport {
    pub peer: String,
    pub lane: u16,
    pub peer_slot: u16,
    pub endpoint: String,
    /// None when no answer came.
    pub round_trip_ms: Option<f64>,
    /// Why not, in words.
    pub reason: String,
}

/// `explain?name=&type=` of a DNS server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NameReport {
    pub name: String,
    pub record_type: String,
    /// `NOERROR`, `NXDOMAIN`, `REFUSED`.
    pub response_code: String,
    /// The records, as a zone file writes them.
    pub answers: Vec<String>,
    /// Which objects and which health led to it, in words.
    pub reasons: Vec<String>,
}
