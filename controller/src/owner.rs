//! The one task that owns the engine: takes in what is seen and heard, tells peers what changed, hands out writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use api::ClusterId;
use api::kubernetes::EndpointSlice;
use api::member_record::SignedRecord;
use controller_core::Engine;
use controller_core::conversation::ImportHeard;
use controller_core::engine::NodeAgent;
use controller_core::plan::{Outcome, Subject};
use controller_core::recall::{Recall, Remembered};
use controller_core::rotation::Rotation;
use identity::Identity;
use store::ahead::Ahead;
use store::feed::{AgentSeen, Role};
use store::{ObjectKey, Store};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant as Deadline;

use crate::connections::{ExportStart, ImportStart, Message, Next, Roster, Shared, Told};
use crate::delays::Delays;
use crate::identity_change;
use crate::keys::{self, KeyError};
use crate::lease::Leadership;
use crate::replicas::Replicas;
use crate::state_files::{Membership, StateFiles};
use crate::surface::{AgentState, ControllerSurface};
use crate::writer::{Done, Writer};

/// How often silence, graces and retries are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Messages taken before what follows from them is done: a burst becomes one batch.
const AT_ONCE: usize = 1_024;
/// How long what a peer said may wait to be kept on disk. A kill loses no more; until the peer says it again, what was
/// made of it before the kill stays. A burst of changes costs ten writes a second, and a slow one delays the next.
const KEEP_WITHIN: Duration = Duration::from_millis(100);
/// Batches a conversation may be behind before it asks anew.
const TOLD: usize = 1_024;
/// How long after a failure keys are made again.
pub(crate) const KEYS_RETRY: Duration = Duration::from_secs(1);

pub(crate) struct Owner {
    pub(crate) engine: Engine,
    pub(crate) files: StateFiles,
    pub(crate) membership: Membership,
    /// While the identity is replaced: the one that comes.
    pub(crate) next_identity: Option<Identity>,
    pub(crate) identity_retry: Option<Deadline>,
    /// What replicas share, where there may be several.
    pub(crate) replicas: Option<Replicas>,
    /// What agents are shown before it is written.
    ahead: Option<Ahead<EndpointSlice>>,
    pub(crate) store: Store,
    pub(crate) writer: Writer,
    pub(crate) leadership: Leadership,
    pub(crate) shared: Arc<Shared>,
    pub(crate) surface: Arc<ControllerSurface>,
    pub(crate) roster: watch::Sender<Arc<Roster>>,
    pub(crate) told: broadcast::Sender<Told>,
    agents: BTreeMap<(Role, String), AgentState>,
    /// When what each peer said is to be kept on disk.
    unsaved: BTreeMap<ClusterId, Deadline>,
    saving: JoinSet<(ClusterId, Result<()>)>,
    being_saved: BTreeSet<ClusterId>,
    keys_for: Option<(u16, u16, bool)>,
    /// Slots whose old keys are being taken away, and those where that failed, until it is tried again.
    retiring: BTreeMap<u16, Option<Deadline>>,
    keys_retry: Option<Deadline>,
    led: bool,
    delays: Delays,
    /// The version of each ClusterPeer that was read, and the generation of the record in it.
    pub(crate) records_read: BTreeMap<ClusterId, (Option<String>, Option<u64>)>,
    /// The revision of [`Recall`] that is on disk, and when a newer one may be written.
    recall_kept: (u64, Deadline),
}

impl Owner {
    #[expect(clippy::too_many_arguments, reason = "everything the one owner owns, handed over once")]
    pub(crate) fn new(
        engine: Engine,
        files: StateFiles,
        membership: Membership,
        next_identity: Option<Identity>,
        replicas: Option<Replicas>,
        ahead: Option<Ahead<EndpointSlice>>,
        store: Store,
        leadership: Leadership,
        shared: Arc<Shared>,
        surface: Arc<ControllerSurface>,
        roster: watch::Sender<Arc<Roster>>,
    ) -> Self {
        Self {
            engine,
            files,
            membership,
            next_identity,
            identity_retry: None,
            replicas,
            ahead,
            writer: Writer::new(store.clone(), leadership.clone()),
            store,
            leadership,
            shared,
            surface,
            roster,
            told: broadcast::channel(TOLD).0,
            agents: BTreeMap::new(),
            unsaved: BTreeMap::new(),
            saving: JoinSet::new(),
            being_saved: BTreeSet::new(),
            keys_for: None,
            retiring: BTreeMap::new(),
            keys_retry: None,
            led: false,
            delays: Delays::default(),
            records_read: BTreeMap::new(),
            recall_kept: (0, Deadline::now()),
        }
    }

    /// Runs until the controller stops; then keeps what is not kept yet.
    pub(crate) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Message>) -> Result<()> {
        let (now, wall) = (clock::now(), clock::wall());
        self.engine.set_recall(Recall::new(self.membership.made, self.files.recall()));
        for (cluster, memory) in self.files.memories() {
            self.engine.remember(&cluster, memory, now, wall);
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stop = self.shared.stop.clone();
        loop {
            tokio::select! {
                message = inbox.recv() => {
                    let Some(message) = message else { break };
                    self.take(message)?;
                    for _ in 0..AT_ONCE {
                        let Ok(message) = inbox.try_recv() else { break };
                        self.take(message)?;
                    }
                }
                Some(saved) = self.saving.join_next() => self.saved(saved),
                _ = tick.tick() => self.tick(),
                () = stop.cancelled() => break,
            }
            self.settle();
        }
        while let Some(saved) = self.saving.join_next().await {
            self.saved(saved);
        }
        self.recall_kept.1 = Deadline::now();
        self.save_recall();
        for cluster in std::mem::take(&mut self.unsaved).into_keys() {
            if let Some(memory) = self.engine.remote().memory(&cluster) {
                self.files.keep_memory(&cluster, &memory)?;
            }
        }
        Ok(())
    }

    /// Fails where the controller cannot go on.
    fn take(&mut self, message: Message) -> Result<()> {
        let (now, wall) = (clock::now(), clock::wall());
        match message {
            Message::Observed(step) => step(&mut self.engine, now, wall),
            Message::AgentSeen(seen) => self.agent_seen(seen),
            Message::Keys { keys, made_for } => match keys {
                Ok(keys) => self.engine.set_slot_keys(keys),
                Err(error) => {
                    tracing::warn!(%error, slots = made_for.0, lanes = made_for.1, "the gateways' keys cannot be made");
                    self.keys_for = None;
                    self.keys_retry = Some(Deadline::now() + KEYS_RETRY);
                }
            },
            Message::KeysChanged => self.keys_for = None,
            Message::SharedState(secret) => self.take_shared(secret.map(|secret| *secret))?,
            Message::Published { record, result } => self.published(record.map(|it| *it), result.map(|it| *it)),
            Message::AgentsTold { controller, result } => self.agents_told(controller, result),
            Message::Retired { slot, result, without } => self.retired(slot, result, &without),
            Message::Finished { subject, done, seconds } => {
                self.surface.worked(subject.kind(), seconds);
                let (mut outcomes, mut failed): (Vec<Outcome>, bool) = (Vec::new(), false);
                for Done { outcome, error } in done {
                    if let Some((verb, code)) = error {
                        self.surface.store_error(verb, code);
                    }
                    failed |= matches!(outcome, Outcome::Refused { .. });
                    outcomes.push(outcome);
                }
                let in_force =
                    outcomes.iter().all(|outcome| matches!(outcome, Outcome::Written(_) | Outcome::Deleted(_)));
                self.engine.finished(&subject, outcomes, now, wall);
                if let Subject::Service(service) = &subject
                    && let Some((peer, delay)) = self.delays.written(service, in_force, now)
                {
                    self.surface.delayed(&peer, delay);
                }
                if failed && let Some(reason) = self.engine.store_refusals().get(&subject) {
                    tracing::warn!(?subject, reason, "the store refuses what should be written");
                }
            }
            Message::Record { from, signed } => self.engine.hear_record(&from, signed, now, wall),
            Message::Resume { peer, token, reply } => {
                let start =
                    self.engine.own_record().filter(|_| self.engine.is_known()).cloned().map(|record| ExportStart {
                        resumption: self.engine.ledger().resume(token.as_ref()),
                        record,
                        pass_on: self.engine.records_for(&peer),
                        told: self.told.subscribe(),
                    });
                let _ = reply.send(start);
            }
            Message::ImportStart { peer, reply } => {
                let token = self.engine.remote().token(&peer);
                let record = self.engine.own_record().cloned();
                let _ = reply.send(record.map(|record| ImportStart { token, record }));
            }
            Message::Heard { peer, heard, bytes, reply } => {
                self.surface.heard(&peer, bytes);
                let next = self.heard(&peer, heard);
                let _ = reply.send(next);
            }
            Message::Trusts { peer, identities } => self.engine.hear_trust(&peer, identities),
            Message::ChangeIdentity { retire, reply } => {
                let changed = if retire { self.retire_identity(None) } else { self.begin_identity() };
                let _ = reply.send(
                    changed
                        .map(|changed| identity_change::report(retire, changed))
                        .map_err(|error| format!("{error:#}")),
                );
            }
            Message::Remembered { from, exports } => self.remembered(&from, &exports),
            Message::Taken { peer, taken } => self.engine.set_taken(&peer, taken),
            Message::ImportEnded { peer, reason } => {
                if self.engine.talk(&peer).is_some_and(|talk| talk.synced) {
                    self.surface.event(format!("sync {peer}"), "Synced", "Stale", &reason);
                }
                self.engine.set_synced(&peer, Some(reason), now, wall);
            }
        }
        Ok(())
    }

    /// Takes in what a peer said, and how the conversation goes on.
    fn heard(&mut self, peer: &ClusterId, heard: ImportHeard) -> Next {
        let (now, wall) = (clock::now(), clock::wall());
        let synced = match heard {
            ImportHeard::Answered { record, resumed } => {
                self.engine.hear_record(peer, record, now, wall);
                resumed
            }
            ImportHeard::Snapshot { items, token } => {
                self.surface.counted(peer, items.len());
                self.surface.resynced(peer);
                self.engine.hear_snapshot(peer, items, token, now, wall);
                self.unsaved.insert(peer.clone(), Deadline::now());
                true
            }
            ImportHeard::Changes { changes, token, age } => {
                self.surface.counted(peer, changes.len());
                if self.led {
                    changes.iter().for_each(|change| self.delays.heard(peer, &change.key.service, age, now));
                }
                self.engine.hear_changes(peer, &changes, token, now, wall);
                self.unsaved.entry(peer.clone()).or_insert_with(|| Deadline::now() + KEEP_WITHIN);
                false
            }
            ImportHeard::Alive => {
                self.engine.hear_alive(peer);
                false
            }
            ImportHeard::Records(_) => false,
        };
        if synced {
            tracing::info!(%peer, "what a peer exports is known as it is now");
            if !self.engine.talk(peer).is_some_and(|talk| talk.synced) {
                self.surface.event(format!("sync {peer}"), "Stale", "Synced", "");
            }
            self.engine.set_synced(peer, None, now, wall);
        }
        if self.engine.remote().is_astray(peer) {
            return Next::BeginAnew;
        }
        let remembered = if synced { self.engine.remote().remembered(peer) } else { Vec::new() };
        if remembered.is_empty() { Next::GoOn } else { Next::Remember(remembered) }
    }

    /// A peer remembers exports of ours from before this installation.
    fn remembered(&mut self, from: &ClusterId, exports: &[Remembered]) {
        // Between the message and this moment the operator may have blocked it.
        if self.engine.identities_of(from).is_none() {
            return;
        }
        let heard = self.engine.hear_remembered(from, exports, clock::wall());
        for (refusal, count) in heard.refused {
            self.shared.refusals.count_many(refusal.as_str(), from.as_str(), "remembered exports", count as u64);
        }
        if !heard.touched.is_empty() {
            let what = format!("{from} remembers {} of them from before this installation", heard.touched.len());
            tracing::info!("exports are older than this cluster knew: {what}");
            self.surface.event("exports".into(), "", "older", &what);
        }
    }

    fn agent_seen(&mut self, seen: AgentSeen) {
        let (now, wall) = (clock::now(), clock::wall());
        tracing::info!(role = %seen.role, name = seen.name, connected = seen.connected, "an agent came or went");
        let (before, after) = if seen.connected { ("away", "connected") } else { ("connected", "away") };
        self.surface.event(format!("agent {} {}", seen.role, seen.name), before, after, "");
        if seen.role != Role::Operator {
            let state = AgentState { connected: seen.connected, since: now };
            self.agents.insert((seen.role, seen.name.clone()), state);
        }
        if seen.role == Role::Node {
            let agent = NodeAgent {
                connected: seen.connected,
                since: wall,
                addresses: seen.addresses.iter().map(ToString::to_string).collect(),
                pod_prefixes: seen.pod_prefixes.iter().map(ToString::to_string).collect(),
            };
            self.engine.observe_agent(&seen.name, agent, now);
        }
        if seen.connected && matches!(seen.role, Role::Node | Role::Dns) {
            let (store, name, stop) = (self.store.clone(), seen.name, self.shared.stop.clone());
            self.shared.tasks.spawn(async move {
                // Until it has its key it can measure nothing.
                while let Err(error) = keys::agent(&store, &name).await {
                    tracing::warn!(%error, name, "an agent's key cannot be made");
                    tokio::select! {
                        () = tokio::time::sleep(KEYS_RETRY) => {}
                        () = stop.cancelled() => return,
                    }
                }
            });
        }
    }

    fn tick(&mut self) {
        let now = clock::now();
        for cluster in self.engine.tick(now) {
            tracing::warn!(%cluster, "a cluster was silent for so long that it is forgotten");
            self.files.forget(&cluster);
        }
        let leads = self.leadership.may_write();
        if leads && !self.led {
            // What an earlier holder left half done shows as a difference.
            self.engine.mark_all();
        }
        self.led = leads;
        if leads {
            self.retire_keys();
        }
        self.retire_identity_when_due();
        self.surface.refresh(&self.engine, &self.shared, &self.agents, leads);
    }

    /// What follows from what was taken in.
    fn settle(&mut self) {
        let (now, wall) = (clock::now(), clock::wall());
        for batch in self.engine.advertise(now, wall) {
            // Nobody may be listening.
            let _ = self.told.send(Told::Batch(batch));
        }
        self.settle_keys();
        self.settle_record();
        self.settle_roster();
        self.settle_records();
        self.show_ahead();
        if self.leadership.may_write() {
            if !self.led {
                self.engine.mark_all();
                self.led = true;
            }
            for (subject, writes) in self.engine.plan(wall) {
                if let Subject::Service(service) = &subject {
                    self.delays.writing(service);
                }
                let (writer, inbox) = (self.writer.clone(), self.shared.inbox.clone());
                self.shared.tasks.spawn(async move {
                    let started = clock::now();
                    let done = writer.carry_out(writes).await;
                    let seconds = clock::now().since(started).as_secs_f64();
                    let _ = inbox.send(Message::Finished { subject, done, seconds });
                });
            }
        }
        let engine = &self.engine;
        self.delays.keep(|service| engine.is_due(&Subject::Service(service.clone())));
        self.save();
        self.save_recall();
    }

    /// Shows agents what the store does not say yet, or cannot be told.
    fn show_ahead(&mut self) {
        let Some(ahead) = &self.ahead else { return };
        for (service, slices) in self.engine.ahead() {
            let slices =
                slices.into_iter().map(|(key, slice)| (ObjectKey::new(Some(&key.namespace), &key.name), slice));
            ahead.show(&service.to_string(), slices.collect());
        }
    }

    /// Makes the slots' keys where this replica writes, and reads them where it does not.
    fn settle_keys(&mut self) {
        let Some(gateways) =
            self.engine.local_cluster().map(|local| (local.spec.gateways.slots, local.spec.gateways.lanes))
        else {
            return;
        };
        let wanted = (gateways.0, gateways.1, self.leadership.may_write());
        let waiting = self.keys_retry.is_some_and(|retry| retry > Deadline::now());
        if self.keys_for == Some(wanted) || waiting || !self.engine.is_known() {
            return;
        }
        self.keys_for = Some(wanted);
        let (store, inbox) = (self.store.clone(), self.shared.inbox.clone());
        self.shared.tasks.spawn(async move {
            let (slots, lanes, make) = wanted;
            let mut keys = keys::slots(&store, slots, lanes, make).await;
            if make
                && keys.is_ok()
                && let Err(error) = keys::master(&store).await
            {
                keys = Err(error);
            }
            let _ = inbox.send(Message::Keys { keys, made_for: (slots, lanes) });
        });
    }

    /// Takes away the keys that nobody needs any more, or that were kept long enough.
    fn retire_keys(&mut self) {
        self.retiring.retain(|_, retry| retry.is_none_or(|retry| retry > Deadline::now()));
        for rotation in self.engine.rotations(clock::wall()).into_iter().flatten().filter(Rotation::is_over) {
            let slot = rotation.slot;
            if self.retiring.contains_key(&slot) {
                continue;
            }
            self.retiring.insert(slot, None);
            let (store, inbox) = (self.store.clone(), self.shared.inbox.clone());
            self.shared.tasks.spawn(async move {
                let result = keys::retire(&store, slot, Some(&rotation.next_keys)).await;
                let without = rotation.waiting_for.unwrap_or_default();
                let _ = inbox.send(Message::Retired { slot, result, without });
            });
        }
    }

    fn retired(&mut self, slot: u16, result: Result<bool, KeyError>, without: &[String]) {
        // Until it shows in what is read of the store, it is not tried again.
        self.retiring.insert(slot, Some(Deadline::now() + KEYS_RETRY));
        self.keys_for = None;
        match result {
            Ok(true) => {
                let reason = if without.is_empty() {
                    String::new()
                } else {
                    format!("kept long enough; still needed by {}", without.join(", "))
                };
                tracing::info!(slot, reason, "the gateway has new keys alone");
                self.surface.event(format!("keys of gateway {slot}"), "Rotating", "Steady", &reason);
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, slot, "the gateway's old keys cannot be taken away; trying again"),
        }
    }

    /// Signs our record when it says something new. Kept before anybody hears of it: a generation is used once.
    fn settle_record(&mut self) {
        let unsigned = self.engine.unsigned_record();
        if self.replicas.is_some() {
            return self.settle_shared(unsigned);
        }
        let Some(record) = unsigned else { return };
        let signed = self.shared.keys.shown().identity.sign_record(&record);
        let membership = Membership { record: Some(signed.clone()), ..self.membership.clone() };
        if let Err(error) = self.files.keep_membership(&membership) {
            tracing::warn!(%error, "the member record cannot be kept, so it is not published");
            return;
        }
        tracing::info!(generation = record.generation, "the member record is signed");
        self.membership = membership;
        let _ = self.told.send(Told::Records(vec![signed.clone()]));
        self.engine.set_own_record(signed, record);
    }

    /// Keeps on disk what is due, beside the work.
    fn save(&mut self) {
        let now = Deadline::now();
        let due: Vec<ClusterId> = self
            .unsaved
            .iter()
            .filter(|(cluster, at)| **at <= now && !self.being_saved.contains(*cluster))
            .map(|(cluster, _)| cluster.clone())
            .collect();
        for cluster in due {
            self.unsaved.remove(&cluster);
            let Some(memory) = self.engine.remote().memory(&cluster) else { continue };
            self.being_saved.insert(cluster.clone());
            let files = self.files.clone();
            self.saving.spawn_blocking(move || {
                let kept = files.keep_memory(&cluster, &memory);
                (cluster, kept)
            });
        }
    }

    /// Keeps what peers remember of us. That changes after a loss only, and then in a burst.
    fn save_recall(&mut self) {
        let (kept, not_before) = self.recall_kept;
        let recall = self.engine.local().recall();
        if recall.revision() == kept || Deadline::now() < not_before {
            return;
        }
        let revision = recall.revision();
        match self.files.keep_recall(&recall.kept()) {
            Ok(()) => self.recall_kept = (revision, Deadline::now() + KEEP_WITHIN),
            Err(error) => {
                tracing::warn!(%error, "what peers remember of this cluster's exports cannot be kept on disk");
                self.recall_kept.1 = Deadline::now() + KEYS_RETRY;
            }
        }
    }

    fn saved(&mut self, saved: Result<(ClusterId, Result<()>), tokio::task::JoinError>) {
        match saved {
            Ok((cluster, result)) => {
                self.being_saved.remove(&cluster);
                if let Err(error) = result {
                    tracing::warn!(%cluster, %error, "what a peer said cannot be kept on disk");
                    self.unsaved.insert(cluster, Deadline::now() + KEEP_WITHIN);
                }
            }
            // A panic while writing a file: the next change is kept again.
            Err(error) => {
                tracing::error!(%error, "a state file could not be written");
                self.being_saved.clear();
            }
        }
    }
}

/// The record signed last, as the engine wants it.
pub(crate) fn last_record(membership: &Membership) -> Option<(SignedRecord, api::member_record::MemberRecord)> {
    let signed = membership.record.clone()?;
    let record = signed.verify(&[signed.key]).ok()?;
    Some((signed, record))
}
