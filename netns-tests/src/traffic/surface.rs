//! Asks a part of Tombolo over the unix socket it serves its surface on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// One GET: status and body. `limit` is for each silence.
pub fn get(socket: &Path, path: &str, limit: Duration) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("{} does not answer", socket.display()))?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: tombolo\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("{}: reading {path}", socket.display()))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("an answer without a status")?;
    Ok((status, body.to_owned()))
}
