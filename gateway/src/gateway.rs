//! [`Gateway`]: the task that holds the slot, keeps the engine as the objects want it, and reports.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use api::conditions::Reason;
use api::keys::control_address;
use api::time::Instant;
use api::tunnel_gateway::{KeyRotation, TunnelGatewayStatus};
use api::{TunnelGateway, names};
use gateway_core::roster::{Roster, own_control_prefix};
use store::{Error, Store};
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::announcement::announcement;
use crate::control::Order;
use crate::engine::{Engine, Plan};
use crate::health::Health;
use crate::journal::EventJournal;
use crate::objects::{Objects, Watches};
use crate::relay::Relay;
use crate::session::LaneKeys;
use crate::slot::{Choice, RENEW_EVERY};
use crate::slot_file::SlotFile;
use crate::surface::{Running, Shared};
use crate::transit::Transit;
use crate::wall_clock::WallClock;

/// How long a gateway that goes away waits for everybody to know (kernel.md, section 1).
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// How long it goes on forwarding after that: what the last of them sent before it knew is still under way, through
/// queues of hosts that are busy. The round trip to the farthest peer comes on top.
const DRAIN_LINGER: Duration = Duration::from_millis(200);
/// How often it looks whether they do.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// How long the store may take for a write: an API server under load answers within this.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// How long the old keys must have been of no use to anybody before that is told: what was sent under them is still
/// under way, and a peer whose gateways come back one after the other should have them all back.
const UNNEEDED_FOR: Duration = Duration::from_secs(2);

/// How long to wait before trying again what the system or the store refused.
const RETRY: Duration = Duration::from_secs(1);

/// Owned by one task.
pub(crate) struct Gateway {
    config: Config,
    store: Store,
    shared: Arc<Shared>,
    objects: Objects,
    health: Arc<Health>,
    journal: EventJournal,
    wall_clock: WallClock,
    remembered: SlotFile,
    /// The slot held, and when it was last renewed.
    slot: Option<(u16, Instant)>,
    running: Option<(Engine, Relay, Transit)>,
    /// What the running engine was told of an operator's order to drain.
    drained: bool,
    health_thread: Option<std::thread::JoinHandle<()>>,
    roster: Option<Roster>,
    reported: Option<TunnelGatewayStatus>,
    /// Whether the keys rotated when it was last looked.
    rotating: bool,
    /// Since when nobody needs the old keys.
    unneeded_since: Option<Instant>,
    retry_at: Option<Instant>,
}

impl Gateway {
    pub(crate) fn new(config: Config, store: Store, shared: Arc<Shared>) -> Result<Self> {
        let folder = &config.state;
        let wall_clock = WallClock::load(folder.join("gateway-wall-time"));
        let behind = wall_clock.went_back(clock::wall());
        if let Some(behind) = behind {
            tracing::warn!(
                behind_seconds = behind.as_secs(),
                "ClockWentBack: peers refuse our handshakes until the clock has caught up or they call us; check this host's time service"
            );
        }
        shared.set_clock_went_back(behind);
        Ok(Self {
            remembered: SlotFile::load(folder.join("gateway-slot")),
            health: Health::new()?,
            journal: shared.journal().clone(),
            objects: Objects::default(),
            slot: None,
            running: None,
            health_thread: None,
            roster: None,
            drained: false,
            reported: None,
            rotating: false,
            unneeded_since: None,
            retry_at: None,
            wall_clock,
            config,
            store,
            shared,
        })
    }

    /// Runs until `stop`, then leaves gracefully.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<()> {
        let mut watches = Watches::open(&self.store);
        let mut renewal = tokio::time::interval(RENEW_EVERY);
        let mut retry = tokio::time::interval(RETRY);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                change = watches.next(&mut self.objects) => {
                    let change = change.context("the store ended: was the controller's folder or feed closed?")?;
                    if let Some((engine, ..)) = &self.running {
                        engine.export(change.exports);
                    }
                    if change.settings {
                        self.reconcile().await;
                    }
                }
                _ = renewal.tick() => {
                    self.renew().await;
                    if let Err(error) = self.wall_clock.advance(clock::wall()) {
                        tracing::warn!("{error:#}");
                    }
                    // What paths carry changes by itself; so seldom that a path that swings is no load for the store.
                    self.report(self.reason()).await;
                }
                _ = retry.tick() => {
                    let closed = self.objects.exports.expire(clock::now());
                    if let Some((engine, ..)) = &self.running {
                        engine.export(closed);
                    }
                    if self.retry_at.is_some_and(|at| at <= clock::now()) {
                        self.reconcile().await;
                    }
                    self.follow_rotation().await;
                }
            }
        }
        self.leave().await
    }

    /// Makes everything as the objects want it, as far as it goes, and says what is awaited.
    async fn reconcile(&mut self) {
        self.retry_at = None;
        self.health.set_keys(self.objects.probe_masters());
        let awaiting = match self.try_reconcile().await {
            Ok(awaiting) => awaiting,
            Err(error) => {
                tracing::warn!("{error:#}");
                self.retry_at = Some(clock::now() + RETRY);
                Some(format!("{error:#}"))
            }
        };
        self.shared.set_awaiting(awaiting);
        self.report(self.reason()).await;
    }

    fn reason(&self) -> Reason {
        if self.drained { Reason::Draining } else { Reason::Ready }
    }

    /// `Some` names what is missing.
    async fn try_reconcile(&mut self) -> Result<Option<String>> {
        let Some(local) = self.objects.local.clone() else {
            return Ok(Some("the LocalCluster named 'local'".to_owned()));
        };
        let Some(slot) = self.claim(local.spec.gateways.slots).await? else {
            return Ok(Some("a free gateway slot: all are held by gateways of other nodes".to_owned()));
        };
        let lanes = local.spec.gateways.lanes;
        let Some(keys) = self.objects.lane_keys(slot, lanes) else {
            return Ok(Some(format!("the keys of slot {slot} from the controller")));
        };
        let control = own_control_prefix(&local).and_then(|prefix| control_address(&prefix, slot));
        let Some(control) = control else {
            return Ok(Some("this cluster's identity from the controller".to_owned()));
        };
        let public = keys.iter().map(LaneKeys::public).collect();
        let roster = Roster::new(&local, slot, public, control, &self.objects.peers);
        for problem in &roster.problems {
            if self.roster.as_ref().is_none_or(|before| !before.problems.contains(problem)) {
                tracing::warn!(problem, "a peer is not used as configured");
            }
        }
        let plan = Plan {
            device_prefix: self.config.device_prefix.clone(),
            port: self.config.port.unwrap_or(local.spec.gateways.port),
            mtu: local.spec.gateways.mtu,
            slot,
            control_address: control,
            lanes: u8::try_from(lanes)?,
        };
        self.keep_engine(plan, &keys, &roster).await?;
        let ordered = self.objects.gateways.get(&names::slot_gateway(slot)).is_some_and(TunnelGateway::is_drained);
        if let Some((engine, ..)) = self.running.as_ref().filter(|_| self.drained != ordered) {
            tracing::info!(draining = ordered, "the operator ordered whether this gateway is used");
            engine.control().order(Order::Drain(ordered));
            self.drained = ordered;
        }
        self.shared.set_roster(roster.clone());
        self.roster = Some(roster);
        Ok(None)
    }

    /// Says how far a change of keys has come.
    async fn follow_rotation(&mut self) {
        let Some((engine, ..)) = &self.running else { return };
        let waiting = engine.control().snapshot().waiting_for.clone();
        let unneeded = waiting.as_ref().is_some_and(BTreeSet::is_empty);
        self.unneeded_since = unneeded.then(|| self.unneeded_since.unwrap_or_else(clock::now));
        if std::mem::replace(&mut self.rotating, waiting.is_some()) || waiting.is_some() {
            self.report(if self.drained { Reason::Draining } else { Reason::Ready }).await;
        }
    }

    /// `None` while keys do not rotate, and while it is not known yet whether somebody needs the old ones.
    fn rotation(&self, engine: &Engine) -> Option<KeyRotation> {
        let snapshot = engine.control().snapshot();
        let waiting_for = snapshot.waiting_for.as_ref()?;
        let unneeded = || self.unneeded_since.is_some_and(|since| clock::now().since(since) >= UNNEEDED_FOR);
        (!waiting_for.is_empty() || unneeded()).then(|| KeyRotation {
            next_keys: snapshot.topology.ours.lanes.iter().filter_map(|lane| lane.next_key).collect(),
            waiting_for: waiting_for.iter().map(ToString::to_string).collect(),
        })
    }

    async fn keep_engine(&mut self, plan: Plan, keys: &[LaneKeys], roster: &Roster) -> Result<()> {
        if self.running.as_ref().is_some_and(|(engine, ..)| *engine.plan() != plan) {
            tracing::info!("the lanes' settings changed: they start anew");
            self.stop_engine().await?;
        }
        if let Some((engine, relay, transit)) = &mut self.running {
            if self.roster.as_ref() != Some(roster) {
                engine.configure(&transit.configure(roster), keys).await;
                relay.configure(roster);
            }
            return Ok(());
        }
        let mut engine = Engine::start(plan, keys, roster, self.journal.clone()).await?;
        let (relay, transit) = match self.surround(&engine, roster) {
            Ok(surrounded) => surrounded,
            Err(error) => {
                // Else its threads would keep the ports, and no later try could have them.
                engine.stop().await?;
                return Err(error);
            }
        };
        tracing::info!(
            slot = engine.plan().slot,
            port = engine.plan().port,
            lanes = engine.lanes().len(),
            control_address = %engine.plan().control_address,
            "the gateway is forwarding"
        );
        self.shared.set_running(Some(Arc::new(Running {
            control: engine.control().clone(),
            lanes: engine.lanes().to_vec(),
            slot: engine.plan().slot,
            control_address: engine.plan().control_address,
            health: Arc::clone(&self.health),
            relay: relay.counters(),
            transit: transit.shared(),
        })));
        if !roster.hubs.is_empty() {
            // Only now have the ways a place to begin at.
            engine.configure(&transit.configure(roster), keys).await;
        }
        self.running = Some((engine, relay, transit));
        Ok(())
    }

    /// What an engine needs around it before it is of use: the exports, the control relay, transit, and who answers
    /// for its health.
    fn surround(&mut self, engine: &Engine, roster: &Roster) -> Result<(Relay, Transit)> {
        engine.export(self.objects.all_exports());
        if self.health_thread.is_none() {
            let port = self.config.health_port.unwrap_or(names::ports::HEALTH);
            self.health_thread = Some(self.health.start(port, Arc::clone(&self.shared))?);
        }
        let transit = Transit::start(engine.plan(), engine.control(), roster)?;
        let relay = Relay::start(&self.config, engine.plan(), engine.lanes(), engine.control(), roster)?;
        Ok((relay, transit))
    }

    /// The slot to run, taking one if need be. Without a controller the slot of the last run is used at once: its keys
    /// are known, and nobody else can take it either.
    async fn claim(&mut self, slots: u16) -> Result<Option<u16>> {
        let now = clock::now();
        let node = self.config.node_name.clone();
        if !self.objects.leases_known {
            return Ok(self.slot.map(|(slot, _)| slot).or_else(|| self.remembered_if_cut_off()));
        }
        let preferred = self.slot.map(|(slot, _)| slot).or(self.remembered.slot);
        let slot = match self.objects.leases.choose(&node, slots, preferred, now) {
            Choice::Ours(slot) if self.slot.is_some_and(|(held, _)| held == slot) => return Ok(Some(slot)),
            Choice::Ours(slot) | Choice::Free(slot) => slot,
            Choice::WaitUntil(at) => {
                self.slot = None;
                if self.running.is_some() {
                    tracing::warn!("another gateway holds this slot now: stopping the lanes");
                    self.stop_engine().await?;
                }
                self.retry_at = Some(at);
                return Ok(None);
            }
        };
        if let Some(slot) = self.remembered_if_cut_off() {
            self.retry_at = Some(now + RETRY);
            return Ok(Some(slot));
        }
        match in_time(self.objects.leases.hold(&self.store, slot, &node)).await {
            Ok(lease) => self.objects.leases.apply(lease, now),
            // Somebody was faster, and the watch will say who.
            Err(error) if error.is_conflict() => {
                self.retry_at = Some(now + RETRY);
                return Ok(self.slot.map(|(slot, _)| slot));
            }
            // The controller is there and its API server is not. Nobody else can take the slot either, and it was ours.
            Err(error @ Error::Unavailable(_)) if self.remembered.slot == Some(slot) => {
                tracing::warn!(slot, %error, "going on in the slot of the last run");
                self.retry_at = Some(now + RETRY);
                return Ok(Some(slot));
            }
            Err(error) => return Err(error).context("taking a gateway slot"),
        }
        self.slot = Some((slot, now));
        self.remembered.remember(slot)?;
        Ok(Some(slot))
    }

    fn remembered_if_cut_off(&self) -> Option<u16> {
        self.remembered.slot.filter(|_| self.store.interruption().is_some())
    }

    async fn renew(&mut self) {
        let Some((slot, _)) = self.slot else { return };
        let now = clock::now();
        if self.objects.leases.holder(slot) != Some(self.config.node_name.as_str()) {
            self.reconcile().await;
            return;
        }
        match in_time(self.objects.leases.hold(&self.store, slot, &self.config.node_name)).await {
            Ok(lease) => {
                self.objects.leases.apply(lease, now);
                self.slot = Some((slot, now));
            }
            Err(error) => tracing::debug!(%error, slot, "the slot was not renewed; trying again"),
        }
    }

    /// Writes the TunnelGateway's status when it is not as it should be. The object is the controller's to make.
    async fn report(&mut self, reason: Reason) {
        let Some((engine, ..)) = &self.running else { return };
        let Some(object) = self.objects.gateways.get(&names::slot_gateway(engine.plan().slot)) else { return };
        let behind = self.shared.clock_went_back();
        let rotation = self.rotation(engine);
        let wanted = announcement(&self.config, engine, reason, behind, object.status.as_ref(), rotation);
        if object.status.as_ref() == Some(&wanted) {
            return;
        }
        let mut object = object.clone();
        object.status = Some(wanted.clone());
        match in_time(self.store.update_status(&object)).await {
            Ok(written) => {
                let name = written.metadata.name.clone().unwrap_or_default();
                self.objects.gateways.insert(name, written);
                self.reported = Some(wanted);
            }
            Err(error) if error.is_conflict() => tracing::debug!(%error, "the status was changed meanwhile"),
            Err(error) => {
                tracing::debug!(%error, "the status was not written; trying again");
                self.retry_at = Some(clock::now() + RETRY);
            }
        }
    }

    async fn stop_engine(&mut self) -> Result<()> {
        self.shared.set_running(None);
        self.drained = false;
        if let Some((engine, relay, transit)) = self.running.take() {
            relay.stop().await;
            transit.stop().await;
            engine.stop().await?;
        }
        Ok(())
    }

    /// Tells everybody, goes on forwarding until they know, and only then withdraws.
    async fn leave(mut self) -> Result<()> {
        if let Some((engine, ..)) = &self.running {
            let control = engine.control().clone();
            control.order(Order::Drain(true));
            let limit = clock::now() + DRAIN_LIMIT;
            let everybody_knows =
                || control.snapshot().drain_is_acknowledged && self.health.shown().drain_is_acknowledged;
            while clock::now() < limit && !everybody_knows() {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
            let farthest = control.snapshot().links.iter().filter_map(|link| link.status.round_trip).max();
            tokio::time::sleep(DRAIN_LINGER + farthest.unwrap_or_default().min(DRAIN_LIMIT)).await;
            tracing::info!(everybody_knows = everybody_knows(), "drained; withdrawing");
        }
        self.report(Reason::Draining).await;
        let slot = self.slot.map(|(slot, _)| slot);
        self.stop_engine().await?;
        self.health.stop();
        if let Some(thread) = self.health_thread.take() {
            // A panic in there has ended the process already.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        if let Some(slot) = slot
            && let Err(error) = in_time(self.objects.leases.release(&self.store, slot, &self.config.node_name)).await
        {
            tracing::debug!(%error, slot, "the slot was not given back; it expires by itself");
        }
        self.wall_clock.advance(clock::wall())
    }
}

/// A write that is not answered in time has failed: everything else must go on.
async fn in_time<T>(write: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = || Error::Unavailable(format!("no answer within {} s", WRITE_LIMIT.as_secs()));
    tokio::time::timeout(WRITE_LIMIT, write).await.map_err(|_| late())?
}
