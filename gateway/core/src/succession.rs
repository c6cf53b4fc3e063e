//! [`Succession`]: while keys rotate, two lanes are joined by several links, one for each pair of keys. Says which of
//! them come after which.
//!
//! Every link is brought up as soon as both ends know its keys. An end goes over to a newer link once that has proved
//! itself there, and says so in its probes on the older one. So keys are left only when neither end sends under them, and
//! a packet under way is opened by keys that are still there.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use api::ClusterId;

use crate::link::{LaneNumber, Link, LinkId};
use crate::topology::Topology;

/// The two lanes that links join: of links between the same ones, the newest that works is used.
type Pair<'a> = (LaneNumber, &'a ClusterId, u16, LaneNumber);

/// Empty while no keys rotate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Succession {
    after: BTreeMap<LinkId, Vec<LinkId>>,
    old: BTreeSet<LinkId>,
}

/// Whether a link has the next key of ours, and of theirs.
type Age = (bool, bool);

impl Succession {
    pub(crate) fn new<'a>(topology: &Topology, links: impl Iterator<Item = &'a Link>) -> Self {
        let mut pairs: BTreeMap<Pair<'_>, Vec<(LinkId, Age)>> = BTreeMap::new();
        let mut old = BTreeSet::new();
        for link in links {
            let pair = (link.lane, &link.cluster, link.slot, link.remote_lane);
            let ours = topology.ours.lanes.get(usize::from(link.lane.0));
            let theirs = topology.peers.iter().find(|peer| peer.id == link.cluster);
            let theirs = theirs.and_then(|peer| peer.gateways.iter().find(|gateway| gateway.slot == link.slot));
            let theirs = theirs.and_then(|gateway| gateway.lanes.get(usize::from(link.remote_lane.0)));
            let age = (
                ours.is_some_and(|lane| lane.next_key == Some(link.own_key)),
                theirs.is_some_and(|lane| lane.next_key == Some(link.public_key)),
            );
            if ours.is_some_and(|lane| lane.next_key.is_some() && lane.key == link.own_key) {
                old.insert(link.id);
            }
            pairs.entry(pair).or_default().push((link.id, age));
        }
        let mut after = BTreeMap::new();
        for links in pairs.values().filter(|links| links.len() > 1) {
            for (id, age) in links {
                let is_newer = |other: &Age| other != age && other.0 >= age.0 && other.1 >= age.1;
                let newer: Vec<LinkId> =
                    links.iter().filter(|(_, other)| is_newer(other)).map(|(other, _)| *other).collect();
                if !newer.is_empty() {
                    after.insert(*id, newer);
                }
            }
        }
        Self { after, old }
    }

    /// The links that come after this one.
    pub(crate) fn after(&self, id: LinkId) -> impl Iterator<Item = LinkId> {
        self.after.get(&id).into_iter().flatten().copied()
    }

    /// Whether the link uses a key of ours that another one is to replace.
    pub(crate) fn is_old(&self, id: LinkId) -> bool {
        self.old.contains(&id)
    }
}
