//! Asks running parts: the other end of [`serve`](crate::serve).

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::output::Outcome;

/// A part on this host answers at once, or it is stuck.
const LIMIT: Duration = Duration::from_secs(5);
/// The largest answer that is read: 10,000 services with reasons fit.
const LARGEST_ANSWER: usize = 64 << 20;

/// The parts, as their sockets are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Controller,
    Gateway,
    Node,
    Dns,
}

impl Part {
    pub const ALL: [Self; 4] = [Self::Controller, Self::Gateway, Self::Node, Self::Dns];

    pub fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Gateway => "gateway",
            Self::Node => "node",
            Self::Dns => "dns",
        }
    }

    pub fn socket(self, run_dir: &Path) -> PathBuf {
        run_dir.join(format!("{}.sock", self.name()))
    }
}

/// What asking a part gave.
#[derive(Debug)]
pub enum Answer {
    /// Its answer as JSON.
    Known(Value),
    /// No such part runs on this host: there is no socket.
    NotHere,
    /// The part does not run any more: its socket is there and nobody listens.
    Stopped,
    /// The part is there but did not answer; the reason in words.
    Silent(String),
}

impl Answer {
    pub fn known(self) -> Option<Value> {
        match self {
            Self::Known(value) => Some(value),
            Self::NotHere | Self::Stopped | Self::Silent(_) => None,
        }
    }
}

/// What became of an order.
#[derive(Debug)]
pub enum Ordered {
    /// As JSON.
    Done(Value),
    /// Why not, and what to do.
    Refused(String),
    /// The part gave no answer.
    Unanswered(Answer),
}

/// Gives `order` to `part`.
pub async fn order(run_dir: &Path, part: Part, order: &str) -> Ordered {
    let socket = part.socket(run_dir);
    if !socket.exists() {
        return Ordered::Unanswered(Answer::NotHere);
    }
    if is_stopped(&socket).await {
        return Ordered::Unanswered(Answer::Stopped);
    }
    let path = format!("/order/{order}");
    let silent = |reason: String| Ordered::Unanswered(Answer::Silent(reason));
    match tokio::time::timeout(LIMIT, send(Method::POST, &socket, &path)).await {
        Ok(Ok((200, body))) => match serde_json::from_str(&body) {
            Ok(value) => Ordered::Done(value),
            Err(error) => silent(format!("its answer cannot be read: {error}")),
        },
        Ok(Ok((409, body))) => Ordered::Refused(body.trim().to_owned()),
        Ok(Ok((_, body))) => silent(body.trim().to_owned()),
        Ok(Err(error)) => silent(format!("{error:#}")),
        Err(_) => {
            silent(format!("no answer within {} s; look at 'tombolo status' for what is in force", LIMIT.as_secs()))
        }
    }
}

/// Puts `question` to `part`.
pub async fn ask(run_dir: &Path, part: Part, question: &str) -> Answer {
    let socket = part.socket(run_dir);
    if !socket.exists() {
        return Answer::NotHere;
    }
    if is_stopped(&socket).await {
        return Answer::Stopped;
    }
    let path = format!("/ask/{question}");
    match tokio::time::timeout(LIMIT, get(&socket, &path)).await {
        Ok(Ok((200, body))) => match serde_json::from_str(&body) {
            Ok(value) => Answer::Known(value),
            Err(error) => Answer::Silent(format!("its answer cannot be read: {error}")),
        },
        Ok(Ok((_, body))) => Answer::Silent(body.trim().to_owned()),
        Ok(Err(error)) => Answer::Silent(format!("{error:#}")),
        Err(_) => Answer::Silent(format!("no answer within {} s", LIMIT.as_secs())),
    }
}

/// Whether nobody listens on a socket that is there: what a killed part leaves behind.
async fn is_stopped(socket: &Path) -> bool {
    UnixStream::connect(socket).await.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Whether `part` runs on this host, ready or not.
pub async fn is_running(run_dir: &Path, part: Part) -> bool {
    let socket = part.socket(run_dir);
    socket.exists() && !is_stopped(&socket).await
}

/// Whether `part` says it is ready; what it awaits otherwise. `None` when it does not run on this host.
pub async fn readiness(run_dir: &Path, part: Part) -> Option<Result<(), String>> {
    let socket = part.socket(run_dir);
    if !socket.exists() {
        return None;
    }
    if is_stopped(&socket).await {
        return Some(Err("does not run any more; its log says why it ended".to_owned()));
    }
    Some(match tokio::time::timeout(LIMIT, get(&socket, "/readyz")).await {
        Ok(Ok((200, _))) => Ok(()),
        Ok(Ok((_, body))) => Err(body.trim().to_owned()),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
    })
}

/// The metrics of `part`, as text; why not otherwise.
pub async fn metrics(run_dir: &Path, part: Part) -> Result<String, String> {
    match tokio::time::timeout(LIMIT, get(&part.socket(run_dir), "/metrics")).await {
        Ok(Ok((200, body))) => Ok(body),
        Ok(Ok((_, body))) => Err(body.trim().to_owned()),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
    }
}

async fn get(socket: &Path, path: &str) -> anyhow::Result<(u16, String)> {
    send(Method::GET, socket, path).await
}

/// One request over a unix socket: status and body.
async fn send(method: Method, socket: &Path, path: &str) -> anyhow::Result<(u16, String)> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("{} does not answer: is the part running, and are you its user?", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "tombolo").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let body = match Limited::new(response.into_body(), LARGEST_ANSWER).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => bail!("the answer broke off: {error}"),
    };
    driver.abort();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// The answer as a type, or `None` when the part does not run here or does not know.
pub async fn ask_as<T: serde::de::DeserializeOwned>(run_dir: &Path, part: Part, question: &str) -> Option<T> {
    serde_json::from_value(ask(run_dir, part, question).await.known()?).ok()
}

/// The answer as a type; otherwise says on stderr what is wrong and what to do, and how to end.
pub async fn expect<T: serde::de::DeserializeOwned>(run_dir: &Path, part: Part, question: &str) -> Result<T, Outcome> {
    match ask(run_dir, part, question).await {
        Answer::Known(value) => serde_json::from_value(value).map_err(|error| {
            eprintln!("the {} of this host answers in words this command does not know: {error}", part.name());
            eprintln!("  are both of the same version?");
            Outcome::CouldNotFindOut
        }),
        answer => Err(explain_silence(run_dir, part, &answer)),
    }
}

/// Says why `part` gave no answer, and what to do.
pub fn explain_silence(run_dir: &Path, part: Part, answer: &Answer) -> Outcome {
    match answer {
        Answer::Silent(reason) => {
            eprintln!("the {} of this host does not answer: {reason}", part.name());
            eprintln!("  look at its log");
        }
        Answer::Stopped => {
            eprintln!("the {} of this host does not run any more: nobody listens on its socket", part.name());
            eprintln!("  look at its log for why it ended, and start it");
        }
        Answer::NotHere | Answer::Known(_) => {
            eprintln!("no {} runs on this host: {} is not there", part.name(), part.socket(run_dir).display());
            eprintln!("  run this where one runs, or name its folder with --run-dir");
        }
    }
    Outcome::CouldNotFindOut
}

/// No part at all answered.
pub fn nobody_answers(run_dir: &Path) -> Outcome {
    eprintln!("no part of Tombolo on this host answers: {} was asked", run_dir.display());
    eprintln!("  run this where a part runs, or name its folder with --run-dir");
    Outcome::CouldNotFindOut
}
