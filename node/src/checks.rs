//! Asks endpoints of plain hosts whether they are ready, where their EndpointSlice says how ([`api::names::CHECK`]).
//!
//! Each node asks the endpoints that name it, and writes what it found into their conditions.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use api::kubernetes::EndpointSlice;
use api::names;
use futures::StreamExt;
use node_core::check::{Check, Readiness};
use store::{Event, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long an endpoint may take.
const PATIENCE: Duration = Duration::from_millis(900);
/// Endpoints asked at the same time.
const AT_ONCE: usize = 64;

type Key = (String, String);

/// Runs until `stop`.
pub(crate) async fn run(node: String, store: Store, stop: CancellationToken) {
    let mut watch = store.watch::<EndpointSlice>();
    let mut checked = Checked { node, slices: BTreeMap::new(), readiness: BTreeMap::new() };
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            event = watch.next() => match event {
                Some(event) => checked.take(event),
                None => return,
            },
            _ = tick.tick(), if !checked.slices.is_empty() => checked.round(&store).await,
        }
    }
}

struct Checked {
    node: String,
    /// Slices with a check and an endpoint of this node.
    slices: BTreeMap<Key, (Check, EndpointSlice)>,
    readiness: BTreeMap<(Key, IpAddr), Readiness>,
}

impl Checked {
    fn take(&mut self, event: Event<EndpointSlice>) {
        match event {
            Event::Reset(all) => {
                self.slices.clear();
                all.into_iter().for_each(|slice| self.set(slice));
            }
            Event::Applied(slice) => self.set(slice),
            Event::Deleted(slice) => drop(self.slices.remove(&key_of(&slice))),
        }
        let slices = &self.slices;
        self.readiness.retain(|(key, _), _| slices.contains_key(key));
    }

    fn set(&mut self, slice: EndpointSlice) {
        let key = key_of(&slice);
        let text = slice.metadata.annotations.as_ref().and_then(|all| all.get(names::CHECK));
        let Some(text) = text.filter(|_| self.own(&slice).next().is_some()) else {
            self.slices.remove(&key);
            return;
        };
        match text.parse() {
            Ok(check) => drop(self.slices.insert(key, (check, slice))),
            Err(error) => {
                tracing::warn!(namespace = key.0, slice = key.1, "annotation {}: {error}", names::CHECK);
                self.slices.remove(&key);
            }
        }
    }

    /// Places of the endpoints that this node asks, with their addresses.
    fn own<'a>(&'a self, slice: &'a EndpointSlice) -> impl Iterator<Item = (usize, IpAddr)> + 'a {
        let endpoints = slice.endpoints.as_deref().unwrap_or_default().iter().enumerate();
        endpoints
            .filter(|(_, endpoint)| endpoint.node_name.as_deref() == Some(&self.node))
            .filter_map(|(place, endpoint)| Some((place, endpoint.addresses.first()?.parse().ok()?)))
    }

    /// Asks every endpoint once, and writes what changed.
    async fn round(&mut self, store: &Store) {
        let mut wanted = Vec::new();
        for (key, (check, slice)) in &self.slices {
            for (place, address) in self.own(slice) {
                match port_of(check, slice) {
                    Some(port) => wanted.push((key.clone(), place, SocketAddr::new(address, port), check.clone())),
                    None => tracing::warn!(slice = key.1, "has no port to check: name one in {}", names::CHECK),
                }
            }
        }
        let asking = futures::stream::iter(wanted).map(|(key, place, to, check)| async move {
            let passed = timeout(PATIENCE, ask(to, &check)).await.unwrap_or(false);
            (key, place, to.ip(), passed)
        });
        let results: Vec<_> = asking.buffer_unordered(AT_ONCE).collect().await;
        let mut changed: BTreeMap<Key, Vec<(usize, bool)>> = BTreeMap::new();
        for (key, place, address, passed) in results {
            let ready = self.readiness.entry((key.clone(), address)).or_default().take(passed);
            let Some((_, slice)) = self.slices.get(&key) else { continue };
            let endpoint = slice.endpoints.as_deref().and_then(|list| list.get(place));
            let written = endpoint.and_then(|endpoint| endpoint.conditions.as_ref()?.ready);
            if written != Some(ready) {
                changed.entry(key).or_default().push((place, ready));
            }
        }
        for (key, readiness) in changed {
            let Some((_, slice)) = self.slices.get_mut(&key) else { continue };
            let mut wanted = slice.clone();
            for (place, ready) in readiness {
                if let Some(endpoint) = wanted.endpoints.as_mut().and_then(|list| list.get_mut(place)) {
                    endpoint.conditions.get_or_insert_default().ready = Some(ready);
                }
            }
            match store.update_status(&wanted).await {
                Ok(written) => *slice = written,
                // The watch brings the newer version, and the next round asks again.
                Err(error) if error.is_conflict() => {}
                Err(error) => tracing::warn!(slice = key.1, %error, "readiness cannot be written; tried again"),
            }
        }
    }
}

fn port_of(check: &Check, slice: &EndpointSlice) -> Option<u16> {
    let (Check::Tcp { port } | Check::Http { port, .. }) = check;
    let first = || slice.ports.as_deref().unwrap_or_default().iter().find_map(|port| port.port);
    port.or_else(|| u16::try_from(first()?).ok())
}

fn key_of(slice: &EndpointSlice) -> Key {
    (slice.metadata.namespace.clone().unwrap_or_default(), slice.metadata.name.clone().unwrap_or_default())
}

/// Whether an endpoint passes.
async fn ask(to: SocketAddr, check: &Check) -> bool {
    let Ok(mut stream) = TcpStream::connect(to).await else { return false };
    let Check::Http { path, .. } = check else { return true };
    let request = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: tombolo\r\nConnection: close\r\n\r\n");
    if stream.write_all(request.as_bytes()).await.is_err() {
        return false;
    }
    // "HTTP/1.1 204": the status stands in the first twelve bytes (RFC 9112, section 4).
    let mut line = [0; 12];
    stream.read_exact(&mut line).await.is_ok() && is_good(&line)
}

fn is_good(line: &[u8; 12]) -> bool {
    let version = line.starts_with(b"HTTP/1.") && line[8] == b' ';
    version && matches!(line[9], b'2' | b'3') && line[10..].iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn serving(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 512];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn an_http_check_passes_with_a_good_status_and_fails_with_a_bad_or_none() {
        let check: Check = "http:/healthz".parse().unwrap();
        assert!(ask(serving(b"HTTP/1.1 200 OK\r\n\r\n").await, &check).await);
        for bad in [b"HTTP/1.1 503 No\r\n\r\n".as_slice(), b"HTTP/1.1 2xx OK\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b""] {
            assert!(!ask(serving(bad).await, &check).await, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_tcp_check_passes_where_somebody_listens() {
        let check: Check = "tcp".parse().unwrap();
        assert!(ask(serving(b"").await, &check).await);
        let closed = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
        assert!(!ask(closed, &check).await);
    }
}
