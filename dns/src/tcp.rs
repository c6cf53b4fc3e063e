//! Answers over TCP (RFC 7766): messages with a length before them, as many on a connection as the client likes,
//! answered in order.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::answer::{Transport, Verdict, answer};
use crate::tally::Tally;
use crate::turns::Turns;
use crate::zone::Zone;

/// What clients over TCP may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpLimits {
    /// Connections at once on each address; more are closed as they come.
    pub connections: usize,
    /// A connection without a whole message for this long is closed.
    pub idle: Duration,
}

impl Default for TcpLimits {
    fn default() -> Self {
        // Each connection costs some kilobytes; RFC 7766, section 6.2.3 asks for an idle time of a few seconds.
        Self { connections: 1024, idle: Duration::from_secs(10) }
    }
}

/// A client that does not take its answers for this long is gone.
const STALLED: Duration = Duration::from_secs(5);
/// Answers are sent once this much is waiting, or when no whole question is left.
const FLUSH: usize = 16 * 1024;
/// After an error of the listener itself, such as too many open files.
const BREATH: Duration = Duration::from_millis(50);

/// Takes connections until the server stops.
pub(crate) async fn serve(
    listener: TcpListener,
    zone: Arc<ArcSwap<Zone>>,
    tally: Arc<Tally>,
    limits: TcpLimits,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(limits.connections));
    let mut turns = Turns::random()?;
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be taken");
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
            },
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            tally.turned_away.fetch_add(1, Relaxed);
            continue;
        };
        let seed = u64::from(turns.next()) << 32 | u64::from(turns.next());
        let connection = Connection {
            stream,
            zone: Arc::clone(&zone),
            tally: Arc::clone(&tally),
            turns: Turns::new(seed),
            idle: limits.idle,
        };
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! { () = stop.cancelled() => {}, () = connection.run() => {} }
            drop(place);
        });
    }
}

struct Connection {
    stream: TcpStream,
    zone: Arc<ArcSwap<Zone>>,
    tally: Arc<Tally>,
    turns: Turns,
    idle: Duration,
}

impl Connection {
    /// Answers until the client is done, idle or stalled.
    async fn run(mut self) {
        let mut received = Vec::new();
        let mut sent = Vec::new();
        let mut out = Vec::new();
        loop {
            // The limit is on a whole message: a byte now and then does not keep a connection.
            let Ok(true) = timeout(self.idle, self.fill(&mut received)).await else {
                return;
            };
            let mut taken = 0;
            while let Some(message) = first_message(&received[taken..]) {
                taken += 2 + message.len();
                let begin = std::time::Instant::now();
                let verdict = answer(&self.zone.load(), message, Transport::Tcp, self.turns.next(), &mut out);
                self.tally.add(verdict, begin.elapsed());
                if let Verdict::Ignored(_) = verdict {
                    // Whoever sends that is no client: nothing after it can be trusted to be framed.
                    return;
                }
                // An answer is at most 65,535 bytes long.
                sent.extend_from_slice(&(out.len() as u16).to_be_bytes());
                sent.extend_from_slice(&out);
                if sent.len() >= FLUSH && !self.flush(&mut sent).await {
                    return;
                }
            }
            received.drain(..taken);
            if !sent.is_empty() && !self.flush(&mut sent).await {
                return;
            }
        }
    }

    /// Reads until there is a whole message; false when the client is done.
    async fn fill(&mut self, received: &mut Vec<u8>) -> bool {
        while first_message(received).is_none() {
            received.reserve(2048);
            match self.stream.read_buf(received).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return false,
            }
        }
        true
    }

    async fn flush(&mut self, sent: &mut Vec<u8>) -> bool {
        let done = matches!(timeout(STALLED, self.stream.write_all(sent)).await, Ok(Ok(())));
        if !done {
            self.tally.unsent.fetch_add(1, Relaxed);
        }
        sent.clear();
        done
    }
}

fn first_message(received: &[u8]) -> Option<&[u8]> {
    let (length, rest) = received.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_be_bytes(*length)))
}
