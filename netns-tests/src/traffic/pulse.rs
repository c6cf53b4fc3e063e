//! Datagrams at a steady pace, and which of them came back: shows every single packet that was lost.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::host::Host;

/// Often enough that nothing is lost unseen, seldom enough for twenty of them on one core.
const SEND_EVERY: Duration = Duration::from_millis(10);
/// How long a datagram or its answer may be under way when the sending ends.
const LATEST: Duration = Duration::from_secs(1);

/// A running exchange with a UDP echo server. Dropping it ends it.
#[derive(Debug)]
pub struct Pulse {
    target: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    sent: AtomicU64,
    stop_sending: AtomicBool,
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    answered: u64,
    longest_silence: Duration,
    last: Option<Instant>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beats {
    pub sent: u64,
    pub answered: u64,
    /// The longest time between two answers.
    pub longest_silence: Duration,
}

impl Beats {
    pub fn lost(&self) -> u64 {
        self.sent - self.answered.min(self.sent)
    }
}

impl Pulse {
    /// Sends from `host` to an echo server until stopped.
    pub fn start(host: &Host, target: SocketAddr) -> Result<Self> {
        let from: SocketAddr =
            if target.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let open = || -> Result<UdpSocket> {
            let socket = UdpSocket::bind(from)?;
            socket.connect(target)?;
            // So that the thread looks at `stop` now and then.
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        };
        let socket = host.run(open)?.with_context(|| format!("{}: a pulse to {target}", host.name()))?;
        let shared = Arc::new(Shared::default());
        let (sender, sending) = (socket.try_clone()?, shared.clone());
        let receiving = shared.clone();
        let threads = vec![
            std::thread::spawn(move || send(&sender, &sending)),
            std::thread::spawn(move || receive(&socket, &receiving)),
        ];
        Ok(Self { target, shared, threads })
    }

    /// Whom it asks.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// Ends the sending, waits for what is under way, and says what came back.
    pub fn stop(mut self) -> Beats {
        self.shared.stop_sending.store(true, Ordering::Release);
        // It ends within one interval.
        let _ = self.threads.remove(0).join();
        let deadline = Instant::now() + LATEST;
        while Instant::now() < deadline && self.so_far().lost() > 0 {
            std::thread::sleep(SEND_EVERY);
        }
        self.so_far()
    }

    /// What was seen up to now; what is under way counts as lost.
    pub fn so_far(&self) -> Beats {
        let seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Beats {
            sent: self.shared.sent.load(Ordering::Acquire),
            answered: seen.answered,
            longest_silence: seen.longest_silence,
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.shared.stop_sending.store(true, Ordering::Release);
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // It has nothing more to tell.
            let _ = thread.join();
        }
    }
}

fn send(socket: &UdpSocket, shared: &Shared) {
    while !shared.stop_sending.load(Ordering::Acquire) {
        let number = shared.sent.load(Ordering::Relaxed);
        // What the kernel refuses is not under way and is lost as surely as what the network drops.
        let _ = socket.send(&number.to_be_bytes());
        shared.sent.store(number + 1, Ordering::Release);
        std::thread::sleep(SEND_EVERY);
    }
}

fn receive(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = [0; 64];
    while !shared.stop.load(Ordering::Acquire) {
        // A time-out, or an ICMP error that concerns an earlier datagram.
        let Ok(8) = socket.recv(&mut buffer) else { continue };
        let now = Instant::now();
        let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let silence = seen.last.map_or(Duration::ZERO, |last| now - last);
        seen.longest_silence = seen.longest_silence.max(silence);
        seen.last = Some(now);
        seen.answered += 1;
    }
}
