//! The node part: keeps this host's kernel as node-core wants it.
//!
//! ```text
//!  store ──watches──┐                                  ┌─ prober ── UDP ── gateways
//!                   ├──> owner (one thread): NodeCore ─┤
//!  kernel ─devices──┘        │      │                  └─ shown ── surface
//!                        kernel:  lookout:
//!                         apply    look
//! ```
//!
//! One thread owns the core and the kernel. It takes what it is told and applies what changed. At its start it looks at
//! everything there is; after a refusal and once in a while the lookout does, a thread beside it, so that a failover
//! never waits for a look. What the owner made stays when it ends: packets flow on, and blackholes stand.

mod checks;
mod connections;
mod devices;
mod flow_lease;
mod flows;
mod history;
mod lookout;
mod metrics;
mod owner;
mod refusals;
mod routes;
mod surface;
mod watches;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::surface::Surface;
use arc_swap::ArcSwap;
use prober::{Prober, Targets};
use store::Store;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::owner::Owner;
use crate::surface::NodeSurface;

/// How this agent runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this host's Node object; also the agent's name among those that ask gateways for health.
    pub node_name: String,
    /// A folder for the old values of kernel settings and the journal of events; made if it is not there.
    pub state: PathBuf,
    /// The UDP port of gateways that answers ([`api::names::ports::HEALTH`]).
    pub health_port: u16,
    /// How often everything in the kernel is compared with what is wanted, though nothing is told.
    pub look_every: Duration,
}

impl Config {
    pub fn new(node_name: impl Into<String>, state: impl Into<PathBuf>) -> Self {
        Self {
            node_name: node_name.into(),
            state: state.into(),
            health_port: api::names::ports::HEALTH,
            look_every: LOOK_EVERY,
        }
    }
}

/// The file in the agent's state folder that keeps the old values of kernel settings; `tombolo cleanup` reads it.
pub fn settings_record(state: &std::path::Path) -> PathBuf {
    state.join("settings")
}

/// What somebody else changed is mended within a minute; a look at ten thousand services takes a core's fifth of a
/// second.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Things told and not yet taken. A burst waits in the store's own queues behind it.
const TOLD: usize = 4096;

/// Starts the part in the network namespace of the process. It runs until `stop`, and leaves the kernel as it is then.
///
/// Fails when the state folder cannot be made, or the kernel refuses netlink (CAP_NET_ADMIN in this namespace).
#[expect(clippy::unused_async, reason = "every part is started by the same shape of function")]
pub async fn start(
    config: Config,
    store: Store,
    stop: CancellationToken,
) -> anyhow::Result<(Arc<dyn Surface>, JoinHandle<anyhow::Result<()>>)> {
    std::fs::create_dir_all(&config.state)
        .with_context(|| format!("making the state folder {}", config.state.display()))?;
    let (told, heard) = mpsc::channel(TOLD);
    let (questions, asked) = mpsc::unbounded_channel();
    let (targets, targets_seen) = watch::channel(Targets::default());
    let shown = Arc::new(ArcSwap::from_pointee(surface::Shown::default()));
    let refusals = Arc::new(refusals::Ring::default());
    let metrics = Arc::new(metrics::Metrics::default());

    let owner = Owner::new(
        &config,
        lookout::start(told.clone())?,
        owner::Outlets { targets, shown: shown.clone(), refusals: refusals.clone(), metrics: metrics.clone() },
    )?;
    devices::follow(told.clone(), stop.clone())?;
    refusals::follow(refusals.clone(), stop.clone());
    watches::follow(&store, &told, &stop);
    tokio::spawn(Prober::new(config.node_name.clone(), targets_seen, told).run(stop.clone()));
    tokio::spawn(checks::run(config.node_name.clone(), store.clone(), stop.clone()));
    let (node, seen, ask) = (config.node_name.clone(), shown.clone(), questions.clone());
    tokio::spawn(flow_lease::run(node, store.clone(), seen, ask, stop.clone()));
    let running = owner.run(heard, asked, stop)?;
    let surface =
        NodeSurface { node: config.node_name, state: config.state, store, shown, questions, refusals, metrics };
    Ok((Arc::new(surface), running))
}
