//! [`Digest`]: what tells one set of objects from another, whoever holds it.
//!
//! It is the sum of the objects' hashes, so a change costs one object, and the order does not count. It is made from
//! the content alone, resourceVersions included: a controller whose state was restored from an older copy counts its
//! versions again, but what it then has does not sum up to what an agent has, and the agent is given everything.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The sum of SHA-256 hashes, in four words that overflow each by itself. Nobody gains by making two sets look alike:
/// an agent could only deceive itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u64; 4]);

impl Digest {
    /// Of one object. serde_json keeps fields in the order of their names, so equal objects have equal bytes.
    pub(crate) fn of(object: &Value) -> Self {
        let hash: [u8; 32] = Sha256::digest(object.to_string()).into();
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(hash.chunks_exact(8)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        Self(words)
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word = word.wrapping_add(other));
    }

    pub(crate) fn remove(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word = word.wrapping_sub(other));
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|word| write!(f, "{word:016x}"))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || "a digest is 64 hexadecimal digits".to_owned();
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut words = [0; 4];
        for (word, digits) in words.iter_mut().zip(text.as_bytes().chunks_exact(16)) {
            let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
            *word = u64::from_str_radix(digits, 16).map_err(|_| bad())?;
        }
        Ok(Self(words))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn sum(objects: &[Value]) -> Digest {
        objects.iter().fold(Digest::default(), |mut sum, object| {
            sum.add(Digest::of(object));
            sum
        })
    }

    #[test]
    fn neither_the_order_of_objects_nor_of_fields_counts() {
        let one: Value = serde_json::from_str(r#"{"a":1,"b":{"c":2,"d":3}}"#).unwrap();
        let same: Value = serde_json::from_str(r#"{"b":{"d":3,"c":2},"a":1}"#).unwrap();
        let other = json!({"a": 2});
        assert_eq!(sum(&[one, other.clone()]), sum(&[other, same]));
    }

    #[test]
    fn any_difference_shows() {
        let version = |version: &str| json!({"metadata": {"name": "a", "resourceVersion": version}});
        assert_ne!(sum(&[version("1")]), sum(&[version("2")]));
        assert_ne!(sum(&[]), sum(&[version("1")]));
        assert_ne!(sum(&[version("1")]), sum(&[version("1"), version("1")]));
    }

    proptest! {
        #[test]
        fn what_was_removed_again_leaves_no_trace(numbers in proptest::collection::vec(any::<u32>(), 0..20)) {
            let objects: Vec<Value> = numbers.iter().map(|number| json!({"n": number})).collect();
            let mut digest = sum(&objects);
            objects.iter().rev().for_each(|object| digest.remove(Digest::of(object)));
            prop_assert_eq!(digest, Digest::default());
        }

        #[test]
        fn a_digest_is_read_as_it_was_written(words: [u64; 4], text in ".{0,70}") {
            prop_assert_eq!(Digest::try_from(Digest(words).to_string()), Ok(Digest(words)));
            let _ = Digest::try_from(text);
        }
    }
}
