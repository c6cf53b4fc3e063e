//! What two controllers say to each other, as bytes: frames of a length and JSON.
//!
//! Version 1. A field added later needs a version of its own: the hash over items must be the same at both ends.

use alloc::string::String;
use alloc::vec::Vec;

use api::keys::IdentityKey;
use api::member_record::SignedRecord;
use serde::{Deserialize, Serialize};

use crate::advertisement::{ContentHash, ItemChange};
use crate::recall::Remembered;
use crate::remote::Token;

/// The protocol versions this program speaks, lowest and highest.
pub const VERSIONS: (u16, u16) = (1, 1);

/// The largest frame in bytes, its length prefix left out. The largest item (100 ports, 100 endpoints, 64 KiB of
/// annotations) fits, and a stranger's length never makes us reserve more.
pub const MAX_FRAME: usize = 256 * 1024;

/// How much a sender puts into one page of items before it begins the next: leaves room for one more item.
pub const PAGE_BYTES: usize = 96 * 1024;

/// Bytes of the length before each frame, big endian.
const PREFIX: usize = 4;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Message {
    /// Import side, first: what it speaks, where it wants to resume, and who it is.
    Ask { versions: (u16, u16), resume: Option<Token>, record: SignedRecord },
    /// Export side, first: the version chosen, who it is, and whether deltas or a snapshot follow.
    Answer { version: u16, epoch: String, record: SignedRecord, resumed: bool },
    /// Export side: a part of a snapshot. With `last`, the hash of the whole.
    Page { items: Vec<ItemChange>, last: Option<ContentHash> },
    /// Export side: changes. `hash` stands at the end of what belongs together; `age` is for how many milliseconds the
    /// export side has known of them, by its own clock, when it hands them to the connection.
    Delta { changes: Vec<ItemChange>, hash: Option<ContentHash>, age: u64 },
    /// Export side: records of other clusters, passed on as they were signed; its own when it changed.
    Records { records: Vec<SignedRecord> },
    /// Import side: exports of the other one that it knows to be older than that one says.
    Remember { exports: Vec<Remembered> },
    /// Import side: the identities it trusts to speak for the other one, as its store has them; again when they change.
    Trust { identities: Vec<IdentityKey> },
    /// Either side, when it has said nothing for a while. The import side says what it has applied: the content, and the
    /// generation of the other one's record. Who does not know the latter leaves it out.
    Alive {
        holding: Option<ContentHash>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        record: Option<u64>,
    },
    /// Either side, last: why it ends the conversation.
    Refuse { reason: String },
}

/// Why bytes are not a message. The stream cannot be trusted after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is larger than the limit of {MAX_FRAME}")]
    TooLarge(usize),
    #[error("a frame is no message of this protocol: {0}")]
    Malformed(String),
}

impl Message {
    /// The frame, with its length.
    pub fn to_frame(&self) -> Result<Vec<u8>, FrameError> {
        let body = serde_json::to_vec(self).map_err(|error| FrameError::Malformed(format!("{error}")))?;
        if body.len() > MAX_FRAME {
            return Err(FrameError::TooLarge(body.len()));
        }
        let length = u32::try_from(body.len()).map_err(|_| FrameError::TooLarge(body.len()))?;
        let mut frame = Vec::with_capacity(PREFIX + body.len());
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&body);
        Ok(frame)
    }

    /// A word for counters and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ask { .. } => "ask",
            Self::Answer { .. } => "answer",
            Self::Page { .. } => "page",
            Self::Delta { .. } => "delta",
            Self::Records { .. } => "records",
            Self::Remember { .. } => "remember",
            Self::Trust { .. } => "trust",
            Self::Alive { .. } => "alive",
            Self::Refuse { .. } => "refuse",
        }
    }
}

/// Cuts a stream of bytes into messages. Holds at most one frame and what came with it.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
}

impl FrameReader {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message; `None` until more bytes came.
    pub fn next_message(&mut self) -> Result<Option<Message>, FrameError> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLarge(length));
        }
        let Some(body) = self.buffer.get(PREFIX..PREFIX + length) else { return Ok(None) };
        let message = serde_json::from_slice(body).map_err(|error| FrameError::Malformed(format!("{error}")))?;
        self.buffer.drain(..PREFIX + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::advertisement::{ItemKey, ServiceName};
    use crate::testing::{service, slice, time};

    fn messages() -> Vec<Message> {
        let web = ServiceName::new("shop", "web");
        let items = vec![
            ItemChange { key: ItemKey::service(web.clone()), item: Some(service(1)) },
            ItemChange { key: ItemKey::slice(web.clone(), "a"), item: Some(slice(&["10.2.0.1"])) },
        ];
        vec![
            Message::Page { items: items.clone(), last: Some(ContentHash::default()) },
            Message::Delta { changes: vec![ItemChange { key: items[0].key.clone(), item: None }], hash: None, age: 7 },
            Message::Remember { exports: vec![Remembered { service: web, first_exported: time(1) }] },
            Message::Alive { holding: None, record: None },
            Message::Refuse { reason: "no".into() },
        ]
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_the_bytes_are_cut(sizes in proptest::collection::vec(1..200usize, 1..50)) {
            let bytes: Vec<u8> = messages().iter().flat_map(|message| message.to_frame().unwrap()).collect();
            let (mut reader, mut heard, mut at, mut sizes) = (FrameReader::default(), vec![], 0, sizes.into_iter().cycle());
            while at < bytes.len() {
                let end = (at + sizes.next().unwrap()).min(bytes.len());
                reader.push(&bytes[at..end]);
                at = end;
                while let Some(message) = reader.next_message().unwrap() {
                    heard.push(message);
                }
            }
            prop_assert_eq!(heard, messages());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), framed in any::<bool>()) {
            let mut reader = FrameReader::default();
            if framed {
                reader.push(&(bytes.len() as u32).to_be_bytes());
            }
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.next_message() {}
        }

        #[test]
        fn no_change_of_a_good_message_makes_the_reader_panic(which in 0..5usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut frame = messages()[which].to_frame().unwrap();
            let at = at.index(frame.len());
            frame[at] = byte;
            let mut reader = FrameReader::default();
            reader.push(&frame);
            let _ = reader.next_message();
        }
    }

    #[test]
    fn a_giant_length_is_refused_before_its_bytes_come() {
        let mut reader = FrameReader::default();
        reader.push(&u32::MAX.to_be_bytes());
        assert_eq!(reader.next_message(), Err(FrameError::TooLarge(u32::MAX as usize)));
    }
}
