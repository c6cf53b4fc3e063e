//! What has to be written so that two clusters trust each other, and whether it came to anything. Pure.

use api::cluster_peer::{Accept, ClusterPeerSpec, PeerState};
use api::conditions::ConditionType;
use api::member_record::{MemberRecord, SignedRecord};
use api::{ClusterPeer, LocalCluster, TunnelGateway};

/// A cluster as its API server shows it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Of the kubeconfig.
    pub(super) context: String,
    pub(super) local: LocalCluster,
    pub(super) record: MemberRecord,
    /// Whom it knows already.
    pub(super) peers: Vec<ClusterPeer>,
}

/// Why two clusters cannot be introduced, each with what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{0} has no LocalCluster 'local': write one that says what this cluster is")]
    NoLocalCluster(String),
    #[error(
        "{context} cannot be introduced yet, {why}: see 'kubectl get localcluster local -o yaml' and its controller"
    )]
    NoRecord { context: String, why: String },
    #[error("{0} and {1} are one and the same cluster: name the contexts of two")]
    SameCluster(String, String),
    #[error("both clusters call themselves {0}: give one of them another spec.clusterId")]
    SameId(String),
    #[error("{0} is of clusterset {1} and {2} of {3}: give both the same spec.clusterSetId")]
    OtherClusterSet(String, String, String, String),
    #[error(
        "{0} of {1} overlaps {2} of {3}: with --allow-overlap each sees the other's translated into its \
         spec.translationPrefixes"
    )]
    Overlap(String, String, String, String),
    #[error(
        "{here} trusts another {there} already, {known}, and this one is {found}: was {there} built anew? Then delete \
         that ClusterPeer in {here} first"
    )]
    OtherIdentity { here: String, there: String, known: String, found: String },
}

/// What one cluster has to be told of the other.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Deed {
    Create(Box<ClusterPeer>),
    /// It trusts that cluster already.
    Nothing,
}

impl Seen {
    /// Reads what a cluster says of itself.
    pub(super) fn read(context: &str, local: Option<LocalCluster>, peers: Vec<ClusterPeer>) -> Result<Self, Refusal> {
        let local = local.ok_or_else(|| Refusal::NoLocalCluster(context.to_owned()))?;
        let refused = |why: String| Refusal::NoRecord { context: context.to_owned(), why };
        let status = local.status.clone().unwrap_or_default();
        let key = status.identity_key.ok_or_else(|| refused("no controller has said who it is".into()))?;
        let signed = SignedRecord::from_base64(&status.record).map_err(|error| refused(error.to_string()))?;
        let record = signed.verify(&[key]).map_err(|error| refused(error.to_string()))?;
        if record.slots.iter().all(|slot| slot.endpoints.is_empty()) {
            return Err(refused("no gateway has said where peers can dial it".into()));
        }
        Ok(Self { context: context.to_owned(), local, record, peers })
    }

    pub(super) fn id(&self) -> &str {
        self.record.cluster_id.as_str()
    }

    /// The identity it proves, to be compared by eye.
    pub(super) fn fingerprint(&self) -> String {
        self.local.status.as_ref().map(|status| status.fingerprint.clone()).unwrap_or_default()
    }
}

/// Whether the two can be members of one clusterset.
pub(super) fn check(one: &Seen, other: &Seen, allow_overlap: bool) -> Result<(), Refusal> {
    let key = |seen: &Seen| seen.local.status.as_ref().and_then(|status| status.identity_key);
    if key(one) == key(other) {
        return Err(Refusal::SameCluster(one.context.clone(), other.context.clone()));
    }
    if one.id() == other.id() {
        return Err(Refusal::SameId(one.id().to_owned()));
    }
    let set = |seen: &Seen| seen.record.cluster_set_id.to_string();
    if set(one) != set(other) {
        return Err(Refusal::OtherClusterSet(one.id().into(), set(one), other.id().into(), set(other)));
    }
    let pairs =
        one.record.prefixes.iter().flat_map(|here| other.record.prefixes.iter().map(move |there| (here, there)));
    match pairs.into_iter().find(|(here, there)| here.overlaps(there)).filter(|_| !allow_overlap) {
        Some((here, there)) => {
            Err(Refusal::Overlap(here.to_string(), one.id().into(), there.to_string(), other.id().into()))
        }
        None => Ok(()),
    }
}

/// What `here` has to be told of `there`.
pub(super) fn deed(here: &Seen, there: &Seen, allow_overlap: bool) -> Result<Deed, Refusal> {
    let status = there.local.status.clone().unwrap_or_default();
    let Some(key) = status.identity_key else { return Ok(Deed::Nothing) };
    if let Some(known) = here.peers.iter().find(|peer| peer.metadata.name.as_deref() == Some(there.id())) {
        let trusted = known.trusted_identities();
        if trusted.contains(&key) {
            return Ok(Deed::Nothing);
        }
        let names: Vec<String> = trusted.iter().map(|key| key.fingerprint()).collect();
        return Err(Refusal::OtherIdentity {
            here: here.id().into(),
            there: there.id().into(),
            known: names.join(", "),
            found: key.fingerprint(),
        });
    }
    let spec = ClusterPeerSpec {
        identity_keys: vec![key],
        record: status.record,
        endpoints: Vec::new(),
        allowed_prefixes: there.record.prefixes.clone(),
        allow_overlap,
        accept: Accept::default(),
        state: PeerState::Active,
    };
    Ok(Deed::Create(Box::new(ClusterPeer::new(there.id(), spec))))
}

/// How far a cluster has come with a peer it was told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// What proves it.
    Done(String),
    /// Why not yet.
    Waiting(String),
}

/// What a condition of the peer says.
pub(super) fn progress(peer: Option<&ClusterPeer>, kind: ConditionType) -> Progress {
    let Some(peer) = peer else { return Progress::Waiting("its ClusterPeer is gone".into()) };
    let conditions = peer.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    match conditions.iter().find(|condition| condition.type_ == kind.as_str()) {
        Some(condition) if condition.status == "True" => {
            Progress::Done(format!("{}: {}", condition.reason, condition.message))
        }
        Some(condition) => Progress::Waiting(format!("{}: {}", condition.reason, condition.message)),
        None => Progress::Waiting("its controller has not looked yet".into()),
    }
}

/// The narrowest path to a peer, as the gateways measured it; `None` until all that have a status did.
pub(super) fn path_mtu(gateways: &[TunnelGateway], peer: &str) -> Option<u16> {
    let statuses = gateways.iter().filter_map(|gateway| gateway.status.as_ref());
    let mtus =
        statuses.map(|status| status.paths.iter().find(|path| path.cluster.as_str() == peer).map(|path| path.mtu));
    mtus.min().flatten()
}

#[cfg(test)]
mod tests {
    use api::ClusterId;
    use api::local_cluster::LocalClusterStatus;
    use api::member_record::{MemberState, SlotRecord};
    use identity::Identity;
    use serde_json::json;

    use super::*;

    fn seen(identity: &Identity, id: &str, set: &str, prefix: &str) -> Seen {
        let slot = SlotRecord { slot: 0, endpoints: vec!["192.0.2.1".into()], lanes: vec![] };
        let record = MemberRecord {
            cluster_set_id: ClusterId::new(set).unwrap(),
            cluster_id: ClusterId::new(id).unwrap(),
            identity_keys: vec![identity.public()],
            successions: vec![],
            epoch: "e1".into(),
            generation: 1,
            control_prefix: identity.public().control_prefix(),
            slots: vec![slot],
            prefixes: vec![prefix.parse().unwrap()],
            labels: Default::default(),
            protocol: (1, 1),
            state: MemberState::Active,
        };
        let spec = serde_json::from_value(json!({"clusterId": id, "clusterSetId": set})).unwrap();
        let mut local = LocalCluster::new("local", spec);
        local.status = Some(LocalClusterStatus {
            identity_key: Some(identity.public()),
            fingerprint: identity.public().fingerprint(),
            record: identity.sign_record(&record).to_base64(),
            ..LocalClusterStatus::default()
        });
        Seen::read(id, Some(local), Vec::new()).unwrap()
    }

    fn identity() -> Identity {
        Identity::generate().unwrap()
    }

    #[test]
    fn each_is_told_of_the_other_once() {
        let (a, b) = (identity(), identity());
        let mut amber = seen(&a, "amber", "demo", "10.1.0.0/16");
        let birch = seen(&b, "birch", "demo", "10.2.0.0/16");
        assert_eq!(check(&amber, &birch, false), Ok(()));
        let Ok(Deed::Create(peer)) = deed(&amber, &birch, false) else { panic!("nothing to do") };
        assert_eq!(peer.metadata.name.as_deref(), Some("birch"));
        assert_eq!(
            (peer.trusted_identities(), peer.newest_record().unwrap()),
            (vec![b.public()], birch.record.clone())
        );
        assert!(api::Kind::violations(&*peer).is_empty());
        amber.peers.push(*peer);
        assert_eq!(deed(&amber, &birch, false), Ok(Deed::Nothing));
        // Built anew, or somebody else: not a word without the operator.
        let stranger = seen(&identity(), "birch", "demo", "10.2.0.0/16");
        assert!(matches!(deed(&amber, &stranger, false), Err(Refusal::OtherIdentity { .. })));
    }

    #[test]
    fn what_cannot_work_is_refused_before_anything_is_written() {
        let (a, b) = (identity(), identity());
        let amber = seen(&a, "amber", "demo", "10.1.0.0/16");
        let refusal = |other: &Seen| check(&amber, other, false).unwrap_err();
        assert!(matches!(refusal(&amber), Refusal::SameCluster(..)));
        assert!(matches!(refusal(&seen(&b, "amber", "demo", "10.2.0.0/16")), Refusal::SameId(_)));
        assert!(matches!(refusal(&seen(&b, "birch", "other", "10.2.0.0/16")), Refusal::OtherClusterSet(..)));
        let overlapping = seen(&b, "birch", "demo", "10.1.128.0/17");
        assert!(refusal(&overlapping).to_string().contains("--allow-overlap"));
        assert_eq!(check(&amber, &overlapping, true), Ok(()));
        let Ok(Deed::Create(peer)) = deed(&amber, &overlapping, true) else { panic!("nothing to do") };
        assert!(peer.spec.allow_overlap);
    }

    #[test]
    fn a_cluster_that_has_nothing_to_say_of_itself_yet_is_not_introduced() {
        assert!(matches!(Seen::read("amber", None, vec![]), Err(Refusal::NoLocalCluster(_))));
        let mut local = seen(&identity(), "amber", "demo", "10.1.0.0/16").local;
        local.status = None;
        assert!(matches!(Seen::read("amber", Some(local), vec![]), Err(Refusal::NoRecord { .. })));
    }
}
