//! What a gateway counts, in the OpenMetrics text format. Names are in docs and alerts: they do not change.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use api::health::Reachability;
use gateway_core::Refusal;
use gateway_core::roster::Roster;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::lane::Refusals;
use crate::surface::Running;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PeerLabels {
    local_cluster: String,
    peer: String,
}

impl PeerLabels {
    pub(crate) fn new(local_cluster: impl ToString, peer: impl ToString) -> Self {
        Self { local_cluster: local_cluster.to_string(), peer: peer.to_string() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LinkLabels {
    local_cluster: String,
    peer: String,
    lane: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabels {
    local_cluster: String,
    lane: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    local_cluster: String,
    peer: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    local_cluster: String,
    peer: String,
    state: String,
}

type RoundTrip = Family<PeerLabels, Histogram, fn() -> Histogram>;

/// Round-trip times since the start; the one metric that cannot be made from a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct RoundTrips(RoundTrip);

impl RoundTrips {
    pub(crate) fn new() -> Self {
        // From a neighbour in the rack to two satellites, each bucket about twice the one before.
        Self(RoundTrip::new_with_constructor(|| {
            Histogram::new([0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0])
        }))
    }

    pub(crate) fn observe(&self, labels: &PeerLabels, seconds: f64) {
        self.0.get_or_create(labels).observe(seconds);
    }
}

/// Everything, as of now.
pub(crate) fn text(running: &Running, roster: Option<&Roster>) -> String {
    let mut registry = Registry::with_prefix("tombolo");
    let snapshot = running.control.snapshot();
    let ours = snapshot.topology.ours.cluster.to_string();

    let counter = |registry: &mut Registry, name: &str, help: &str| {
        let family = Family::<LinkLabels, Counter>::default();
        registry.register(name, help, family.clone());
        family
    };
    let received_bytes = counter(&mut registry, "gateway_rx_bytes", "Bytes of inner packets from the peer");
    let sent_bytes = counter(&mut registry, "gateway_tx_bytes", "Bytes of inner packets to the peer");
    let received_packets = counter(&mut registry, "gateway_rx_packets", "Packets from the peer, keepalives included");
    let sent_packets = counter(&mut registry, "gateway_tx_packets", "Packets to the peer");
    let ages = Family::<LinkLabels, Gauge<f64, AtomicU64>>::default();
    let help = "Age of the keys in use; absent without any";
    registry.register_with_unit("gateway_session_handshake_age", help, Unit::Seconds, ages.clone());
    for link in &snapshot.links {
        let labels = LinkLabels {
            local_cluster: ours.clone(),
            peer: link.link.cluster.to_string(),
            lane: link.link.lane.0.to_string(),
        };
        received_bytes.get_or_create(&labels).inc_by(link.traffic.received_bytes);
        sent_bytes.get_or_create(&labels).inc_by(link.traffic.sent_bytes);
        received_packets.get_or_create(&labels).inc_by(link.traffic.received_packets);
        sent_packets.get_or_create(&labels).inc_by(link.traffic.sent_packets);
        if let Some(at) = link.last_handshake {
            ages.get_or_create(&labels).set(snapshot.at.since(at).as_secs_f64());
        }
    }
    refusals(&mut registry, running, &ours);
    lanes(&mut registry, running, &ours);
    relay(registry.sub_registry_with_label(("local_cluster".into(), ours.clone().into())), running);
    transit(registry.sub_registry_with_label(("local_cluster".into(), ours.clone().into())), running);
    health(registry.sub_registry_with_label(("local_cluster".into(), ours.clone().into())), running);

    registry.register_with_unit(
        "path_rtt",
        "Round-trip time to the peer's gateway, by probes inside the tunnel",
        Unit::Seconds,
        running.control.round_trips().0.clone(),
    );
    let (sent, lost) = (Family::<PeerLabels, Counter>::default(), Family::<PeerLabels, Counter>::default());
    registry.register("path_probes_sent", "Probes sent to the peer's gateways", sent.clone());
    registry.register("path_probes_lost", "Probes that were never answered, known 64 probes later", lost.clone());
    for link in &snapshot.links {
        let labels = PeerLabels::new(&ours, &link.link.cluster);
        sent.get_or_create(&labels).inc_by(link.status.probes_sent);
        lost.get_or_create(&labels).inc_by(link.status.probes_lost);
    }
    let every = Gauge::<f64, AtomicU64>::default();
    every.set(snapshot.pace.probe_every.as_secs_f64());
    let labelled = registry.sub_registry_with_label(("local_cluster".into(), ours.clone().into()));
    labelled.register_with_unit("gateway_probe_interval", "Time between two probes of a path", Unit::Seconds, every);
    let mtu = Family::<PeerLabels, Gauge>::default();
    let help = "Largest inner packet that reaches the peer";
    registry.register_with_unit("path_mtu", help, Unit::Bytes, mtu.clone());
    let reachable = Family::<PeerLabels, Gauge>::default();
    registry.register(
        "peer_reachable",
        "1 when packets reach the peer and come back; absent while unknown",
        reachable.clone(),
    );
    for peer in &snapshot.report.peers {
        let labels = PeerLabels::new(&ours, &peer.cluster);
        mtu.get_or_create(&labels).set(i64::from(peer.mtu));
        if peer.reachability != Reachability::Unknown {
            reachable.get_or_create(&labels).set(i64::from(peer.reachability == Reachability::Up));
        }
    }
    let states = Family::<StateLabels, Gauge>::default();
    registry.register("peer_state", "1 for the state the peer is in", states.clone());
    for peer in roster.iter().flat_map(|roster| &roster.topology.peers) {
        let state = match peer.standing {
            gateway_core::topology::Standing::Active => "Active",
            gateway_core::topology::Standing::Draining => "Draining",
            gateway_core::topology::Standing::DrainedHere => "Drained",
        };
        let labels = StateLabels { local_cluster: ours.clone(), peer: peer.id.to_string(), state: state.to_owned() };
        states.get_or_create(&labels).set(1);
    }

    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = text::encode(&mut text, &registry);
    text
}

fn refusals(registry: &mut Registry, running: &Running, ours: &str) {
    let (drops, refused) = (Family::<ReasonLabels, Counter>::default(), Family::<ReasonLabels, Counter>::default());
    registry.register("gateway_drops", "Packets of this cluster that were not sent, by reason", drops.clone());
    registry.register("refusals", "Datagrams and packets from outside that were refused, by reason", refused.clone());
    let count = |family: &Family<ReasonLabels, Counter>, peer: &str, reason: &str, count: u64| {
        if count > 0 {
            let (local_cluster, peer, reason) = (ours.to_owned(), peer.to_owned(), reason.to_owned());
            family.get_or_create(&ReasonLabels { local_cluster, peer, reason }).inc_by(count);
        }
    };
    let count_all = |family: &Family<ReasonLabels, Counter>, told: &Refusals| {
        let mut named = BTreeMap::<Refusal, u64>::new();
        for ((peer, refusal), times) in &told.by_peer {
            count(family, peer.as_str(), refusal.name(), *times);
            *named.entry(*refusal).or_default() += times;
        }
        for refusal in Refusal::ALL {
            // The rest is of strangers, or of no peer that could be found.
            let rest = told.log.count(*refusal).saturating_sub(named.get(refusal).copied().unwrap_or_default());
            count(family, "", refusal.name(), rest);
        }
    };
    for lane in &running.lanes {
        let [outbound, inbound] = lane.counters.refusals();
        count_all(&drops, &outbound);
        count_all(&refused, &inbound);
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        count(&drops, "", "NotSent", load(&lane.counters.datagrams_unsent));
        count(&drops, "", "NotDelivered", load(&lane.counters.packets_undelivered));
        count(&refused, "", "OversizedDatagram", load(&lane.counters.datagrams_oversized));
    }
    count_all(&refused, &Refusals { log: running.health.shown().refusals, by_peer: BTreeMap::new() });
    count_all(&refused, &Refusals { log: running.transit.refusals(), by_peer: BTreeMap::new() });
    count(&refused, "", "RelayCallerRefused", running.relay.refused.load(Ordering::Relaxed));
}

fn lanes(registry: &mut Registry, running: &Running, ours: &str) {
    let seconds = Family::<LaneLabels, Counter<f64, AtomicU64>>::default();
    registry.register_with_unit(
        "gateway_lane_cpu",
        "Time the lane's two threads have run",
        Unit::Seconds,
        seconds.clone(),
    );
    for lane in &running.lanes {
        let number = lane.number().0.to_string();
        if let Some(used) = thread_seconds(&format!("lane-{number}-")) {
            let labels = LaneLabels { local_cluster: ours.to_owned(), lane: number };
            seconds.get_or_create(&labels).inc_by(used);
        }
    }
}

fn relay(registry: &mut Registry, running: &Running) {
    let relay = &running.relay;
    let open = Gauge::<i64>::default();
    registry.register("gateway_relay_connections", "Control connections open through this gateway", open.clone());
    open.set(i64::try_from(relay.open.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
    let mut counter = |name, help, value: &AtomicU64| {
        let counter = Counter::<u64>::default();
        registry.register(name, help, counter.clone());
        counter.inc_by(value.load(Ordering::Relaxed));
    };
    counter("gateway_relay_accepted", "Control connections from peers' gateways", &relay.accepted);
    counter("gateway_relay_dialled", "Control connections to peers' gateways", &relay.dialled);
    counter("gateway_relay_dials_failed", "Control connections that could not be made", &relay.dials_failed);
    counter("gateway_relay_bytes", "Bytes of control connections that have ended", &relay.bytes);
}

fn transit(registry: &mut Registry, running: &Running) {
    let transit = &running.transit.counters;
    let mut counter = |name, help, value: &AtomicU64| {
        let counter = Counter::<u64>::default();
        registry.register(name, help, counter.clone());
        counter.inc_by(value.load(Ordering::Relaxed));
    };
    counter("gateway_transit_sent", "Datagrams of this cluster's tunnels handed to a hub", &transit.sent);
    counter("gateway_transit_received", "Datagrams of this cluster's tunnels that came by a hub", &transit.received);
    counter("gateway_transit_passed", "Datagrams of other clusters' tunnels passed on as their hub", &transit.passed);
    counter("gateway_transit_unsent", "Transit datagrams that the kernel would not take", &transit.unsent);
}

fn health(registry: &mut Registry, running: &Running) {
    let shown = running.health.shown();
    let agents = Gauge::<i64>::default();
    registry.register("gateway_health_agents", "Nodes and DNS servers that asked within five seconds", agents.clone());
    agents.set(i64::try_from(shown.agents.len()).unwrap_or(i64::MAX));
    let answered = Counter::<u64>::default();
    registry.register("gateway_health_answers", "Probes of nodes and DNS servers that were answered", answered.clone());
    answered.inc_by(shown.answered);
}

/// Processor time of this process's threads whose name begins so; `None` where /proc cannot be read.
fn thread_seconds(name: &str) -> Option<f64> {
    let ticks_a_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let mut ticks = 0u64;
    for task in std::fs::read_dir("/proc/self/task").ok()?.flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        // The name stands in parentheses and may hold anything; fields are counted from behind it (proc(5)).
        let Some((before, after)) = stat.rsplit_once(')') else { continue };
        if before.split_once('(').is_some_and(|(_, thread)| thread.starts_with(name)) {
            let field = |index| after.split_ascii_whitespace().nth(index).and_then(|text| text.parse::<u64>().ok());
            ticks += field(11).unwrap_or_default() + field(12).unwrap_or_default();
        }
    }
    Some(ticks as f64 / ticks_a_second as f64)
}
