//! Messages as the body of an HTTP/2 request or response.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use controller_core::message::{FrameReader, Message};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use tokio::sync::mpsc;

/// Messages that wait for the connection: what fills it waits too, so a slow peer costs no memory.
const WAITING: usize = 4;
/// How long one message may wait for a peer that does not read.
const SEND_LIMIT: Duration = Duration::from_secs(8);

/// Where to ask for sync.
pub(crate) const SYNC_PATH: &str = "/v1/sync";

pub(crate) struct Outgoing(mpsc::Receiver<Bytes>);

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[derive(Clone)]
pub(crate) struct Sender(mpsc::Sender<Bytes>);

pub(crate) fn outgoing() -> (Sender, Outgoing) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Sender(sender), Outgoing(receiver))
}

impl Sender {
    /// Hands a message to the connection; why it cannot be.
    pub(crate) async fn send(&self, message: &Message) -> Result<(), String> {
        let frame = message.to_frame().map_err(|error| error.to_string())?;
        match tokio::time::timeout(SEND_LIMIT, self.0.send(Bytes::from(frame))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("the connection was closed".into()),
            Err(_) => Err("the peer does not read".into()),
        }
    }
}

/// Why no more messages come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The peer broke the protocol.
    #[error("{0}")]
    BadMessage(String),
    /// The connection ended; the peer need not be at fault.
    #[error("the connection was lost: {0}")]
    Lost(hyper::Error),
}

impl Broken {
    /// The name it is refused by; none when there is nothing to refuse.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::BadMessage(_) => Some("BadMessage"),
            Self::Lost(_) => None,
        }
    }
}

/// Messages out of a body.
pub(crate) struct Messages {
    body: Incoming,
    reader: FrameReader,
    pub(crate) bytes: u64,
}

impl Messages {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, reader: FrameReader::default(), bytes: 0 }
    }

    /// The next message; `None` at the end. Cancel safe: what came stays in the reader.
    pub(crate) async fn next(&mut self) -> Option<Result<Message, Broken>> {
        loop {
            match self.reader.next_message() {
                Ok(Some(message)) => return Some(Ok(message)),
                Ok(None) => {}
                Err(error) => return Some(Err(Broken::BadMessage(error.to_string()))),
            }
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.bytes += data.len() as u64;
                        self.reader.push(&data);
                    }
                }
                Err(error) => return Some(Err(Broken::Lost(error))),
            }
        }
    }
}
