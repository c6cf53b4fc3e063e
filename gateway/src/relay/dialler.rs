//! [`Dialler`]: the calls a gateway makes, to peers' gateways inside the tunnel and to its own controllers.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use api::ClusterId;
use api::names::ports::CONTROL_RELAY;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::watch;

use super::{FIRST_PAUSE, RelayCounters, splice};
use crate::control::ReachablePeers;

/// A dial that takes longer has failed; the tunnel's own limit of silence is far below.
const DIAL_LIMIT: Duration = Duration::from_secs(3);

/// The longest wait between dials after failures: doubled each time, and each time a random part of it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A connection that held this long was good: the next failure starts with a short pause again.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// How long unanswered bytes, or unanswered keepalives, keep a connection: the far gateway may have been killed.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);
const KEEPALIVE_AFTER: Duration = Duration::from_secs(2);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);

/// What every dialling task needs.
#[derive(Clone)]
pub(crate) struct Dialler {
    pub(crate) own: Ipv6Addr,
    pub(crate) reachable: watch::Receiver<ReachablePeers>,
    pub(crate) counters: Arc<RelayCounters>,
}

impl Dialler {
    /// Keeps one connection between a controller of ours and a peer's, for as long as the peer can be reached.
    pub(crate) async fn keep_dialling(mut self, peer: &ClusterId, controller: &str) {
        let mut pause = FIRST_PAUSE;
        loop {
            let reachable = |peers: &ReachablePeers| peers.get(peer).is_some_and(|gateways| !gateways.is_empty());
            let gateway = match self.reachable.wait_for(reachable).await {
                Ok(peers) => peers.get(peer).and_then(|gateways| gateways.first().copied()),
                Err(_) => return,
            };
            let Some(gateway) = gateway else { continue };
            let started = tokio::time::Instant::now();
            match self.connect(peer, gateway, controller).await {
                Ok(()) => tracing::debug!(%peer, controller, "a control connection ended"),
                Err(error) => {
                    self.counters.dials_failed.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%peer, controller, "{error:#}");
                }
            }
            if started.elapsed() >= GOOD_AFTER {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Makes one connection and copies until it ends.
    async fn connect(&self, peer: &ClusterId, gateway: Ipv6Addr, controller: &str) -> Result<()> {
        // The peer first: a controller that is called should have somebody to talk to.
        let theirs = dial_gateway(self.own, gateway).await.with_context(|| format!("calling {peer}'s gateway"))?;
        let mut ours = dial_controller(controller).await.with_context(|| format!("calling controller {controller}"))?;
        ours.write_all(format!("TOMBOLO IMPORT {peer}\n").as_bytes()).await?;
        self.counters.dialled.fetch_add(1, Ordering::Relaxed);
        splice(theirs, ours, &self.counters).await;
        Ok(())
    }
}

async fn dial_gateway(own: Ipv6Addr, gateway: Ipv6Addr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v6()?;
    // Any other address of this host would be refused as a wrong source at the far end.
    socket.bind(SocketAddr::new(own.into(), 0))?;
    let stream = within_limit(socket.connect(SocketAddr::new(gateway.into(), CONTROL_RELAY))).await?;
    notice_silence(&stream)?;
    Ok(stream)
}

/// A connection to a controller: TCP, or a unix socket on a plain host.
pub(crate) trait ControllerStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl ControllerStream for TcpStream {}
impl ControllerStream for UnixStream {}

pub(crate) async fn dial_controller(controller: &str) -> io::Result<Box<dyn ControllerStream>> {
    if let Some(path) = controller.strip_prefix("unix:") {
        return Ok(Box::new(within_limit(UnixStream::connect(path)).await?));
    }
    let stream = within_limit(TcpStream::connect(controller)).await?;
    notice_silence(&stream)?;
    Ok(Box::new(stream))
}

async fn within_limit<T>(dial: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let timed_out =
        || io::Error::new(io::ErrorKind::TimedOut, "no answer in time: is it listening, and can it be reached?");
    tokio::time::timeout(DIAL_LIMIT, dial).await.map_err(|_| timed_out())?
}

pub(crate) fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY))?;
    socket.set_tcp_user_timeout(Some(SILENCE_LIMIT))
}

/// Between half and all of `pause`, so that gateways that lost the same controller do not come back in step.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or_default();
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}
