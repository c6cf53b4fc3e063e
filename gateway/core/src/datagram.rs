//! The outside of a WireGuard message: its type and whom it is for (whitepaper, section 5.4).

use crate::link::LinkId;

/// What a datagram is, as far as one can say without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// For whoever has the static key inside.
    HandshakeInitiation,
    /// Answers an initiation of ours.
    HandshakeResponse(LinkId),
    /// Asks for an initiation of ours again, with proof of our address.
    CookieReply(LinkId),
    Data(LinkId),
}

/// Type, reserved zeros, receiver index, counter, and the tag of an empty packet: the shortest data message.
const SHORTEST_DATA: usize = 32;

impl Message {
    /// `None` when it is not a WireGuard message: wrong type, nonzero reserved bytes, wrong length.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let (kind, rest) = datagram.split_first_chunk::<4>()?;
        let index_at = |offset: usize| {
            let bytes = rest.get(offset..)?.first_chunk::<4>()?;
            Some(LinkId::from_receiver_index(u32::from_le_bytes(*bytes)))
        };
        match (u32::from_le_bytes(*kind), datagram.len()) {
            (1, 148) => Some(Self::HandshakeInitiation),
            (2, 92) => Some(Self::HandshakeResponse(index_at(4)?)),
            (3, 64) => Some(Self::CookieReply(index_at(0)?)),
            (4, SHORTEST_DATA..) => Some(Self::Data(index_at(0)?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_message_type_is_known_by_type_and_length() {
        let message = |kind: u8, len: usize| {
            let mut bytes = alloc::vec![0u8; len];
            bytes[0] = kind;
            // Sender index of a response, receiver index of the others: link 5, key generation 9.
            bytes[4..8].copy_from_slice(&0x0509u32.to_le_bytes());
            if kind == 2 {
                bytes[8..12].copy_from_slice(&0x0703u32.to_le_bytes());
            }
            bytes
        };
        assert_eq!(Message::parse(&message(1, 148)), Some(Message::HandshakeInitiation));
        assert_eq!(Message::parse(&message(2, 92)), Some(Message::HandshakeResponse(LinkId::new(7).unwrap())));
        assert_eq!(Message::parse(&message(3, 64)), Some(Message::CookieReply(LinkId::new(5).unwrap())));
        assert_eq!(Message::parse(&message(4, 32)), Some(Message::Data(LinkId::new(5).unwrap())));
        assert_eq!(Message::parse(&message(4, 31)), None);
        assert_eq!(Message::parse(&message(1, 149)), None);
        assert_eq!(Message::parse(&message(5, 148)), None);
        let mut reserved = message(4, 40);
        reserved[2] = 1;
        assert_eq!(Message::parse(&reserved), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&bytes);
        }
    }
}
