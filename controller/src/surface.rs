//! What the controller shows to its operator (readiness, metrics, `status`, `events`, `refusals`), and takes from it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::cluster_peer::PeerState;
use api::conditions::{ConditionType, ServiceReason};
use api::kubernetes::Node;
use api::member_record::SignedRecord;
use api::names;
use api::report::{
    AgentReport, ControllerReport, IdentityRotationReport, NodeState, PeerSync, RefusalReport, RotationReport,
};
use api::surface::{Readiness, Surface};
use api::time::{Instant, WallTime};
use api::{ClusterId, TunnelGateway};
use controller_core::Engine;
use controller_core::advertisement::ServiceName;
use controller_core::orders::{Order, drained_since};
use controller_core::own_identity::IdentityRotation;
use controller_core::rotation::{LONGEST, Rotation};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::Value;
use store::Store;
use store::feed::Role;
use store::journal::{self, Journal, Transition};
use tokio::sync::{mpsc, oneshot};

use crate::connections::{Message, Shared};
use crate::metrics::{Counted, Gauges, Metrics};
use crate::orders;

/// Transitions that one answer of `events` shows; the newest.
const MAX_EVENTS: usize = 1_000;
/// How often the whole picture is drawn anew; it costs a look at every export.
const REDRAW: Duration = Duration::from_millis(400);
/// Unserved services, and unchecked ones, that are listed by name.
const MAX_UNSERVED: usize = 1_000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct AgentState {
    pub(crate) connected: bool,
    pub(crate) since: Instant,
}

#[derive(Default)]
struct Picture {
    drawn: Option<Instant>,
    readiness: Vec<String>,
    report: ControllerReport,
    /// What `tombolo peers export` prints, or why it cannot.
    manifest: Option<Result<String, String>>,
    gauges: Gauges,
    refusals: Vec<RefusalReport>,
    /// When each peer was heard last, and each agent came or went: ages are made when somebody asks.
    heard: BTreeMap<String, Instant>,
    agents: BTreeMap<(Role, String), AgentState>,
}

pub(crate) struct ControllerSurface {
    picture: Mutex<Picture>,
    metrics: Metrics,
    store: Store,
    inbox: mpsc::UnboundedSender<Message>,
    journal: Mutex<Journal>,
    journal_folder: PathBuf,
}

impl ControllerSurface {
    /// Transitions go to a journal in `journal_folder`, and orders to the store, or to the owner where they concern what
    /// is on its disk.
    pub(crate) fn new(
        store: Store,
        journal_folder: PathBuf,
        inbox: mpsc::UnboundedSender<Message>,
    ) -> Result<Self, store::Error> {
        let picture = Picture { readiness: vec!["first state from the store".into()], ..Picture::default() };
        let journal = Mutex::new(Journal::open(journal::Config::new(journal_folder.clone()))?);
        Ok(Self { picture: Mutex::new(picture), metrics: Metrics::default(), store, inbox, journal, journal_folder })
    }

    fn picture(&self) -> MutexGuard<'_, Picture> {
        // The picture is whole at every moment.
        self.picture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn worked(&self, kind: &'static str, seconds: f64) {
        self.metrics.worked(kind, seconds);
    }
    pub(crate) fn store_error(&self, verb: &'static str, code: &'static str) {
        self.metrics.count(Counted::StoreErrors { verb, code }, 1);
    }
    pub(crate) fn counted(&self, peer: &ClusterId, objects: usize) {
        self.metrics.count(Counted::SyncObjects { peer: peer.to_string() }, objects as u64);
    }
    pub(crate) fn resynced(&self, peer: &ClusterId) {
        self.metrics.count(Counted::Resyncs { peer: peer.to_string() }, 1);
    }
    /// How long a change of a peer took to be in force here.
    pub(crate) fn delayed(&self, peer: &ClusterId, delay: Duration) {
        self.metrics.delayed(peer.as_str(), delay.as_secs_f64());
    }
    pub(crate) fn heard(&self, peer: &ClusterId, bytes: u64) {
        self.metrics.count(Counted::SyncBytes { peer: peer.to_string() }, bytes);
        self.picture().heard.insert(peer.to_string(), clock::now());
    }

    /// A transition, for `events`.
    pub(crate) fn event(&self, subject: String, before: &str, after: &str, reason: &str) {
        let transition =
            Transition { subject, before: before.into(), after: after.into(), reason: reason.into(), cause: None };
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = journal.record(clock::wall(), transition) {
            tracing::warn!(%error, "a transition cannot be kept in the journal");
        }
    }

    /// Draws the picture anew, not too often.
    pub(crate) fn refresh(
        &self,
        engine: &Engine,
        shared: &Shared,
        agents: &BTreeMap<(Role, String), AgentState>,
        leads: bool,
    ) {
        let now = clock::now();
        let mut picture = self.picture();
        if picture.drawn.is_some_and(|drawn| now.since(drawn) < REDRAW) {
            return;
        }
        picture.drawn = Some(now);
        picture.readiness = awaited(engine);
        picture.report = report(engine, leads);
        picture.manifest = engine
            .local_cluster()
            .map(|local| controller_core::cluster_peer_manifest(local).map_err(|reason| reason.to_string()));
        picture.gauges = gauges(engine, leads);
        picture.refusals = shared.refusals.report();
        for peer in engine.peers() {
            let Some(id) = peer.metadata.name.as_deref().and_then(|name| ClusterId::new(name).ok()) else { continue };
            let examples = engine.remote().refused_examples(&id);
            for (refusal, count) in engine.remote().refusals(&id) {
                picture.refusals.push(RefusalReport {
                    reason: refusal.as_str().into(),
                    peer: id.to_string(),
                    destination: examples.get(&refusal).cloned().unwrap_or_default(),
                    count: count as u64,
                    ..RefusalReport::default()
                });
            }
        }
        picture.agents = agents.clone();
    }
}

fn awaited(engine: &Engine) -> Vec<String> {
    let mut awaiting = Vec::new();
    if !engine.is_known() {
        awaiting.push("first state from the store".to_owned());
    } else if engine.local_cluster().is_none() {
        awaiting.push("LocalCluster 'local': it says what this cluster is".to_owned());
    } else if engine.own_record().is_none() {
        awaiting.push("keys of the gateway slots, and the member record".to_owned());
    }
    awaiting
}

/// What the condition `Used` says: its reason, and for how long.
fn used(conditions: &[Condition], wall: WallTime) -> Option<(String, f64)> {
    let used = conditions.iter().find(|condition| condition.type_ == ConditionType::Used.as_str())?;
    let since = u64::try_from(used.last_transition_time.0.as_millisecond()).unwrap_or_default();
    let age = Duration::from_millis(wall.as_millis().saturating_sub(since));
    Some((used.reason.clone(), age.as_secs_f64()))
}

fn report(engine: &Engine, leads: bool) -> ControllerReport {
    let wall = clock::wall();
    let local = engine.local_cluster();
    let local_used = local.and_then(|local| local.status.as_ref()).and_then(|status| used(&status.conditions, wall));
    let spec = engine.local_cluster().map(|local| &local.spec);
    let services_out = engine.ledger().current().services();
    let peers = engine.peers().map(|peer| {
        let name = peer.metadata.name.clone().unwrap_or_default();
        let id = ClusterId::new(&name).ok();
        let id = id.as_ref();
        let talk = id.and_then(|id| engine.talk(id));
        let synced = talk.is_some_and(|talk| talk.synced);
        let taken = talk.and_then(|talk| talk.taken);
        let status = peer.status.as_ref();
        let claims = id.and_then(|id| engine.claims(id));
        let reason = match talk {
            _ if synced => String::new(),
            Some(talk) if !talk.ended.is_empty() => talk.ended.clone(),
            _ => "no gateway has offered a way to it yet".to_owned(),
        };
        let used = status.and_then(|status| used(&status.conditions, wall));
        let newest = peer.newest_signed();
        // The one that signs, then the one that comes; without a record the one the operator wrote down.
        let named = newest.as_ref().map_or(&peer.spec.identity_keys, |(_, record)| &record.identity_keys);
        let mut identities = named.iter().take(2).map(|key| key.fingerprint());
        PeerSync {
            peer: name,
            state: peer.state().to_string(),
            used_age: used.as_ref().map(|(_, age)| *age),
            used: used.map(|(reason, _)| reason).unwrap_or_default(),
            ordered: peer.ordered_state() != PeerState::Active,
            fingerprint: identities.next().unwrap_or_default(),
            next_fingerprint: identities.next().unwrap_or_default(),
            record_generation: newest.map(|(_, record)| record.generation),
            told: taken.is_some(),
            record_taken: taken.and_then(|taken| taken.record),
            exports_taken: taken.and_then(|taken| engine.ledger().revision_of(&taken.holding?)),
            synced,
            last_sync_age: None,
            reason,
            services_in: id
                .and_then(|id| engine.remote().usable(id))
                .map(|usable| usable.services())
                .unwrap_or_default(),
            services_out,
            prefixes: claims.map(|claims| claims.seen().map(|prefix| prefix.to_string()).collect()).unwrap_or_default(),
            translations: claims.map(|claims| claims.translated.clone()).unwrap_or_default(),
            refused: status.map(|status| status.refused.clone()).unwrap_or_default(),
        }
    });
    ControllerReport {
        cluster_id: spec.map(|spec| spec.cluster_id.to_string()).unwrap_or_default(),
        cluster_set_id: spec.map(|spec| spec.cluster_set_id.to_string()).unwrap_or_default(),
        fingerprint: engine.own_record().map(|SignedRecord { key, .. }| key.fingerprint()).unwrap_or_default(),
        leader: leads,
        state: local.map(|local| local.state().as_str().to_owned()).unwrap_or_default(),
        state_age: local_used.map(|(_, age)| age),
        exports: engine.local().exports().count(),
        imports: engine.imports().len(),
        unchecked: unchecked(engine),
        unserved: engine.unserved().iter().take(MAX_UNSERVED).map(ToString::to_string).collect(),
        identity_rotation: engine.identity_rotation(wall).map(identity_rotation),
        rotations: engine.rotations(wall).map(|all| all.into_iter().map(rotation).collect()),
        peers: peers.collect(),
        nodes: engine.local().nodes().values().map(|node| node_state(engine, node, wall)).collect(),
        hosts: engine.host_flows(clock::now()),
        record_generation: engine.own_record_said().map(|record| record.generation),
        record_state: engine.own_record_said().map(|record| format!("{:?}", record.state)).unwrap_or_default(),
        exports_revision: engine.ledger().revision(),
        ..ControllerReport::default()
    }
}

fn identity_rotation(rotation: IdentityRotation) -> IdentityRotationReport {
    IdentityRotationReport {
        next: rotation.next.fingerprint(),
        age: rotation.age.as_secs_f64(),
        ends_in: LONGEST.saturating_sub(rotation.age).as_secs_f64(),
        told: rotation.waiting_for.is_some(),
        waiting_for: rotation.waiting_for.unwrap_or_default(),
    }
}

fn rotation(rotation: Rotation) -> RotationReport {
    RotationReport {
        slot: rotation.slot,
        age: rotation.age.as_secs_f64(),
        ends_in: LONGEST.saturating_sub(rotation.age).as_secs_f64(),
        told: rotation.waiting_for.is_some(),
        waiting_for: rotation.waiting_for.unwrap_or_default(),
    }
}

fn node_state(engine: &Engine, node: &Node, wall: WallTime) -> NodeState {
    let name = node.metadata.name.clone().unwrap_or_default();
    let is_here = |gateway: &&TunnelGateway| gateway.status.as_ref().is_some_and(|status| status.node == name);
    let age = |since: WallTime| Duration::from_millis(wall.as_millis().saturating_sub(since.as_millis())).as_secs_f64();
    NodeState {
        draining: api::order::is_drained(node),
        draining_age: drained_since(node).map(age),
        gateways: engine.gateways().filter(is_here).map(|gateway| gateway.spec.slot).collect(),
        node: name,
    }
}

fn unchecked(engine: &Engine) -> Vec<String> {
    let has_unchecked = |name: &ServiceName| engine.local().verdict(name).is_some_and(|verdict| verdict.unchecked > 0);
    let exports = engine.local().exports().map(|(name, _)| name).filter(has_unchecked);
    exports.take(MAX_UNSERVED).map(|name| name.to_string()).collect()
}

fn gauges(engine: &Engine, leads: bool) -> Gauges {
    let mut exports: BTreeMap<&'static str, i64> = BTreeMap::new();
    for (name, _) in engine.local().exports() {
        let state = match engine.local().verdict(&name) {
            Some(verdict) if verdict.valid != ServiceReason::Valid => verdict.valid.as_str(),
            Some(verdict) => verdict.ready.as_str(),
            None => ServiceReason::Pending.as_str(),
        };
        *exports.entry(state).or_default() += 1;
    }
    let mut imports: BTreeMap<String, i64> = BTreeMap::new();
    for import in engine.imports().values() {
        let conditions = import.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
        let state = ready.map_or_else(|| ServiceReason::Pending.to_string(), |condition| condition.reason.clone());
        *imports.entry(state).or_default() += 1;
    }
    let peers = engine.peers().filter_map(|peer| {
        let id = ClusterId::new(peer.metadata.name.as_deref()?).ok()?;
        let synced = engine.talk(&id).is_some_and(|talk| talk.synced);
        let heard = engine.remote().last_heard(&id);
        Some((id.to_string(), peer.state().to_string(), synced, heard))
    });
    let gateways = engine.gateways().map(|gateway| {
        let conditions = gateway.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        (names::slot_gateway(gateway.spec.slot), ready)
    });
    let refusals = engine.peers().filter_map(|peer| {
        let id = ClusterId::new(peer.metadata.name.as_deref()?).ok()?;
        Some((id.to_string(), engine.remote().refusals(&id)))
    });
    Gauges {
        local_cluster: engine.cluster_id().map(ToString::to_string).unwrap_or_default(),
        leader: leads,
        exports,
        imports,
        unserved: engine.unserved().iter().take(MAX_UNSERVED).cloned().collect(),
        peers: peers.collect(),
        gateways: gateways.collect(),
        rotations: engine
            .rotations(clock::wall())
            .iter()
            .flatten()
            .map(|rotation| (rotation.slot, rotation.age))
            .collect(),
        identity_rotation: engine.identity_rotation(clock::wall()).map(|rotation| rotation.age),
        gateways_desired: engine.local_cluster().map(|local| local.spec.gateways.slots),
        refused_items: refusals.collect(),
    }
}

impl Surface for ControllerSurface {
    fn readiness(&self) -> Readiness {
        Readiness { awaiting: self.picture().readiness.clone() }
    }

    fn metrics(&self) -> String {
        let picture = self.picture();
        let (gauges, refusals, heard) = (picture.gauges.clone(), picture.refusals.clone(), picture.heard.clone());
        drop(picture);
        let objects_age = self.store.feed_report().interrupted_for.unwrap_or(0.0);
        self.metrics.text(&gauges, &refusals, &heard, objects_age)
    }

    fn answer(&self, question: &str) -> Option<Value> {
        let (name, arguments) = question.split_once('?').unwrap_or((question, ""));
        let picture = self.picture();
        let now = clock::now();
        let age = |since: Instant| now.since(since).as_secs_f64();
        match name {
            "status" => {
                let mut report = picture.report.clone();
                report.objects = self.store.feed_report();
                for peer in &mut report.peers {
                    peer.last_sync_age = picture.heard.get(&peer.peer).map(|heard| age(*heard));
                }
                report.agents = picture
                    .agents
                    .iter()
                    .map(|((role, name), state)| AgentReport {
                        name: name.clone(),
                        role: role.as_str().to_ascii_lowercase(),
                        connected: state.connected,
                        age: Some(age(state.since)),
                    })
                    .collect();
                serde_json::to_value(report).ok()
            }
            "events" => {
                drop(picture);
                let seconds =
                    arguments.split('&').find_map(|argument| argument.strip_prefix("since=")?.parse::<u64>().ok());
                let since = seconds
                    .map_or(0, |seconds| clock::wall().as_millis().saturating_sub(seconds.saturating_mul(1_000)));
                let events = journal::events_since(&self.journal_folder, WallTime::from_millis(since), MAX_EVENTS);
                let events = events.inspect_err(|error| tracing::warn!(%error, "the journal cannot be read")).ok()?;
                serde_json::to_value(events).ok()
            }
            "refusals" => serde_json::to_value(&picture.refusals).ok(),
            "peer-manifest" => Some(match &picture.manifest {
                Some(Ok(manifest)) => serde_json::json!({ "manifest": manifest }),
                Some(Err(reason)) => serde_json::json!({ "reason": reason }),
                None => {
                    serde_json::json!({ "reason": "there is no LocalCluster: write one that says what this cluster is" })
                }
            }),
            _ => None,
        }
    }

    fn order(&self, order: &str) -> Option<Result<Value, String>> {
        let order = Order::parse(order)?;
        // The store answers from a thread of its own, and this one may wait for it: `Surface` says so.
        let carried_out = tokio::runtime::Handle::current().block_on(async {
            let Order::Identity { retire } = order else { return orders::carry_out(&self.store, &order).await };
            let (reply, answer) = oneshot::channel();
            let _ = self.inbox.send(Message::ChangeIdentity { retire, reply });
            answer.await.unwrap_or_else(|_| Err("the controller stops: order it again".into()))
        });
        Some(carried_out.and_then(|report| {
            if report.changed {
                self.event(report.subject.clone(), &report.before, &report.after, "Ordered");
            }
            serde_json::to_value(report).map_err(|error| error.to_string())
        }))
    }
}
