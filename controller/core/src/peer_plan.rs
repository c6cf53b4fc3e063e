//! What is due for this cluster's own object, for its peers, and for clusters it only heard of; and what is taken of
//! the records that are heard.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use api::cluster_peer::PeerState;
use api::conditions::{ConditionType, Reason};
use api::keys::IdentityKey;
use api::local_cluster::LocalState;
use api::member_record::{MemberState, SignedRecord};
use api::prefix_claims::Untranslated;
use api::time::{Instant, WallTime};
use api::{ClusterId, ClusterMember, ClusterPeer, Prefix, RoutingPolicy};
use kube::core::object::HasStatus;

use crate::condition::{self, Status, Wanted};
use crate::engine::{Engine, Talk};
use crate::index::ObjectKey;
use crate::membership::{self, Heard, RecordVerdict};
use crate::plan::{Object, Verb, Write};
use crate::policy;

/// Clusters heard of that are kept: an operator decides on them one by one.
const MAX_HEARD_OF: usize = 256;

/// Lines of refusals in a ClusterPeer's status: the length its schema allows.
const MAX_REFUSED: usize = 64;

/// Whether new connections may go to a peer, as far as the two operators decide it.
fn used(ours: PeerState, theirs: Option<MemberState>) -> Wanted {
    let (reason, message) = match (ours, theirs) {
        (PeerState::Blocked, _) => (Reason::Blocked, "The operator of this cluster blocked it."),
        (PeerState::Drained, _) => {
            (Reason::Drained, "The operator of this cluster drained it: established connections go on.")
        }
        (_, Some(MemberState::Draining)) => {
            (Reason::Draining, "Its record says that it drains: established connections go on.")
        }
        (_, Some(MemberState::Left)) => (Reason::Left, "Its record says that it left the clusterset."),
        (PeerState::Active, _) => (Reason::Active, "Neither side keeps new connections from it."),
    };
    Wanted::new(ConditionType::Used, reason == Reason::Active, reason, message)
}

impl Engine {
    /// The peer whose identity a key is, when it may talk to us.
    pub fn peer_of(&self, key: &IdentityKey) -> Option<ClusterId> {
        let knows = |id: &&ClusterId| self.identities_of(id).is_some_and(|identities| identities.contains(key));
        self.trusted.keys().find(knows).cloned()
    }

    /// The identities a peer is to be known by; `None` when we do not talk to it.
    pub fn identities_of(&self, cluster: &ClusterId) -> Option<Vec<IdentityKey>> {
        let peer = self.peers.get(&ObjectKey::named(cluster.as_str()))?;
        (peer.state() != PeerState::Blocked && Some(cluster) != self.cluster_id())
            .then(|| self.trusted.get(cluster).cloned().unwrap_or_default())
    }

    /// Records to pass on to a peer: ours and those of our other peers, as they were signed.
    pub fn records_for(&self, peer: &ClusterId) -> Vec<SignedRecord> {
        let others = self.peers.values().filter(|other| {
            other.state() != PeerState::Blocked && other.metadata.name.as_deref() != Some(peer.as_str())
        });
        let newest = others.filter_map(|other| {
            let id = ClusterId::new(other.metadata.name.as_deref()?).ok()?;
            self.learned.get(&id).cloned().or_else(|| {
                let stored = other.status.as_ref().map(|status| status.record.as_str()).filter(|text| !text.is_empty());
                SignedRecord::from_base64(stored.unwrap_or(&other.spec.record)).ok()
            })
        });
        newest.collect()
    }

    /// A peer said this of itself, or passed on what others said of themselves.
    pub fn hear_record(&mut self, from: &ClusterId, signed: SignedRecord, now: Instant, wall: WallTime) {
        let Some((own, set)) =
            self.local_cluster().map(|local| (local.spec.cluster_id.clone(), local.spec.cluster_set_id.clone()))
        else {
            return;
        };
        let Some(claimed) = membership::claimed_cluster(&signed) else {
            self.refuse_record(
                from,
                Reason::Invalid,
                format!("cluster {from} sent a record that is not signed as it says"),
            );
            return;
        };
        let subject = claimed.cluster_id;
        if subject == own {
            if !self.identity.is_or_was(&signed.key) {
                let message = format!(
                    "cluster {from} knows another cluster named {own}, with identity {}: one of both must be renamed",
                    signed.key.fingerprint()
                );
                self.refuse_record(from, Reason::IdClash, message);
            }
            return;
        }
        let Some(peer) = self.peers.get(&ObjectKey::named(subject.as_str())) else {
            self.hear_of(from, subject, signed);
            return;
        };
        let heard = if subject == *from { Heard::Directly } else { Heard::PassedOn };
        match membership::judge_record(peer, &set, &signed, heard) {
            RecordVerdict::Known => {}
            RecordVerdict::Refused(Reason::Blocked, _) => {}
            RecordVerdict::Refused(reason, message) => self.refuse_record(&subject, reason, message),
            RecordVerdict::Newer(record) => {
                let newer = |held: &SignedRecord| {
                    membership::claimed_cluster(held).is_none_or(|known| {
                        let comes_after = membership::follows((&signed.key, &record), (&held.key, &known));
                        let comes_before = membership::follows((&held.key, &known), (&signed.key, &record));
                        comes_after
                            || (!comes_before && (known.epoch != record.epoch || known.generation < record.generation))
                    })
                };
                if self.learned.get(&subject).is_none_or(newer) {
                    self.learned.insert(subject.clone(), signed);
                    if heard == Heard::Directly
                        && let Some(talk) = self.talks.get_mut(&subject)
                    {
                        talk.refused_records.clear();
                    }
                    self.refresh_terms(now, wall);
                }
                self.touch_peer(&subject);
            }
        }
    }

    fn refuse_record(&mut self, cluster: &ClusterId, reason: Reason, message: String) {
        let talk = self.talks.entry(cluster.clone()).or_default();
        talk.refused_records.insert(reason.as_str(), message);
        self.touch_peer(cluster);
    }

    /// A cluster that is no peer: known, not trusted, awaiting the operator's verdict.
    fn hear_of(&mut self, from: &ClusterId, subject: ClusterId, signed: SignedRecord) {
        let known = self.heard_of.get(&subject);
        // The first who claims a name keeps it, or who comes after it, so that nobody can push another one out.
        if known.is_some_and(|(held, _)| signed.verify(&[held.key]).is_err())
            || (known.is_none() && self.heard_of.len() >= MAX_HEARD_OF)
        {
            return;
        }
        if known.is_none_or(|(held, _)| *held != signed) {
            self.heard_of.insert(subject.clone(), (signed, from.clone()));
            self.touch(crate::plan::Subject::Member(subject.to_string()));
        }
    }

    pub(crate) fn plan_local_cluster(&mut self, wall: WallTime) -> Vec<Write> {
        let Some(local) = self.local_cluster() else { return Vec::new() };
        let mut status = local.status.clone().unwrap_or_default();
        // The one that signed the record below: both change in one write.
        let identity = self.own.as_ref().map_or(self.identity.current, |(signed, _)| signed.key);
        status.identity_key = Some(identity);
        status.fingerprint = identity.fingerprint();
        let next = self.identity.next.map(|next| next.key).filter(|next| *next != identity);
        status.next_fingerprint = next.map(|next| next.fingerprint()).unwrap_or_default();
        let ready = match &self.own {
            Some((signed, record)) => {
                status.record = signed.to_base64();
                if record.slots.iter().any(|slot| !slot.endpoints.is_empty()) {
                    Wanted::new(ConditionType::Ready, true, Reason::Ready, "The member record is signed.")
                } else {
                    let message = "No gateway has told where it can be reached: start 'tombolo gateway', or set spec.gateways.externalAddresses.";
                    Wanted::new(ConditionType::Ready, false, Reason::Starting, message)
                }
            }
            None => {
                Wanted::new(ConditionType::Ready, false, Reason::Starting, "The keys of the gateways are being made.")
            }
        };
        let used = match local.state() {
            LocalState::Active => {
                Wanted::new(ConditionType::Used, true, Reason::Active, "Members may use this cluster.")
            }
            LocalState::Draining => {
                let message = "Every member is asked to give this cluster no new connections.";
                Wanted::new(ConditionType::Used, false, Reason::Draining, message)
            }
        };
        status.conditions = condition::merged(&status.conditions, &[ready, used], local.metadata.generation, wall);
        status_write(local, status).into_iter().collect()
    }

    pub(crate) fn plan_peer(&mut self, name: &str, wall: WallTime) -> Vec<Write> {
        let Some(peer) = self.peers.get(&ObjectKey::named(name)) else { return Vec::new() };
        let Ok(id) = ClusterId::new(name) else { return Vec::new() };
        let mut status = peer.status.clone().unwrap_or_default();
        if let Some(learned) = self.learned.get(&id) {
            status.record = learned.to_base64();
        }
        let nothing = Talk::default();
        let talk = self.talks.get(&id).unwrap_or(&nothing);
        status.translations = self.translations.get(&id).cloned().unwrap_or_default();
        status.refused = self.refused_prefixes(&id);
        status.refused.extend(talk.refused_records.iter().map(|(reason, message)| format!("{reason}: {message}")));
        // No counts: an object is written on transitions, and the metrics count.
        let examples = self.remote.refused_examples(&id);
        status.refused.extend(examples.iter().map(|(reason, example)| format!("{reason}: for example of {example}")));
        status.refused.truncate(MAX_REFUSED);
        status.identities =
            self.trusted.get(&id).into_iter().flatten().map(|identity| identity.fingerprint()).collect();
        status.imported_services = self
            .remote
            .usable(&id)
            .map(|usable| u32::try_from(usable.services()).unwrap_or(u32::MAX))
            .unwrap_or_default();
        if let Some(since) = talk.since {
            status.last_synced = if talk.synced { Some(condition::object_time(since)) } else { status.last_synced };
        }
        let mut wanted = self.peer_conditions(peer, &id, talk).to_vec();
        // The record just learned may be newer than the one in the object.
        let member = self.learned.get(&id).and_then(membership::claimed_cluster).or_else(|| peer.newest_record());
        wanted.push(used(peer.state(), member.map(|record| record.state)));
        status.conditions = condition::merged(&status.conditions, &wanted, peer.metadata.generation, wall);
        status_write(peer, status).into_iter().collect()
    }

    /// What a peer claims and does not get, as an operator would say it.
    fn refused_prefixes(&self, id: &ClusterId) -> Vec<String> {
        let Some(claims) = self.claims.get(id) else { return Vec::new() };
        let given = self.translations.get(id).map(Vec::as_slice).unwrap_or_default();
        let without = |real: &Prefix| given.iter().all(|translation| translation.real != *real);
        let waiting = claims.untranslated.iter().filter(|waiting| without(&waiting.real));
        claims.refused.iter().cloned().chain(waiting.map(Untranslated::reason)).collect()
    }

    fn peer_conditions(&self, peer: &ClusterPeer, id: &ClusterId, talk: &Talk) -> [Wanted; 3] {
        use ConditionType::{Accepted, Connected, Synced};
        if Some(id) == self.cluster_id() {
            let message = "This peer has the id of this very cluster: rename one of both.";
            return [Accepted, Connected, Synced]
                .map(|condition| Wanted::new(condition, false, Reason::IdClash, message));
        }
        if peer.state() == PeerState::Blocked {
            let message = "The operator blocked this peer.";
            return [Accepted, Connected, Synced]
                .map(|condition| Wanted::new(condition, false, Reason::Blocked, message));
        }
        let refused_prefixes = self.refused_prefixes(id);
        let own_set = self.local_cluster().map(|local| &local.spec.cluster_set_id);
        let record = peer.newest_record();
        let other_set = record.as_ref().filter(|record| Some(&record.cluster_set_id) != own_set);
        let accepted = if let Some((reason, message)) = talk.refused_records.iter().next() {
            Wanted::new(Accepted, false, reason, message.as_str())
        } else if let Some(record) = other_set {
            Wanted::new(
                Accepted,
                false,
                Reason::Invalid,
                format!("It belongs to clusterset {}.", record.cluster_set_id),
            )
        } else if !refused_prefixes.is_empty() {
            Wanted::new(
                Accepted,
                false,
                Reason::PrefixRefused,
                format!("The rest is in force. {}.", refused_prefixes.join("; ")),
            )
        } else if record.is_none() {
            Wanted::new(Accepted, false, Reason::Invalid, "It has no record that one of spec.identityKeys signed.")
        } else {
            Wanted::new(Accepted, true, Reason::Accepted, "Its record is in force.")
        };
        let ended = if talk.ended.is_empty() { "No gateway has offered a way to it yet." } else { talk.ended.as_str() };
        let silent = self.remote.is_silent(id);
        let (connected, synced) = match (talk.synced, talk.ever_synced) {
            (true, _) => {
                let message = "A conversation with its controller is open.";
                (
                    Wanted::new(Connected, true, Reason::Connected, message),
                    Wanted::new(Synced, true, Reason::Synced, "What it exports is known as it is now."),
                )
            }
            (false, true) => (
                Wanted::new(Connected, false, Reason::SilentPeer, ended),
                if silent {
                    Wanted::new(
                        Synced,
                        false,
                        Reason::Stale,
                        "Its endpoints are marked as not ready until it is heard again.",
                    )
                } else {
                    Wanted::new(Synced, Status::Unknown, Reason::Stale, "What it exported last stays in force for now.")
                },
            ),
            (false, false) => (
                Wanted::new(Connected, Status::Unknown, Reason::NeverConnected, ended),
                Wanted::new(Synced, Status::Unknown, Reason::NeverSynced, ended),
            ),
        };
        [accepted, connected, synced]
    }

    pub(crate) fn plan_member(&mut self, name: &str, wall: WallTime) -> Vec<Write> {
        let key = ObjectKey::named(name);
        let Ok(id) = ClusterId::new(name) else { return Vec::new() };
        let member = self.members.get(&key);
        // A member that became a peer is not awaiting a verdict any more.
        if self.peers.get(&key).is_some() {
            return member.map(|member| Write::new(Verb::Delete, member.clone())).into_iter().collect();
        }
        let Some((signed, from)) = self.heard_of.get(&id) else { return Vec::new() };
        let Some(member) = member else {
            return vec![Write::new(Verb::Create, ClusterMember::new(name, Default::default()))];
        };
        let mut status = member.status.clone().unwrap_or_default();
        status.record = signed.to_base64();
        status.heard_from = from.to_string();
        let message = format!(
            "Heard of from cluster {from}, identity {}. It is not trusted: to trust it, make a ClusterPeer of it.",
            signed.key.fingerprint()
        );
        let wanted = Wanted::new(ConditionType::Accepted, Status::Unknown, Reason::NeverConnected, message);
        status.conditions = condition::merged(&status.conditions, &[wanted], member.metadata.generation, wall);
        status_write(member, status).into_iter().collect()
    }

    pub(crate) fn plan_policies(&mut self, namespace: &str, wall: WallTime) -> Vec<Write> {
        let policies: Vec<&RoutingPolicy> = self.policies.in_namespace(namespace).map(|(_, policy)| policy).collect();
        let has_import =
            |name: &str| self.imports.get(&ObjectKey { namespace: namespace.into(), name: name.into() }).is_some();
        let verdicts = policy::judge_namespace(policies.iter().copied(), has_import);
        let statuses = policies.into_iter().filter_map(|policy| {
            let wanted = verdicts.get(policy.metadata.name.as_deref()?)?;
            let mut status = policy.status.clone().unwrap_or_default();
            status.conditions = condition::merged(&status.conditions, wanted, policy.metadata.generation, wall);
            status_write(policy, status)
        });
        statuses.collect()
    }

    pub(crate) fn plan_cluster_policies(&mut self, wall: WallTime) -> Vec<Write> {
        let verdicts = policy::judge_cluster_policies(self.cluster_policies.values());
        let statuses = self.cluster_policies.values().filter_map(|policy| {
            let wanted = verdicts.get(policy.metadata.name.as_deref()?)?;
            let mut status = policy.status.clone().unwrap_or_default();
            status.conditions = condition::merged(&status.conditions, wanted, policy.metadata.generation, wall);
            status_write(policy, status)
        });
        statuses.collect()
    }
}

/// The write that gives an object this status; none where it has it already.
fn status_write<K>(object: &K, status: K::Status) -> Option<Write>
where
    K: HasStatus<Status: PartialEq> + Clone + Into<Object>,
{
    if object.status() == Some(&status) {
        return None;
    }
    let mut object = object.clone();
    *object.status_mut() = Some(status);
    Some(Write::new(Verb::UpdateStatus, object))
}
