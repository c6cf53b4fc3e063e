//! Messages over a connection, the same at both ends.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::frame::{Decoder, FrameError, MAX_FRAME_BYTES};
use super::message::{ToAgent, encode};
use super::{PING_INTERVAL, WRITE_LIMIT};

/// The next message; `None` when the other end is done. Cancel safe: what was read stays in the decoder.
pub(crate) async fn next_message<R: AsyncRead + Unpin>(
    reader: &mut R,
    decoder: &mut Decoder,
) -> Result<Option<Vec<u8>>, String> {
    loop {
        if let Some(message) = decoder.next_message().map_err(|error: FrameError| error.to_string())? {
            return Ok(Some(message));
        }
        match reader.read_buf(decoder.room()).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            // What TLS refuses is the other end's fault. One that vanished without a farewell has ended like any other.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Err(error.to_string()),
            Err(_) => return Ok(None),
        }
    }
}

/// Writes what is to be said, and a ping where nothing is, until the other end stops taking it.
pub(crate) async fn write<W: AsyncWrite + Unpin>(mut writer: W, mut messages: mpsc::Receiver<Bytes>) {
    // Both ends' pings are the same bytes.
    let Ok(ping) = encode(&ToAgent::<()>::Ping) else { return };
    let ping = Bytes::from(ping);
    loop {
        let message = match timeout(PING_INTERVAL, messages.recv()).await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(_) => ping.clone(),
        };
        let written = timeout(WRITE_LIMIT, async {
            writer.write_all(&message).await?;
            // What else waits goes in the same packet.
            let mut size = message.len();
            while size < MAX_FRAME_BYTES
                && let Ok(more) = messages.try_recv()
            {
                size += more.len();
                writer.write_all(&more).await?;
            }
            writer.flush().await
        });
        if !matches!(written.await, Ok(Ok(()))) {
            break;
        }
    }
    let _ = timeout(WRITE_LIMIT, writer.shutdown()).await;
}
