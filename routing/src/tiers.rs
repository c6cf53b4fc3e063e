//! [`decide`]: one policy's tiers against what is reachable and ready.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use api::ClusterId;
use api::routing_policy::{ClusterChoice, Share as Sharing, SpillBelow};
use api::time::Instant;

use crate::clusters::START_GRACE;
use crate::fraction::Fraction;
use crate::{Clusters, Decision, Memory, PolicySet, Reason, Share, Standing, Verdict};

/// What is asked: who answers on one port of one service, now.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub namespace: &'a str,
    pub service: &'a str,
    /// The port's name; empty for a port without one.
    pub port: &'a str,
    pub clusters: &'a Clusters,
    pub policies: &'a PolicySet,
    /// What each exporting cluster has for this port.
    pub endpoints: &'a EndpointCounts,
    /// What the last decision about this port said to remember.
    pub memory: &'a Memory,
    pub now: Instant,
}

/// By exporting cluster.
pub type EndpointCounts = BTreeMap<ClusterId, EndpointCount>;

/// Endpoints of one cluster that have the port in question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointCount {
    pub ready: u32,
    /// Ready or not.
    pub total: u32,
}

/// Another cluster is preferred to the nearest in use only when it is nearer by this much at least...
const NEARER_BY: Duration = Duration::from_millis(1);
/// ...and its round-trip time is at most this percentage of the other's. Together they keep noise from moving traffic.
const NEARER_PERCENT: u32 = 80;

/// A tier as it is evaluated: its clusters with their weights.
struct Tier {
    weights: BTreeMap<ClusterId, u64>,
    sharing: Sharing,
    spill: Option<SpillBelow>,
}

/// Who answers. Depends on nothing but the question.
pub fn decide(question: &Question<'_>) -> Decision {
    let chosen = question.policies.policy_for(question.namespace, question.service, question.port);
    let known: BTreeSet<&ClusterId> = core::iter::once(&question.clusters.local)
        .chain(question.clusters.remote.keys())
        .chain(question.endpoints.keys())
        .collect();
    let tiers = match chosen.rules {
        Some(rules) => selected(&rules.tiers, &known, question.clusters),
        None => local_first(&known, question),
    };
    let mut candidates: BTreeMap<&ClusterId, Result<Reason, Reason>> =
        known.iter().map(|cluster| (*cluster, can_serve(cluster, question))).collect();
    let proving = leave_out_last_resorts(&tiers, &mut candidates, question);

    let mut memory = Memory::default();
    let mut portions: Vec<(usize, ClusterId, Fraction)> = Vec::new();
    let mut farther: BTreeSet<ClusterId> = BTreeSet::new();
    // What the tiers before this one left.
    let mut rest = Fraction::ONE;
    for (index, tier) in tiers.iter().enumerate() {
        let able: BTreeMap<&ClusterId, u64> = tier
            .weights
            .iter()
            .filter(|(cluster, weight)| **weight > 0 && candidates.get(cluster).is_some_and(Result::is_ok))
            .map(|(cluster, weight)| (cluster, *weight))
            .collect();
        let sharing: BTreeMap<&ClusterId, u64> = match tier.sharing {
            Sharing::Weighted => able.clone(),
            Sharing::Nearest => match nearest(able.keys().copied(), question, question.memory.nearest.get(&index)) {
                None => BTreeMap::new(),
                Some(near) => {
                    // Also while the tier stands by: it should not swing when it is needed.
                    memory.nearest.insert(index, near.clone());
                    if !rest.is_zero() {
                        let others = able.keys().filter(|cluster| **cluster != near);
                        farther.extend(others.map(|cluster| (*cluster).clone()));
                    }
                    BTreeMap::from([(near, 1)])
                }
            },
        };
        let whole: u64 = sharing.values().sum();
        if rest.is_zero() || whole == 0 {
            continue;
        }
        let (kept, left) = spilled(tier, able.keys().copied(), question);
        let portion = rest.times(kept);
        rest = rest.times(left);
        portions.extend(sharing.into_iter().map(|(cluster, weight)| {
            (index, cluster.clone(), portion.times(Fraction::new(u128::from(weight), u128::from(whole))))
        }));
    }
    // What was left and nobody took comes back in proportion, for shares are proportions.
    let fractions: Vec<Fraction> = portions.iter().map(|(_, _, fraction)| *fraction).collect();
    let mut shares: Vec<Share> = portions
        .iter()
        .zip(Fraction::proportions(&fractions))
        .map(|((_, cluster, _), weight)| Share { cluster: cluster.clone(), weight })
        .collect();
    shares.retain(|share| share.weight > 0);
    shares.sort_by(|a, b| a.cluster.cmp(&b.cluster));

    let first_used = portions.iter().map(|(index, _, _)| *index).min();
    let verdicts = candidates
        .iter()
        .map(|(cluster, candidate)| {
            let tier = tiers.iter().enumerate().find_map(|(index, tier)| Some((index, *tier.weights.get(*cluster)?)));
            let used = shares.iter().any(|share| share.cluster == **cluster);
            let (standing, reason) = match (candidate, tier) {
                (Err(reason), _) if is_about_the_cluster(*reason) => (Standing::Excluded, *reason),
                (_, None) => (Standing::Excluded, Reason::NotInPolicy),
                (Err(reason), _) => (Standing::Excluded, *reason),
                (_, Some((_, 0))) => (Standing::Excluded, Reason::WeightZero),
                (Ok(reason), Some((index, _))) if used => {
                    let spills = *reason == Reason::Serving && first_used.is_some_and(|first| first < index);
                    (Standing::Used, if spills { Reason::Spill } else { *reason })
                }
                (Ok(_), _) if farther.contains(*cluster) => (Standing::Standby, Reason::Farther),
                (Ok(_), _) => (Standing::Standby, Reason::HigherTierServes),
            };
            let count = question.endpoints.get(*cluster).copied().unwrap_or_default();
            Verdict {
                cluster: (*cluster).clone(),
                tier: tier.map(|(index, _)| index + 1),
                weight: tier.map(|(_, weight)| weight),
                standing,
                reason,
                ready: count.ready,
                total: count.total,
            }
        })
        .collect();

    let unmeasured = candidates.values().any(|candidate| *candidate == Ok(Reason::NotMeasuredYet));
    Decision {
        shares,
        verdicts,
        headless: chosen.rules.is_some_and(|rules| rules.headless),
        policy: chosen.source,
        memory,
        follows_round_trips: tiers.iter().any(|tier| tier.sharing == Sharing::Nearest),
        ask_again: unmeasured.then(|| question.clusters.started + START_GRACE).into_iter().chain(proving).min(),
    }
}

/// Whether the reason holds whatever the policy says and whatever endpoints there are.
fn is_about_the_cluster(reason: Reason) -> bool {
    !matches!(reason, Reason::NoEndpoints | Reason::NoReadyEndpoints)
}

fn can_serve(cluster: &ClusterId, question: &Question<'_>) -> Result<Reason, Reason> {
    let reason = question.clusters.standing(cluster, question.now)?;
    match question.endpoints.get(cluster) {
        Some(count) if count.ready > 0 => Ok(reason),
        Some(count) if count.total > 0 => Err(Reason::NoReadyEndpoints),
        _ => Err(Reason::NoEndpoints),
    }
}

/// Takes those that are a last resort for those that cannot serve, unless nobody else can. Gives when the first of them
/// is one no more, where that is known.
fn leave_out_last_resorts(
    tiers: &[Tier],
    candidates: &mut BTreeMap<&ClusterId, Result<Reason, Reason>>,
    question: &Question<'_>,
) -> Option<Instant> {
    let last_resorts: Vec<(&ClusterId, Reason)> = candidates
        .iter()
        .filter_map(|(cluster, candidate)| {
            candidate.ok().filter(|reason| reason.is_last_resort()).map(|reason| (*cluster, reason))
        })
        .collect();
    let proving = last_resorts.iter().filter_map(|(cluster, _)| question.clusters.proving_until(cluster, question.now));
    let until = proving.min();
    let is_better = |cluster| matches!(candidates.get(cluster), Some(Ok(reason)) if !reason.is_last_resort());
    let given_weight = tiers.iter().flat_map(|tier| &tier.weights).filter(|(_, weight)| **weight > 0);
    if !last_resorts.is_empty() && given_weight.map(|(cluster, _)| cluster).any(is_better) {
        candidates.extend(last_resorts.into_iter().map(|(cluster, reason)| (cluster, Err(reason))));
    }
    until
}

/// The tiers of a policy, each cluster in the first that selects it.
fn selected(rules: &[api::routing_policy::Tier], known: &BTreeSet<&ClusterId>, clusters: &Clusters) -> Vec<Tier> {
    let mut taken: BTreeSet<&ClusterId> = BTreeSet::new();
    let tier = |rule: &api::routing_policy::Tier| {
        let mut weights = BTreeMap::new();
        for choice in &rule.clusters {
            for cluster in known.iter().copied().filter(|cluster| selects(choice, cluster, clusters)) {
                if taken.insert(cluster) {
                    weights.insert(cluster.clone(), u64::from(choice.weight));
                }
            }
        }
        Tier { weights, sharing: rule.share, spill: rule.spill_below }
    };
    rules.iter().map(tier).collect()
}

fn selects(choice: &ClusterChoice, cluster: &ClusterId, clusters: &Clusters) -> bool {
    if choice.local {
        return *cluster == clusters.local;
    }
    if let Some(named) = &choice.cluster {
        return named == cluster;
    }
    choice.match_labels.as_ref().is_some_and(|wanted| match clusters.labels_of(cluster) {
        Some(labels) => wanted.iter().all(|(key, value)| labels.get(key) == Some(value)),
        None => wanted.is_empty(),
    })
}

/// What holds without a policy: the local cluster, else all others by their ready endpoints.
fn local_first(known: &BTreeSet<&ClusterId>, question: &Question<'_>) -> Vec<Tier> {
    let ready = |cluster: &ClusterId| question.endpoints.get(cluster).map_or(0, |count| u64::from(count.ready));
    let local = &question.clusters.local;
    let others = known.iter().filter(|cluster| **cluster != local);
    [BTreeMap::from([(local.clone(), 1)]), others.map(|cluster| ((*cluster).clone(), ready(cluster).max(1))).collect()]
        .map(|weights| Tier { weights, sharing: Sharing::Weighted, spill: None })
        .into()
}

/// What of its portion a tier keeps, and what goes on to the next.
fn spilled<'a>(
    tier: &Tier,
    able: impl Iterator<Item = &'a ClusterId>,
    question: &Question<'_>,
) -> (Fraction, Fraction) {
    let whole = (Fraction::ONE, Fraction::new(0, 1));
    let Some(spill) = tier.spill else { return whole };
    let count = |cluster: &ClusterId| question.endpoints.get(cluster).copied().unwrap_or_default();
    let ready: u64 = able.map(|cluster| u64::from(count(cluster).ready)).sum();
    let total: u64 = tier.weights.keys().map(|cluster| u64::from(count(cluster).total)).sum();
    let needed = match (spill.ready, spill.percent) {
        (Some(ready), _) => u64::from(ready),
        (None, Some(percent)) => (total * u64::from(percent)).div_ceil(100),
        (None, None) => return whole,
    };
    if ready >= needed {
        return whole;
    }
    let (ready, needed) = (u128::from(ready), u128::from(needed));
    (Fraction::new(ready, needed), Fraction::new(needed - ready, needed))
}

/// The nearest of `able`. `last` stays unless another is nearer by enough; the local cluster needs no measure.
fn nearest<'a>(
    able: impl Iterator<Item = &'a ClusterId>,
    question: &Question<'_>,
    last: Option<&ClusterId>,
) -> Option<&'a ClusterId> {
    // Unmeasured clusters come after measured ones; equal ones in the order of their ids.
    let distance = |cluster: &ClusterId| question.clusters.round_trip(cluster).unwrap_or(Duration::MAX);
    let able: BTreeSet<(Duration, &ClusterId)> = able.map(|cluster| (distance(cluster), cluster)).collect();
    let (best_distance, best) = *able.first()?;
    let held = able.iter().find(|(_, cluster)| Some(*cluster) == last);
    match held {
        Some((held_distance, held)) if *best != question.clusters.local => {
            let nearer = held_distance.saturating_sub(best_distance) >= NEARER_BY
                && best_distance.saturating_mul(100) <= held_distance.saturating_mul(NEARER_PERCENT);
            Some(if nearer { best } else { held })
        }
        _ => Some(best),
    }
}
