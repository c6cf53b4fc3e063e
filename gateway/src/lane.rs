//! [`Lane`]: a whole WireGuard end with its device, sockets and two threads.
//!
//! The thread names are what `top -H` shows: `lane-0-out` moves packets from the TUN device to UDP, `lane-0-in` the
//! other way. Each owns its arenas, made once; a batch is what had arrived when the thread looked, so nothing waits for
//! company. What changes (peers, routes) reaches the threads as one immutable value, swapped whole.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use api::ClusterId;
use arc_swap::{ArcSwap, Guard};
use gateway_core::session::SEALED_OVERHEAD;
use gateway_core::{Arena, ExportChange, LaneNumber, Notice, Refusal, RefusalLog, RouteTable, Sealed};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::lane_sessions::LaneSessions;
use crate::packet_loops::{InboundLoop, OutboundLoop};
use crate::tun::Tun;
use crate::udp::{Departure, Sender, Sent, Sockets};

/// Room for one packet or datagram: jumbo frames whatever our own MTU is, for a peer may have a larger one.
const SMALLEST_PIECE: usize = 9_216;

/// What a lane's threads know of the world at one moment.
pub(crate) struct View {
    pub(crate) table: Arc<RouteTable>,
    pub(crate) sessions: LaneSessions,
}

/// Everything the lane's threads share. Other threads use it to publish a new [`View`] and to send.
pub(crate) struct Lane {
    number: LaneNumber,
    pub(crate) tun: Tun,
    pub(crate) sockets: Sockets,
    view: ArcSwap<View>,
    piece: usize,
    stopping: AtomicBool,
    wake_outbound: EventFd,
    wake_inbound: EventFd,
    pub(crate) counters: Counters,
}

/// What both threads count, for metrics. Written by one thread each, read by anyone.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) datagrams_sent: AtomicU64,
    pub(crate) datagrams_unsent: AtomicU64,
    pub(crate) datagrams_received: AtomicU64,
    pub(crate) datagrams_oversized: AtomicU64,
    /// Packets the kernel would not take.
    pub(crate) packets_undelivered: AtomicU64,
    outbound_refusals: Mutex<Refusals>,
    inbound_refusals: Mutex<Refusals>,
}

/// What a thread refused, as it last told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals {
    pub(crate) log: RefusalLog,
    /// Counts of what is known to be a peer's. Kept by name, for link numbers are used again.
    pub(crate) by_peer: BTreeMap<(ClusterId, Refusal), u64>,
}

impl Refusals {
    /// Takes a newer log; `table` says whose the links are now.
    pub(crate) fn update(&mut self, log: &RefusalLog, table: &RouteTable) {
        for link in table.links() {
            let Some(peer) = table.cluster(link.cluster) else { continue };
            for reason in Refusal::ALL {
                let more = log.count_on(link.id, *reason).saturating_sub(self.log.count_on(link.id, *reason));
                if more > 0 {
                    *self.by_peer.entry((peer.clone(), *reason)).or_default() += more;
                }
            }
        }
        self.log = log.clone();
    }
}

impl Counters {
    pub(crate) fn outbound_refusals(&self) -> &Mutex<Refusals> {
        &self.outbound_refusals
    }

    pub(crate) fn inbound_refusals(&self) -> &Mutex<Refusals> {
        &self.inbound_refusals
    }

    pub(crate) fn count_sent(&self, sent: Sent) {
        self.datagrams_sent.fetch_add(sent.datagrams, Ordering::Relaxed);
        self.datagrams_unsent.fetch_add(sent.failed, Ordering::Relaxed);
    }

    /// Refusals of both directions as last published.
    pub(crate) fn refusals(&self) -> [Refusals; 2] {
        [&self.outbound_refusals, &self.inbound_refusals]
            .map(|log| log.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// The lane's threads. Dropping this does not stop them; [`Threads::stop`] does.
pub(crate) struct Threads {
    lane: Arc<Lane>,
    handles: Vec<JoinHandle<()>>,
}

impl Lane {
    pub(crate) fn new(number: LaneNumber, tun: Tun, sockets: Sockets, view: View, mtu: u16) -> Result<Self> {
        let wake = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("making an eventfd");
        Ok(Self {
            number,
            tun,
            sockets,
            view: ArcSwap::from_pointee(view),
            piece: SMALLEST_PIECE.max(usize::from(mtu) + SEALED_OVERHEAD),
            stopping: AtomicBool::new(false),
            wake_outbound: wake()?,
            wake_inbound: wake()?,
            counters: Counters::default(),
        })
    }

    pub(crate) fn number(&self) -> LaneNumber {
        self.number
    }

    /// Room for one packet or datagram of this lane.
    pub(crate) fn piece(&self) -> usize {
        self.piece
    }

    pub(crate) fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    pub(crate) fn wake_outbound(&self) -> &EventFd {
        &self.wake_outbound
    }

    pub(crate) fn wake_inbound_descriptor(&self) -> &EventFd {
        &self.wake_inbound
    }

    /// Publishes what the threads use from their next batch on.
    pub(crate) fn publish(&self, view: View) {
        self.view.store(Arc::new(view));
    }

    /// Sends those of `datagrams` that are this lane's: probes, handshakes, timers. Made for a handful, not for batches, and
    /// for one thread.
    pub(crate) fn send(&self, sender: &mut Sender, datagrams: &Arena<Sealed>) {
        self.send_those(sender, datagrams, false);
        let has_whole = datagrams.iter().any(|(_, about)| about.whole && about.lane == self.number);
        if has_whole && let Err(error) = self.sockets.whole(|| self.send_those(sender, datagrams, true)) {
            // A size that is not proved is not used: the path's MTU falls to the least.
            tracing::warn!(%error, "this host does not let the size of a path be measured");
        }
    }

    fn send_those(&self, sender: &mut Sender, datagrams: &Arena<Sealed>, whole: bool) {
        let view = self.view.load();
        let ours: Vec<_> = datagrams
            .iter()
            .filter(|(_, about)| about.lane == self.number && about.whole == whole)
            .map(|(bytes, about)| {
                let session = about.link.and_then(|link| view.sessions.get(link));
                let source = session.and_then(|session| session.source_for(about.to));
                // Probes that ask for a size must not be cut, and everything else is short.
                Departure::uncut(bytes, about.to, source)
            })
            .collect();
        let to = SocketAddr::from(([0, 0, 0, 0], 0));
        let nothing = Departure::uncut(&[], to, None);
        let sent = sender.send(&self.sockets, ours.len(), |index| ours.get(index).copied().unwrap_or(nothing));
        // One that is larger than this host's own link is an answer, and no failure.
        let failed = if whole { 0 } else { sent.failed };
        self.counters.count_sent(Sent { failed, ..sent });
    }

    /// Lets the receiving thread see new exports even while no packet comes.
    pub(crate) fn wake_inbound(&self) {
        // The only error is a counter at its limit, which wakes as well.
        let _ = self.wake_inbound.write(1);
    }

    /// Starts both threads.
    pub(crate) fn start(
        self: Arc<Self>,
        exports: mpsc::Receiver<ExportChange>,
        notices: impl Fn(&[Notice]) + Send + 'static,
    ) -> Result<Threads> {
        let number = self.number.0;
        let (outbound, inbound) = (Arc::clone(&self), Arc::clone(&self));
        let handles = vec![
            spawn(format!("lane-{number}-out"), move || OutboundLoop::new(&outbound).run())?,
            spawn(format!("lane-{number}-in"), move || InboundLoop::new(&inbound, exports).run(&notices))?,
        ];
        Ok(Threads { lane: self, handles })
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl Threads {
    /// Stops both threads after the batch in hand and waits for them.
    pub(crate) fn stop(self) {
        self.lane.stopping.store(true, Ordering::Release);
        let _ = self.lane.wake_outbound.write(1);
        self.lane.wake_inbound();
        for handle in self.handles {
            // A thread that panicked has ended the process already.
            let _ = handle.join();
        }
    }
}

/// A packet thread that ends before it was told to must not leave a gateway that looks alive: nodes and peers would go
/// on sending to it. So the process ends, and they see that at once.
pub(crate) fn spawn(name: String, body: impl FnOnce() -> Result<()> + Send + 'static) -> Result<JoinHandle<()>> {
    let thread_name = name.clone();
    std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            let problem = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "it panicked; the message is above".to_owned(),
            };
            tracing::error!(thread = thread_name, problem, "a packet thread ended, so the gateway ends");
            std::process::abort();
        })
        .context("starting a thread")
}
