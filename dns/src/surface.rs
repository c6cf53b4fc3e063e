//! What the DNS part shows to its operator.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use api::report::{ClusterSeen, DnsReport, FeedReport, GatewaySeen};
use api::surface::{Readiness, Surface};
use api::time::Instant;
use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde_json::Value;
use store::Store;

use crate::explain::explain;
use crate::tally::Tally;
use crate::view::{GatewayState, OutOfService};
use crate::zone::Zone;

/// What the task that owns the view last told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    pub(crate) awaited: Vec<&'static str>,
    pub(crate) zone_since: Option<Instant>,
    pub(crate) local_cluster: String,
    pub(crate) gateways: Vec<GatewayState>,
    pub(crate) out_of_service: Vec<OutOfService>,
    pub(crate) is_last_known: bool,
    pub(crate) lacks_key: bool,
    pub(crate) refusals: Vec<(&'static str, u64)>,
    pub(crate) refused: Vec<(String, String, String)>,
}

/// Answers for the whole part.
pub(crate) struct DnsSurface {
    pub(crate) store: Store,
    pub(crate) zone: Arc<ArcSwap<Zone>>,
    pub(crate) shown: Arc<ArcSwap<Shown>>,
    pub(crate) tallies: Vec<Arc<Tally>>,
}

impl Surface for DnsSurface {
    fn readiness(&self) -> Readiness {
        let awaiting = self.shown.load().awaited.iter().map(|kind| format!("the first list of {kind}")).collect();
        Readiness { awaiting }
    }

    fn metrics(&self) -> String {
        let shown = self.shown.load();
        let label = ("local_cluster".into(), shown.local_cluster.clone().into());
        let mut registry = Registry::with_labels([label].into_iter());
        let now = clock::now();
        registry.register_collector(Box::new(Counted {
            tallies: self.tallies.clone(),
            refusals: shown.refusals.clone(),
            zone_age: shown.zone_since.map(|since| now.since(since).as_secs_f64()),
            zone_records: self.zone.load().records(),
        }));
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }

    fn answer(&self, question: &str) -> Option<Value> {
        let (what, arguments) = question.split_once('?').unwrap_or((question, ""));
        let argument = |key: &str| arguments.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        match what {
            "status" => serde_json::to_value(self.status()).ok(),
            "explain" => {
                let report = explain(&self.zone.load(), argument("name")?, argument("type").unwrap_or("A"));
                serde_json::to_value(self.with_health(report)).ok()
            }
            "refusals" => {
                let shown = self.shown.load();
                let entry = |(reason, object, detail): &(String, String, String)| serde_json::json!({ "reason": reason, "destination": object, "count": 1, "detail": detail });
                Some(shown.refused.iter().map(entry).collect())
            }
            _ => None,
        }
    }
}

impl DnsSurface {
    fn status(&self) -> DnsReport {
        let (shown, zone, now) = (self.shown.load(), self.zone.load(), clock::now());
        let age = |since: Instant| now.since(since).as_secs_f64();
        let gateway = |gateway: &GatewayState| GatewaySeen {
            slot: gateway.slot,
            address: gateway.addresses.first().map(ToString::to_string).unwrap_or_default(),
            answering: gateway.answering,
            draining: gateway.draining,
            last_answer_age: gateway.last_answer.map(age),
        };
        let cluster = |out: &OutOfService| ClusterSeen {
            cluster: out.cluster.to_string(),
            reachability: out.reachability,
            reason: out.reason,
            age: out.since.map(age).unwrap_or_default(),
            round_trip_ms: None,
        };
        DnsReport {
            zone_age: shown.zone_since.filter(|_| zone.is_known()).map(age),
            services: zone.imports(),
            records: usize::try_from(zone.records()).unwrap_or(usize::MAX),
            gateways: shown.gateways.iter().map(gateway).collect(),
            out_of_service: shown.out_of_service.iter().map(cluster).collect(),
            feed: self.feed(),
        }
    }

    fn feed(&self) -> FeedReport {
        self.store.feed_report()
    }

    /// Adds how old or uncertain the knowledge behind an answer is.
    fn with_health(&self, mut report: api::report::NameReport) -> api::report::NameReport {
        let shown = self.shown.load();
        if shown.is_last_known {
            report.reasons.push("no gateway answers: the clusters' health is what was last known".to_owned());
        }
        if shown.lacks_key {
            report.reasons.push("this server has no key to ask the gateways for health: has it enrolled?".to_owned());
        }
        let feed = self.feed();
        if let Some(seconds) = feed.interrupted_for {
            report.reasons.push(format!("without its controller for {seconds:.0} s: {}", feed.reason));
        }
        report
    }
}

/// The sums of one moment.
#[derive(Debug)]
struct Counted {
    tallies: Vec<Arc<Tally>>,
    refusals: Vec<(&'static str, u64)>,
    zone_age: Option<f64>,
    zone_records: u64,
}

impl Collector for Counted {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut responses = std::collections::BTreeMap::new();
        let mut dropped = std::collections::BTreeMap::new();
        for tally in &self.tallies {
            for (code, record_type, count) in tally.responses() {
                *responses.entry((code, record_type, tally.transport())).or_insert(0u64) += count;
            }
            let other = [("TurnedAway", tally.turned_away.load(Relaxed)), ("Unsent", tally.unsent.load(Relaxed))];
            for (reason, count) in tally.ignored().into_iter().chain(other) {
                *dropped.entry((reason, tally.transport())).or_insert(0u64) += count;
            }
        }
        let counter = MetricType::Counter;
        let mut family =
            encoder.encode_descriptor("tombolo_dns_responses", "Answers by code, type and transport", None, counter)?;
        for ((code, record_type, transport), count) in responses {
            let labels = [("rcode", code), ("qtype", record_type), ("transport", transport)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "tombolo_dns_dropped",
            "Messages and connections without an answer",
            None,
            counter,
        )?;
        for ((reason, transport), count) in dropped {
            let labels = [("reason", reason), ("transport", transport)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        let help = "Objects, and parts of them, that are not in the zone";
        let mut family = encoder.encode_descriptor("tombolo_refusals", help, None, counter)?;
        for (reason, count) in &self.refusals {
            ConstCounter::new(*count).encode(family.encode_family(&[("peer", ""), ("reason", reason)])?)?;
        }
        let help = "Time from a question read to its answer written";
        let mut family =
            encoder.encode_descriptor("tombolo_dns_duration_seconds", help, None, MetricType::Histogram)?;
        for transport in ["udp", "tcp"] {
            let (mut sum, mut total, mut buckets) = (0.0, 0, Vec::<(f64, u64)>::new());
            for (seconds, count, of_one) in
                self.tallies.iter().filter(|tally| tally.transport() == transport).map(|tally| tally.times())
            {
                sum += seconds;
                total += count;
                if buckets.is_empty() {
                    buckets = of_one;
                } else {
                    buckets.iter_mut().zip(of_one).for_each(|(all, one)| all.1 += one.1);
                }
            }
            let labels = [("transport", transport)];
            family
                .encode_family(&labels)?
                .encode_histogram::<prometheus_client::encoding::NoLabelSet>(sum, total, &buckets, None)?;
        }
        if let Some(age) = self.zone_age {
            let help = "Age of the zone that is answered from";
            let metric = encoder.encode_descriptor("tombolo_dns_zone_age_seconds", help, None, MetricType::Gauge)?;
            ConstGauge::new(age).encode(metric)?;
        }
        let help = "Address and SRV records of the zone";
        let metric = encoder.encode_descriptor("tombolo_dns_zone_records", help, None, MetricType::Gauge)?;
        ConstGauge::new(self.zone_records).encode(metric)
    }
}
