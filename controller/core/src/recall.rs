//! [`Recall`]: how old peers remember this cluster's exports to be.
//!
//! A cluster that lost its state makes its objects anew, and they look as old as today. Its peers keep the earlier times
//! for themselves; if it did not hear of them, it would see another winner of each conflict than they do, and so would
//! every cluster that joins later (decision 16).
//!
//! What a peer can do by lying: make exports of ours look older, back to the first Kubernetes, so that ours win
//! conflicts they should lose. For its own exports it could always do that. It can do so only within
//! [`RECALL_WINDOW`] after this installation was made, only for exports made since, and never to another cluster's.
//! All that it said goes with its ClusterPeer, or when that is blocked.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use api::ClusterId;
use api::cluster_id::is_dns_label;
use api::time::WallTime;
use serde::{Deserialize, Serialize};

use crate::advertisement::ServiceName;
use crate::remote::FORGET;
use crate::validity::{OLDEST_PLAUSIBLE, Refusal};

/// How long after an installation was made peers are believed: as long as they remember a cluster that is away.
pub const RECALL_WINDOW: Duration = FORGET;

/// One export of ours, and when a peer knows it was exported first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Remembered {
    pub service: ServiceName,
    pub first_exported: WallTime,
}

/// What is kept on disk of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KeptRecall {
    /// The file's form; 1.
    pub version: u16,
    pub told: BTreeMap<ClusterId, Vec<Remembered>>,
}

#[derive(Debug, Default)]
pub struct Recall {
    /// When this installation was made. Where that is not known nobody is believed.
    made: Option<WallTime>,
    told: BTreeMap<ClusterId, BTreeMap<ServiceName, WallTime>>,
    /// Counts the changes of `told`.
    revision: u64,
}

/// What came of a peer's word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    pub touched: BTreeSet<ServiceName>,
    pub refused: BTreeMap<Refusal, usize>,
}

impl Recall {
    pub fn new(made: Option<WallTime>, kept: KeptRecall) -> Self {
        let one = |(peer, told): (ClusterId, Vec<Remembered>)| {
            (peer, told.into_iter().map(|one| (one.service, one.first_exported)).collect())
        };
        // Times of objects have whole seconds: what was made in the same second was made after it.
        let made = made.map(|made| WallTime::from_millis(made.as_millis() / 1_000 * 1_000));
        Self { made, told: kept.told.into_iter().map(one).collect(), revision: 0 }
    }

    pub fn kept(&self) -> KeptRecall {
        let one = |(peer, told): (&ClusterId, &BTreeMap<ServiceName, WallTime>)| {
            let told = told.iter().map(|(name, time)| Remembered { service: name.clone(), first_exported: *time });
            (peer.clone(), told.collect())
        };
        KeptRecall { version: 1, told: self.told.iter().map(one).collect() }
    }

    /// Takes in what a peer remembers: `most` services of it, and of each the earliest time it ever said.
    pub fn hear(&mut self, peer: &ClusterId, remembered: &[Remembered], most: usize, now: WallTime) -> Heard {
        let mut heard = Heard::default();
        let Some(made) = self.made else { return heard };
        let window = u64::try_from(RECALL_WINDOW.as_millis()).unwrap_or(u64::MAX);
        let is_late = now.as_millis() > made.as_millis().saturating_add(window);
        let told = self.told.entry(peer.clone()).or_default();
        for Remembered { service, first_exported: time } in remembered {
            let refusal = if !is_dns_label(&service.namespace) || !is_dns_label(&service.name) {
                Refusal::InvalidName
            } else if *time < OLDEST_PLAUSIBLE {
                Refusal::ImplausibleTimestamp
            } else if *time > now {
                Refusal::FutureTimestamp
            } else if *time >= made {
                // Nothing from before: this installation knows better.
                continue;
            } else if is_late {
                Refusal::LateMemory
            } else if told.len() >= most && !told.contains_key(service) {
                Refusal::TooManyServices
            } else {
                if told.get(service).is_none_or(|known| time < known) {
                    told.insert(service.clone(), *time);
                    heard.touched.insert(service.clone());
                }
                continue;
            };
            *heard.refused.entry(refusal).or_default() += 1;
        }
        if told.is_empty() {
            self.told.remove(peer);
        }
        self.revision += u64::from(!heard.touched.is_empty());
        heard
    }

    /// Another number after each change of what is to be kept.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// When a service was exported first, by what its own objects say and what peers remember.
    pub fn first_exported(&self, name: &ServiceName, own: WallTime) -> WallTime {
        // An export from before this installation was not lost with the state: its own time holds.
        if self.made.is_none_or(|made| own < made) {
            return own;
        }
        self.told.values().filter_map(|told| told.get(name)).fold(own, |earliest, time| earliest.min(*time))
    }

    /// An export was taken back: made again, it is a new one.
    pub fn forget(&mut self, name: &ServiceName) {
        for told in self.told.values_mut() {
            self.revision += u64::from(told.remove(name).is_some());
        }
        self.told.retain(|_, told| !told.is_empty());
    }

    /// A peer is not trusted any more: what it said goes.
    pub fn forget_peer(&mut self, peer: &ClusterId) -> BTreeSet<ServiceName> {
        let gone = self.told.remove(peer);
        self.revision += u64::from(gone.is_some());
        gone.into_iter().flat_map(BTreeMap::into_keys).collect()
    }

    /// The peers whose word is in force.
    pub fn peers(&self) -> impl Iterator<Item = &ClusterId> {
        self.told.keys()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{cluster, time};

    /// Made at second 100, peers are heard at second 200.
    fn recall() -> Recall {
        Recall::new(Some(time(100)), KeptRecall::default())
    }

    fn web(at: u64) -> Vec<Remembered> {
        vec![Remembered { service: name("web"), first_exported: time(at) }]
    }

    fn name(name: &str) -> ServiceName {
        ServiceName::new("shop", name)
    }

    #[test]
    fn the_earliest_time_from_before_the_loss_counts_and_survives_a_restart() {
        let mut recall = recall();
        for (peer, at, is_new) in [("birch", 50, true), ("cedar", 40, true), ("birch", 60, false)] {
            let before = recall.revision();
            let heard = recall.hear(&cluster(peer), &web(at), 10, time(200));
            assert_eq!((heard.touched.contains(&name("web")), recall.revision() != before), (is_new, is_new));
        }
        let restarted = Recall::new(Some(time(100)), recall.kept());
        assert_eq!(restarted.first_exported(&name("web"), time(150)), time(40));
        assert_eq!(restarted.first_exported(&name("other"), time(150)), time(150));
    }

    #[test]
    fn an_export_made_in_the_second_of_the_installation_was_made_anew() {
        let mut recall = Recall::new(Some(WallTime::from_millis(time(100).as_millis() + 900)), KeptRecall::default());
        recall.hear(&cluster("birch"), &web(50), 10, time(200));
        assert_eq!(recall.first_exported(&name("web"), time(100)), time(50));
    }

    #[test]
    fn what_this_installation_saw_itself_nobody_corrects() {
        let mut recall = recall();
        recall.hear(&cluster("birch"), &web(50), 10, time(200));
        assert_eq!(recall.first_exported(&name("web"), time(99)), time(99), "an export that was not lost");
        assert_eq!(recall.hear(&cluster("birch"), &web(120), 10, time(200)), Heard::default());
        let mut unknown = Recall::default();
        assert_eq!(unknown.hear(&cluster("birch"), &web(50), 10, time(200)), Heard::default());
    }

    #[test]
    fn times_that_cannot_be_and_more_than_a_peer_may_say_are_refused_by_name() {
        let mut recall = recall();
        let long_after = WallTime::from_millis(time(100).as_millis() + 8 * 24 * 3_600_000);
        let wrong = Remembered { service: ServiceName::new("shop", "../web"), first_exported: time(50) };
        let old = Remembered { service: name("web"), first_exported: WallTime::from_millis(7) };
        let two = [web(50), vec![Remembered { service: name("api"), first_exported: time(50) }]].concat();
        for (said, now, refusal) in [
            (vec![wrong], time(200), Refusal::InvalidName),
            (vec![old], time(200), Refusal::ImplausibleTimestamp),
            (web(300), time(200), Refusal::FutureTimestamp),
            (web(50), long_after, Refusal::LateMemory),
            (two, time(200), Refusal::TooManyServices),
        ] {
            let heard = recall.hear(&cluster("birch"), &said, 1, now);
            assert_eq!(heard.refused, [(refusal, 1)].into(), "{said:?}");
        }
    }

    #[test]
    fn what_a_peer_said_goes_with_its_trust_and_what_was_said_of_an_export_with_the_export() {
        let mut recall = recall();
        recall.hear(&cluster("birch"), &web(50), 10, time(200));
        recall.hear(&cluster("cedar"), &web(60), 10, time(200));
        assert_eq!(recall.forget_peer(&cluster("birch")), [name("web")].into());
        assert_eq!(recall.first_exported(&name("web"), time(150)), time(60));
        recall.forget(&name("web"));
        assert_eq!(recall.first_exported(&name("web"), time(150)), time(150));
        assert_eq!(recall.peers().count(), 0);
    }

    proptest! {
        #[test]
        fn no_word_makes_an_export_younger_or_touches_what_was_not_lost_and_the_order_does_not_matter(
            said in proptest::collection::vec((0..3usize, 0..4usize, any::<u32>()), 0..40), own in 0..400u64
        ) {
            let entries: Vec<_> = said
                .iter()
                .map(|(peer, service, at)| {
                    // A third each: long past, around now, anywhere.
                    let at = match at % 3 { 0 => time(u64::from(at % 400)), 1 => WallTime::from_millis(u64::from(*at)), _ => time(u64::from(*at)) };
                    let remembered = Remembered { service: name(&format!("s{service}")), first_exported: at };
                    (cluster(["birch", "cedar", "elm"][*peer]), remembered)
                })
                .collect();
            let (mut forward, mut backward) = (recall(), recall());
            for (peer, one) in &entries {
                forward.hear(peer, core::slice::from_ref(one), 10, time(200));
            }
            for (peer, one) in entries.iter().rev() {
                backward.hear(peer, core::slice::from_ref(one), 10, time(200));
            }
            for service in 0..4 {
                let service = name(&format!("s{service}"));
                let first = forward.first_exported(&service, time(own));
                prop_assert_eq!(first, backward.first_exported(&service, time(own)));
                prop_assert!(first <= time(own) && first >= OLDEST_PLAUSIBLE.min(time(own)));
                prop_assert!(first == time(own) || (own >= 100 && first < time(100)));
            }
        }
    }
}
