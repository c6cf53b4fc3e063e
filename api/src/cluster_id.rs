//! [`ClusterId`]: the name a cluster keeps for as long as it is a member.

use alloc::borrow::Cow;
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A cluster's id: one or two DNS labels (RFC 1123) joined by a dot, at most 63 characters.
///
/// KEP-2149 allows a longer subdomain, but the id is also a label value and a part of DNS names, and both end at 63.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ClusterId(String);

/// Why a text is not a cluster id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a cluster id: use one or two labels of a-z, 0-9 and '-' joined by a dot, at most 63 characters")]
pub struct InvalidClusterId(String);

impl ClusterId {
    /// Checks `text` and takes it as an id.
    pub fn new(text: &str) -> Result<Self, InvalidClusterId> {
        let labels = text.split('.').count();
        if text.len() <= 63 && labels <= 2 && text.split('.').all(is_dns_label) {
            Ok(Self(text.to_string()))
        } else {
            // A hostile id must not become a log line of a megabyte.
            Err(InvalidClusterId(text.chars().take(80).collect()))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `label` is a DNS label as Kubernetes names use them (RFC 1123): lower case, 1 to 63 characters.
pub fn is_dns_label(label: &str) -> bool {
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    (1..=63).contains(&label.len())
        && label.as_bytes().iter().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ClusterId {
    type Err = InvalidClusterId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl AsRef<str> for ClusterId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for ClusterId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for ClusterId {
    fn schema_name() -> Cow<'static, str> {
        "ClusterId".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "maxLength": 63,
            "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)?$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_or_two_labels_and_at_most_63_characters() {
        for good in ["amber", "a", "eu-1.amber", &"a".repeat(63)] {
            assert!(ClusterId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "Amber", "a.b.c", "-a", "a-", "a..b", ".", "a_b", &"a".repeat(64)] {
            assert!(ClusterId::new(bad).is_err(), "{bad}");
        }
    }
}
