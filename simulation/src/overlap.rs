//! Clusters whose pods have the same addresses: as what each sees the others' pods, by its own ClusterPeers, and whether
//! that stays so.

use std::net::IpAddr;

use api::{ClusterPeer, TranslatedPrefix, translated_prefix};

use crate::cluster::Cluster;
use crate::site::{self, NAMES};
use crate::world::World;

impl World {
    /// The pod behind an address, as a client in a cluster would use it.
    pub(crate) fn pod_behind(&self, place: usize, address: IpAddr) -> Option<IpAddr> {
        let cluster = &self.clusters[place];
        if let Some(own) = site::pod_at(place, cluster.shape, address) {
            return Some(own);
        }
        let mut others = self.clusters.iter().filter(|other| other.place != place);
        others.find_map(|other| {
            let translations = translations(cluster, other.place);
            let real = match translated_prefix::real(translations, address) {
                Some(real) => real,
                None if translated_prefix::seen(translations, address).is_some() => return None,
                None => address,
            };
            site::pod_at(other.place, other.shape, real)
        })
    }

    /// The address by which a client in a cluster reaches a pod; `None` while it has none.
    pub(crate) fn seen_from(&self, place: usize, pod: IpAddr) -> Option<IpAddr> {
        let (of, _) = site::pod_of(pod)?;
        let real = site::real(self.clusters.get(of)?.shape, pod);
        let cluster = &self.clusters[place];
        let seen = translated_prefix::seen(translations(cluster, of), real);
        if of == place || seen.is_some() {
            return Some(if of == place { real } else { seen? });
        }
        site::pod_at(place, cluster.shape, real).is_none().then_some(real)
    }

    /// What a peer's prefix is seen as is given once, out of the cluster's own, and to nobody else.
    pub(crate) fn judge_translations(&mut self, place: usize, peer: &ClusterPeer) {
        let name = peer.metadata.name.clone().unwrap_or_default();
        let cluster = NAMES[place];
        for given in peer.translations() {
            let known = self.translations.entry((place, name.clone(), given.real.to_string())).or_insert(*given);
            if known.seen != given.seen {
                let (before, after) = (known.seen, given.seen);
                self.violations.push(format!("{cluster} saw {} of {name} as {before}, and now as {after}", given.real));
            }
        }
        for ((of, other, _), given) in &self.translations {
            let is_taken = |mine: &&TranslatedPrefix| mine.seen.overlaps(&given.seen);
            if (*of, other.as_str()) != (place, name.as_str())
                && *of == place
                && let Some(taken) = peer.translations().iter().find(is_taken)
            {
                self.violations.push(format!("{cluster} sees {} of {name} and {other} as one", taken.seen));
            }
        }
    }
}

fn translations(cluster: &Cluster, of: usize) -> &[TranslatedPrefix] {
    cluster.objects.get::<ClusterPeer>("", NAMES[of]).map(ClusterPeer::translations).unwrap_or_default()
}
