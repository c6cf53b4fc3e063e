//! [`Transit`]: the ends of ways by a hub, and this gateway as a hub for others (see [`gateway_core::transit`]).
//!
//! A way has a port on the loopback, which lanes send to and hear from as from any endpoint. What a lane sends there
//! leaves as a frame inside the tunnel to the hub; a frame for us comes out of the port that stands for its way back.
//! Everything here is beside the lanes: without a hub in use it does nothing, and what it cannot carry is lost as on any
//! network.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use api::ClusterId;
use api::names::ports;
use arc_swap::ArcSwap;
use gateway_core::roster::Roster;
use gateway_core::transit::{End, FRAME_HEADER, Frame, MOST_HUBS, Passage, Transit as Rules, Way};
use gateway_core::{LaneNumber, Refusal, RefusalLog};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::control::Control;
use crate::engine::Plan;

/// Ways that may be open: sixteen peers by four gateways, each by four gateways of hubs, four times over. Each has a
/// socket and a task.
const MOST_WAYS: usize = 1_024;

/// Room for one frame: what any UDP datagram may hold.
const ROOM: usize = 65_536;

/// What bursts of all lanes need while this task does not run; half a second at a gigabit would be more than kernels allow.
const BUFFER: usize = 4 << 20;

/// Owned by the gateway's task. Ends when dropped: a start that fails half way must let go of the port, for the next try.
pub(crate) struct Transit {
    shared: Arc<Shared>,
    /// The one task that takes frames.
    receiver: JoinSet<()>,
}

impl Drop for Transit {
    fn drop(&mut self) {
        self.receiver.abort_all();
        // Each way's task holds what is shared, so nobody else ends them.
        locked(&self.shared.ways).clear();
    }
}

/// What the tasks and the operator's questions use together.
pub(crate) struct Shared {
    own: Ipv6Addr,
    /// Inside the tunnels, at our control address.
    inside: UdpSocket,
    /// The ports of our lanes, lane 0's first.
    lanes: Range<u16>,
    rules: ArcSwap<Rules>,
    ways: Mutex<BTreeMap<Way, OpenWay>>,
    refusals: Mutex<RefusalLog>,
    pub(crate) counters: Counters,
}

/// Datagrams since the start, for metrics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Of our own lanes, handed to a hub.
    pub(crate) sent: AtomicU64,
    /// For our own lanes, from a hub.
    pub(crate) received: AtomicU64,
    /// Of others, passed on.
    pub(crate) passed: AtomicU64,
    /// The kernel would not take them: no route, too large for the way, a full queue.
    pub(crate) unsent: AtomicU64,
}

struct OpenWay {
    socket: Arc<UdpSocket>,
    address: SocketAddr,
    task: AbortHandle,
}

impl Drop for OpenWay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Transit {
    pub(crate) fn start(plan: &Plan, control: &Control, roster: &Roster) -> Result<Self> {
        let last = plan.port.checked_add(u16::from(plan.lanes)).context("the last lane's port is beyond 65535")?;
        let shared = Arc::new(Shared {
            own: plan.control_address,
            inside: open_inside(plan.control_address)?,
            lanes: plan.port..last,
            rules: ArcSwap::from_pointee(roster.transit()),
            ways: Mutex::default(),
            refusals: Mutex::default(),
            counters: Counters::default(),
        });
        let mut receiver = JoinSet::new();
        receiver.spawn(Arc::clone(&shared).receive(control.direct()));
        Ok(Self { shared, receiver })
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Takes a new roster, and gives it back with the ways by hubs among the endpoints of peers that have some, last.
    pub(crate) fn configure(&self, roster: &Roster) -> Roster {
        let rules = roster.transit();
        locked(&self.shared.ways).retain(|way, _| rules.knows(way));
        self.shared.rules.store(Arc::new(rules));
        let rules = self.shared.rules.load();
        roster.with_ways(&rules, |peer, way| match self.shared.open(way) {
            Ok((_, address)) => Some(address),
            Err(error) => {
                tracing::warn!(%peer, "a way by a hub is not used: {error:#}");
                None
            }
        })
    }

    pub(crate) async fn stop(mut self) {
        // Its address goes away with the device; it must not hold the port then.
        self.receiver.shutdown().await;
    }
}

impl Shared {
    /// The hub that an endpoint of a lane stands for.
    pub(crate) fn hub_behind(&self, endpoint: SocketAddr) -> Option<ClusterId> {
        let ways = locked(&self.ways);
        let (way, _) = ways.iter().find(|(_, open)| open.address == endpoint)?;
        self.rules.load().cluster_of(way.hub).cloned()
    }

    pub(crate) fn refusals(&self) -> RefusalLog {
        locked(&self.refusals).clone()
    }

    /// Takes frames until it is aborted.
    async fn receive(self: Arc<Self>, direct: watch::Receiver<BTreeSet<Ipv6Addr>>) {
        let mut bytes = vec![0; ROOM];
        loop {
            // Errors of earlier sends are reported to whoever calls next; they are no news.
            let Ok((length, from)) = self.inside.recv_from(&mut bytes).await else { continue };
            let IpAddr::V6(sender) = from.ip() else { continue };
            let judged = Frame::parse(&bytes[..length]).and_then(|frame| {
                let passage = self.rules.load().judge(sender, &frame, &direct.borrow())?;
                Ok((passage, frame))
            });
            match judged {
                Ok((Passage::Arrived { lane, back }, frame)) => self.hand_over(lane, back, frame.datagram, from).await,
                Ok((Passage::On { to, hubs_left }, frame)) => {
                    let header = Frame { hubs_left, ..frame }.header();
                    bytes[..FRAME_HEADER].copy_from_slice(&header);
                    self.send_inside(&bytes[..length], to, &self.counters.passed).await;
                }
                Err(refusal) => self.refuse(refusal, from),
            }
        }
    }

    /// To a lane of ours, as if from the way's own address.
    async fn hand_over(self: &Arc<Self>, lane: LaneNumber, back: Way, datagram: &[u8], from: SocketAddr) {
        let socket = match self.open(back) {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::debug!("a frame of {from} is dropped: {error:#}");
                return self.refuse(Refusal::TransitFull, from);
            }
        };
        let Some(port) = self.lanes.start.checked_add(u16::from(lane.0)) else { return };
        let sent = socket.send_to(datagram, (Ipv4Addr::LOCALHOST, port)).await;
        self.count(sent, &self.counters.received);
    }

    async fn send_inside(&self, frame: &[u8], to: Ipv6Addr, counter: &AtomicU64) {
        let sent = self.inside.send_to(frame, (to, ports::TRANSIT)).await;
        self.count(sent, counter);
    }

    fn count(&self, sent: io::Result<usize>, counter: &AtomicU64) {
        let counter = if sent.is_ok() { counter } else { &self.counters.unsent };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn refuse(&self, refusal: Refusal, from: SocketAddr) {
        locked(&self.refusals).record(refusal, None, Some(from), None, clock::now());
    }

    /// The socket that stands for a way, opened now if it is not yet.
    fn open(self: &Arc<Self>, way: Way) -> Result<(Arc<UdpSocket>, SocketAddr)> {
        let mut ways = locked(&self.ways);
        if let Some(open) = ways.get(&way) {
            return Ok((Arc::clone(&open.socket), open.address));
        }
        anyhow::ensure!(ways.len() < MOST_WAYS, "{MOST_WAYS} ways by hubs are open already");
        let (socket, address) = open_loopback().context("opening a port on the loopback")?;
        let socket = Arc::new(socket);
        let task = tokio::spawn(Arc::clone(self).carry(Arc::clone(&socket), way)).abort_handle();
        ways.insert(way, OpenWay { socket: Arc::clone(&socket), address, task });
        Ok((socket, address))
    }

    /// Makes frames of what lanes send to a way's port.
    async fn carry(self: Arc<Self>, socket: Arc<UdpSocket>, way: Way) {
        let mut bytes = vec![0; ROOM];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut bytes[FRAME_HEADER..]).await else { continue };
            // Nobody else on this host can hold a lane's port.
            let lane = if self.lanes.contains(&from.port()) { from.port() - self.lanes.start } else { continue };
            let Ok(lane) = u8::try_from(lane) else { continue };
            let source = End { gateway: self.own, lane: LaneNumber(lane) };
            let header = Frame { hubs_left: MOST_HUBS, source, destination: way.remote, datagram: &[] }.header();
            bytes[..FRAME_HEADER].copy_from_slice(&header);
            self.send_inside(&bytes[..FRAME_HEADER + length], way.hub, &self.counters.sent).await;
        }
    }
}

/// At the control address, inside the tunnels. Frames are never cut: the path's size is measured through them.
fn open_inside(own: Ipv6Addr) -> Result<UdpSocket> {
    let address = SocketAddr::new(own.into(), ports::TRANSIT);
    let open = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        socket.set_only_v6(true)?;
        crate::udp::never_cut(&socket)?;
        enlarge(&SockRef::from(&socket));
        socket.bind(&address.into())?;
        UdpSocket::from_std(socket.into())
    };
    open().with_context(|| format!("listening for transit on {address} inside the tunnel"))
}

fn open_loopback() -> io::Result<(UdpSocket, SocketAddr)> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_nonblocking(true)?;
    enlarge(&SockRef::from(&socket));
    let address = socket.local_addr()?;
    Ok((UdpSocket::from_std(socket)?, address))
}

/// As far as the host allows: smaller buffers lose more of a burst.
fn enlarge(socket: &SockRef<'_>) {
    for result in [socket.set_recv_buffer_size(BUFFER), socket.set_send_buffer_size(BUFFER)] {
        if let Err(error) = result {
            tracing::debug!(%error, "a transit socket keeps its buffers");
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
