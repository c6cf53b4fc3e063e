//! What is fixed of a cluster: its names, addresses and hosts, and its operator's manifests.
//!
//! Cluster n (from 1) has pods `10.n.0.0/16`, host h of it `10.n.h.0/24` and the address `172.31.n.h`; hosts have an
//! infrastructure address of `10.(100+n).0.0/24`, services one of `10.(200+n).0.0/24`. In IPv6 these are
//! `2001:db8:n::/48`, `2001:db8:n:h::/64`, `2001:db8:1000:n::h`, `2001:db8:2000:n::/64` and `2001:db8:3000:n::/112`.
//!
//! By these addresses the oracle speaks of pods. A cluster whose pods have the addresses of another's gives that one's in
//! its own network ([`real`]); what overlaps it sees in `10.(160+4n).0.0/14` and `fdaN::/16` (module `overlap`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use api::cluster_peer::{Accept, ClusterPeerSpec, PeerState};
use api::kubernetes::{EndpointSlice, Namespace, Node, ObjectMeta, Service};
use api::{ClusterId, ClusterPeer, LocalCluster, RoutingPolicy, ServiceExport, names};
use kernel_core::Family;
use serde_json::{Value, json};

use crate::shape::{Families, Shape};

pub(crate) const NAMES: [&str; 4] = ["amber", "birch", "cedar", "delta"];

/// A service that clusters may export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// In the namespace `shop`, with a clusterset address.
    Web,
    /// Beside it.
    Api,
    /// Headless, in `shop`.
    Db,
    /// In the namespace `vault`, which only some clusters accept.
    Keys,
}

impl Name {
    pub const ALL: [Self; 4] = [Self::Web, Self::Api, Self::Db, Self::Keys];

    pub(crate) fn namespace(self) -> &'static str {
        if self == Self::Keys { "vault" } else { "shop" }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Api => "api",
            Self::Db => "db",
            Self::Keys => "keys",
        }
    }

    pub(crate) fn is_headless(self) -> bool {
        self == Self::Db
    }

    pub(crate) fn find(namespace: &str, name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.namespace() == namespace && known.name() == name)
    }

    fn number(self) -> u8 {
        self as u8
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace(), self.name())
    }
}

/// The port clients connect to, and the one endpoints listen on.
pub(crate) const PORT: u16 = 80;
pub(crate) const ENDPOINT_PORT: u16 = 8080;
/// Endpoints one host may have of one service.
pub(crate) const PLACES: u8 = 3;

/// The last byte of the first endpoint on a host; those before are clients.
const FIRST: u8 = 10;

pub(crate) fn id(cluster: usize) -> ClusterId {
    ClusterId::new(NAMES[cluster]).unwrap_or_else(|_| unreachable!("the names are labels"))
}

pub(crate) fn place_of(name: &str) -> Option<usize> {
    NAMES.iter().position(|known| *known == name)
}

fn number(cluster: usize) -> u8 {
    cluster as u8 + 1
}

fn pod(cluster: usize, host: usize, last: u8, family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(10, number(cluster), host as u8 + 1, last).into(),
        Family::Ipv6 => {
            Ipv6Addr::new(0x2001, 0xdb8, number(cluster).into(), host as u16 + 1, 0, 0, 0, last.into()).into()
        }
    }
}

/// The address of one endpoint.
pub(crate) fn endpoint(cluster: usize, host: usize, service: Name, place: u8, family: Family) -> IpAddr {
    pod(cluster, host, FIRST + service.number() * PLACES + place, family)
}

/// Whose endpoint an address is: cluster, service, host and place.
pub(crate) fn endpoint_of(address: IpAddr) -> Option<(usize, Name, usize, u8)> {
    let (cluster, host) = pod_of(address)?;
    let last = match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    let number = last.checked_sub(FIRST)?;
    let service = Name::ALL.into_iter().find(|service| service.number() == number / PLACES)?;
    Some((cluster, service, host, number % PLACES))
}

/// A pod that is only a client.
pub(crate) fn client(cluster: usize, host: usize, family: Family) -> IpAddr {
    pod(cluster, host, 5, family)
}

/// IPv4 where the cluster has it.
pub(crate) fn host_address(cluster: usize, host: usize, shape: Shape) -> IpAddr {
    match shape.families {
        Families::Ipv6 => Ipv6Addr::new(0x2001, 0xdb8, 0x1000, number(cluster).into(), 0, 0, 0, host as u16 + 1).into(),
        Families::Ipv4 | Families::Both => Ipv4Addr::new(172, 31, number(cluster), host as u8 + 1).into(),
    }
}

/// Whose pod an address is: cluster and host.
pub(crate) fn pod_of(address: IpAddr) -> Option<(usize, usize)> {
    match address {
        IpAddr::V4(address) => match address.octets() {
            [10, cluster @ 1..=4, host @ 1..=255, _] => Some((usize::from(cluster) - 1, usize::from(host) - 1)),
            _ => None,
        },
        IpAddr::V6(address) => match address.segments() {
            [0x2001, 0xdb8, cluster @ 1..=4, host @ 1..=255, 0, 0, 0, _] => {
                Some((usize::from(cluster) - 1, usize::from(host) - 1))
            }
            _ => None,
        },
    }
}

/// The cluster by whose number the pods of a cluster are addressed.
fn like(cluster: usize, shape: Shape) -> usize {
    shape.pods_like.unwrap_or(cluster)
}

/// The address of a pod in its own cluster.
pub(crate) fn real(shape: Shape, pod: IpAddr) -> IpAddr {
    shape.pods_like.map_or(pod, |like| numbered(pod, like))
}

/// A pod of a cluster by its address there; `None` where the address is none of its pods'.
pub(crate) fn pod_at(cluster: usize, shape: Shape, address: IpAddr) -> Option<IpAddr> {
    let (of, _) = pod_of(address)?;
    let is_own = of == like(cluster, shape) && shape.families.all().contains(&Family::of(address));
    is_own.then(|| numbered(address, cluster))
}

fn numbered(pod: IpAddr, cluster: usize) -> IpAddr {
    match pod {
        IpAddr::V4(address) => {
            let [first, _, host, last] = address.octets();
            Ipv4Addr::new(first, number(cluster), host, last).into()
        }
        IpAddr::V6(address) => {
            let mut segments = address.segments();
            segments[2] = number(cluster).into();
            Ipv6Addr::from(segments).into()
        }
    }
}

/// Whether an address is of some pod, or one that a pod is seen as.
pub(crate) fn is_pod(address: IpAddr) -> bool {
    let is_seen = match address {
        IpAddr::V4(address) => address.octets()[0] == 10 && address.octets()[1] >= 160 && address.octets()[1] < 180,
        IpAddr::V6(address) => (0xfda1..=0xfda4).contains(&address.segments()[0]),
    };
    is_seen || pod_of(address).is_some()
}

/// Where the world sends datagrams for a lane of a gateway.
pub(crate) fn outside(cluster: usize, slot: u16, lane: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(192, 0, 2, 10 * number(cluster) + slot as u8).into(), names::ports::TUNNEL + lane)
}

pub(crate) fn secret(cluster: usize, slot: u16, lane: u16) -> u64 {
    1_000_003 * (cluster as u64 + 1) + 7919 * (u64::from(slot) + 1) + 104_729 * u64::from(lane)
}

pub(crate) fn host_name(cluster: usize, host: usize) -> String {
    format!("{}-{}", NAMES[cluster], host + 1)
}

/// One of each family.
pub(crate) fn pod_prefixes(cluster: usize, host: usize, shape: Shape) -> Vec<String> {
    let (n, h) = (number(like(cluster, shape)), host + 1);
    of_families(shape, format!("10.{n}.{h}.0/24"), format!("2001:db8:{n:x}:{h:x}::/64"))
}

fn of_families(shape: Shape, ipv4: String, ipv6: String) -> Vec<String> {
    let of = |family: &Family| if *family == Family::Ipv4 { ipv4.clone() } else { ipv6.clone() };
    shape.families.all().iter().map(of).collect()
}

fn family_names(shape: Shape) -> Vec<String> {
    of_families(shape, "IPv4".into(), "IPv6".into())
}

fn object<K: api::Kind>(value: Value) -> K {
    serde_json::from_value(value)
        .unwrap_or_else(|error| unreachable!("a manifest of ours has its kind's shape: {error}"))
}

fn meta(namespace: &str, name: &str) -> Value {
    json!({ "namespace": namespace, "name": name })
}

pub(crate) fn local_cluster(cluster: usize, shape: Shape, between: Option<(usize, usize)>) -> LocalCluster {
    let (n, pods) = (number(cluster), number(like(cluster, shape)));
    let rule = |(one, other): (usize, usize)| json!({ "between": [NAMES[one], NAMES[other]] });
    let transit: Vec<Value> = between.map(rule).into_iter().collect();
    object(json!({ "metadata": { "name": names::LOCAL_CLUSTER }, "spec": {
        "clusterId": NAMES[cluster], "clusterSetId": "demo",
        "podPrefixes": of_families(shape, format!("10.{pods}.0.0/16"), format!("2001:db8:{pods:x}::/48")),
        "translationPrefixes": [format!("10.{}.0.0/14", 160 + 4 * n), format!("fda{n:x}::/16")],
        "infrastructurePrefixes":
            of_families(shape, format!("10.{}.0.0/24", 100 + n), format!("2001:db8:2000:{n:x}::/64")),
        "clusterSetPrefixes": of_families(shape, format!("10.{}.0.0/24", 200 + n), format!("2001:db8:3000:{n:x}::/112")),
        "transit": transit,
        "gateways": { "slots": shape.gateways, "lanes": shape.lanes },
    } }))
}

pub(crate) fn namespace(name: &str) -> Namespace {
    object(json!({ "metadata": { "name": name } }))
}

pub(crate) fn node(cluster: usize, host: usize, shape: Shape) -> Node {
    object(json!({
        "metadata": { "name": host_name(cluster, host) },
        "spec": { "podCIDRs": pod_prefixes(cluster, host, shape) },
        "status": { "addresses": [{ "type": "InternalIP", "address": host_address(cluster, host, shape) }] },
    }))
}

pub(crate) fn service(service: Name, shape: Shape) -> Service {
    let spec = json!({
        "clusterIP": if service.is_headless() { "None" } else { "10.96.0.9" },
        "ipFamilies": family_names(shape),
        "ports": [{ "name": "http", "protocol": "TCP", "port": PORT }],
    });
    object(json!({ "metadata": meta(service.namespace(), service.name()), "spec": spec }))
}

/// The slice of one family; endpoints as host, place and readiness.
pub(crate) fn slice(
    cluster: usize,
    shape: Shape,
    service: Name,
    family: Family,
    endpoints: &[(usize, u8, bool)],
) -> EndpointSlice {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(host, place, ready)| {
            json!({ "addresses": [real(shape, endpoint(cluster, *host, service, *place, family))], "conditions": { "ready": ready },
                    "nodeName": host_name(cluster, *host) })
        })
        .collect();
    let family = if family == Family::Ipv4 { "IPv4" } else { "IPv6" };
    let mut metadata = meta(service.namespace(), &format!("{}-{}", service.name(), family.to_lowercase()));
    metadata["labels"] = json!({ names::kubernetes::SERVICE_NAME: service.name() });
    object(json!({ "metadata": metadata, "addressType": family, "endpoints": endpoints,
        "ports": [{ "name": "http", "protocol": "TCP", "port": ENDPOINT_PORT }] }))
}

pub(crate) fn export(service: Name) -> ServiceExport {
    object(json!({ "metadata": meta(service.namespace(), service.name()), "spec": {} }))
}

/// One tier a cluster, in this order.
pub(crate) fn policy(service: Name, order: &[usize]) -> RoutingPolicy {
    let tiers: Vec<Value> =
        order.iter().map(|cluster| json!({ "clusters": [{ "cluster": NAMES[*cluster] }] })).collect();
    object(json!({ "metadata": meta(service.namespace(), service.name()),
        "spec": { "targetRefs": [{ "name": service.name() }], "tiers": tiers } }))
}

/// What the operator writes who read the other cluster's export: its identity and its record of then.
pub(crate) fn peer(
    of: usize,
    local: &LocalCluster,
    via: Option<usize>,
    accept: Vec<String>,
    state: PeerState,
) -> Option<ClusterPeer> {
    let status = local.status.as_ref().filter(|status| !status.record.is_empty())?;
    let spec = ClusterPeerSpec {
        identity_keys: status.identity_key.into_iter().collect(),
        record: status.record.clone(),
        endpoints: via.map(|hub| format!("via:{}", NAMES[hub])).into_iter().collect(),
        allowed_prefixes: local.spec.advertised_prefixes().copied().collect(),
        allow_overlap: true,
        accept: Accept { namespaces: accept },
        state,
    };
    let mut peer = ClusterPeer::new(NAMES[of], spec);
    peer.metadata = ObjectMeta { name: Some(NAMES[of].into()), ..ObjectMeta::default() };
    Some(peer)
}
