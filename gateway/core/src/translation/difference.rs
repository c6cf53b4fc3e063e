//! [`Difference`]: how much the 16-bit words of a packet changed in sum, to be carried into a checksum (RFC 1624).

/// A sum in one's complement of every new word and of the complement of the old one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Difference {
    /// A packet has at most 2^15 words, each of which adds less than 2^17: this never overflows.
    sum: u32,
    changed: bool,
}

impl Difference {
    pub(super) const NONE: Self = Self { sum: 0, changed: false };

    pub(super) fn add(&mut self, other: Self) {
        self.sum = u32::from(fold(self.sum)) + u32::from(fold(other.sum));
        self.changed |= other.changed;
    }

    /// Overwrites whole words of `bytes`, which begin at an even place of what the checksum covers. Does nothing when they
    /// do not all lie within.
    pub(super) fn replace(&mut self, bytes: &mut [u8], at: usize, new: &[u8]) {
        let Some(old) = bytes.get_mut(at..at + new.len()) else { return };
        for (old, new) in old.chunks_exact(2).zip(new.chunks_exact(2)) {
            self.sum += u32::from(!word(old)) + u32::from(word(new));
        }
        self.changed = true;
        old.copy_from_slice(new);
    }

    /// Brings a checksum up to date, and gives the difference that this is in turn. `zero_is_none`: the sender may have
    /// computed none, which 0 says; a sum of 0 is then written as 0xffff (RFC 768).
    ///
    /// A checksum that was cut off, or of which only half is here, is left as it is.
    pub(super) fn carry(self, bytes: &mut [u8], at: usize, zero_is_none: bool) -> Self {
        let mut difference = Self::NONE;
        let Some(old) = bytes.get(at..at + 2).map(word) else { return difference };
        if !self.changed || (zero_is_none && old == 0) {
            return difference;
        }
        // Equation 3 of RFC 1624: HC' = ~(~HC + ~m + m').
        let new = match !fold(u32::from(!old) + u32::from(fold(self.sum))) {
            0 if zero_is_none => 0xffff,
            new => new,
        };
        difference.replace(bytes, at, &new.to_be_bytes());
        difference
    }
}

fn word(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |word, byte| word << 8 | u16::from(*byte))
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}
