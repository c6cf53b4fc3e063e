//! A gateway without a cluster around it: its objects come over a unix socket, one JSON request a line.
//!
//! The tests in `tests/` run it as a process of its own in a network namespace. By hand, as root:
//!
//! ```text
//! gateway_alone /run/gateway.sock /var/lib/gateway amber-1
//! echo '{"ask": "status"}' | nc -U /run/gateway.sock
//! ```
//!
//! | request | does | answers |
//! |---|---|---|
//! | `{"put": {…}}` | stores an object | `true` |
//! | `{"remove": {"kind": …, "namespace": …, "name": …}}` | removes one | `true` |
//! | `{"read": {"kind": …, "namespace": …, "name": …}}` | | the object or `null` |
//! | `{"cutOff": true}` | lets nothing be written, as if the controller were away | `true` |
//! | `{"ask": "status"}` | | what the gateway answers to that question |
//! | `{"ready": true}` | | what is still awaited |
//! | `{"metrics": true}` | | the metrics as one string |
//! | `{"stop": true}` | leaves gracefully | `true`, when the gateway has left |

mod lines;
mod memory;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use api::surface::Surface;
use serde_json::{Value, json};
use store::Store;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tracing::Level;

use lines::Lines;
use memory::Memory;

#[tokio::main]
async fn main() -> Result<()> {
    tracing::subscriber::set_global_default(Lines::new(Level::DEBUG, |line| eprintln!("{line}")))?;
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().with_context(|| format!("the {what} is missing"));
    let socket = PathBuf::from(next("socket's path")?);
    let state = PathBuf::from(next("state folder")?);
    let node = next("node's name")?;
    let mut config = gateway::Config::new(node, state);
    config.controllers = arguments.collect();

    let memory = Arc::new(Memory::default());
    let stop = CancellationToken::new();
    let store = Store::new(Arc::clone(&memory) as Arc<dyn store::Backend>);
    let (surface, task) = gateway::start(config, store, stop.clone()).await?;
    // A process that was killed leaves its socket behind.
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
    println!("gateway_alone listens");
    let mut task = task;
    loop {
        tokio::select! {
            ended = &mut task => return ended?,
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                if serve(stream, &memory, &surface).await.context("a request")? {
                    stop.cancel();
                    return (&mut task).await?;
                }
            }
        }
    }
}

/// Answers requests until the other end closes. `true` when it asked to stop.
async fn serve(mut stream: UnixStream, memory: &Memory, surface: &Arc<dyn Surface>) -> Result<bool> {
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let request: Value = serde_json::from_str(&line)?;
        let answer = answer(&request, memory, surface).await?;
        writer.write_all(format!("{answer}\n").as_bytes()).await?;
        if request.get("stop").is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn answer(request: &Value, memory: &Memory, surface: &Arc<dyn Surface>) -> Result<Value> {
    if let Some(object) = request.get("put") {
        memory.put(object.clone());
    } else if let Some(which) = request.get("remove").or_else(|| request.get("read")) {
        let field = |name: &str| which[name].as_str();
        let (kind, name) = (field("kind").unwrap_or_default(), field("name").unwrap_or_default());
        if request.get("read").is_some() {
            return Ok(memory.read(kind, field("namespace"), name).unwrap_or_default());
        }
        memory.remove(kind, field("namespace"), name);
    } else if let Some(question) = request["ask"].as_str().map(str::to_owned) {
        // A ping waits for its answer.
        let surface = Arc::clone(surface);
        return Ok(tokio::task::spawn_blocking(move || surface.answer(&question)).await?.unwrap_or_default());
    } else if let Some(away) = request["cutOff"].as_bool() {
        memory.cut_off(away);
    } else if request.get("ready").is_some() {
        return Ok(json!(surface.readiness().awaiting));
    } else if request.get("metrics").is_some() {
        return Ok(json!(surface.metrics()));
    }
    Ok(json!(true))
}
