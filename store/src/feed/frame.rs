//! Bytes ↔ messages. A message is sent as frames: four bytes that say how long the frame is, most significant first,
//! and in their highest bit whether the message goes on in the next frame; then the frame.

/// The largest frame, in bytes.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// The largest message, in bytes: twice the largest manifest.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;
/// The largest message from somebody who has not proved anything yet.
pub const MAX_GREETING_BYTES: usize = 16 * 1024;

/// Room for one read, in bytes: a TLS record's content (RFC 8446, section 5.1).
const READ_BYTES: usize = 16 * 1024;

/// Set in a frame's length when the message goes on.
const GOES_ON: u32 = 1 << 31;

/// Why bytes are not messages. The connection they came by cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is over the limit of {MAX_FRAME_BYTES}")]
    FrameTooLarge(usize),
    #[error("a message is over the limit of {0} bytes")]
    MessageTooLarge(usize),
    #[error("a frame is empty")]
    Empty,
}

/// Puts a message into frames. `None` when it is larger than [`MAX_MESSAGE_BYTES`].
pub fn encode(message: &[u8]) -> Option<Vec<u8>> {
    if message.is_empty() || message.len() > MAX_MESSAGE_BYTES {
        return None;
    }
    let frames = message.len().div_ceil(MAX_FRAME_BYTES);
    let mut bytes = Vec::with_capacity(message.len() + 4 * frames);
    for (index, frame) in message.chunks(MAX_FRAME_BYTES).enumerate() {
        let more = if index + 1 < frames { GOES_ON } else { 0 };
        // A frame's length fits: it is at most MAX_FRAME_BYTES.
        let length = u32::try_from(frame.len()).ok()? | more;
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(frame);
    }
    Some(bytes)
}

/// Takes bytes as they come and gives messages as they are whole. Never holds more than one message's limit and one
/// read.
#[derive(Debug)]
pub struct Decoder {
    unread: Vec<u8>,
    /// The frames of the message that goes on.
    message: Vec<u8>,
    limit: usize,
}

impl Decoder {
    /// `limit` bounds a message, in bytes.
    pub fn new(limit: usize) -> Self {
        Self { unread: Vec::new(), message: Vec::new(), limit }
    }

    /// Bounds the messages from here on.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Where to put what is read, with room for some of it.
    pub fn room(&mut self) -> &mut Vec<u8> {
        self.unread.reserve(READ_BYTES);
        &mut self.unread
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// The next whole message; `None` when more bytes are needed.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        loop {
            let Some((head, rest)) = self.unread.split_first_chunk::<4>() else { return Ok(None) };
            let head = u32::from_be_bytes(*head);
            let length = usize::try_from(head & !GOES_ON).unwrap_or(usize::MAX);
            if length == 0 {
                return Err(FrameError::Empty);
            }
            if length > MAX_FRAME_BYTES {
                return Err(FrameError::FrameTooLarge(length));
            }
            if self.message.len() + length > self.limit {
                return Err(FrameError::MessageTooLarge(self.limit));
            }
            let Some(frame) = rest.get(..length) else { return Ok(None) };
            self.message.extend_from_slice(frame);
            self.unread.drain(..4 + length);
            if head & GOES_ON == 0 {
                return Ok(Some(std::mem::take(&mut self.message)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_larger_than_a_frame_is_put_together_again() {
        let message: Vec<u8> = (0..MAX_FRAME_BYTES * 2 + 5).map(|i| i.to_le_bytes()[0]).collect();
        let mut decoder = Decoder::new(MAX_MESSAGE_BYTES);
        decoder.push(&encode(&message).unwrap());
        assert_eq!(decoder.next_message(), Ok(Some(message)));
        assert_eq!(decoder.next_message(), Ok(None));
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_first_bytes() {
        let mut decoder = Decoder::new(MAX_GREETING_BYTES);
        decoder.push(&encode(&vec![1; MAX_GREETING_BYTES + 1]).unwrap()[..4]);
        assert_eq!(decoder.next_message(), Err(FrameError::MessageTooLarge(MAX_GREETING_BYTES)));
        assert_eq!(encode(&vec![1; MAX_MESSAGE_BYTES + 1]), None);
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_they_are_cut(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..100), 0..8),
            cut in 1..50usize,
        ) {
            let bytes: Vec<u8> = messages.iter().flat_map(|message| encode(message).unwrap()).collect();
            let mut decoder = Decoder::new(MAX_GREETING_BYTES);
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(message) = decoder.next_message().unwrap() {
                    seen.push(message);
                }
            }
            prop_assert_eq!(seen, messages);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic_or_hoard(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::new(MAX_GREETING_BYTES);
            decoder.push(&bytes);
            while let Ok(Some(message)) = decoder.next_message() {
                prop_assert!(message.len() <= bytes.len());
            }
        }
    }
}
