//! [`Owner`]: the one thread that owns what the node wants and what its kernel holds.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant as StdInstant};

use anyhow::Context;
use api::health::message::AgentKey;
use api::kubernetes::Secret;
use api::names;
use api::report::{MoveReport, RouteReport, ServiceReport};
use api::{ClusterId, Prefix};
use arc_swap::ArcSwap;
use kernel::core::{Change, DeviceName, State, difference};
use kernel::{DeviceEvent, Kernel};
use node_core::whatif::Supposed;
use node_core::{Delta, Input, Look, Looks, NodeCore, ObjectChange, ShareChange};
use prober::{News, Targets};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::devices::Devices;
use crate::history::History;
use crate::lookout::{Found, Request};
use crate::metrics::Metrics;
use crate::refusals::Ring;
use crate::surface::Shown;
use crate::{Config, watches};

/// Things taken before the kernel is brought up to date: a burst is one change, and nobody waits for its end.
const BURST: usize = 2048;
/// How often the kernel's counters are read.
const COUNTERS: Duration = Duration::from_secs(1);

/// What the owner is told.
#[derive(Debug)]
pub(crate) enum Told {
    Input(Box<Input>),
    Secrets(Box<ObjectChange<Secret>>),
    /// A kind was listed as a whole.
    Listed(&'static str),
    Device(DeviceEvent),
    /// The lookout is back.
    Found(Box<Found>),
}

impl From<News> for Told {
    fn from(news: News) -> Self {
        Self::Input(Box::new(match news {
            News::Asked(slot) => Input::Asked(slot),
            News::Report(report) => Input::Report(report),
        }))
    }
}

/// What the owner is asked.
pub(crate) enum Question {
    Services(std::sync::mpsc::SyncSender<Vec<ServiceReport>>),
    Routes(ClusterId, std::sync::mpsc::SyncSender<Option<Vec<RouteReport>>>),
    Moves(Supposed, std::sync::mpsc::SyncSender<Vec<MoveReport>>),
    PeerPrefixes(std::sync::mpsc::SyncSender<Vec<(Prefix, ClusterId)>>),
    OwnEndpoints(std::sync::mpsc::SyncSender<BTreeSet<(IpAddr, u16)>>),
    Explain(String, String, std::sync::mpsc::SyncSender<Option<ServiceReport>>),
}

/// Where the owner says what came of it.
pub(crate) struct Outlets {
    pub(crate) targets: watch::Sender<Targets>,
    pub(crate) shown: Arc<ArcSwap<Shown>>,
    pub(crate) refusals: Arc<Ring>,
    pub(crate) metrics: Arc<Metrics>,
}

pub(crate) struct Owner {
    core: NodeCore,
    kernel: Kernel,
    devices: Devices,
    agent: String,
    health_port: u16,
    key: Option<AgentKey>,
    awaited: BTreeSet<&'static str>,
    history: History,
    outlets: Outlets,
    lookout: Sender<Request>,
    looks: Looks,
    /// Everything was looked at once: from then on the kernel is known.
    knows_kernel: bool,
    /// Services whose traffic goes elsewhere, and that nobody was told of yet.
    shares: BTreeSet<ShareChange>,
    /// What the lookout brought, until the owner has done what it was told meanwhile.
    found: Option<Box<Found>>,
    /// The kernel took links, routes or next hops along with a device.
    routing_lost: bool,
    /// Something is known to be amiss: what the next look finds is no drift.
    expects_differences: bool,
    counters_at: StdInstant,
    failing: BTreeSet<String>,
    /// Devices or this node's addresses changed since the underlay was measured.
    underlay_unknown: bool,
}

impl Owner {
    /// Opens the kernel, in the network namespace of the calling thread.
    pub(crate) fn new(config: &Config, lookout: Sender<Request>, outlets: Outlets) -> anyhow::Result<Self> {
        let kernel = Kernel::open(&crate::settings_record(&config.state))?;
        Ok(Self {
            core: NodeCore::new(&config.node_name, clock::now()),
            kernel,
            devices: Devices::default(),
            agent: config.node_name.clone(),
            health_port: config.health_port,
            key: None,
            awaited: watches::KINDS.into(),
            history: History::open(&config.state)?,
            outlets,
            lookout,
            looks: Looks::new(config.look_every, clock::now()),
            knows_kernel: false,
            shares: BTreeSet::new(),
            found: None,
            routing_lost: false,
            expects_differences: true,
            counters_at: StdInstant::now(),
            failing: BTreeSet::new(),
            underlay_unknown: true,
        })
    }

    /// Runs on a thread of its own until `stop`.
    pub(crate) fn run(
        mut self,
        mut told: mpsc::Receiver<Told>,
        mut asked: mpsc::UnboundedReceiver<Question>,
        stop: CancellationToken,
    ) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
        let runtime = tokio::runtime::Handle::current();
        let (ended, end) = oneshot::channel();
        let run = move || {
            let result = self.work(&runtime, &mut told, &mut asked, &stop);
            // Nobody listens when the process ends.
            let _ = ended.send(result);
        };
        std::thread::Builder::new().name("node".into()).spawn(run).context("starting a thread")?;
        Ok(tokio::spawn(async { end.await.context("the node's thread ended by a panic; see its message above")? }))
    }

    fn work(
        &mut self,
        runtime: &tokio::runtime::Handle,
        told: &mut mpsc::Receiver<Told>,
        asked: &mut mpsc::UnboundedReceiver<Question>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        self.list_devices();
        loop {
            let until = tokio::time::Instant::from_std(self.next_wake());
            let woken = runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Woken::Stop,
                    question = asked.recv() => question.map_or(Woken::Stop, Woken::Asked),
                    thing = told.recv() => thing.map_or(Woken::Stop, Woken::Told),
                    () = tokio::time::sleep_until(until) => Woken::Time,
                }
            });
            match woken {
                Woken::Stop => return Ok(()),
                Woken::Asked(question) => {
                    self.answer(question);
                    continue;
                }
                Woken::Told(thing) => {
                    self.take(thing);
                    for _ in 0..BURST {
                        let Ok(thing) = told.try_recv() else { break };
                        self.take(thing);
                    }
                }
                Woken::Time => {}
            }
            self.settle();
        }
    }

    fn next_wake(&self) -> StdInstant {
        let now = (clock::now(), StdInstant::now());
        // Nothing is looked at before all is known that it is to be compared with.
        let look = self.looks.next().filter(|_| self.awaited.is_empty());
        let thought = [self.core.next_look(), look].into_iter().flatten().map(|at| now.1 + at.since(now.0));
        thought.chain([self.counters_at]).min().unwrap_or(self.counters_at)
    }

    fn take(&mut self, thing: Told) {
        match thing {
            Told::Input(input) => {
                self.underlay_unknown |= matches!(*input, Input::Nodes(_));
                self.core.take(*input, clock::now());
            }
            Told::Secrets(change) => self.take_secrets(*change),
            Told::Listed(kind) => {
                self.awaited.remove(kind);
            }
            Told::Device(DeviceEvent::Present(device)) => {
                let lost = self.devices.take(device.name.clone(), Some((device.index, device.up)));
                self.devices_changed(lost.then_some(device.name));
            }
            Told::Device(DeviceEvent::Gone(name)) => {
                let lost = self.devices.take(name.clone(), None);
                self.devices_changed(lost.then_some(name));
            }
            Told::Device(DeviceEvent::Missed) => {
                self.list_devices();
                self.routing_lost = true;
            }
            Told::Found(found) => self.found = Some(found),
        }
    }

    fn list_devices(&mut self) {
        match self.kernel.devices() {
            Ok(all) => self.devices.replace(all),
            Err(error) => tracing::warn!(%error, "devices cannot be listed"),
        }
        self.devices_changed(None);
    }

    fn devices_changed(&mut self, lost: Option<DeviceName>) {
        self.underlay_unknown = true;
        self.core.take(Input::Devices(self.devices.up()), clock::now());
        // The kernel took next hops and routes away with the device, and nothing of what is wanted says so.
        if lost.is_some_and(|name| self.core.leans_on(&name)) {
            self.routing_lost = true;
        }
    }

    fn take_secrets(&mut self, change: ObjectChange<Secret>) {
        let name = names::agent_secret(&self.agent);
        let is_ours = |secret: &Secret| {
            secret.metadata.namespace.as_deref() == Some(names::SYSTEM_NAMESPACE)
                && secret.metadata.name.as_deref() == Some(&name)
        };
        match change {
            ObjectChange::Reset(all) => self.key = all.iter().find(|secret| is_ours(secret)).and_then(newest_key),
            ObjectChange::Applied(secret) if is_ours(&secret) => self.key = newest_key(&secret),
            ObjectChange::Deleted(secret) if is_ours(&secret) => self.key = None,
            ObjectChange::Applied(_) | ObjectChange::Deleted(_) => {}
        }
    }

    /// Brings the kernel to what is wanted now.
    fn settle(&mut self) {
        // What an earlier run left in the kernel stays until all is known that it is to be compared with.
        if self.awaited.is_empty() {
            let due = self.looks.is_due(clock::now());
            if due || std::mem::take(&mut self.underlay_unknown) {
                self.measure_underlay();
            }
            let mut delta = self.core.delta(clock::now());
            if !delta.is_empty() {
                self.looks.changed();
            }
            self.shares.extend(std::mem::take(&mut delta.shares));
            if delta.whole || (!self.knows_kernel && due) {
                self.expects_differences = true;
                self.look_here();
                self.apply(&forgotten(&delta));
            } else if self.knows_kernel {
                let mut changes = difference(&delta.after, &delta.before);
                changes.extend(forgotten(&delta));
                self.apply(&changes);
                if std::mem::take(&mut self.routing_lost) {
                    self.mend_routing();
                }
                if let Some(found) = self.found.take() {
                    self.take_found(*found);
                }
                if self.looks.is_due(clock::now()) {
                    self.look();
                }
            }
        }
        self.tell();
    }

    /// Looks at everything, beside the owner's work if it may be.
    fn look(&mut self) {
        if let Look::Beside(number) = self.looks.begin() {
            let request = Request { number, wanted: self.core.wanted(), settings: self.kernel.settings() };
            if self.lookout.send(request).is_ok() {
                return;
            }
        }
        self.look_here();
    }

    /// Looks at everything while everything else waits.
    fn look_here(&mut self) {
        match self.kernel.observe() {
            Ok(observed) => {
                self.knows_kernel = true;
                self.routing_lost = false;
                self.mend(&difference(&self.core.wanted(), &observed));
            }
            Err(error) => {
                self.knows_kernel = false;
                self.failed(&error);
            }
        }
    }

    /// What the lookout found holds where nothing was changed since it was sent.
    fn take_found(&mut self, found: Found) {
        if !self.looks.holds(found.number, clock::now()) {
            return;
        }
        match found.result {
            Ok((seen, changes)) => {
                self.kernel.trust(&seen);
                self.mend(&changes);
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Makes what differs from what is wanted as it should be.
    fn mend(&mut self, changes: &[Change]) {
        // At the start everything is new, and a device that went has taken things along: that is no drift.
        if !std::mem::take(&mut self.expects_differences) {
            self.outlets.metrics.kernel_differences.set(saturating(changes.len()));
            if !changes.is_empty() {
                self.history.note("kernel", "mended", &format!("Drift: {} differences", changes.len()));
            }
        }
        if changes.is_empty() {
            self.failing.clear();
        }
        if self.apply(changes) {
            self.looks.done(clock::now());
        }
    }

    /// Puts back what went with a device. The table, which holds what is many, leans on no device.
    fn mend_routing(&mut self) {
        match self.kernel.observe_routing() {
            Ok(observed) => {
                let nothing = State::default();
                let wanted =
                    State { table: None, sets: nothing.sets, services: nothing.services, ..self.core.wanted() };
                self.apply(&difference(&wanted, &observed));
            }
            Err(error) => self.failed(&error),
        }
    }

    /// True when the kernel took all of it.
    fn apply(&mut self, changes: &[Change]) -> bool {
        let spared = |change: &Change| matches!(change, Change::ForgetFlows { frontend, backend } if self.core.finishes(frontend, backend));
        let changes: Cow<'_, [Change]> = match changes.iter().any(spared) {
            true => changes.iter().filter(|change| !spared(change)).cloned().collect(),
            false => Cow::Borrowed(changes),
        };
        if changes.is_empty() {
            return true;
        }
        self.looks.changed();
        let begun = StdInstant::now();
        let outcome = self.kernel.apply(&changes);
        self.outlets.metrics.applied_in(begun.elapsed());
        let failures: BTreeSet<String> = outcome.failures.iter().map(|failure| failure.error.to_string()).collect();
        self.outlets.metrics.kernel_failures.inc_by(outcome.failures.len() as u64);
        for failure in failures.difference(&self.failing) {
            tracing::warn!("{failure}");
        }
        self.failing = failures;
        if self.failing.is_empty() {
            return true;
        }
        self.expects_differences = true;
        self.looks.failed(clock::now());
        false
    }

    fn failed(&mut self, error: &kernel::Error) {
        tracing::warn!(%error, "the kernel cannot be looked at");
        self.outlets.metrics.kernel_failures.inc();
        self.looks.failed(clock::now());
    }

    /// The largest packet of the device that holds this node's own address.
    fn measure_underlay(&mut self) {
        let own = self.core.own_addresses();
        let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return };
        let holder = interfaces.into_iter().find(|interface| {
            let address = interface.address.as_ref();
            let v4 = address.and_then(|address| address.as_sockaddr_in()).map(|address| address.ip().into());
            let v6 = address.and_then(|address| address.as_sockaddr_in6()).map(|address| address.ip().into());
            v4.or(v6).is_some_and(|address| own.contains(&address))
        });
        // An address with a label is listed under it: `eth0:1`.
        let device = |name: &str| DeviceName::new(name.split(':').next().unwrap_or(name)).ok();
        let name = holder.and_then(|holder| device(&holder.interface_name));
        if let Some(name) = name
            && let Ok(Some(device)) = self.kernel.device(&name)
        {
            self.core.take(Input::UnderlayMtu(device.mtu), clock::now());
        }
    }

    /// Says what came of it: to the prober, to the surface, to the history.
    fn tell(&mut self) {
        let port = self.health_port;
        let reports = self.core.reports();
        let draining = |slot: &u16| reports.latest(*slot).is_some_and(|(report, _)| report.draining);
        let targets = Targets {
            gateways: self
                .core
                .gateway_addresses()
                .into_iter()
                .map(|(slot, addresses)| (slot, addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()))
                .collect(),
            key: self.key.clone(),
            draining: reports.answering().into_iter().filter(draining).collect(),
            agents: self.core.node_count(),
        };
        let shown = Shown::of(&self.core, &self.awaited, self.key.is_some(), &targets);
        targets.send_to(&self.outlets.targets);
        for gateway in &shown.gateways {
            let state = if gateway.answering { "answering" } else { "silent" };
            let reason = if gateway.draining { "Draining" } else { "" };
            self.history.note(&format!("gateway {}", gateway.slot), state, reason);
        }
        let mut causes = BTreeMap::new();
        for cluster in &shown.clusters {
            let subject = format!("path {}", cluster.cluster);
            let noted =
                self.history.note(&subject, &format!("{:?}", cluster.reachability), &format!("{:?}", cluster.reason));
            causes.extend(noted.map(|number| (cluster.cluster.clone(), number)));
        }
        self.history.note_shares(&std::mem::take(&mut self.shares), &causes);
        let clusters: BTreeSet<&str> = shown.clusters.iter().map(|cluster| cluster.cluster.as_str()).collect();
        self.history.forget_unless("path ", |name| clusters.contains(name));
        if StdInstant::now() >= self.counters_at {
            self.read_counters();
        }
        self.outlets.refusals.know(self.core.peer_prefixes());
        self.outlets.shown.store(Arc::new(shown));
    }

    fn read_counters(&mut self) {
        self.counters_at = StdInstant::now() + COUNTERS;
        match self.kernel.counted() {
            Ok(counted) => {
                let refused = counted.refused.into_iter().map(|(reason, counter)| (reason, counter.packets)).collect();
                self.outlets.refusals.reconcile(&refused);
                self.outlets.metrics.connections.reconcile(&counted.connections);
            }
            Err(error) => tracing::debug!(%error, "counters cannot be read"),
        }
    }

    fn answer(&mut self, question: Question) {
        let now = clock::now();
        // Who asked may have gone.
        match question {
            Question::Services(to) => drop(to.try_send(self.core.services(now))),
            Question::Routes(peer, to) => drop(to.try_send(crate::routes::report(&self.core, &mut self.kernel, &peer))),
            Question::Moves(supposed, to) => drop(to.try_send(self.core.moves(&supposed, now))),
            Question::PeerPrefixes(to) => drop(to.try_send(self.core.peer_prefixes())),
            Question::OwnEndpoints(to) => drop(to.try_send(self.core.own_endpoints())),
            Question::Explain(namespace, name, to) => drop(to.try_send(self.core.explain(&namespace, &name, now))),
        }
    }
}

fn forgotten(delta: &Delta) -> Vec<Change> {
    let ended = delta.ended.iter();
    ended.map(|(frontend, backend)| Change::ForgetFlows { frontend: *frontend, backend: *backend }).collect()
}

enum Woken {
    Stop,
    Asked(Question),
    Told(Told),
    Time,
}

/// A Secret may hold the key in use and the next one: the newest counts.
fn newest_key(secret: &Secret) -> Option<AgentKey> {
    let texts = secret.data.iter().flatten().filter_map(|(_, value)| std::str::from_utf8(&value.0).ok());
    texts.filter_map(AgentKey::from_text).max_by_key(|key| key.id)
}

fn saturating(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
