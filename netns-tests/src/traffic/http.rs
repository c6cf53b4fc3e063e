//! An HTTP server that says who it is, and a client that counts who answered.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Protocol, Type};

use crate::host::Host;

/// Connections served at once; more are closed unanswered, so that a runaway test cannot fill the machine.
const MOST_CONNECTIONS: usize = 512;
/// A request head longer than this is not one of ours.
const LONGEST_HEAD: u64 = 8 * 1024;
/// An answer longer than this is not one of ours.
const LONGEST_ANSWER: u64 = 64 * 1024;
/// A client that says nothing for so long is let go.
const SERVER_PATIENCE: Duration = Duration::from_secs(10);
/// How many failures are kept in words.
const FAILURES_KEPT: usize = 5;

/// Serves until the process ends.
pub fn serve(port: u16, pod: &str, cluster: &str) -> io::Result<()> {
    let listener = TcpListener::from(super::both_families(Type::STREAM, Protocol::TCP, port)?);
    println!("{} {port}", super::LISTENING);
    let open = Arc::new(AtomicUsize::new(0));
    let identity = format!("pod={pod} cluster={cluster}");
    for stream in listener.incoming() {
        // One client that went away before it was accepted is no reason to stop.
        let Ok(stream) = stream else { continue };
        if open.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (open, identity) = (open.clone(), identity.clone());
        std::thread::spawn(move || {
            if let Err(error) = answer(&stream, &identity) {
                eprintln!("a client was not answered: {error}");
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(())
}

fn answer(stream: &TcpStream, identity: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(SERVER_PATIENCE))?;
    stream.set_write_timeout(Some(SERVER_PATIENCE))?;
    let mut head = BufReader::new(stream.take(LONGEST_HEAD));
    let mut line = String::new();
    head.read_line(&mut line)?;
    let path = line.split_whitespace().nth(1).unwrap_or("/").to_owned();
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Err(io::Error::other("the request did not end"));
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let client = stream.peer_addr()?.ip().to_canonical();
    let body = format!("{identity} client={client} path={path}\n");
    let length = body.len();
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// Who answered one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub pod: String,
    pub cluster: String,
    /// Who the server says the client is: shows address translation on the way.
    pub client: IpAddr,
    /// From the first packet to the whole answer.
    pub took: Duration,
}

/// Who answered many requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answers by the cluster they came from.
    pub clusters: BTreeMap<String, usize>,
    /// Answers by `cluster/pod`.
    pub pods: BTreeMap<String, usize>,
    /// How long each answer took, shortest first.
    pub took: Vec<Duration>,
    /// Requests without an answer.
    pub failed: usize,
    /// The first few reasons for that.
    pub failures: Vec<String>,
}

impl Tally {
    pub fn answered(&self) -> usize {
        self.took.len()
    }

    /// The part of the answers that came from `cluster`, from 0 to 1.
    pub fn share(&self, cluster: &str) -> f64 {
        let count = self.clusters.get(cluster).copied().unwrap_or(0);
        if count == 0 { 0.0 } else { count as f64 / self.answered() as f64 }
    }

    /// The time within which this part of the answers came: `percentile(0.99)`.
    pub fn percentile(&self, part: f64) -> Duration {
        let place = (self.took.len() as f64 * part) as usize;
        self.took.get(place.min(self.took.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// Asks once, from `host`. `limit` is for connecting and for each silence after that.
pub fn get(host: &Host, target: SocketAddr, limit: Duration) -> Result<Answer> {
    host.run(|| ask(target, limit))?.with_context(|| format!("from {}", host.name()))
}

/// Asks until someone answers or `limit` is over.
pub fn get_within(host: &Host, target: SocketAddr, limit: Duration) -> Result<Answer> {
    /// A refusal comes at once; asking again at once would only fill the log.
    const PAUSE: Duration = Duration::from_millis(10);
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // A lost SYN is sent again by the kernel after a second; a new connection tries sooner.
        match get(host, target, left.clamp(Duration::from_millis(1), Duration::from_millis(300))) {
            Ok(answer) => return Ok(answer),
            Err(error) if left.is_zero() => return Err(error.context(format!("no answer within {limit:?}"))),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Asks `count` times, each over a connection of its own, one after the other.
pub fn get_many(host: &Host, target: SocketAddr, count: usize, limit: Duration) -> Result<Tally> {
    host.run(|| ask_many(target, count, limit))
}

/// As [`get_many`], from the network namespace of the calling thread.
pub fn ask_many(target: SocketAddr, count: usize, limit: Duration) -> Tally {
    let mut tally = Tally::default();
    for _ in 0..count {
        match ask(target, limit) {
            Ok(answer) => {
                *tally.pods.entry(format!("{}/{}", answer.cluster, answer.pod)).or_default() += 1;
                *tally.clusters.entry(answer.cluster).or_default() += 1;
                tally.took.push(answer.took);
            }
            Err(error) => {
                tally.failed += 1;
                if tally.failures.len() < FAILURES_KEPT {
                    tally.failures.push(format!("{error:#}"));
                }
            }
        }
    }
    tally.took.sort_unstable();
    tally
}

/// As [`get`], from the network namespace of the calling thread.
pub fn ask(target: SocketAddr, limit: Duration) -> Result<Answer> {
    exchange(target, limit).with_context(|| format!("asking {target}"))
}

fn exchange(target: SocketAddr, limit: Duration) -> Result<Answer> {
    let started = Instant::now();
    let mut stream = TcpStream::connect_timeout(&target, limit).context("connecting")?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(LONGEST_ANSWER).read_to_string(&mut answer).context("reading the answer")?;
    let took = started.elapsed();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("not an HTTP answer: {answer:?}") };
    let status = head.split_whitespace().nth(1).unwrap_or("none");
    if status != "200" {
        bail!("status {status}");
    }
    let fields: BTreeMap<&str, &str> = body.split_whitespace().filter_map(|field| field.split_once('=')).collect();
    let field = |name: &str| fields.get(name).copied().with_context(|| format!("no {name} in {body:?}"));
    Ok(Answer {
        pod: field("pod")?.into(),
        cluster: field("cluster")?.into(),
        client: field("client")?.parse().context("the client's address")?,
        took,
    })
}
