//! [`Shared`]: what the gateway shows to its operator, as [`Surface`] asks for it.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::ClusterId;
use api::health::{ASK_EVERY, FULL_PACE_AGENTS, ask_every};
use api::report::{EventReport, GatewayReport, LaneReport, PathReport, PingReport, RefusalReport, SessionReport};
use api::surface::{Readiness, Surface};
use api::time::WallTime;
use arc_swap::ArcSwapOption;
use gateway_core::pace::{FULL_PACE_LINKS, SILENCE};
use gateway_core::roster::Roster;
use gateway_core::transit::is_by_hub;
use gateway_core::{PathState, RefusalRecord};
use serde_json::Value;
use store::Store;

use crate::control::{Control, Snapshot};
use crate::health::Health;
use crate::journal::EventJournal;
use crate::lane::Lane;
use crate::metrics;
use crate::ping::ping;
use crate::relay::RelayCounters;
use crate::transit::Shared as Transit;

/// Events shown when nobody says since when: an hour.
const EVENTS_SINCE: Duration = Duration::from_secs(3_600);

/// Written by the gateway's task, read by whoever asks.
pub(crate) struct Shared {
    node_name: String,
    store: Store,
    journal: EventJournal,
    awaiting: Mutex<Option<String>>,
    running: ArcSwapOption<Running>,
    roster: ArcSwapOption<Roster>,
    clock_went_back: Mutex<Option<Duration>>,
}

/// The parts of a gateway that holds a slot.
pub(crate) struct Running {
    pub(crate) control: Control,
    pub(crate) lanes: Vec<Arc<Lane>>,
    pub(crate) slot: u16,
    pub(crate) control_address: Ipv6Addr,
    pub(crate) health: Arc<Health>,
    pub(crate) relay: Arc<RelayCounters>,
    pub(crate) transit: Arc<Transit>,
}

impl Shared {
    pub(crate) fn new(node_name: &str, store: Store, journal: EventJournal) -> Arc<Self> {
        Arc::new(Self {
            node_name: node_name.to_owned(),
            store,
            journal,
            awaiting: Mutex::new(Some("the first state from the controller".to_owned())),
            running: ArcSwapOption::empty(),
            roster: ArcSwapOption::empty(),
            clock_went_back: Mutex::default(),
        })
    }

    pub(crate) fn journal(&self) -> &EventJournal {
        &self.journal
    }

    pub(crate) fn set_awaiting(&self, awaiting: Option<String>) {
        *locked(&self.awaiting) = awaiting;
    }

    pub(crate) fn set_running(&self, running: Option<Arc<Running>>) {
        self.running.store(running);
    }

    pub(crate) fn running(&self) -> Option<Arc<Running>> {
        self.running.load_full()
    }

    pub(crate) fn set_roster(&self, roster: Roster) {
        self.roster.store(Some(Arc::new(roster)));
    }

    pub(crate) fn set_clock_went_back(&self, by: Option<Duration>) {
        *locked(&self.clock_went_back) = by;
    }

    pub(crate) fn clock_went_back(&self) -> Option<Duration> {
        *locked(&self.clock_went_back)
    }

    fn status(&self) -> GatewayReport {
        let feed = self.store.feed_report();
        let Some(running) = self.running() else {
            return GatewayReport { node: self.node_name.clone(), feed, ..GatewayReport::default() };
        };
        let snapshot = running.control.snapshot();
        let lanes = running.lanes.iter().zip(&snapshot.topology.ours.lanes).map(|(lane, keys)| LaneReport {
            lane: u16::from(lane.number().0),
            device: lane.tun.name().to_owned(),
            port: lane.sockets.port(),
            public_key: keys.key.to_string(),
        });
        GatewayReport {
            node: self.node_name.clone(),
            slot: Some(running.slot),
            draining: snapshot.report.draining,
            lanes: lanes.collect(),
            peers: paths(&snapshot, self.roster.load_full().as_deref(), &running.transit),
            problems: self.problems(&snapshot, running.health.shown().agents.len()),
            feed,
        }
    }

    fn problems(&self, snapshot: &Snapshot, agents: usize) -> Vec<String> {
        let clock = self.clock_went_back().map(|behind| {
            let seconds = behind.as_secs();
            format!("ClockWentBack: this host's clock was {seconds} s behind its last run; check its time service")
        });
        let roster = self.roster.load_full();
        let unused = roster.iter().flat_map(|roster| roster.problems.clone());
        let narrow: BTreeSet<&ClusterId> =
            snapshot.links.iter().filter(|link| link.status.is_too_narrow).map(|link| &link.link.cluster).collect();
        let narrow = narrow.into_iter().map(|peer| {
            format!("{peer}: not even 1280 bytes pass whole inside the tunnel, so datagrams are cut, over IPv4 on their way and over IPv6 here: slow; check the MTU of the network between")
        });
        let pace = snapshot.pace;
        let slowed = pace.is_slowed().then(|| {
            format!(
                "{} links: each is probed every {} ms, so one that died is out of use after {} ms, where up to {FULL_PACE_LINKS} are out after {} ms; fewer lanes, here or at the peers, make it faster",
                snapshot.links.len(),
                pace.probe_every.as_millis(),
                pace.silence.as_millis(),
                SILENCE.as_millis()
            )
        });
        let crowded = (agents > FULL_PACE_AGENTS).then(|| {
            let every = ask_every(agents);
            format!(
                "{agents} nodes and DNS servers ask for health, each every {} ms, so a gateway that dies is out of use up to {} ms later than where up to {FULL_PACE_AGENTS} ask",
                every.as_millis(),
                every.saturating_sub(ASK_EVERY).as_millis()
            )
        });
        clock
            .into_iter()
            .chain(slowed)
            .chain(crowded)
            .chain(unused)
            .chain(snapshot.refused_claims.clone())
            .chain(narrow)
            .collect()
    }

    fn refusals(&self) -> Vec<RefusalReport> {
        let Some(running) = self.running() else { return Vec::new() };
        let snapshot = running.control.snapshot();
        let mut logs: Vec<_> =
            running.lanes.iter().flat_map(|lane| lane.counters.refusals()).map(|told| told.log).collect();
        logs.push(running.health.shown().refusals);
        logs.push(running.transit.refusals());
        let mut reports: Vec<_> =
            logs.iter().flat_map(|log| log.records()).map(|record| refusal(record, &snapshot)).collect();
        reports.sort_by(|a, b| a.age.total_cmp(&b.age));
        reports
    }

    fn events(&self, since: Duration) -> Vec<EventReport> {
        let ago = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let since = WallTime::from_millis(clock::wall().as_millis().saturating_sub(ago));
        self.journal.since(since).unwrap_or_else(|error| {
            tracing::warn!("{error:#}");
            Vec::new()
        })
    }

    fn ping(&self, peer: &str) -> PingReport {
        let mut report = PingReport { peer: peer.to_owned(), ..PingReport::default() };
        let Some(running) = self.running() else {
            report.reason = "this gateway holds no slot yet".to_owned();
            return report;
        };
        let snapshot = running.control.snapshot();
        // The control addresses are routed to the first lane.
        let links = snapshot.links.iter().filter(|link| link.link.cluster.as_str() == peer && link.link.lane.0 == 0);
        let Some(link) = links.min_by_key(|link| (link.status.state != PathState::Up, link.link.slot)) else {
            report.reason = format!("{peer} is no peer of this gateway");
            return report;
        };
        (report.lane, report.peer_slot) = (u16::from(link.link.lane.0), link.link.slot);
        report.endpoint = link.status.endpoint.map(|endpoint| name_of(endpoint, &running.transit)).unwrap_or_default();
        let gateways = snapshot.topology.peers.iter().filter(|known| known.id == link.link.cluster);
        let target = gateways
            .flat_map(|peer| &peer.gateways)
            .find(|gateway| gateway.slot == link.link.slot)
            .and_then(|gateway| gateway.control_address);
        let Some(target) = target else {
            report.reason = "this peer is a plain WireGuard end: it has no address to be asked at".to_owned();
            return report;
        };
        match ping(running.control_address, target) {
            Ok(took) => report.round_trip_ms = Some(took.as_secs_f64() * 1e3),
            Err(error) => report.reason = format!("{error:#}; {}", link.status.cause.sentence()),
        }
        report
    }
}

impl Surface for Shared {
    fn readiness(&self) -> Readiness {
        Readiness { awaiting: locked(&self.awaiting).iter().cloned().collect() }
    }

    fn metrics(&self) -> String {
        let roster = self.roster.load_full();
        self.running().map(|running| metrics::text(&running, roster.as_deref())).unwrap_or_else(|| "# EOF\n".to_owned())
    }

    fn answer(&self, question: &str) -> Option<Value> {
        let (name, arguments) = question.split_once('?').unwrap_or((question, ""));
        let argument = |wanted: &str| {
            arguments.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == wanted).map(|(_, v)| v)
        };
        let answer = match name {
            "status" => serde_json::to_value(self.status()),
            "refusals" => serde_json::to_value(self.refusals()),
            "events" => {
                let seconds = argument("since").and_then(|since| since.parse().ok());
                serde_json::to_value(self.events(seconds.map_or(EVENTS_SINCE, Duration::from_secs)))
            }
            "ping" => serde_json::to_value(self.ping(argument("peer").unwrap_or_default())),
            _ => return None,
        };
        answer.ok()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An endpoint as the operator writes it.
fn name_of(endpoint: SocketAddr, transit: &Transit) -> String {
    let hub = is_by_hub(endpoint).then(|| transit.hub_behind(endpoint)).flatten();
    hub.map_or_else(|| endpoint.to_string(), |hub| format!("via:{hub}"))
}

fn paths(snapshot: &Snapshot, roster: Option<&Roster>, transit: &Transit) -> Vec<PathReport> {
    let peers = || roster.iter().flat_map(|roster| &roster.topology.peers);
    let path = |health: &api::health::PeerHealth| {
        let links = || snapshot.links.iter().filter(|link| link.link.cluster == health.cluster);
        let decisive = links().filter(|link| link.status.mtu == health.mtu);
        let measured = decisive.filter_map(|link| link.status.mtu_measured_since).min();
        let sessions = links().map(|link| SessionReport {
            lane: u16::from(link.link.lane.0),
            peer_slot: link.link.slot,
            peer_lane: u16::from(link.link.remote_lane.0),
            endpoint: link.status.endpoint.map(|endpoint| name_of(endpoint, transit)),
            handshake_age: link.last_handshake.map(|at| snapshot.at.since(at).as_secs_f64()),
            reachability: Some(link.status.state.into()),
            age: snapshot.at.since(link.status.since).as_secs_f64(),
            mtu: link.status.mtu_measured_since.map(|_| link.status.mtu),
            received_bytes: link.traffic.received_bytes,
            sent_bytes: link.traffic.sent_bytes,
        });
        PathReport {
            peer: health.cluster.to_string(),
            reachability: health.reachability,
            reason: health.reason,
            age: (health.age + clock::now().since(snapshot.at)).as_secs_f64(),
            round_trip_ms: health.round_trip.map(|time| time.as_secs_f64() * 1e3),
            loss_percent: health.round_trip.map(|_| f64::from(health.loss_permille) / 10.0),
            mtu: Some(health.mtu),
            mtu_age: measured.map(|at| clock::now().since(at).as_secs_f64()),
            translations: peers()
                .find(|peer| peer.id == health.cluster)
                .map(|peer| peer.translations.clone())
                .unwrap_or_default(),
            sessions: sessions.collect(),
        }
    };
    snapshot.report.peers.iter().map(path).collect()
}

fn refusal(record: &RefusalRecord, snapshot: &Snapshot) -> RefusalReport {
    let link = record.link.and_then(|link| snapshot.links.iter().find(|known| known.link.id == link));
    let flow = record.flow;
    let end = |address: std::net::IpAddr, port: u16| match (address, port) {
        (address, 0) => address.to_string(),
        (address, port) => SocketAddr::new(address, port).to_string(),
    };
    let from = record.from.map(|from| end(from.ip(), from.port())).unwrap_or_default();
    RefusalReport {
        reason: record.reason.name().to_owned(),
        peer: link.map(|link| link.link.cluster.to_string()).unwrap_or_default(),
        // Before a datagram is opened only its outer address is known.
        source: flow.map_or(from, |flow| end(flow.source, flow.source_port)),
        destination: flow.map(|flow| end(flow.destination, flow.destination_port)).unwrap_or_default(),
        protocol: flow.map(|flow| protocol_name(flow.protocol)).unwrap_or_default(),
        count: record.count,
        age: clock::now().since(record.last).as_secs_f64(),
    }
}

fn protocol_name(protocol: u8) -> String {
    use gateway_core::packet::protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};
    match protocol {
        TCP => "TCP".to_owned(),
        UDP => "UDP".to_owned(),
        SCTP => "SCTP".to_owned(),
        ICMP => "ICMP".to_owned(),
        ICMPV6 => "ICMPv6".to_owned(),
        other => other.to_string(),
    }
}
