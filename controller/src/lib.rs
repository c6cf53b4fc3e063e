//! The controller part: a store, TLS and a disk around `controller-core`.
//!
//! | module | does |
//! |---|---|
//! | `owner` | the one task that owns the engine |
//! | `watches` | the store → the owner |
//! | `writer`, `lease` | the owner → the store, only while this replica may write |
//! | `listener` | what comes in: agents, peers, ways to peers |
//! | `export`, `import`, `body` | the two ends of sync over HTTP/2 |
//! | `delays` | how long a change of another cluster took to be in force here |
//! | `keys` | the keys that are handed out |
//! | `own_keys`, `identity_change` | the cluster's identity, and how another takes its place |
//! | `orders` | what the operator orders → the store |
//! | `roster` | who is a peer |
//! | `state_files` | what is kept on disk |
//! | `shared_state`, `replicas` | which of it all replicas share on Kubernetes, in a Secret, and who writes that |
//! | `surface`, `metrics` | what the operator sees |
//!
//! Connections never touch the engine: they tell and ask its owner (`connections`).

mod body;
mod connections;
mod delays;
mod export;
mod identity_change;
mod import;
mod keys;
mod lease;
mod listener;
mod metrics;
mod orders;
mod own_keys;
mod owner;
mod replicas;
mod roster;
mod shared_state;
mod state_files;
mod surface;
mod watches;
mod writer;

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use api::names::ports;
use api::surface::Surface;
use controller_core::Engine;
use controller_core::validity::Bounds;
use store::{Store, feed};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connections::{Refusals, Roster, Shared, Turns};
use crate::lease::Leadership;
use crate::own_keys::{OwnKeys, Shown};
use crate::owner::Owner;
use crate::replicas::Replicas;
use crate::state_files::StateFiles;
use crate::surface::ControllerSurface;

/// How long connections and writes under way may take to end: a write to a slow disk, a last word to a peer.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Where a controller listens and keeps its state.
#[derive(Clone, Debug)]
pub struct Config {
    /// Agents and gateways connect here.
    pub listen: SocketAddr,
    /// The same for gateways on this host, where TCP is not wanted.
    pub control_socket: Option<PathBuf>,
    /// The identity, the epoch, what peers said last. Made with mode 0700.
    pub state: PathBuf,
    /// Tells replicas apart in the Lease: the same after a restart, another for each replica.
    pub replica: String,
    /// Whether the store is a Kubernetes API server: then the identity and all that goes with it are in a Secret that
    /// replicas share, and Nodes are their kubelets'. Else all is on this disk, and there is one controller.
    pub on_kubernetes: bool,
    /// How much each peer may say.
    pub bounds: Bounds,
}

impl Default for Config {
    fn default() -> Self {
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
        Self {
            listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), ports::CONTROLLER),
            control_socket: None,
            state: PathBuf::from("state"),
            replica: host.unwrap_or_else(|_| "controller".into()),
            on_kubernetes: false,
            bounds: Bounds::default(),
        }
    }
}

/// Starts a controller on `store`. It runs until `stop`; the handle then ends with what went wrong, if anything did.
///
/// Fails at once when the state cannot be read or the address is taken.
pub async fn start(
    config: Config,
    store: Store,
    stop: CancellationToken,
) -> Result<(Arc<dyn Surface>, JoinHandle<Result<()>>)> {
    let files = StateFiles::open(&config.state)?;
    let replicas = match config.on_kubernetes {
        true => Some(Replicas::new(shared_state::begin(&store, &files, &stop).await?)),
        false => None,
    };
    let membership = files.membership()?;
    let own_keys::Found { current: identity, next: next_identity, own } = own_keys::load(&files, &membership)?;
    let enrolment = feed::Enrolment::load_or_create(files.enrolment_file(), own.current)?;
    tracing::info!(fingerprint = %own.current.fingerprint(), "the cluster's identity");

    let tcp = listener::bind(config.listen).await?;
    let unix = config.control_socket.as_deref().map(listener::bind_unix).transpose()?;

    let (inbox, messages) = mpsc::unbounded_channel();
    let (seen, mut agents_seen) = mpsc::unbounded_channel();
    let (roster_out, roster) = watch::channel(Arc::new(Roster::new()));
    let mut engine = Engine::new(
        own.clone(),
        membership.epoch.clone(),
        owner::last_record(&membership),
        config.bounds,
        clock::now(),
    );
    let (served, ahead) = if config.on_kubernetes {
        engine.leave_nodes_to_kubelets();
        engine.go_ahead();
        let (served, ahead) = store::ahead::open(&store);
        (served, Some(ahead))
    } else {
        (store.clone(), None)
    };
    let refusals = Arc::new(Refusals::default());
    let denials = refusals.clone();
    let feed = feed::Server::new(served, enrolment, seen)
        .after(own.taken().to_vec())
        .on_denial(move |agent, denial| denials.count(denial.name(), "", &format!("{} {}", agent.role, agent.name)));
    let shared = Arc::new(Shared {
        keys: OwnKeys::new(Shown::new(identity)?),
        epoch: membership.epoch.clone(),
        bounds: config.bounds,
        inbox: inbox.clone(),
        roster,
        records: watch::channel(BTreeMap::new()).0,
        feed,
        refusals,
        turns: Turns::default(),
        stop: stop.clone(),
        tasks: TaskTracker::new(),
    });
    let surface = Arc::new(ControllerSurface::new(store.clone(), files.journal_folder(), inbox.clone())?);
    let leadership = Leadership::default();
    let owner = Owner::new(
        engine,
        files,
        membership,
        next_identity,
        replicas,
        ahead,
        store.clone(),
        leadership.clone(),
        shared.clone(),
        surface.clone(),
        roster_out,
    );

    let work = tokio::spawn(async move {
        let watches = watches::follow_all(&store, &shared);
        let tasks = shared.tasks.clone();
        let agents = tokio::spawn(async move {
            while let Some(seen) = agents_seen.recv().await {
                if inbox.send(connections::Message::AgentSeen(seen)).is_err() {
                    return;
                }
            }
        });
        let lease = tokio::spawn(lease::hold(store, config.replica, leadership, stop.clone()));
        let listening = tokio::spawn(listener::listen(tcp, unix, shared));
        let owned = tokio::spawn(owner.run(messages));
        // Whatever ends first, by plan or not, ends all of it: half a controller is worse than none.
        let (mut listening, mut owned) = (listening, owned);
        let ended: Result<()> = tokio::select! {
            result = &mut listening => result.context("the listener broke").and_then(|result| result),
            result = &mut owned => result.context("the owner of the state broke").and_then(|result| result),
        };
        stop.cancel();
        agents.abort();
        let rest: Result<()> = async {
            if !listening.is_finished() {
                listening.await??;
            }
            if !owned.is_finished() {
                owned.await??;
            }
            lease.await?;
            Ok(())
        }
        .await;
        drop(watches);
        tasks.close();
        if tokio::time::timeout(STOP_LIMIT, tasks.wait()).await.is_err() {
            tracing::warn!(left = tasks.len(), "not everything ended in time");
        }
        ended.and(rest)
    });
    Ok((surface, work))
}
