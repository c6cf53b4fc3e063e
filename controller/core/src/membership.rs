//! Member records: our own, and which of those we hear of others are taken (decision 15).

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use api::cluster_peer::PeerState;
use api::conditions::Reason;
use api::keys::{IdentityKey, TunnelKey};
use api::local_cluster::LocalState;
use api::member_record::{LaneRecord, MemberRecord, MemberState, RecordError, SignedRecord, SlotRecord};
use api::succession;
use api::time::WallTime;
use api::{ClusterId, ClusterPeer, LocalCluster, TunnelGateway};

use crate::message::VERSIONS;
use crate::own_identity::OwnIdentity;

/// The most addresses of one slot in a record; as many as a LocalCluster may name.
const MAX_ENDPOINTS: usize = 8;

/// The public keys of every slot.
pub type SlotKeys = BTreeMap<u16, KeysOfSlot>;

/// The public keys of one slot's lanes, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeysOfSlot {
    pub lanes: Vec<LaneKeys>,
    /// While they rotate: since when.
    pub rotating_since: Option<WallTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneKeys {
    pub key: TunnelKey,
    /// While they rotate: the one that comes after.
    pub next_key: Option<TunnelKey>,
}

impl From<Vec<TunnelKey>> for KeysOfSlot {
    fn from(keys: Vec<TunnelKey>) -> Self {
        let lanes = keys.into_iter().map(|key| LaneKeys { key, next_key: None }).collect();
        Self { lanes, rotating_since: None }
    }
}

/// What our record should say, all but its generation.
pub fn own_record<'a>(
    local: &LocalCluster,
    identity: &OwnIdentity,
    epoch: &str,
    keys: &SlotKeys,
    gateways: impl Iterator<Item = &'a TunnelGateway>,
) -> MemberRecord {
    let state = match local.state() {
        LocalState::Active => MemberState::Active,
        LocalState::Draining => MemberState::Draining,
    };
    let local = &local.spec;
    let statuses: BTreeMap<u16, &TunnelGateway> = gateways.map(|gateway| (gateway.spec.slot, gateway)).collect();
    let slots = keys
        .iter()
        .filter(|(slot, _)| **slot < local.gateways.slots)
        .map(|(slot, keys)| {
            let named = if *slot == 0 { local.gateways.external_addresses.as_slice() } else { &[] };
            let found = statuses.get(slot).and_then(|gateway| gateway.status.as_ref()).map(|status| &status.endpoints);
            let mut endpoints: Vec<String> = Vec::new();
            for endpoint in named.iter().chain(found.into_iter().flatten()) {
                if !endpoints.contains(endpoint) && endpoints.len() < MAX_ENDPOINTS {
                    endpoints.push(endpoint.clone());
                }
            }
            let lanes = (0..local.gateways.lanes)
                .zip(&keys.lanes)
                .map(|(lane, keys)| LaneRecord {
                    key: keys.key,
                    next_key: keys.next_key,
                    port: local.gateways.port.saturating_add(lane),
                })
                .collect();
            SlotRecord { slot: *slot, endpoints, lanes }
        })
        .collect();
    MemberRecord {
        cluster_set_id: local.cluster_set_id.clone(),
        cluster_id: local.cluster_id.clone(),
        identity_keys: identity.keys(),
        successions: identity.successions.clone(),
        epoch: epoch.into(),
        generation: 0,
        control_prefix: identity.control_prefix,
        slots,
        prefixes: local.advertised_prefixes().copied().collect(),
        labels: local.labels.clone(),
        protocol: VERSIONS,
        state,
    }
}

/// `wanted` with the next generation, when it says something that `last` did not.
pub fn next_generation(last: Option<&MemberRecord>, wanted: MemberRecord) -> Option<MemberRecord> {
    let generation = last.filter(|last| last.epoch == wanted.epoch).map_or(0, |last| last.generation);
    let same = MemberRecord { generation, ..wanted.clone() };
    (last != Some(&same)).then(|| MemberRecord { generation: generation + 1, ..wanted })
}

/// Who a record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// From the cluster itself, over a connection that its identity opened.
    Directly,
    /// From another cluster.
    PassedOn,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RecordVerdict {
    Newer(MemberRecord),
    /// As new as the one that is known, or older.
    Known,
    Refused(Reason, String),
}

/// Whether a record of a peer replaces the one that is known.
///
/// A new epoch is a rebuilt cluster, and only the cluster itself can say that it was: somebody else might pass on an
/// old record of an older epoch.
pub fn judge_record(
    peer: &ClusterPeer,
    cluster_set: &ClusterId,
    candidate: &SignedRecord,
    heard: Heard,
) -> RecordVerdict {
    let name = peer.metadata.name.as_deref().unwrap_or_default();
    if peer.state() == PeerState::Blocked {
        return RecordVerdict::Refused(Reason::Blocked, format!("ClusterPeer {name} is blocked"));
    }
    let record = match candidate.verify(&peer.spec.identity_keys) {
        Ok(record) => record,
        Err(RecordError::UntrustedIdentity(key)) => {
            let (reason, what) = match heard {
                Heard::Directly => (Reason::UntrustedIdentity, "says"),
                Heard::PassedOn => (Reason::IdClash, "was passed on which says"),
            };
            let message = format!(
                "a record {what} that cluster {name} is {}, which ClusterPeer {name} does not trust",
                key.fingerprint()
            );
            return RecordVerdict::Refused(reason, message);
        }
        Err(error) => return RecordVerdict::Refused(Reason::Invalid, format!("the record {error}")),
    };
    if record.cluster_id.as_str() != name {
        let message = format!("the record is of cluster {}, signed by the identity of {name}", record.cluster_id);
        return RecordVerdict::Refused(Reason::IdClash, message);
    }
    if record.cluster_set_id != *cluster_set {
        let message = format!("cluster {name} is in clusterset {}, this one in {cluster_set}", record.cluster_set_id);
        return RecordVerdict::Refused(Reason::Invalid, message);
    }
    if record.successions.iter().any(|succession| !succession.is_valid(&record.cluster_id)) {
        let message = "the record has a change of identity that not both of these identities signed".into();
        return RecordVerdict::Refused(Reason::Invalid, message);
    }
    let Some((signer, known)) = peer.newest_signed() else { return RecordVerdict::Newer(record) };
    // Whoever stole a key may be quick, but not undo what is known.
    if let Some(other) = record.successions.iter().find(|other| {
        known.successions.iter().any(|succession| succession.from == other.from && succession.to != other.to)
    }) {
        let (from, to) = (other.from.fingerprint(), other.to.fingerprint());
        let message = format!(
            "identity {from} of cluster {name} has named another successor before, and now {to}: somebody else has that key"
        );
        return RecordVerdict::Refused(Reason::IdClash, message);
    }
    if follows((&candidate.key, &record), (&signer, &known)) {
        return RecordVerdict::Newer(record);
    }
    let is_older = match known.epoch == record.epoch {
        true => known.generation >= record.generation,
        false => heard == Heard::PassedOn,
    };
    if is_older {
        return RecordVerdict::Known;
    }
    if known.left_behind().contains(&candidate.key) {
        let key = candidate.key.fingerprint();
        let message =
            format!("a newer record of cluster {name} is signed by its old identity {key}: somebody has that key");
        return RecordVerdict::Refused(Reason::RetiredIdentity, message);
    }
    RecordVerdict::Newer(record)
}

/// Whether one record is signed by an identity that came after the other's, and has left that behind. Then it is newer
/// whatever generation the other claims: who has an old key cannot keep the new one out.
pub fn follows(
    (signer, record): (&IdentityKey, &MemberRecord),
    (known_signer, known): (&IdentityKey, &MemberRecord),
) -> bool {
    signer != known_signer
        && record.left_behind().contains(known_signer)
        && !known.left_behind().contains(signer)
        && succession::reached(&[*known_signer], &record.successions, &record.cluster_id).contains(signer)
}

/// The cluster a record is of, when its own signature holds. Says nothing of trust.
pub fn claimed_cluster(candidate: &SignedRecord) -> Option<MemberRecord> {
    candidate.verify(&[candidate.key]).ok()
}

/// Why there is no manifest for other clusters yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoManifest {
    #[error(
        "LocalCluster has no record yet: the controller writes it once the gateways' keys are made; check 'tombolo status'"
    )]
    NoRecord,
    #[error("no gateway has said yet where it can be dialled: is one running?")]
    NoEndpoints,
    #[error("the record in LocalCluster's status {0}")]
    BrokenRecord(RecordError),
}

/// The `ClusterPeer` manifest that introduces this cluster to another one (`tombolo peers export`).
pub fn cluster_peer_manifest(local: &LocalCluster) -> Result<String, NoManifest> {
    let status = local.status.as_ref().filter(|status| !status.record.is_empty()).ok_or(NoManifest::NoRecord)?;
    let key = status.identity_key.ok_or(NoManifest::NoRecord)?;
    let signed = SignedRecord::from_base64(&status.record).map_err(NoManifest::BrokenRecord)?;
    let record = signed.verify(&[key]).map_err(NoManifest::BrokenRecord)?;
    if record.slots.iter().all(|slot| slot.endpoints.is_empty()) {
        return Err(NoManifest::NoEndpoints);
    }
    // 96 columns: a person can still see that it is all there.
    let lines: Vec<String> =
        status.record.as_bytes().chunks(96).map(|line| format!("    {}", String::from_utf8_lossy(line))).collect();
    let prefixes: Vec<String> = record.prefixes.iter().map(|prefix| format!("  - \"{prefix}\"\n")).collect();
    let allowed =
        if prefixes.is_empty() { String::new() } else { format!("  allowedPrefixes:\n{}", prefixes.concat()) };
    Ok(format!(
        "# Put this into another cluster of clusterset {set} to let it trust {id}.\n\
         # Compare the fingerprint by eye: {fingerprint}\n\
         apiVersion: tombolo.dev/v1alpha1\nkind: ClusterPeer\nmetadata:\n  name: \"{id}\"\nspec:\n  identityKeys:\n  - \"{key}\"\n\
         {allowed}  record: |-\n{record}\n",
        set = record.cluster_set_id,
        id = record.cluster_id,
        fingerprint = key.fingerprint(),
        record = lines.join("\n"),
    ))
}

#[cfg(test)]
mod tests;
