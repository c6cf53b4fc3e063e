//! [`Relay`]: bytes between controllers of two clusters, spliced through the tunnel (DESIGN, decision 13).
//!
//! Controllers only listen. For each peer that can be reached and each controller of ours, this gateway dials the
//! peer's gateway inside the tunnel and our controller, tells the latter whom it has on the line, and copies bytes. What
//! the peer's gateway dials here goes to one of our controllers. TLS ends in the controllers: nothing can be read or
//! forged here.

mod calls;
mod dialler;
mod replicas;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use api::ClusterId;
use api::names::ports::CONTROL_RELAY;
use arc_swap::ArcSwap;
use gateway_core::roster::Roster;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::Config;
use crate::control::Control;
use crate::engine::Plan;
use crate::lane::Lane;

use dialler::{ControllerStream, Dialler, dial_controller, notice_silence};

/// The shortest wait after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Connections one peer may have open here. Each of its gateways dials once for each of its controllers: sixteen
/// gateways and four controllers.
const CONNECTIONS_PER_PEER: usize = 64;

/// What passed, for metrics.
#[derive(Debug, Default)]
pub(crate) struct RelayCounters {
    pub(crate) open: AtomicUsize,
    pub(crate) accepted: AtomicU64,
    /// Not from a peer's control address, or one too many.
    pub(crate) refused: AtomicU64,
    pub(crate) dialled: AtomicU64,
    pub(crate) dials_failed: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

/// Who may call, by address.
type Callers = ArcSwap<BTreeMap<Ipv6Addr, ClusterId>>;

pub(crate) struct Relay {
    callers: Arc<Callers>,
    counters: Arc<RelayCounters>,
    listener: JoinHandle<()>,
    calls: JoinHandle<()>,
    peers: watch::Sender<Vec<ClusterId>>,
}

impl Relay {
    pub(crate) fn start(
        config: &Config,
        plan: &Plan,
        lanes: &[Arc<Lane>],
        control: &Control,
        roster: &Roster,
    ) -> Result<Self> {
        let controllers = replicas::follow(config.controllers.clone());
        let counters = Arc::new(RelayCounters::default());
        let callers = Arc::new(Callers::from_pointee(callers_of(roster)));
        // With one lane everything comes by one device, and the listener need not hear any other.
        let device = if let [only] = lanes { Some(only.tun.name()) } else { None };
        let listener = listen(plan.control_address, device)?;
        let listener = tokio::spawn(accept(listener, Arc::clone(&callers), controllers.clone(), Arc::clone(&counters)));
        let dialler =
            Dialler { own: plan.control_address, reachable: control.reachable(), counters: Arc::clone(&counters) };
        let (peers, wanted) = watch::channel(peers_of(roster));
        let calls = tokio::spawn(calls::keep(dialler, wanted, controllers));
        Ok(Self { callers, counters, listener, calls, peers })
    }

    pub(crate) fn counters(&self) -> Arc<RelayCounters> {
        Arc::clone(&self.counters)
    }

    /// Dials for peers that are new, stops for those that are gone.
    pub(crate) fn configure(&self, roster: &Roster) {
        self.callers.store(Arc::new(callers_of(roster)));
        self.peers.send_replace(peers_of(roster));
    }

    pub(crate) async fn stop(self) {
        self.listener.abort();
        self.calls.abort();
        // The listener's address goes away with the device; it must not hold the port then.
        let _ = self.listener.await;
        let _ = self.calls.await;
    }
}

fn peers_of(roster: &Roster) -> Vec<ClusterId> {
    roster.topology.peers.iter().map(|peer| peer.id.clone()).collect()
}

fn callers_of(roster: &Roster) -> BTreeMap<Ipv6Addr, ClusterId> {
    let gateways =
        roster.topology.peers.iter().flat_map(|peer| peer.gateways.iter().map(move |gateway| (peer, gateway)));
    gateways.filter_map(|(peer, gateway)| Some((gateway.control_address?, peer.id.clone()))).collect()
}

fn listen(own: Ipv6Addr, device: Option<&str>) -> Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    if let Some(device) = device
        && let Err(error) = socket.bind_device(Some(device.as_bytes()))
    {
        // The check of the caller's address remains, and answers to it go into the tunnel.
        tracing::debug!(%error, "the relay's listener is not bound to the tunnel device");
    }
    let address = SocketAddr::new(own.into(), CONTROL_RELAY);
    let bound = socket.bind(address).and_then(|()| socket.listen(CONNECTIONS_PER_PEER as u32));
    bound.with_context(|| format!("listening on {address} inside the tunnel"))
}

async fn accept(
    listener: TcpListener,
    callers: Arc<Callers>,
    controllers: watch::Receiver<Arc<[String]>>,
    counters: Arc<RelayCounters>,
) {
    let open: Arc<Mutex<BTreeMap<ClusterId, usize>>> = Arc::default();
    let mut turn = 0;
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: let some be closed first.
                tracing::warn!(%error, "a connection to the control relay was lost");
                tokio::time::sleep(FIRST_PAUSE).await;
                continue;
            }
        };
        let IpAddr::V6(address) = from.ip() else { continue };
        let known = callers.load().get(&address).cloned();
        let Some(permit) = known.and_then(|peer| Permit::take(&open, peer)) else {
            counters.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        counters.accepted.fetch_add(1, Ordering::Relaxed);
        turn += 1;
        let order: Vec<String> = rotated(&controllers.borrow(), turn);
        let counters = Arc::clone(&counters);
        tokio::spawn(async move {
            for controller in order {
                match dial_controller(&controller).await {
                    Ok(ours) => {
                        splice(stream, ours, &counters).await;
                        break;
                    }
                    Err(error) => tracing::debug!(%error, controller, "this controller cannot be reached"),
                }
            }
            drop(permit);
        });
    }
}

fn rotated(controllers: &[String], turn: usize) -> Vec<String> {
    let start = if controllers.is_empty() { 0 } else { turn % controllers.len() };
    controllers[start..].iter().chain(&controllers[..start]).cloned().collect()
}

/// One of a peer's connections; counted down when dropped.
struct Permit {
    open: Arc<Mutex<BTreeMap<ClusterId, usize>>>,
    peer: ClusterId,
}

impl Permit {
    fn take(open: &Arc<Mutex<BTreeMap<ClusterId, usize>>>, peer: ClusterId) -> Option<Self> {
        let mut counts = open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(peer.clone()).or_default();
        if *count >= CONNECTIONS_PER_PEER {
            return None;
        }
        *count += 1;
        Some(Self { open: Arc::clone(open), peer })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count = count.saturating_sub(1);
        }
    }
}

async fn splice(mut theirs: TcpStream, mut ours: Box<dyn ControllerStream>, counters: &RelayCounters) {
    if let Err(error) = notice_silence(&theirs) {
        tracing::debug!(%error, "a control connection goes on without keepalives");
    }
    counters.open.fetch_add(1, Ordering::Relaxed);
    // How it ended is the controllers' affair: they see it as well, and resume.
    if let Ok((to_us, to_them)) = tokio::io::copy_bidirectional(&mut theirs, &mut ours).await {
        counters.bytes.fetch_add(to_us + to_them, Ordering::Relaxed);
    }
    counters.open.fetch_sub(1, Ordering::Relaxed);
}
