//! [`Arena`]: a batch of packets in one flat buffer, made once and used again, so that no packet costs an allocation.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Packets one behind the other without gaps, each with a small value about it.
///
/// Neighbours touch, so a run of equally long datagrams to one place can be sent by one UDP_SEGMENT call.
pub struct Arena<M> {
    bytes: Box<[u8]>,
    used: usize,
    slots: Vec<Slot<M>>,
}

struct Slot<M> {
    range: Range<usize>,
    meta: M,
}

/// The arena has no room for this packet. The caller hands on what is there, clears, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the batch is full: hand it on before adding to it")]
pub struct Full;

impl<M> Arena<M> {
    /// Room for `bytes` bytes in at most `packets` packets. The only place that allocates.
    pub fn new(bytes: usize, packets: usize) -> Self {
        Self { bytes: vec![0; bytes].into_boxed_slice(), used: 0, slots: Vec::with_capacity(packets) }
    }

    /// Forgets all packets; keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
        self.slots.clear();
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The bytes behind the last packet, to read or write the next one into. Empty when no further packet fits.
    pub fn room(&mut self) -> &mut [u8] {
        if self.slots.len() == self.slots.capacity() {
            return &mut [];
        }
        self.bytes.get_mut(self.used..).unwrap_or_default()
    }

    /// Takes the first `len` bytes of [`room`](Self::room) as a packet.
    pub fn commit(&mut self, len: usize, meta: M) -> Result<(), Full> {
        if self.slots.len() == self.slots.capacity() || len > self.bytes.len() - self.used {
            return Err(Full);
        }
        let end = self.used + len;
        self.slots.push(Slot { range: self.used..end, meta });
        self.used = end;
        Ok(())
    }

    /// Takes the first `len` bytes of [`room`](Self::room) as packets of `segment` bytes each, the last may be shorter:
    /// what a socket with UDP_GRO gives. Each is a packet of its own from here on; nothing says they belong together.
    pub fn commit_segments(&mut self, len: usize, segment: usize, meta: M) -> Result<(), Full>
    where
        M: Copy,
    {
        if segment == 0 || segment >= len {
            return self.commit(len, meta);
        }
        let count = len.div_ceil(segment);
        if count > self.slots.capacity() - self.slots.len() || len > self.bytes.len() - self.used {
            return Err(Full);
        }
        let mut left = len;
        while left > 0 {
            let next = left.min(segment);
            self.commit(next, meta)?;
            left -= next;
        }
        Ok(())
    }

    /// Copies a packet in.
    pub fn push(&mut self, packet: &[u8], meta: M) -> Result<(), Full> {
        self.room().get_mut(..packet.len()).ok_or(Full)?.copy_from_slice(packet);
        self.commit(packet.len(), meta)
    }

    /// The packet's bytes; empty when there is no such packet.
    pub fn bytes(&self, index: usize) -> &[u8] {
        self.slots.get(index).and_then(|slot| self.bytes.get(slot.range.clone())).unwrap_or_default()
    }

    pub fn bytes_mut(&mut self, index: usize) -> &mut [u8] {
        let range = self.slots.get(index).map_or(0..0, |slot| slot.range.clone());
        self.bytes.get_mut(range).unwrap_or_default()
    }

    pub fn meta(&self, index: usize) -> Option<&M> {
        self.slots.get(index).map(|slot| &slot.meta)
    }

    pub fn meta_mut(&mut self, index: usize) -> Option<&mut M> {
        self.slots.get_mut(index).map(|slot| &mut slot.meta)
    }

    /// Cuts a packet to its first `len` bytes: what padding made longer than its header says.
    pub fn truncate(&mut self, index: usize, len: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.range.end = slot.range.end.min(slot.range.start + len);
        }
    }

    /// All packets in the order they were added.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &M)> {
        self.slots.iter().map(|slot| (self.bytes.get(slot.range.clone()).unwrap_or_default(), &slot.meta))
    }
}

impl<M> fmt::Debug for Arena<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({} packets, {} of {} bytes)", self.slots.len(), self.used, self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_lie_one_behind_the_other_and_come_back_in_order() {
        let mut arena = Arena::new(16, 4);
        arena.push(b"one", 1).unwrap();
        arena.push(b"three", 3).unwrap();
        let seen: Vec<_> = arena.iter().map(|(bytes, meta)| (bytes.to_vec(), *meta)).collect();
        assert_eq!(seen, [(b"one".to_vec(), 1), (b"three".to_vec(), 3)]);
    }

    #[test]
    fn a_full_arena_refuses_and_keeps_what_it_has() {
        let mut arena = Arena::new(8, 2);
        arena.push(b"12345678", ()).unwrap();
        assert_eq!(arena.push(b"9", ()), Err(Full));
        arena.clear();
        arena.push(b"a", ()).unwrap();
        arena.push(b"b", ()).unwrap();
        assert_eq!(arena.push(b"c", ()), Err(Full));
        assert!(arena.room().is_empty());
        assert_eq!(arena.len(), 2);
    }

    #[test]
    fn a_coalesced_message_becomes_its_segments_and_the_last_may_be_shorter() {
        let mut arena = Arena::new(16, 4);
        arena.room()[..7].copy_from_slice(b"aaabbbc");
        arena.commit_segments(7, 3, ()).unwrap();
        let seen: Vec<_> = arena.iter().map(|(bytes, ())| bytes.to_vec()).collect();
        assert_eq!(seen, [b"aaa".to_vec(), b"bbb".to_vec(), b"c".to_vec()]);
        assert_eq!(arena.commit_segments(9, 3, ()), Err(Full), "no half of a message is taken");
        assert_eq!(arena.len(), 3);
    }
}
