//! Domain names as the wire has them: [`QueryName`] is one a client asked for, [`Origin`] the zone's own.

use std::fmt;

/// Longest name on the wire, the root label included (RFC 1035, section 2.3.4).
pub const MAX_NAME: usize = 255;
/// Most labels such a name can hold.
const MAX_LABELS: usize = 127;
/// Longest label (RFC 1035, section 2.3.4).
pub const MAX_LABEL: usize = 63;

/// A name in lower case, in wire form without the root label. Lives on the stack: reading one allocates nothing.
#[derive(Clone)]
pub struct QueryName {
    wire: [u8; MAX_NAME],
    starts: [u8; MAX_LABELS],
    labels: usize,
    length: usize,
}

/// Why bytes are not the name of a question: cut short, too long, or compressed where nothing comes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedName;

impl QueryName {
    fn empty() -> Self {
        Self { wire: [0; MAX_NAME], starts: [0; MAX_LABELS], labels: 0, length: 0 }
    }

    /// Reads the name at `at` of `message`; also returns where it ends.
    pub fn read(message: &[u8], at: usize) -> Result<(Self, usize), MalformedName> {
        let mut name = Self::empty();
        let mut position = at;
        loop {
            let length = usize::from(*message.get(position).ok_or(MalformedName)?);
            position += 1;
            if length == 0 {
                return Ok((name, position));
            }
            // Over 63 are compression pointers and the types of label that never came to be (RFC 6891, section 5).
            if length > MAX_LABEL {
                return Err(MalformedName);
            }
            name.push(message.get(position..position + length).ok_or(MalformedName)?)?;
            position += length;
        }
    }

    /// Reads a name as people write it, with or without the final dot.
    pub fn parse(text: &str) -> Result<Self, MalformedName> {
        let mut name = Self::empty();
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Ok(name);
        }
        for label in text.split('.') {
            if label.is_empty() || label.len() > MAX_LABEL {
                return Err(MalformedName);
            }
            name.push(label.as_bytes())?;
        }
        Ok(name)
    }

    fn push(&mut self, label: &[u8]) -> Result<(), MalformedName> {
        let end = self.length + 1 + label.len();
        // The root label still has to fit.
        if end >= MAX_NAME || self.labels == MAX_LABELS {
            return Err(MalformedName);
        }
        // `length` stays below 255, so it fits a byte; a label is at most 63.
        self.starts[self.labels] = self.length as u8;
        self.labels += 1;
        self.wire[self.length] = label.len() as u8;
        let place = &mut self.wire[self.length + 1..end];
        place.copy_from_slice(label);
        place.make_ascii_lowercase();
        self.length = end;
        Ok(())
    }

    pub fn labels(&self) -> usize {
        self.labels
    }

    /// The label at `index`, counted from the left.
    pub fn label(&self, index: usize) -> &[u8] {
        &self.wire_of(index, index + 1)[1..]
    }

    /// The labels from `first` up to `end` in wire form, without a root label.
    pub fn wire_of(&self, first: usize, end: usize) -> &[u8] {
        &self.wire[self.start(first)..self.start(end)]
    }

    /// Where the label at `index` begins in the wire form.
    pub fn start(&self, index: usize) -> usize {
        if index < self.labels { usize::from(self.starts[index]) } else { self.length }
    }

    /// The whole name in wire form, without the root label.
    pub fn wire(&self) -> &[u8] {
        &self.wire[..self.length]
    }

    /// How many labels stand before `origin`; `None` when the name is not in that zone.
    pub fn labels_before(&self, origin: &Origin) -> Option<usize> {
        let before = self.labels.checked_sub(origin.labels)?;
        (self.wire_of(before, self.labels) == &*origin.wire).then_some(before)
    }
}

impl fmt::Display for QueryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for index in 0..self.labels {
            write!(f, "{}.", self.label(index).escape_ascii())?;
        }
        if self.labels == 0 { f.write_str(".") } else { Ok(()) }
    }
}

/// The name of the zone: `clusterset.local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    wire: Box<[u8]>,
    labels: usize,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' cannot be the zone: write a domain name of two labels or more, such as clusterset.local")]
pub struct InvalidOrigin(String);

impl Origin {
    pub fn new(text: &str) -> Result<Self, InvalidOrigin> {
        let refused = || InvalidOrigin(text.chars().take(80).collect());
        let name = QueryName::parse(text).map_err(|_| refused())?;
        let good = (0..name.labels())
            .all(|index| std::str::from_utf8(name.label(index)).is_ok_and(api::cluster_id::is_dns_label));
        // A single label would make us the authority for a top-level domain.
        if name.labels() < 2 || !good {
            return Err(refused());
        }
        Ok(Self { wire: name.wire().into(), labels: name.labels(), text: name.to_string() })
    }

    /// In wire form, without the root label.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// As people write it, with the final dot.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Labels in wire form, for keys: `web.shop` is `3web4shop`. Labels longer than 63 bytes are the caller's mistake.
pub(crate) fn wire<'a>(labels: impl IntoIterator<Item = &'a str>) -> Box<[u8]> {
    let mut wire = Vec::new();
    for label in labels {
        debug_assert!(label.len() <= MAX_LABEL);
        wire.push(label.len() as u8);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_in_lower_case_with_its_end() {
        let (name, end) = QueryName::read(b"..\x03WeB\x04shop\x00rest", 2).unwrap();
        assert_eq!((name.to_string().as_str(), end), ("web.shop.", 12));
        assert_eq!(name.label(1), b"shop");
        assert_eq!(name.wire(), b"\x03web\x04shop");
    }

    #[test]
    fn a_name_that_is_cut_short_compressed_or_too_long_is_refused() {
        let long: Vec<u8> = b"\x3f".iter().chain(&[b'a'; 63]).copied().cycle().take(64 * 4).chain([0]).collect();
        for bad in [&b"\x03we"[..], b"", b"\x03web", b"\xc0\x00", b"\x40aaa", &long] {
            assert!(QueryName::read(bad, 0).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_is_in_a_zone_by_whole_labels_only() {
        let origin = Origin::new("ClusterSet.local.").unwrap();
        let before = |text: &str| QueryName::parse(text).unwrap().labels_before(&origin);
        assert_eq!(before("clusterset.local"), Some(0));
        assert_eq!(before("web.shop.svc.clusterset.local."), Some(3));
        assert_eq!(before("notclusterset.local"), None);
        assert_eq!(before("local"), None);
        assert!(Origin::new("local").is_err() && Origin::new("").is_err() && Origin::new("a..b").is_err());
    }
}
