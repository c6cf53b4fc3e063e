//! What the controller counts, in the OpenMetrics text format. Names are in docs and alerts: they do not change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::names;
use api::report::RefusalReport;
use api::time::{Instant, WallTime};
use controller_core::advertisement::ServiceName;
use controller_core::validity::Refusal;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

type Labels = Vec<(&'static str, String)>;

/// What only ever grows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Counted {
    StoreErrors { verb: &'static str, code: &'static str },
    SyncObjects { peer: String },
    SyncBytes { peer: String },
    Resyncs { peer: String },
}

/// What is as it is at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) local_cluster: String,
    pub(crate) leader: bool,
    pub(crate) exports: BTreeMap<&'static str, i64>,
    pub(crate) imports: BTreeMap<String, i64>,
    pub(crate) unserved: BTreeSet<ServiceName>,
    /// Name, state, whether synced, when heard last.
    pub(crate) peers: Vec<(String, String, bool, Option<WallTime>)>,
    /// Name and whether it is ready.
    pub(crate) gateways: Vec<(String, bool)>,
    pub(crate) gateways_desired: Option<u16>,
    /// Slots whose keys rotate, and for how long.
    pub(crate) rotations: Vec<(u16, Duration)>,
    /// While the identity is replaced, for how long.
    pub(crate) identity_rotation: Option<Duration>,
    pub(crate) refused_items: Vec<(String, BTreeMap<Refusal, usize>)>,
}

#[derive(Default)]
pub(crate) struct Metrics {
    counts: Mutex<BTreeMap<Counted, u64>>,
    work: WorkTimes,
    delays: SyncDelays,
}

#[derive(Clone)]
struct WorkTimes(Family<Labels, Histogram, fn() -> Histogram>);

impl Default for WorkTimes {
    fn default() -> Self {
        Self(Family::new_with_constructor(work_histogram))
    }
}

#[derive(Clone)]
struct SyncDelays(Family<Labels, Histogram, fn() -> Histogram>);

impl Default for SyncDelays {
    fn default() -> Self {
        Self(Family::new_with_constructor(delay_histogram))
    }
}

/// A change takes a few milliseconds on one machine, and as long as a way is broken where one was: 2 ms to 65 s.
fn delay_histogram() -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.002, 2.0, 16))
}

/// A write takes a disk's or an API server's time: 1 ms to 4 s.
fn work_histogram() -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.001, 2.0, 13))
}

impl Metrics {
    pub(crate) fn count(&self, what: Counted, by: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(what).or_default() += by;
    }

    pub(crate) fn worked(&self, kind: &'static str, seconds: f64) {
        self.work.0.get_or_create(&vec![("kind", kind.to_owned())]).observe(seconds);
    }

    pub(crate) fn delayed(&self, peer: &str, seconds: f64) {
        self.delays.0.get_or_create(&vec![("peer", peer.to_owned())]).observe(seconds);
    }

    pub(crate) fn text(
        &self,
        gauges: &Gauges,
        refusals: &[RefusalReport],
        heard: &BTreeMap<String, Instant>,
        objects_age: f64,
    ) -> String {
        let mut registry = Registry::with_prefix_and_labels(
            "tombolo",
            std::iter::once(("local_cluster".into(), gauges.local_cluster.clone().into())),
        );
        let labels = |more: &[(&'static str, &str)]| -> Labels {
            more.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
        };
        let gauge = |registry: &mut Registry, name: &str, help: &str, values: Vec<(Labels, i64)>| {
            let family = Family::<Labels, Gauge>::default();
            for (labels, value) in values {
                family.get_or_create(&labels).set(value);
            }
            registry.register(name, help, family);
        };

        let age = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        age.set(objects_age);
        let help = "How long the API server has told of no changes; 0 while it does";
        registry.register_with_unit("controller_objects_age", help, Unit::Seconds, age);
        gauge(
            &mut registry,
            "controller_leader",
            "Whether this replica writes",
            vec![(labels(&[]), i64::from(gauges.leader))],
        );
        let exports = gauges.exports.iter().map(|(state, count)| (labels(&[("state", state)]), *count)).collect();
        gauge(&mut registry, "exports", "ServiceExports of this cluster by state", exports);
        let imports = gauges.imports.iter().map(|(state, count)| (labels(&[("state", state)]), *count)).collect();
        gauge(&mut registry, "imports", "ServiceImports of this cluster by state", imports);
        let unserved = gauges.unserved.iter();
        let unserved =
            unserved.map(|name| (labels(&[("namespace", &name.namespace), ("service", &name.name)]), 1)).collect();
        gauge(
            &mut registry,
            "import_unserved",
            "Imports no ready endpoint answers for; absent while one does",
            unserved,
        );
        let states =
            gauges.peers.iter().map(|(peer, state, ..)| (labels(&[("peer", peer), ("state", state)]), 1)).collect();
        gauge(&mut registry, "peer_state", "What the operator wants of a peer", states);
        let ready =
            gauges.gateways.iter().map(|(name, ready)| (labels(&[("gateway", name)]), i64::from(*ready))).collect();
        gauge(&mut registry, "gateway_ready", "Whether a gateway slot is held by a ready gateway", ready);
        let desired = gauges.gateways_desired.iter().map(|count| (labels(&[]), i64::from(*count))).collect();
        gauge(&mut registry, "gateways_desired", "Gateway slots of this cluster", desired);

        let seconds = |age: &Duration| i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        gauge(
            &mut registry,
            "identity_rotation_age_seconds",
            "For how long this cluster has had a next identity beside the current one; absent while it has one",
            gauges.identity_rotation.iter().map(|age| (labels(&[]), seconds(age))).collect(),
        );
        let rotations = gauges
            .rotations
            .iter()
            .map(|(slot, age)| (labels(&[("gateway", &names::slot_gateway(*slot))]), seconds(age)));
        gauge(
            &mut registry,
            "gateway_key_rotation_age_seconds",
            "For how long a gateway has had new keys beside the old ones; absent while it has one set",
            rotations.collect(),
        );

        let synced = Family::<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
        let (now, wall) = (clock::now(), clock::wall());
        for (peer, _, _, stored) in &gauges.peers {
            // Heard in this process: by the clock that does not jump. Else as the disk has it.
            let by_age = heard.get(peer).map(|heard| wall.as_millis() as f64 / 1e3 - now.since(*heard).as_secs_f64());
            if let Some(at) = by_age.or_else(|| stored.map(|at| at.as_millis() as f64 / 1e3)) {
                synced.get_or_create(&labels(&[("peer", peer)])).set(at);
            }
        }
        registry.register_with_unit("sync_last_success_timestamp", "When a peer was heard last", Unit::Seconds, synced);

        let refused = Family::<Labels, Counter>::default();
        for refusal in refusals.iter().filter(|refusal| refusal.destination.is_empty()) {
            refused
                .get_or_create(&labels(&[("peer", &refusal.peer), ("reason", &refusal.reason)]))
                .inc_by(refusal.count);
        }
        registry.register("refusals", "Connections and messages refused, by name", refused);
        let items = gauges.refused_items.iter().flat_map(|(peer, refusals)| {
            let one = |(refusal, count): (&Refusal, &usize)| {
                (labels(&[("peer", peer), ("reason", refusal.as_str())]), i64::try_from(*count).unwrap_or(i64::MAX))
            };
            refusals.iter().map(one).collect::<Vec<_>>()
        });
        gauge(
            &mut registry,
            "sync_refused_items",
            "Items of a peer's advertisement not in force, by name",
            items.collect(),
        );

        let (objects, bytes, resyncs, errors) = (
            Family::<Labels, Counter>::default(),
            Family::<Labels, Counter>::default(),
            Family::<Labels, Counter>::default(),
            Family::<Labels, Counter>::default(),
        );
        for (what, count) in self.counts.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let (family, labels) = match what {
                Counted::SyncObjects { peer } => (&objects, labels(&[("peer", peer)])),
                Counted::SyncBytes { peer } => (&bytes, labels(&[("peer", peer)])),
                Counted::Resyncs { peer } => (&resyncs, labels(&[("peer", peer), ("reason", "Snapshot")])),
                Counted::StoreErrors { verb, code } => (&errors, labels(&[("verb", verb), ("code", code)])),
            };
            family.get_or_create(&labels).inc_by(*count);
        }
        registry.register("sync_objects", "Items heard from a peer", objects);
        registry.register_with_unit("sync", "Bytes heard from a peer", Unit::Bytes, bytes);
        registry.register("sync_resyncs", "Snapshots taken from a peer", resyncs);
        registry.register("controller_store_errors", "Writes the store answered with an error", errors);

        registry.register_with_unit(
            "sync_delay",
            "Time from a change in a peer to what was written of it here, without the time on the way",
            Unit::Seconds,
            self.delays.0.clone(),
        );
        registry.register_with_unit(
            "controller_work",
            "Time to carry out the writes of one subject",
            Unit::Seconds,
            self.work.0.clone(),
        );
        let mut written = String::new();
        match text::encode(&mut written, &registry) {
            Ok(()) => written,
            Err(error) => format!("# the metrics cannot be written: {error}\n# EOF\n"),
        }
    }
}
