//! [`OuterFragments`]: a datagram in pieces that every IPv6 path carries (RFC 8200, 4.5).
//!
//! No router cuts IPv6. A host does, to what it believes the path to carry, and that it learns from Packet Too Big, which too
//! many networks lose. No option of a UDP socket makes Linux cut to less than it believes (IPV6_MTU is passed over where the
//! whole fits), so a gateway that measured such a path makes the pieces itself. The other host's kernel puts them together
//! as any.

use alloc::vec::Vec;
use core::net::SocketAddrV6;

use crate::packet::protocol;
use crate::udp_checksum::udp_checksum;

/// What every IPv6 link carries (RFC 8200, section 5).
const LEAST_LINK: usize = 1280;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const FRAGMENT_HEADER: usize = 8;
/// The next header that announces a fragment header.
const FRAGMENT: u8 = 44;
/// Bytes of the datagram in each piece but the last: a multiple of 8, as offsets are counted in eights.
const PIECE: usize = (LEAST_LINK - IPV6_HEADER - FRAGMENT_HEADER) / 8 * 8;
/// The usual of Linux and others, which the kernel would have written.
const HOP_LIMIT: u8 = 64;

/// Pieces of one datagram after the other, as whole IPv6 packets. Keeps its memory between datagrams.
#[derive(Debug, Default)]
pub struct OuterFragments {
    /// UDP header and payload.
    datagram: Vec<u8>,
    packet: Vec<u8>,
}

impl OuterFragments {
    /// Whether a payload over IPv6 is too long to pass every path in one piece.
    pub const fn are_needed(payload: usize) -> bool {
        payload > LEAST_LINK - IPV6_HEADER - UDP_HEADER
    }

    /// Gives each piece to `send`, in order, until one fails. `identification` should not be guessable (RFC 7739).
    ///
    /// Errors: those of `send`. A payload that no UDP datagram can hold is not sent at all, which nothing of ours is.
    pub fn each<E>(
        &mut self,
        from: SocketAddrV6,
        to: SocketAddrV6,
        payload: &[u8],
        identification: u32,
        mut send: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Ok(len) = u16::try_from(UDP_HEADER + payload.len()) else { return Ok(()) };
        self.datagram.clear();
        self.datagram.extend(from.port().to_be_bytes());
        self.datagram.extend(to.port().to_be_bytes());
        self.datagram.extend(len.to_be_bytes());
        self.datagram.extend([0, 0]);
        self.datagram.extend(payload);
        let checksum = udp_checksum(&addresses(from, to), &self.datagram).to_be_bytes();
        self.datagram[6..8].copy_from_slice(&checksum);
        for (number, piece) in (0u16..).zip(self.datagram.chunks(PIECE)) {
            // The product is below `len`, which fits.
            let offset = number * PIECE as u16;
            let more = usize::from(offset) + piece.len() < self.datagram.len();
            self.packet.clear();
            self.packet.extend([0x60, 0, 0, 0]);
            self.packet.extend(((FRAGMENT_HEADER + piece.len()) as u16).to_be_bytes());
            self.packet.extend([FRAGMENT, HOP_LIMIT]);
            self.packet.extend(addresses(from, to));
            self.packet.extend([protocol::UDP, 0]);
            // Thirteen bits of offset in eights are the offset itself with three bits free.
            self.packet.extend((offset | u16::from(more)).to_be_bytes());
            self.packet.extend(identification.to_be_bytes());
            self.packet.extend(piece);
            send(&self.packet)?;
        }
        Ok(())
    }
}

fn addresses(from: SocketAddrV6, to: SocketAddrV6) -> [u8; 32] {
    let mut both = [0; 32];
    both[..16].copy_from_slice(&from.ip().octets());
    both[16..].copy_from_slice(&to.ip().octets());
    both
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends() -> [SocketAddrV6; 2] {
        ["[2001:db8::1]:51820", "[2001:db8:2::1]:51821"].map(|end| end.parse().unwrap())
    }

    fn cut(payload: &[u8], identification: u32) -> Vec<Vec<u8>> {
        let [from, to] = ends();
        let mut pieces = Vec::new();
        let cut = OuterFragments::default().each(from, to, payload, identification, |piece| {
            pieces.push(piece.to_vec());
            Ok::<(), ()>(())
        });
        cut.unwrap();
        pieces
    }

    proptest! {
        #[test]
        fn pieces_pass_every_link_and_make_the_datagram_again(
            payload in proptest::collection::vec(any::<u8>(), 1..9300), identification in any::<u32>(),
        ) {
            let pieces = cut(&payload, identification);
            let mut whole = Vec::new();
            for (number, piece) in pieces.iter().enumerate() {
                let last = number + 1 == pieces.len();
                prop_assert!(piece.len() <= LEAST_LINK);
                prop_assert_eq!(usize::from(u16::from_be_bytes([piece[4], piece[5]])), piece.len() - IPV6_HEADER);
                prop_assert_eq!((piece[6], piece[40]), (44, 17));
                let offset = u16::from_be_bytes([piece[42], piece[43]]);
                prop_assert_eq!(usize::from(offset & !7), whole.len());
                prop_assert_eq!(offset & 7, u16::from(!last));
                prop_assert_eq!(&piece[44..48], &identification.to_be_bytes());
                whole.extend_from_slice(&piece[48..]);
            }
            let [from, to] = ends();
            prop_assert_eq!(&whole[8..], &payload);
            prop_assert_eq!(usize::from(u16::from_be_bytes([whole[4], whole[5]])), whole.len());
            prop_assert_eq!(udp_checksum(&addresses(from, to), &whole), 0xffff, "its own checksum makes the sum whole");
        }
    }

    #[test]
    fn what_passes_in_one_piece_needs_none() {
        assert!(!OuterFragments::are_needed(1232) && OuterFragments::are_needed(1233));
    }

    #[test]
    fn a_payload_that_no_datagram_holds_is_not_sent() {
        assert!(cut(&alloc::vec![0; 65_528], 1).is_empty());
    }

    #[test]
    fn nothing_more_is_sent_after_a_piece_that_was_not() {
        let [from, to] = ends();
        let mut sent = 0;
        let result = OuterFragments::default().each(from, to, &[0; 5000], 1, |_| {
            sent += 1;
            Err(())
        });
        assert_eq!((result, sent), (Err(()), 1));
    }
}
