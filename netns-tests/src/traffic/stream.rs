//! A download that shows how long a flow was silent.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Protocol, Type};

use crate::host::Host;

/// Often enough that a silence is measured to a few milliseconds, seldom enough for fifty streams on one core.
const SEND_EVERY: Duration = Duration::from_millis(5);
/// A client that reads nothing for so long is let go.
const SERVER_PATIENCE: Duration = Duration::from_secs(60);
const MOST_CONNECTIONS: usize = 256;
/// What is sent each time: little, so that silence is what shows; or more than a segment of any size holds, 13 Mbit/s.
const LITTLE: &[u8] = &[b'.'; 64];
const MUCH: &[u8] = &[b'.'; 32 << 10];
const SEND_MUCH_EVERY: Duration = Duration::from_millis(20);

/// Sends 64 bytes every 5 ms to everyone who connects, until the process ends.
pub fn serve(port: u16) -> io::Result<()> {
    serve_each(port, LITTLE, SEND_EVERY)
}

/// Sends 32 KiB every 20 ms to everyone who connects, until the process ends.
pub fn serve_bulk(port: u16) -> io::Result<()> {
    serve_each(port, MUCH, SEND_MUCH_EVERY)
}

fn serve_each(port: u16, piece: &'static [u8], every: Duration) -> io::Result<()> {
    let listener = TcpListener::from(super::both_families(Type::STREAM, Protocol::TCP, port)?);
    println!("{} {port}", super::LISTENING);
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        if open.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let open = open.clone();
        std::thread::spawn(move || {
            let _ = stream.set_nodelay(true);
            let _ = stream.set_write_timeout(Some(SERVER_PATIENCE));
            while stream.write_all(piece).is_ok() {
                std::thread::sleep(every);
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(())
}

/// A running download. Dropping it ends it.
#[derive(Debug)]
pub struct Download {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Seen {
    bytes: u64,
    last: Instant,
    longest_silence: Duration,
    ended: Option<String>,
}

/// What a download was like.
#[derive(Clone, Debug)]
pub struct Flow {
    pub bytes: u64,
    /// The longest time between two arrivals, the time since the last one included.
    pub longest_silence: Duration,
    /// Why the connection ended, if it did.
    pub ended: Option<String>,
}

impl Download {
    /// Connects from `host` within `limit` and downloads until stopped.
    pub fn start(host: &Host, target: SocketAddr, limit: Duration) -> Result<Self> {
        host.run(|| Self::ask(target, limit))?.with_context(|| format!("from {}", host.name()))
    }

    /// As [`Self::start`], from the network namespace of the calling thread.
    pub fn ask(target: SocketAddr, limit: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&target, limit).with_context(|| format!("connecting to {target}"))?;
        // Only so that the thread looks at `stop` now and then; a silence may be longer.
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        let seen = Seen { bytes: 0, last: Instant::now(), longest_silence: Duration::ZERO, ended: None };
        let (seen, stop) = (Arc::new(Mutex::new(seen)), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || receive(stream, &shared, &stopped));
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// What was seen up to now.
    pub fn so_far(&self) -> Flow {
        let seen = lock(&self.seen);
        let longest_silence = seen.longest_silence.max(seen.last.elapsed());
        Flow { bytes: seen.bytes, longest_silence, ended: seen.ended.clone() }
    }

    /// Forgets the silences so far, so that the next one stands alone.
    pub fn start_measuring(&self) {
        let mut seen = lock(&self.seen);
        seen.longest_silence = Duration::ZERO;
        seen.last = Instant::now();
    }

    /// Waits until at least one more byte has come.
    pub fn wait_for_more(&self, limit: Duration) -> Result<()> {
        self.wait_for(1, limit)
    }

    /// Waits until `bytes` more have come.
    pub fn wait_for(&self, bytes: u64, limit: Duration) -> Result<()> {
        let before = self.so_far().bytes;
        let deadline = Instant::now() + limit;
        while self.so_far().bytes < before + bytes {
            let flow = self.so_far();
            ensure!(flow.ended.is_none(), "the download ended: {}", flow.ended.unwrap_or_default());
            ensure!(Instant::now() < deadline, "the download is silent for {:?}", flow.longest_silence);
            std::thread::sleep(SEND_EVERY);
        }
        Ok(())
    }

    /// Ends the download and says what it was like.
    pub fn stop(mut self) -> Flow {
        let flow = self.so_far();
        self.end();
        flow
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing more to tell than what `seen` has.
            let _ = thread.join();
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.end();
    }
}

fn receive(mut stream: TcpStream, seen: &Mutex<Seen>, stop: &AtomicBool) {
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let ended = match stream.read(&mut buffer) {
            Ok(0) => Some("closed by the other side".to_owned()),
            Ok(length) => {
                let mut seen = lock(seen);
                seen.longest_silence = seen.longest_silence.max(seen.last.elapsed());
                seen.last = Instant::now();
                seen.bytes += length as u64;
                None
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => None,
            Err(error) => Some(error.to_string()),
        };
        if ended.is_some() {
            lock(seen).ended = ended;
            return;
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
