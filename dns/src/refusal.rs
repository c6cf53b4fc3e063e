//! [`Refusal`]: why an object, or a part of one, is not in the zone.

use std::collections::BTreeMap;

/// The name is a metric label too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// A slice of a clusterset service without the label that says whose it is.
    NoSourceCluster,
    InvalidClusterId,
    /// A name or namespace that is no DNS label.
    InvalidName,
    InvalidAddress,
    /// An address of the other family than the slice's, or a slice of neither.
    WrongFamily,
    /// A hostname that is no DNS label: the endpoint is named by its address instead.
    InvalidHostname,
    InvalidPort,
    /// More endpoints or ports in a slice than Kubernetes allows.
    TooMany,
}

impl Refusal {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSourceCluster => "NoSourceCluster",
            Self::InvalidClusterId => "InvalidClusterId",
            Self::InvalidName => "InvalidName",
            Self::InvalidAddress => "InvalidAddress",
            Self::WrongFamily => "WrongFamily",
            Self::InvalidHostname => "InvalidHostname",
            Self::InvalidPort => "InvalidPort",
            Self::TooMany => "TooMany",
        }
    }
}

/// One thing that was refused, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub refusal: Refusal,
    /// `EndpointSlice shop/web-birch`.
    pub object: String,
    /// What is wrong with it.
    pub detail: String,
}

/// How many refusals are kept for people to read; all are counted.
const KEPT: usize = 100;
/// Longest piece of a foreign value that is repeated in a message.
const SHOWN: usize = 80;

/// What was refused since the start.
#[derive(Clone, Debug, Default)]
pub struct RefusalLog {
    counts: BTreeMap<Refusal, u64>,
    latest: std::collections::VecDeque<Refused>,
}

impl RefusalLog {
    pub fn add(&mut self, refusal: Refusal, object: &str, detail: &str) {
        *self.counts.entry(refusal).or_default() += 1;
        let shown = |text: &str| text.chars().take(SHOWN).collect::<String>();
        let refused = Refused { refusal, object: object.chars().take(4 * SHOWN).collect(), detail: shown(detail) };
        // A controller that repeats itself must not push everything else out.
        if self.latest.back() == Some(&refused) {
            return;
        }
        if self.latest.len() == KEPT {
            self.latest.pop_front();
        }
        self.latest.push_back(refused);
    }

    pub fn counts(&self) -> &BTreeMap<Refusal, u64> {
        &self.counts
    }

    /// The latest refusals, oldest first.
    pub fn latest(&self) -> impl Iterator<Item = &Refused> {
        self.latest.iter()
    }
}
