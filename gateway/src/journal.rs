//! [`EventJournal`]: what changed on the paths, on disk, for `tombolo events`.
//!
//! A thread of its own writes, for a slow disk must not hold up a probe.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};

use anyhow::{Context, Result};
use api::report::EventReport;
use api::time::WallTime;
use gateway_core::{Event, EventKind};
use store::journal::{Config, Journal, Transition, events_since};

/// Events that may wait for the disk: ten times what all paths of a gateway change when a site is lost.
const WAITING: usize = 4_096;

/// The most entries shown at once: the newest.
const SHOWN: usize = 10_000;

/// A handle on the journal; cheap to clone. The writing thread ends with the last handle.
#[derive(Clone, Debug)]
pub(crate) struct EventJournal {
    folder: PathBuf,
    writer: SyncSender<(WallTime, Transition)>,
}

impl EventJournal {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let mut journal = Journal::open(Config::new(folder.to_owned())).context("opening the journal of events")?;
        let (writer, waiting) = sync_channel::<(WallTime, Transition)>(WAITING);
        std::thread::Builder::new()
            .name("gateway-journal".to_owned())
            .spawn(move || {
                for (at, transition) in waiting {
                    if let Err(error) = journal.record(at, transition) {
                        tracing::warn!(%error, "an event was not written to the journal");
                    }
                }
            })
            .context("starting the journal's thread")?;
        Ok(Self { folder: folder.to_owned(), writer })
    }

    /// Hands an event to the writer. Never waits: with the disk that far behind, the log still has it.
    pub(crate) fn record(&self, event: &Event, ours: &str) {
        let ago = u64::try_from(clock::now().since(event.at).as_millis()).unwrap_or(u64::MAX);
        let at = WallTime::from_millis(clock::wall().as_millis().saturating_sub(ago));
        if self.writer.try_send((at, transition(event, ours))).is_err() {
            tracing::warn!(%event, "the journal cannot keep up; this event is not in it");
        }
    }

    /// What was recorded since then, oldest first.
    pub(crate) fn since(&self, since: WallTime) -> Result<Vec<EventReport>> {
        Ok(events_since(&self.folder, since, SHOWN)?)
    }
}

fn transition(event: &Event, ours: &str) -> Transition {
    let (before, after, reason) = match event.kind {
        EventKind::PathChanged { from, to, cause } => (from.to_string(), to.to_string(), format!("{cause:?}")),
        EventKind::EndpointMoved { from, to } => {
            let from = from.map(|from| from.to_string()).unwrap_or_default();
            (from, to.to_string(), event.kind.name().to_owned())
        }
        EventKind::MtuChanged { from, to } => (from.to_string(), to.to_string(), event.kind.name().to_owned()),
        EventKind::PeerDraining(_) | EventKind::PathTooNarrow(_) | EventKind::PeerRestarted => {
            (String::new(), String::new(), event.kind.name().to_owned())
        }
    };
    let subject = format!("path {ours}→{} gateway {} lane {}", event.cluster, event.slot, event.lane.0);
    Transition { subject, before, after, reason, cause: None }
}
