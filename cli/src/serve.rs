//! Serves a part's [`Surface`] over HTTP: `/healthz`, `/readyz`, `/metrics`, and the operator's questions below `/ask/`
//! and orders below `/order/`.
//!
//! Questions and orders are answered on a unix socket in the run folder alone, which only the part's own user may open.
//! Metrics and health may be served on a TCP port as well, where one is asked for.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::surface::Surface;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::either::Either;

/// Connections served at once on each listener: an operator and a scraper need a handful.
const CONNECTIONS: usize = 32;
/// A client gets this long to send its request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

/// Which requests a listener answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// The part's own user, by way of the socket.
    Operator,
    /// Whoever reaches the TCP port.
    Scraper,
}

/// Listens on `socket` and serves until the task is dropped. A socket left by a dead process is replaced; one that
/// still answers belongs to a running part and is refused.
pub async fn on_socket(socket: &Path, surface: Arc<dyn Surface>) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the run folder {}", folder.display()))?;
    }
    if socket.exists() {
        anyhow::ensure!(
            UnixStream::connect(socket).await.is_err(),
            "{} is served by a running part: stop it first, or give this one another --run-dir",
            socket.display()
        );
        std::fs::remove_file(socket).with_context(|| format!("cannot replace {}", socket.display()))?;
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(tokio::spawn(Listener::Socket(listener).serve(surface)))
}

/// Serves health and metrics on a TCP port.
pub async fn on_port(address: SocketAddr, surface: Arc<dyn Surface>) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot serve metrics on {address}: is it in use?"))?;
    Ok(tokio::spawn(Listener::Port(listener).serve(surface)))
}

/// Where clients come from; it decides what they may ask.
enum Listener {
    Socket(UnixListener),
    Port(TcpListener),
}

impl Listener {
    async fn serve(self, surface: Arc<dyn Surface>) {
        let audience = match &self {
            Self::Socket(_) => Audience::Operator,
            Self::Port(_) => Audience::Scraper,
        };
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match self.accept().await {
                Ok(stream) => {
                    let surface = Arc::clone(&surface);
                    tokio::spawn(async move {
                        converse(stream, surface, audience).await;
                        drop(place);
                    });
                }
                Err(error) => wait_after(&error).await,
            }
        }
    }

    async fn accept(&self) -> std::io::Result<Either<UnixStream, TcpStream>> {
        Ok(match self {
            Self::Socket(listener) => Either::Left(listener.accept().await?.0),
            Self::Port(listener) => Either::Right(listener.accept().await?.0),
        })
    }
}

/// Out of descriptors, most likely: accepting again at once would spin.
async fn wait_after(error: &std::io::Error) {
    tracing::warn!(%error, "cannot accept a connection for metrics or questions");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn converse(stream: Either<UnixStream, TcpStream>, surface: Arc<dyn Surface>, audience: Audience) {
    let service = service_fn(|request: Request<Incoming>| {
        let surface = Arc::clone(&surface);
        async move {
            // A part may take seconds to find out (a ping waits for its answer), and the part's own connections, which
            // share these threads, must not wait with it.
            let answer = tokio::task::spawn_blocking(move || respond(&request, surface.as_ref(), audience));
            let broken = |_| plain(StatusCode::INTERNAL_SERVER_ERROR, "the answer broke: see the part's log\n");
            Ok::<_, Infallible>(answer.await.unwrap_or_else(broken))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away in the middle is its own business.
    let _ = connection.await;
}

/// Below `/order/` an operator changes something; whoever only reads cannot do so by mistake, for it takes a POST.
fn order(request: &Request<Incoming>, surface: &dyn Surface, audience: Audience) -> Response<Full<Bytes>> {
    if audience != Audience::Operator || request.method() != Method::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "orders are posted to the part's socket\n");
    }
    let order = request.uri().path_and_query().and_then(|whole| whole.as_str().strip_prefix("/order/"));
    match order.and_then(|order| surface.order(order)) {
        Some(Ok(done)) => plain(StatusCode::OK, &done.to_string()),
        Some(Err(reason)) => plain(StatusCode::CONFLICT, &format!("{reason}\n")),
        None => plain(StatusCode::NOT_FOUND, "this part does not know that order\n"),
    }
}

fn respond(request: &Request<Incoming>, surface: &dyn Surface, audience: Audience) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    match path {
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let readiness = surface.readiness();
            if readiness.is_ready() {
                plain(StatusCode::OK, "ready\n")
            } else {
                plain(StatusCode::SERVICE_UNAVAILABLE, &format!("awaiting {}\n", readiness.awaiting.join(", ")))
            }
        }
        "/metrics" => {
            let mut response = plain(StatusCode::OK, &surface.metrics());
            response.headers_mut().insert(
                hyper::header::CONTENT_TYPE,
                hyper::header::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
            );
            response
        }
        _ if path.starts_with("/order/") => order(request, surface, audience),
        _ => match (audience, path.strip_prefix("/ask/")) {
            (Audience::Operator, Some(question)) => {
                let question = match request.uri().query() {
                    Some(query) => format!("{question}?{query}"),
                    None => question.to_owned(),
                };
                match surface.answer(&question) {
                    Some(answer) => plain(StatusCode::OK, &answer.to_string()),
                    None => plain(StatusCode::NOT_FOUND, "this part does not know that question\n"),
                }
            }
            _ => plain(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n"),
        },
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use api::surface::Readiness;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Says that it was asked, and answers when it is told to, or after a while.
    struct Slow {
        asked: tokio::sync::mpsc::UnboundedSender<()>,
        told: Mutex<mpsc::Receiver<()>>,
    }

    impl Surface for Slow {
        fn readiness(&self) -> Readiness {
            Readiness { awaiting: Vec::new() }
        }
        fn metrics(&self) -> String {
            String::new()
        }
        fn answer(&self, _: &str) -> Option<serde_json::Value> {
            self.asked.send(()).unwrap();
            let told = self.told.lock().unwrap().recv_timeout(Duration::from_secs(10));
            Some(if told.is_ok() { "told".into() } else { "waited in vain".into() })
        }
    }

    async fn get(socket: &Path, path: &str) -> String {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    /// On one thread: whatever blocks it blocks all of the part.
    #[tokio::test(flavor = "current_thread")]
    async fn a_question_that_takes_long_holds_nothing_else_up() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("part.sock");
        let (tell, told) = mpsc::channel();
        let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
        let _serving = on_socket(&socket, Arc::new(Slow { asked, told: Mutex::new(told) })).await.unwrap();
        let asking = tokio::spawn({
            let socket = socket.clone();
            async move { get(&socket, "/ask/ping?peer=birch").await }
        });
        was_asked.recv().await.unwrap();
        assert!(get(&socket, "/healthz").await.starts_with("HTTP/1.1 200"));
        tell.send(()).unwrap();
        assert!(asking.await.unwrap().contains("told"));
    }
}
