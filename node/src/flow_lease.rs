//! Tells the controller what is open on this host while something is drained, so that one host can say what is left on
//! all of them. It is an annotation of this host's Lease, which no one else may write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::kubernetes::{Lease, ObjectMeta};
use api::names;
use api::report::{FlowReport, HostFlows};
use arc_swap::ArcSwap;
use store::{Error, Store};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::flows;
use crate::owner::Question;
use crate::surface::{Shown, ask};

/// How often a host looks whether something is drained, and counts: somebody waits for the last connection.
const INTERVAL: Duration = Duration::from_secs(1);
/// A count that did not change is said again, so that it can be told from one that nobody makes any more.
const SAID_AGAIN: Duration = Duration::from_secs(5);
/// Hosts that may count each second. Where there are more, each counts more rarely: all of them hear of each count.
const HOSTS_A_SECOND: u32 = 20;
/// A look at all tracked connections takes no more than this part of the time.
const LEAST_REST: u32 = 10;

/// Runs until `stop`.
pub(crate) async fn run(
    node: String,
    store: Store,
    shown: Arc<ArcSwap<Shown>>,
    questions: mpsc::UnboundedSender<Question>,
    stop: CancellationToken,
) {
    let mut teller = Teller { node, store, lease: None, said: None, counted: 0 };
    let mut pause = INTERVAL;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let (drained, hosts) = {
            let shown = shown.load();
            (shown.drained.clone(), shown.hosts)
        };
        pause = INTERVAL * u32::try_from(hosts).unwrap_or(u32::MAX).div_ceil(HOSTS_A_SECOND).clamp(1, 60);
        let counted = match drained.is_empty() {
            true => None,
            false => {
                let (questions, begun) = (questions.clone(), Instant::now());
                let count = tokio::task::spawn_blocking(move || count(&questions)).await.ok().flatten();
                pause = pause.max(begun.elapsed() * LEAST_REST);
                // Without a count nothing is said, and what was said grows old.
                let Some(count) = count else { continue };
                Some(HostFlows { drained, ..count })
            }
        };
        teller.tell(counted).await;
    }
}

fn count(questions: &mpsc::UnboundedSender<Question>) -> Option<HostFlows> {
    let prefixes = ask(questions, Question::PeerPrefixes)?;
    let own = ask(questions, Question::OwnEndpoints)?;
    let counted = flows::count(&prefixes, &own);
    let counted = counted.inspect_err(|error| tracing::warn!(%error, "connections cannot be counted")).ok()?;
    let without_ids = |flows: FlowReport| FlowReport { inward_ids: Vec::new(), ..flows };
    let flows = counted.peers.into_iter().map(without_ids).collect();
    Some(HostFlows { flows, own: counted.own, ..HostFlows::default() })
}

struct Teller {
    node: String,
    store: Store,
    /// As it was written or read last.
    lease: Option<Lease>,
    /// What it says, and since when.
    said: Option<(HostFlows, Instant)>,
    counted: u64,
}

impl Teller {
    /// Writes what is to be said now; none: that nothing is counted.
    async fn tell(&mut self, wanted: Option<HostFlows>) {
        let said = match (&self.said, &wanted) {
            (None, None) => true,
            (Some((said, at)), Some(wanted)) => said == wanted && at.elapsed() < SAID_AGAIN,
            _ => false,
        };
        if said {
            return;
        }
        match self.write(wanted.as_ref()).await {
            Ok(()) => self.said = wanted.map(|flows| (flows, Instant::now())),
            Err(error) => {
                // Read again before the next try.
                self.lease = None;
                tracing::debug!(%error, "what is open on this host cannot be told");
            }
        }
    }

    async fn write(&mut self, flows: Option<&HostFlows>) -> Result<(), Error> {
        let name = names::node_lease(&self.node);
        if self.lease.is_none() {
            self.lease = self.store.get::<Lease>(Some(names::SYSTEM_NAMESPACE), &name).await?;
        }
        let is_new = self.lease.is_none();
        let namespace = Some(names::SYSTEM_NAMESPACE.to_owned());
        let fresh =
            || Lease { metadata: ObjectMeta { name: Some(name), namespace, ..ObjectMeta::default() }, spec: None };
        let mut lease = self.lease.clone().unwrap_or_else(fresh);
        let annotations = lease.metadata.annotations.get_or_insert_default();
        match flows {
            Some(flows) => {
                // What is the same as before is written as something new: a count that nobody makes any more gets old.
                self.counted += 1;
                let flows = HostFlows { counted: self.counted, ..flows.clone() };
                annotations.insert(names::OPEN_FLOWS.to_owned(), serde_json::to_string(&flows).unwrap_or_default());
            }
            None => drop(annotations.remove(names::OPEN_FLOWS)),
        }
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(self.node.clone());
        let written = match is_new {
            true => self.store.create(&lease).await?,
            false => self.store.update(&lease).await?,
        };
        self.lease = Some(written);
        Ok(())
    }
}
