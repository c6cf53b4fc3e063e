//! Keeps the zone: follows the store and the gateways' reports, and puts a new zone in the place of the old one in one
//! step.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use arc_swap::ArcSwap;
use prober::{News, Targets};
use store::{Event, Store, Watch};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::surface::Shown;
use crate::view::{Change, View};
use crate::zone::Zone;

/// Changes that wait to be taken; more than that and the store waits in its turn.
const WAITING: usize = 1024;
/// Changes taken before a zone is published, so that a long list does not hold back the first names.
const BATCH: usize = 1024;
/// Longest time between two looks at what is shown: ages go on without events.
const LOOK: Duration = Duration::from_secs(1);

/// The task's parts.
pub(crate) struct Keeper {
    pub(crate) view: View,
    pub(crate) zone: Arc<ArcSwap<Zone>>,
    pub(crate) shown: Arc<ArcSwap<Shown>>,
    pub(crate) targets: watch::Sender<Targets>,
    pub(crate) health_port: u16,
    /// Whether no other kinds are followed.
    pub(crate) imports_alone: bool,
}

impl Keeper {
    /// Runs until the server stops; an error when the store is gone.
    pub(crate) async fn run(
        mut self,
        store: Store,
        mut reports: mpsc::Receiver<News>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut changes = follow(&store, self.imports_alone);
        if self.imports_alone {
            self.view.apply(Change::Local(Event::Reset(Vec::new())), clock::now());
        }
        let mut zone_since = None;
        loop {
            let now = clock::now();
            let pause = self.view.next_deadline(now).map_or(LOOK, |at| at.since(now).min(LOOK));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                change = changes.recv() => match change {
                    Some(change) => self.view.apply(change, clock::now()),
                    None => bail!("the store ended: no change of a name would be seen any more"),
                },
                Some(news) = reports.recv() => match news {
                    News::Asked(slot) => self.view.asked(slot),
                    News::Report(report) => self.view.take_report(report, clock::now()),
                },
                () = tokio::time::sleep(pause) => {}
            }
            let now = clock::now();
            for _ in 0..BATCH {
                match changes.try_recv() {
                    Ok(change) => self.view.apply(change, now),
                    Err(_) => break,
                }
            }
            if let Some(zone) = self.view.publish(now) {
                self.zone.store(Arc::new(zone));
                zone_since = Some(now);
            }
            self.show(zone_since);
            self.point();
        }
    }

    fn show(&self, zone_since: Option<api::time::Instant>) {
        let view = &self.view;
        let refused = |refused: &crate::refusal::Refused| {
            (refused.refusal.as_str().to_owned(), refused.object.clone(), refused.detail.clone())
        };
        self.shown.store(Arc::new(Shown {
            awaited: view.awaited().collect(),
            zone_since,
            local_cluster: view.local_cluster().map(ToString::to_string).unwrap_or_default(),
            gateways: view.gateway_states(),
            out_of_service: view.out_of_service(clock::now()),
            is_last_known: view.is_last_known(),
            lacks_key: view.key().is_none() && !view.gateways().is_empty(),
            refusals: view.refusals().counts().iter().map(|(refusal, count)| (refusal.as_str(), *count)).collect(),
            refused: view.refusals().latest().map(refused).collect(),
        }));
    }

    /// Tells the prober whom to ask, when that changed.
    fn point(&self) {
        let port = self.health_port;
        let gateways: BTreeMap<u16, Vec<SocketAddr>> = self
            .view
            .gateways()
            .iter()
            .map(|(slot, addresses)| (*slot, addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect()))
            .collect();
        let states = self.view.gateway_states();
        let draining = states.iter().filter(|gateway| gateway.draining).map(|gateway| gateway.slot).collect();
        // DNS servers are few, whatever else asks.
        Targets { gateways, key: self.view.key().cloned(), draining, agents: 1 }.send_to(&self.targets);
    }
}

/// Follows every kind the zone is made of; all changes come out of one channel.
fn follow(store: &Store, imports_alone: bool) -> mpsc::Receiver<Change> {
    let (sender, receiver) = mpsc::channel(WAITING);
    pass_on(store.watch(), Change::Import, &sender);
    pass_on(store.watch(), Change::Slice, &sender);
    if imports_alone {
        return receiver;
    }
    pass_on(store.watch(), Change::Local, &sender);
    pass_on(store.watch(), Change::Peer, &sender);
    pass_on(store.watch(), Change::Gateway, &sender);
    pass_on(store.watch(), Change::Policy, &sender);
    pass_on(store.watch(), Change::ClusterPolicy, &sender);
    pass_on(store.watch(), Change::Secret, &sender);
    receiver
}

fn pass_on<K: api::Kind>(mut watch: Watch<K>, wrap: fn(Event<K>) -> Change, sender: &mpsc::Sender<Change>) {
    let sender = sender.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                // The keeper is gone.
                () = sender.closed() => return,
                event = watch.next() => match event {
                    Some(event) => if sender.send(wrap(event)).await.is_err() { return },
                    None => return,
                },
            }
        }
    });
}
