//! What a gateway says of itself in the status of its TunnelGateway.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use api::ClusterId;
use api::conditions::{ConditionType, Reason};
use api::kubernetes::{Condition, Time};
use api::tunnel_gateway::{KeyRotation, LaneStatus, MOST_PATHS, PeerPath, TunnelGatewayStatus};

use crate::Config;
use crate::control::Snapshot;
use crate::engine::Engine;

/// `clock_behind` is by how much the wall clock went back; `before` is the status as it stands. `rotation` is told when
/// it is known.
pub(crate) fn announcement(
    config: &Config,
    engine: &Engine,
    reason: Reason,
    clock_behind: Option<Duration>,
    before: Option<&TunnelGatewayStatus>,
    rotation: Option<KeyRotation>,
) -> TunnelGatewayStatus {
    let addresses: Vec<String> = node_addresses(config).iter().map(ToString::to_string).collect();
    let external = &config.external_addresses;
    let status = if reason == Reason::Ready { "True" } else { "False" };
    let message = match clock_behind {
        Some(behind) => format!("ClockWentBack: this host's clock is {} s behind its last run", behind.as_secs()),
        None if reason == Reason::Ready => "forwarding".to_owned(),
        None => "going away".to_owned(),
    };
    let known = before.and_then(|before| {
        let same = |known: &&Condition| known.type_ == ConditionType::Ready.as_str() && known.status == status;
        before.conditions.iter().find(same)
    });
    let condition = Condition {
        type_: ConditionType::Ready.to_string(),
        status: status.to_owned(),
        reason: reason.to_string(),
        message,
        observed_generation: None,
        last_transition_time: known.map_or_else(|| Time(now_in_seconds()), |known| known.last_transition_time.clone()),
    };
    let snapshot = engine.control().snapshot();
    let lanes = engine.lanes().iter().zip(&snapshot.topology.ours.lanes).map(|(lane, keys)| LaneStatus {
        public_key: keys.key,
        port: lane.sockets.port(),
        device: lane.tun.name().to_owned(),
    });
    TunnelGatewayStatus {
        node: config.node_name.clone(),
        endpoints: if external.is_empty() { addresses.clone() } else { external.clone() },
        node_addresses: addresses,
        lanes: lanes.collect(),
        paths: paths(&snapshot, before),
        rotation,
        conditions: vec![condition],
    }
}

/// What was measured, each with the time it was first written so.
fn paths(snapshot: &Snapshot, before: Option<&TunnelGatewayStatus>) -> Vec<PeerPath> {
    let mut narrow: BTreeMap<&ClusterId, bool> = BTreeMap::new();
    for link in snapshot.links.iter().filter(|link| link.status.mtu_measured_since.is_some()) {
        *narrow.entry(&link.link.cluster).or_default() |= link.status.is_too_narrow;
    }
    let path = |(cluster, mtu): (&ClusterId, u16)| {
        let too_narrow = *narrow.get(cluster)?;
        let same = |known: &&PeerPath| (&known.cluster, known.mtu, known.too_narrow) == (cluster, mtu, too_narrow);
        let known = before.and_then(|before| before.paths.iter().find(same));
        let since = known.map_or_else(|| Time(now_in_seconds()), |known| known.since.clone());
        Some(PeerPath { cluster: cluster.clone(), mtu, too_narrow, since })
    };
    let peers = snapshot.report.peers.iter().map(|peer| (&peer.cluster, peer.mtu));
    peers.filter_map(path).take(MOST_PATHS).collect()
}

fn node_addresses(config: &Config) -> Vec<IpAddr> {
    if !config.node_addresses.is_empty() {
        return config.node_addresses.iter().copied().take(2).collect();
    }
    // Nothing is sent: connecting a UDP socket only asks the routing table. The targets are for documentation
    // (RFC 5737, RFC 3849), so that what answers is the default route.
    let source_towards = |(own, target): (&str, &str)| {
        let socket = UdpSocket::bind(own).ok()?;
        socket.connect(target.parse::<SocketAddr>().ok()?).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")].into_iter().filter_map(source_towards).collect()
}

fn now_in_seconds() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now)
}
