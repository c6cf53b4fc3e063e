//! Starts the DNS part and stops it.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, anyhow};
use api::names;
use api::surface::Surface;
use arc_swap::ArcSwap;
use nix::sys::eventfd::{EfdFlags, EventFd};
use prober::{Prober, Targets};
use store::Store;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::answer::Transport;
use crate::keeper::Keeper;
use crate::listeners;
use crate::name::Origin;
use crate::surface::{DnsSurface, Shown};
use crate::tally::Tally;
use crate::tcp::{self, TcpLimits};
use crate::turns::Turns;
use crate::udp::Worker;
use crate::view::View;
use crate::zone::Zone;

/// Reports that wait to be taken: each gateway tells ten times a second, and the keeper is never away for long.
const WAITING_REPORTS: usize = 64;

/// How the DNS part is to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to answer, over UDP and TCP. `[::]` alone stands for both families.
    pub listen: Vec<SocketAddr>,
    /// The zone: `clusterset.local`.
    pub zone: String,
    /// This server's name among the agents: its probe key is kept under it ([`names::agent_secret`]).
    pub agent: String,
    /// The addresses of `ns.dns.<zone>`: where clients reach this server. Those it listens on where empty.
    pub name_servers: Vec<IpAddr>,
    /// Threads that answer UDP on each address; one a core where absent.
    pub workers: Option<NonZeroUsize>,
    pub tcp: TcpLimits,
    /// The UDP port on which gateways tell health.
    pub health_port: u16,
    /// Whether ServiceImports and EndpointSlices are all there is, as beside another implementation's controller: nothing
    /// else is waited for, nobody measures, every cluster is in service.
    pub imports_alone: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([0u16; 8], names::ports::DNS))],
            zone: names::CLUSTERSET_ZONE.to_owned(),
            agent: String::new(),
            name_servers: Vec::new(),
            workers: None,
            tcp: TcpLimits::default(),
            health_port: names::ports::HEALTH,
            imports_alone: false,
        }
    }
}

/// A DNS part that runs.
pub struct Running {
    pub surface: Arc<dyn Surface>,
    /// Where it answers: ports that were asked for as 0 are drawn by the kernel.
    pub addresses: Vec<SocketAddr>,
    /// Ends when `stop` is cancelled, or with the error that stopped it.
    pub work: JoinHandle<anyhow::Result<()>>,
}

/// Starts the DNS part; see [`start_at`] for one that also tells its addresses.
pub async fn start(
    config: Config,
    store: Store,
    stop: CancellationToken,
) -> anyhow::Result<(Arc<dyn Surface>, JoinHandle<anyhow::Result<()>>)> {
    let running = start_at(config, store, stop).await?;
    Ok((running.surface, running.work))
}

/// Opens the sockets, begins to follow the store and answers: SERVFAIL until the first state is there.
pub async fn start_at(config: Config, store: Store, stop: CancellationToken) -> anyhow::Result<Running> {
    let workers = config.workers.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let listeners = listeners::open(&config.listen, workers)?;
    let addresses: Vec<SocketAddr> = listeners.iter().map(|listener| listener.address).collect();
    let own = addresses.iter().map(SocketAddr::ip).filter(|address| !address.is_unspecified());
    let name_servers: Vec<IpAddr> =
        if config.name_servers.is_empty() { own.collect() } else { config.name_servers.clone() };
    let zone = Zone::unknown(Origin::new(&config.zone)?, &name_servers, first_serial());
    let view = View::new(zone.clone(), &config.agent, clock::now());
    let zone = Arc::new(ArcSwap::from_pointee(zone));
    let wake =
        Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("making an eventfd")?);

    let mut tallies = Vec::new();
    let mut tasks = JoinSet::new();
    for listener in listeners {
        for (index, socket) in listener.udp.into_iter().enumerate() {
            let tally = Arc::new(Tally::new(Transport::Udp));
            tallies.push(Arc::clone(&tally));
            let (zone, stop) = (Arc::clone(&zone), Arc::clone(&wake));
            let worker = Worker { socket, zone, tally, stop, turns: Turns::random()? };
            tasks.spawn(on_thread(format!("dns-udp-{index}"), worker)?);
        }
        let tally = Arc::new(Tally::new(Transport::Tcp));
        tallies.push(Arc::clone(&tally));
        tasks.spawn(tcp::serve(listener.tcp, Arc::clone(&zone), tally, config.tcp, stop.clone()));
    }

    let shown = Arc::new(ArcSwap::from_pointee(Shown { awaited: view.awaited().collect(), ..Shown::default() }));
    let surface = DnsSurface { store: store.clone(), zone: Arc::clone(&zone), shown: Arc::clone(&shown), tallies };
    follow(&config, view, store, zone, shown, &stop, &mut tasks);
    tracing::info!(?addresses, workers, "answering names of {}", config.zone);
    Ok(Running { surface: Arc::new(surface), addresses, work: tokio::spawn(until_stopped(tasks, wake, stop)) })
}

fn follow(
    config: &Config,
    view: View,
    store: Store,
    zone: Arc<ArcSwap<Zone>>,
    shown: Arc<ArcSwap<Shown>>,
    stop: &CancellationToken,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) {
    let (targets, asked) = watch::channel(Targets::default());
    let (told, reports) = mpsc::channel(WAITING_REPORTS);
    let prober = Prober::new(config.agent.clone(), asked, told);
    let keeper =
        Keeper { imports_alone: config.imports_alone, view, zone, shown, targets, health_port: config.health_port };
    let prober_stop = stop.clone();
    tasks.spawn(async move {
        prober.run(prober_stop).await;
        Ok(())
    });
    tasks.spawn(keeper.run(store, reports, stop.clone()));
}

/// The clock's seconds, so that a server that starts again does not go back, unless it made more than a zone a second
/// all the time.
fn first_serial() -> u32 {
    let seconds = clock::wall().as_millis() / 1_000;
    // Wraps in 2106, as serials may (RFC 1982).
    seconds as u32
}

/// Runs a worker on a thread of its own; the future ends when it does.
fn on_thread(name: String, worker: Worker) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
    let (done, ended) = tokio::sync::oneshot::channel();
    let run = move || {
        let result = worker.run();
        // Nobody listens once the server is gone.
        let _ = done.send(result);
    };
    thread::Builder::new().name(name).spawn(run).context("a thread for UDP")?;
    Ok(async move { ended.await.unwrap_or_else(|_| Err(anyhow!("a UDP thread panicked"))) })
}

/// Waits for the stop or for the first task that fails, then for all of them.
async fn until_stopped(
    mut tasks: JoinSet<anyhow::Result<()>>,
    wake: Arc<EventFd>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut result = Ok(());
    tokio::select! {
        () = stop.cancelled() => {}
        Some(ended) = tasks.join_next() => result = flat(ended),
    }
    stop.cancel();
    wake.write(1).context("waking the UDP threads")?;
    while let Some(ended) = tasks.join_next().await {
        let ended = flat(ended);
        if result.is_ok() {
            result = ended;
        }
    }
    result
}

fn flat(ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> anyhow::Result<()> {
    ended.unwrap_or_else(|error| Err(anyhow!("a task of the DNS server panicked: {error}")))
}
