//! Steady load: connections, datagrams and lookups at a rate, and when those were under way that were lost or late.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::host::Host;
use crate::traffic::lookups::{self, Lookups};

/// A request that takes longer is late: TCP sends a lost SYN again after a second, so anything near that was a loss.
const LATE: Duration = Duration::from_millis(900);
/// A request that takes longer has failed.
const GIVEN_UP: Duration = Duration::from_secs(3);
/// A datagram that is not back by then is lost.
const DATAGRAM_LOST: Duration = Duration::from_secs(1);
/// A datagram is on its way for less: one that was sent so long before something happened was past it.
const ON_ITS_WAY: Duration = Duration::from_millis(50);
/// Sending goes in small bursts: a timer of a millisecond would cost more than what it sends.
const BURST_EVERY: Duration = Duration::from_millis(5);
/// Flows of datagrams: so many that every gateway carries some.
const FLOWS: usize = 20;
/// Requests under way at once, when all of them fail: three seconds of a thousand a second, and some.
const MOST_UNDER_WAY: u64 = 4_000;

/// What is sent, a second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Requests, each over a connection of its own.
    pub connections: u32,
    pub datagrams: u32,
    /// Questions to DNS servers, all of them together.
    pub queries: u32,
}

/// Whom a load asks.
#[derive(Clone, Debug)]
pub struct Targets {
    /// Where HTTP is answered.
    pub pages: Vec<SocketAddr>,
    /// Where datagrams come back from.
    pub echoes: Vec<SocketAddr>,
    pub lookups: Lookups,
}

/// What was lost, late or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harmed {
    /// A request, or datagrams.
    Traffic,
    /// One DNS server's answer, and another server's was right.
    OneServer,
    /// A name: no server had the right answer.
    Name,
}

/// Something lost, late or wrong. Times are since the load's beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hurt {
    pub begun: Duration,
    pub ended: Duration,
    /// Datagrams that were lost one after the other are told together.
    pub count: u64,
    pub of: Harmed,
    pub what: String,
}

/// What came of a load so far.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub requests: u64,
    pub datagrams: u64,
    /// Names that all servers were asked for.
    pub lookups: u64,
    pub hurt: Vec<Hurt>,
}

/// A running load. Dropping it ends it.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Result<()>>>>,
}

pub(super) struct Shared {
    begun: Instant,
    stop: AtomicBool,
    report: Mutex<Report>,
    /// Clusters that nothing reaches, and since when.
    lost: Mutex<BTreeMap<String, Duration>>,
}

impl Load {
    /// The rate grows until then: caches are empty at first, and nobody's load begins at once.
    pub const FULL_AFTER: Duration = Duration::from_secs(2);

    /// From `host`: requests, datagrams and lookups to the targets in turn.
    pub fn start(host: &Host, targets: Targets, rates: Rates) -> Result<Self> {
        ensure!(!targets.pages.is_empty() && !targets.echoes.is_empty(), "a load needs somebody to ask");
        // Everybody may open as many files as the hard limit says; the soft one is often 1,024.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most.min(MOST_UNDER_WAY * 2), most).context("raising the limit of files")?;
        let (begun, stop) = (Instant::now(), AtomicBool::new(false));
        let shared = Arc::new(Shared { begun, stop, report: Mutex::default(), lost: Mutex::default() });
        let running = shared.clone();
        let work = move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run(running, targets, rates))
        };
        let thread = host.namespace().spawn(work)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// When it began: what [`Hurt`]'s times are counted from.
    pub fn begun(&self) -> Instant {
        self.shared.begun
    }

    /// From now on nothing reaches this cluster: its endpoints must leave the answers of DNS.
    pub fn cluster_is_lost(&self, cluster: &str) {
        self.shared.lost().insert(cluster.to_owned(), self.shared.now());
    }

    /// From now on it may be named again.
    pub fn cluster_is_back(&self, cluster: &str) {
        self.shared.lost().remove(cluster);
    }

    /// What came of it up to now.
    pub fn so_far(&self) -> Report {
        self.shared.report().clone()
    }

    /// Ends it, waits for what is under way, and says what came of it.
    pub fn stop(mut self) -> Result<Report> {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the load panicked"))???;
        }
        Ok(self.shared.report().clone())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

impl Shared {
    pub(super) fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self) -> MutexGuard<'_, BTreeMap<String, Duration>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long ago, at this time, the cluster was lost; none while it lives.
    pub(super) fn lost_for(&self, cluster: &str, at: Duration) -> Option<Duration> {
        self.lost().get(cluster).map(|since| at.saturating_sub(*since))
    }

    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(super) fn hurt(&self, hurt: Hurt) {
        self.report().hurt.push(hurt);
    }
}

async fn run(shared: Arc<Shared>, targets: Targets, rates: Rates) -> Result<()> {
    let Targets { pages, echoes, lookups } = targets;
    let mut flows = vec![tokio::spawn(lookups::look_up(shared.clone(), lookups, rates.queries))];
    for target in echoes.iter().cycle().take(FLOWS) {
        let from: SocketAddr = match target {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(from).await?;
        socket.connect(target).await.with_context(|| format!("datagrams to {target}"))?;
        let rate = f64::from(rates.datagrams) / FLOWS as f64;
        flows.push(tokio::spawn(exchange_datagrams(shared.clone(), socket, *target, rate)));
    }
    ask(&shared, &pages, rates.connections).await;
    for flow in flows {
        flow.await??;
    }
    Ok(())
}

/// How many are to be sent by now, at so many a second.
pub(super) fn due(now: Duration, rate: f64) -> u64 {
    let (now, full_after) = (now.as_secs_f64(), Load::FULL_AFTER.as_secs_f64());
    let seconds_at_full_rate = if now < full_after { now * now / full_after / 2.0 } else { now - full_after / 2.0 };
    (seconds_at_full_rate * rate) as u64
}

/// Starts requests at the rate, whatever becomes of those before; returns when the last one ended.
async fn ask(shared: &Arc<Shared>, pages: &[SocketAddr], rate: u32) {
    let mut ticks = interval(BURST_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let under_way = Arc::new(());
    let mut targets = pages.iter().cycle();
    let mut started = 0;
    while !shared.is_stopped() {
        ticks.tick().await;
        let due = due(shared.now(), f64::from(rate));
        while started < due {
            started += 1;
            let Some(target) = targets.next().copied() else { return };
            if Arc::strong_count(&under_way) as u64 > MOST_UNDER_WAY {
                let now = shared.now();
                let what = format!("request to {target}: not begun, too many are under way");
                shared.hurt(Hurt { begun: now, ended: now, count: 1, of: Harmed::Traffic, what });
                continue;
            }
            let (shared, under_way) = (shared.clone(), under_way.clone());
            tokio::spawn(async move {
                request(&shared, target).await;
                drop(under_way);
            });
        }
    }
    while Arc::strong_count(&under_way) > 1 {
        ticks.tick().await;
    }
}

async fn request(shared: &Shared, target: SocketAddr) {
    let begun = shared.now();
    let came = timeout(GIVEN_UP, exchange(target)).await;
    let ended = shared.now();
    shared.report().requests += 1;
    let reason = match came {
        Ok(Ok(())) if ended - begun < LATE => return,
        Ok(Ok(())) => format!("answered after {:.2} s", (ended - begun).as_secs_f64()),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => format!("no answer for {} s", GIVEN_UP.as_secs()),
    };
    shared.hurt(Hurt { begun, ended, count: 1, of: Harmed::Traffic, what: format!("request to {target}: {reason}") });
}

async fn exchange(target: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(target).await.context("connecting")?;
    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await.context("asking")?;
    let mut answer = Vec::with_capacity(512);
    stream.read_to_end(&mut answer).await.context("reading the answer")?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "not the answer: {:?}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Sends at the rate until stopped, then waits for what is under way.
async fn exchange_datagrams(shared: Arc<Shared>, socket: UdpSocket, target: SocketAddr, rate: f64) -> Result<()> {
    let mut ticks = interval(BURST_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut under_way: BTreeMap<u64, Duration> = BTreeMap::new();
    let mut sent = 0_u64;
    let mut buffer = [0; 64];
    loop {
        tokio::select! {
            came = socket.recv(&mut buffer) => {
                let mut came = came;
                // An error is that of an earlier datagram, which will be missed.
                while let Ok(length) = came {
                    if let Ok(number) = buffer[..length].try_into() {
                        under_way.remove(&u64::from_be_bytes(number));
                    }
                    came = socket.try_recv(&mut buffer);
                }
            }
            _ = ticks.tick() => {
                let now = shared.now();
                tell_lost(&shared, &mut under_way, target, now);
                if shared.is_stopped() {
                    if under_way.is_empty() {
                        return Ok(());
                    }
                    continue;
                }
                while sent < due(now, rate) {
                    // What the kernel refuses is lost as surely as what the network drops.
                    let _ = socket.try_send(&sent.to_be_bytes());
                    under_way.insert(sent, now);
                    sent += 1;
                    shared.report().datagrams += 1;
                }
            }
        }
    }
}

/// Those that were sent in one burst or in the next are told together.
fn tell_lost(shared: &Shared, under_way: &mut BTreeMap<u64, Duration>, target: SocketAddr, now: Duration) {
    let mut told: Option<Hurt> = None;
    while let Some(first) = under_way.first_entry()
        && now.saturating_sub(*first.get()) > DATAGRAM_LOST
    {
        let sent = first.remove();
        let what = || format!("datagram to {target}: lost");
        let first = || Hurt { begun: sent, ended: sent, count: 0, of: Harmed::Traffic, what: what() };
        let hurt = told.get_or_insert_with(first);
        hurt.count += 1;
        hurt.ended = sent + ON_ITS_WAY;
    }
    if let Some(hurt) = told {
        shared.hurt(hurt);
    }
}
