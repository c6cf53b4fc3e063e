//! What holds a member's key and record and is no controller: it says whatever a script has it say.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use api::member_record::SignedRecord;
use controller_core::advertisement::{Advertisement, Item, ItemChange, ItemKey};
use controller_core::message::Message;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use identity::{HANDSHAKE_LIMIT, Identity};
use tokio::net::UnixListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;

use super::Cluster;

/// What is said on one connection, frame by frame, as fast as it is read. Then the connection stays open for what comes
/// to mind later: [`Liar::say`].
pub(crate) type Words = Box<dyn Iterator<Item = Vec<u8>> + Send + Sync>;

/// In the place of a cluster's controller. Ends when dropped.
pub(crate) struct Liar {
    socket: PathBuf,
    listening: AbortHandle,
    conversations: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<UnboundedSender<Vec<u8>>>>>,
}

impl Liar {
    /// Stops the controller of `cluster` and speaks with its key. `script` gives the words for each connection, by its
    /// number from 0 and the cluster's own record.
    pub(crate) async fn instead_of(
        cluster: &mut Cluster,
        script: impl Fn(usize, &SignedRecord) -> Words + Send + Sync + 'static,
    ) -> Self {
        let record = cluster
            .until::<api::LocalCluster, _>(None, "local", |local| {
                SignedRecord::from_base64(&local?.status?.record).ok()
            })
            .await;
        cluster.stop().await;
        let identity = Identity::load_or_create(cluster.path("state/identity.key")).unwrap();
        let config = identity::server_config(&identity, &[b"h2"]).unwrap();
        let socket = cluster.path("liar.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (script, conversations) = (Arc::new(script), Arc::new(AtomicUsize::new(0)));
        let (counted, open) = (Arc::clone(&conversations), Arc::new(Mutex::new(Vec::new())));
        let speakers = Arc::clone(&open);
        let listening = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (config, script, record) = (Arc::clone(&config), Arc::clone(&script), record.clone());
                let (counted, speakers) = (Arc::clone(&counted), Arc::clone(&speakers));
                tokio::spawn(async move {
                    // Whoever does not want to talk is gone.
                    let Ok((tls, _)) = identity::accept(stream, &config, HANDSHAKE_LIMIT).await else { return };
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let words = script(counted.fetch_add(1, Ordering::SeqCst), &record);
                        let (speaker, later) = unbounded_channel();
                        speakers.lock().unwrap().push(speaker);
                        let response = Response::new(Lies { words, later, _asked: request.into_body() });
                        async move { Ok::<_, Infallible>(response) }
                    });
                    let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.timer(TokioTimer::new()).serve_connection(TokioIo::new(tls), answer).await;
                });
            }
        });
        Self { socket, listening: listening.abort_handle(), conversations, open }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// Says this in every conversation that is open.
    pub(crate) fn say(&self, frame: &[u8]) {
        self.open.lock().unwrap().retain(|speaker| speaker.send(frame.to_vec()).is_ok());
    }

    /// How often it was asked what it exports.
    pub(crate) fn conversations(&self) -> usize {
        self.conversations.load(Ordering::SeqCst)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

struct Lies {
    words: Words,
    later: UnboundedReceiver<Vec<u8>>,
    /// Not read; dropping it would end the conversation.
    _asked: Incoming,
}

impl Body for Lies {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = |word: Vec<u8>| Some(Ok(Frame::data(word.into())));
        match self.words.next() {
            Some(word) => Poll::Ready(frame(word)),
            None => self.later.poll_recv(context).map(|word| word.and_then(frame)),
        }
    }
}

pub(crate) fn answer(record: &SignedRecord, epoch: &str) -> Vec<u8> {
    let answer = Message::Answer { version: 1, epoch: epoch.into(), record: record.clone(), resumed: false };
    answer.to_frame().unwrap()
}

/// A whole snapshot in one page, with its true hash.
pub(crate) fn snapshot(items: &[(ItemKey, Item)]) -> Vec<u8> {
    let mut all = Advertisement::default();
    let items: Vec<ItemChange> =
        items.iter().map(|(key, item)| ItemChange { key: key.clone(), item: Some(Arc::new(item.clone())) }).collect();
    for change in &items {
        all.apply(change);
    }
    Message::Page { items, last: Some(all.hash()) }.to_frame().unwrap()
}

/// Any bytes, as a frame.
pub(crate) fn framed(body: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}
