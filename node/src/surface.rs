//! What the node part shows to its operator.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::ClusterId;
use api::report::{ClusterSeen, GatewaySeen, NodeReport};
use api::surface::{Readiness, Surface};
use api::time::{Instant, WallTime};
use arc_swap::ArcSwap;
use node_core::NodeCore;
use node_core::whatif::Supposed;
use prober::Targets;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde_json::Value;
use store::Store;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::owner::Question;
use crate::refusals::Ring;
use crate::{flows, history};

/// How long an answer may take: the owner may be loading ten thousand services just now.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// What the owner last told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    pub(crate) awaiting: Vec<String>,
    pub(crate) local_cluster: String,
    pub(crate) services: usize,
    pub(crate) gateways: Vec<GatewayShown>,
    pub(crate) clusters: Vec<ClusterShown>,
    /// What is drained, as [`NodeCore::drained`] says.
    pub(crate) drained: Vec<String>,
    /// Nodes of this cluster.
    pub(crate) hosts: usize,
    /// What is wrong with objects: kind, name, reason, words.
    pub(crate) problems: Vec<(String, String, &'static str, String)>,
}

#[derive(Clone, Debug)]
pub(crate) struct GatewayShown {
    pub(crate) slot: u16,
    pub(crate) address: String,
    pub(crate) answering: bool,
    pub(crate) draining: bool,
    pub(crate) last_answer: Option<Instant>,
}

#[derive(Clone, Debug)]
pub(crate) struct ClusterShown {
    pub(crate) cluster: String,
    pub(crate) reachability: api::health::Reachability,
    pub(crate) reason: api::health::PathReason,
    pub(crate) since: Instant,
    pub(crate) round_trip: Option<Duration>,
}

impl Shown {
    pub(crate) fn of(core: &NodeCore, awaited: &BTreeSet<&'static str>, has_key: bool, targets: &Targets) -> Self {
        let mut awaiting: Vec<String> = awaited.iter().map(|kind| format!("the first list of {kind}")).collect();
        if awaiting.is_empty() {
            awaiting = core.awaiting();
            if !has_key && !targets.gateways.is_empty() {
                awaiting.push("the key to ask gateways for health, from the controller".into());
            }
        }
        let reports = core.reports();
        let gateways = targets.gateways.iter().map(|(slot, addresses)| {
            let latest = reports.latest(*slot);
            GatewayShown {
                slot: *slot,
                address: addresses.first().map(|address| address.ip().to_string()).unwrap_or_default(),
                answering: latest.is_some(),
                draining: latest.is_some_and(|(report, _)| report.draining),
                last_answer: latest.map(|(_, at)| at),
            }
        });
        Self {
            awaiting,
            local_cluster: core.local_cluster().map(ToString::to_string).unwrap_or_default(),
            services: core.service_count(),
            drained: core.drained(),
            hosts: core.node_count(),
            gateways: gateways.collect(),
            clusters: core
                .cluster_healths()
                .into_iter()
                .map(|(cluster, health)| ClusterShown {
                    cluster: cluster.to_string(),
                    reachability: health.reachability,
                    reason: health.reason,
                    since: health.since,
                    round_trip: health.round_trip,
                })
                .collect(),
            problems: core
                .problems()
                .iter()
                .map(|((kind, (namespace, name)), problem)| {
                    let name = if namespace.is_empty() { name.clone() } else { format!("{namespace}/{name}") };
                    ((*kind).to_owned(), name, problem.name(), problem.to_string())
                })
                .collect(),
        }
    }
}

/// Answers for the whole part.
pub(crate) struct NodeSurface {
    pub(crate) node: String,
    pub(crate) state: PathBuf,
    pub(crate) store: Store,
    pub(crate) shown: Arc<ArcSwap<Shown>>,
    pub(crate) questions: mpsc::UnboundedSender<Question>,
    pub(crate) refusals: Arc<Ring>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Surface for NodeSurface {
    fn readiness(&self) -> Readiness {
        Readiness { awaiting: self.shown.load().awaiting.clone() }
    }

    fn metrics(&self) -> String {
        let shown = self.shown.load();
        let labels = [("local_cluster", shown.local_cluster.clone()), ("node", self.node.clone())];
        let labels = labels.into_iter().map(|(name, value)| (name.into(), value.into()));
        let mut registry = Registry::with_labels(labels);
        registry.register(
            "tombolo_node_kernel_differences",
            "Differences between kernel and wanted state, found at the last look and mended",
            self.metrics.kernel_differences.clone(),
        );
        registry.register(
            "tombolo_node_kernel_failures",
            "Changes that the kernel refused",
            self.metrics.kernel_failures.clone(),
        );
        registry.register(
            "tombolo_node_apply_seconds",
            "Time to bring the kernel up to date with a change",
            self.metrics.apply_seconds.clone(),
        );
        registry.register_collector(Box::new(Collected {
            refusals: self.refusals.totals(),
            connections: self.metrics.connections.totals(),
            problems: shown.problems.iter().map(|(_, _, name, _)| *name).collect(),
            feed_age: self.feed_age(),
        }));
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }

    fn answer(&self, question: &str) -> Option<Value> {
        let (name, parameters) = question.split_once('?').unwrap_or((question, ""));
        let parameter = |wanted: &str| {
            let pairs = parameters.split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(name, _)| *name == wanted).map(|(_, value)| value).next()
        };
        let now = clock::now();
        match name {
            "status" => serde_json::to_value(self.status(now)).ok(),
            "services" => serde_json::to_value(self.ask(Question::Services)?).ok(),
            "explain" => {
                let (namespace, service) = parameter("service")?.split_once('/')?;
                let (namespace, service) = (namespace.to_owned(), service.to_owned());
                let found = self.ask(|to| Question::Explain(namespace, service, to))?;
                // A service that is not there is an answer too.
                serde_json::to_value(found).ok()
            }
            "routes" => {
                let peer = ClusterId::new(parameter("peer")?).ok()?;
                // A peer that is not there is an answer too.
                serde_json::to_value(self.ask(|to| Question::Routes(peer, to))?).ok()
            }
            "whatif" => {
                let supposed = match (parameter("peer"), parameter("node")) {
                    (Some(peer), _) => Supposed::PeerDrained(ClusterId::new(peer).ok()?),
                    (None, Some(node)) => Supposed::NodeDrained(node.to_owned()),
                    (None, None) => Supposed::WeDrain,
                };
                serde_json::to_value(self.ask(|to| Question::Moves(supposed, to))?).ok()
            }
            "flows" => {
                let open = flows::count(&self.ask(Question::PeerPrefixes)?, &BTreeSet::new());
                let open = open.inspect_err(|error| tracing::warn!(%error, "connections cannot be counted")).ok()?;
                serde_json::to_value(open.peers).ok()
            }
            "refusals" => serde_json::to_value(self.refusals.report(now)).ok(),
            "problems" => serde_json::to_value(&self.shown.load().problems).ok(),
            "events" => {
                let since: Option<u64> = parameter("since").and_then(|seconds| seconds.parse().ok());
                let now = clock::wall().as_millis();
                let oldest = since.map_or(0, |seconds| now.saturating_sub(seconds.saturating_mul(1000)));
                serde_json::to_value(history::events(&self.state, WallTime::from_millis(oldest)).ok()?).ok()
            }
            _ => None,
        }
    }
}

/// Asks the owner; none when it is too busy, or gone.
pub(crate) fn ask<T>(
    questions: &mpsc::UnboundedSender<Question>,
    question: impl FnOnce(std::sync::mpsc::SyncSender<T>) -> Question,
) -> Option<T> {
    let (to, answer) = std::sync::mpsc::sync_channel(1);
    questions.send(question(to)).ok()?;
    answer.recv_timeout(ANSWER_LIMIT).ok()
}

impl NodeSurface {
    fn ask<T>(&self, question: impl FnOnce(std::sync::mpsc::SyncSender<T>) -> Question) -> Option<T> {
        ask(&self.questions, question)
    }

    fn feed_age(&self) -> f64 {
        self.store.feed_report().interrupted_for.unwrap_or(0.0)
    }

    fn status(&self, now: Instant) -> NodeReport {
        let shown = self.shown.load();
        NodeReport {
            node: self.node.clone(),
            kernel_differences: usize::try_from(self.metrics.kernel_differences.get()).unwrap_or(0),
            services: shown.services,
            gateways: shown
                .gateways
                .iter()
                .map(|gateway| GatewaySeen {
                    slot: gateway.slot,
                    address: gateway.address.clone(),
                    answering: gateway.answering,
                    draining: gateway.draining,
                    last_answer_age: gateway.last_answer.map(|at| now.since(at).as_secs_f64()),
                })
                .collect(),
            clusters: shown
                .clusters
                .iter()
                .map(|cluster| ClusterSeen {
                    cluster: cluster.cluster.clone(),
                    reachability: cluster.reachability,
                    reason: cluster.reason,
                    age: now.since(cluster.since).as_secs_f64(),
                    round_trip_ms: cluster.round_trip.map(|time| time.as_secs_f64() * 1000.0),
                })
                .collect(),
            feed: self.store.feed_report(),
        }
    }
}

/// Numbers that are read when they are asked for.
#[derive(Debug)]
struct Collected {
    refusals: Vec<((String, String), u64)>,
    connections: Vec<(String, u64)>,
    problems: Vec<&'static str>,
    feed_age: f64,
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut refusals =
            encoder.encode_descriptor("tombolo_refusals", "Refused packets", None, MetricType::Counter)?;
        for ((peer, reason), count) in &self.refusals {
            let labels = [("peer", peer.as_str()), ("reason", reason.as_str())];
            ConstCounter::new(*count).encode(refusals.encode_family(&labels)?)?;
        }
        let (name, help) = ("tombolo_node_connections", "Connections to clusterset addresses given to an endpoint");
        let mut connections = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (cluster, count) in &self.connections {
            let labels = [("target_cluster", cluster.as_str())];
            ConstCounter::new(*count).encode(connections.encode_family(&labels)?)?;
        }
        let help = "Parts of objects that cannot be used";
        let mut problems = encoder.encode_descriptor("tombolo_node_object_problems", help, None, MetricType::Gauge)?;
        for reason in self.problems.iter().collect::<BTreeSet<_>>() {
            let count = self.problems.iter().filter(|other| *other == reason).count();
            let labels = [("reason", *reason)];
            ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX)).encode(problems.encode_family(&labels)?)?;
        }
        let help = "Time without the controller; 0 while it is there";
        let age = encoder.encode_descriptor("tombolo_node_feed_age_seconds", help, None, MetricType::Gauge)?;
        ConstGauge::new(self.feed_age).encode(age)
    }
}
