//! An agent's connection to one controller: dialled, proved, welcomed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use identity::Identity;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::authority::{Authority, Standing};
use super::connection::{next_message, write};
use super::credential::Credentials;
use super::enrolment::EXPORTER_LABEL;
use super::frame::{Decoder, MAX_GREETING_BYTES, MAX_MESSAGE_BYTES};
use super::message::{ToAgent, ToController, decode, encode};
use super::ticket::Ticket;
use super::{Agent, PROTOCOL, SILENCE_LIMIT};

/// How long dialling may take. Longer than one lost packet's retransmission (one second, RFC 6298).
const DIAL_LIMIT: Duration = Duration::from_millis(1_500);
/// How long the handshake and the welcome may take together with their round trips.
const GREETING_LIMIT: Duration = Duration::from_secs(3);
/// Messages that may wait for the controller. Only as many as there are tasks that asked something.
const OUTBOX: usize = 16 * 1024;
/// Messages from the controller that may wait for this agent; then the controller waits.
const INBOX: usize = 256;

trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// A welcomed connection. Dropping it hangs up.
pub(crate) struct Link {
    pub(crate) controller: String,
    pub(crate) outbox: mpsc::Sender<Bytes>,
    /// What the controller says; its last item says why it ended.
    pub(crate) inbox: mpsc::Receiver<Result<ToAgent, String>>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Dials `controller`: `host:port`, or `unix:` and a path.
pub(crate) async fn dial(
    controller: String,
    credentials: Arc<Credentials>,
    identity: Arc<Identity>,
    agent: Agent,
    authority: Arc<Authority>,
) -> Result<Link, String> {
    let credential = credentials.load().map_err(|error| error.to_string())?;
    let named = |error: String| format!("{controller}: {error}");
    let transport: Box<dyn Transport> = timeout(DIAL_LIMIT, async {
        if let Some(path) = controller.strip_prefix("unix:") {
            return Ok::<_, std::io::Error>(Box::new(UnixStream::connect(path).await?) as Box<dyn Transport>);
        }
        let stream = TcpStream::connect(&controller).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    })
    .await
    .map_err(|_| named(format!("no answer within {DIAL_LIMIT:?}")))?
    .map_err(|error| named(error.to_string()))?;
    let config = identity::client_config_of_any(&identity, &[PROTOCOL]).map_err(|error| named(error.to_string()))?;
    let (stream, other) =
        identity::connect(transport, &config, GREETING_LIMIT).await.map_err(|error| named(error.to_string()))?;
    let exporter = identity::exporter(&stream, EXPORTER_LABEL).map_err(|error| named(error.to_string()))?;
    let (mut reader, writer) = tokio::io::split(stream);
    let mut decoder = Decoder::new(MAX_GREETING_BYTES);
    let pinned = credential.controller();
    // Nothing is said to somebody who has not shown to be the controller.
    if authority.standing(&pinned, &other.key) == Standing::Unknown
        && let Ok(Ok(Some(bytes))) = timeout(GREETING_LIMIT, next_message(&mut reader, &mut decoder)).await
        && let Ok(ToAgent::<Value>::Lineage(lineage)) = decode(&bytes)
    {
        authority.shown(&pinned, lineage).map_err(|error| named(error.to_string()))?;
    }
    match authority.standing(&pinned, &other.key) {
        Standing::Trusted => {}
        Standing::Unknown => {
            return Err(named(identity::Error::UntrustedIdentity { got: other.key }.to_string()));
        }
        Standing::Retired => {
            let key = other.key.fingerprint();
            return Err(named(format!(
                "it proves {key}, which this cluster left behind: was its state restored from an old backup, or does somebody else have that key?"
            )));
        }
    }
    let claim = credential.claim(&agent, identity.public(), other.key, &exporter);
    let hello = encode(&ToController::Hello { agent, claim }).map_err(named)?;
    let keep = move |ticket: &Ticket| {
        if let Err(error) = credentials.keep(ticket) {
            tracing::warn!(%error, "without this ticket a start while the API server is away will not be let in");
        }
    };

    let (outbox, messages) = mpsc::channel(OUTBOX);
    outbox.try_send(Bytes::from(hello)).map_err(|error| named(error.to_string()))?;
    let writing = tokio::spawn(write(writer, messages));
    let refused = |writing: JoinHandle<()>, why: String| {
        writing.abort();
        Err(named(why))
    };
    loop {
        let answer = timeout(GREETING_LIMIT, next_message(&mut reader, &mut decoder)).await;
        match answer {
            Err(_) => return refused(writing, format!("no welcome within {GREETING_LIMIT:?}")),
            Ok(Err(error)) => return refused(writing, error),
            Ok(Ok(None)) => return refused(writing, "the controller hung up without a word".into()),
            Ok(Ok(Some(bytes))) => match decode::<ToAgent>(&bytes) {
                Ok(ToAgent::Welcome) => break,
                Ok(ToAgent::Ticket(ticket)) => keep(&ticket),
                // Where its identity is known already, this comes beside the greeting.
                Ok(ToAgent::Lineage(lineage)) => {
                    if let Err(error) = authority.shown(&pinned, lineage) {
                        return refused(writing, error.to_string());
                    }
                }
                Ok(ToAgent::Refused { reason }) => return refused(writing, format!("refused: {reason}")),
                Ok(_) => return refused(writing, "the controller's first message is no welcome".into()),
                Err(error) => return refused(writing, error),
            },
        }
    }
    decoder.set_limit(MAX_MESSAGE_BYTES);
    let (heard, inbox) = mpsc::channel(INBOX);
    let reading = tokio::spawn(async move {
        loop {
            let message = match timeout(SILENCE_LIMIT, next_message(&mut reader, &mut decoder)).await {
                Ok(Ok(Some(bytes))) => decode(&bytes),
                Ok(Ok(None)) => Err("the controller hung up".into()),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(format!("the controller said nothing for {SILENCE_LIMIT:?}")),
            };
            let message = match message {
                Ok(ToAgent::Ping) => continue,
                Ok(ToAgent::Ticket(ticket)) => {
                    keep(&ticket);
                    continue;
                }
                Ok(ToAgent::Lineage(lineage)) => {
                    // Without it the next dial is shown it again.
                    if let Err(error) = authority.shown(&pinned, lineage) {
                        tracing::warn!(%error, "the controller's new identity cannot be kept");
                    }
                    continue;
                }
                message => message,
            };
            let ended = message.is_err();
            if heard.send(message).await.is_err() || ended {
                return;
            }
        }
    });
    Ok(Link { controller, outbox, inbox, tasks: [reading, writing] })
}
