//! `ClusterPeer`: a cluster the operator trusts, and how far.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::keys::IdentityKey;
use crate::member_record::{MemberRecord, SignedRecord};
use crate::{ClusterId, Kind, Prefix, Scope, TranslatedPrefix, Violation, names, order, succession};

/// Its name is the peer's cluster id. Written by the operator; `tombolo peers export` in the other cluster prints it.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "tombolo.dev",
    version = "v1alpha1",
    kind = "ClusterPeer",
    plural = "clusterpeers",
    crates(std = "core"),
    category = "tombolo",
    status = "ClusterPeerStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".status.conditions[?(@.type==\"Used\")].reason"}"#,
    printcolumn = r#"{"name":"Connected","type":"string","jsonPath":".status.conditions[?(@.type==\"Connected\")].status"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterPeerSpec {
    /// The identities the operator trusts to speak for this cluster.
    #[schemars(length(min = 1, max = 4))]
    pub identity_keys: Vec<IdentityKey>,
    /// The record to start from: base64 of a [`SignedRecord`]. Newer ones are learned from the peer itself.
    #[schemars(length(max = 65536))]
    pub record: String,
    /// Addresses to dial before those of the record: `198.51.100.7:51820`. `via:birch` names a peer that is to pass our
    /// datagrams on where no address answers; its `LocalCluster.spec.transit` must allow it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 64)))]
    pub endpoints: Vec<String>,
    /// The upper bound of what its record may claim; empty: what the bootstrap record claims.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub allowed_prefixes: Vec<Prefix>,
    /// Whether its prefixes may overlap ours or another peer's. Those that do are translated into
    /// `LocalCluster.spec.translationPrefixes` (decision 7); without it they are refused.
    #[serde(default, skip_serializing_if = "is_false")]
    pub allow_overlap: bool,
    #[serde(default)]
    pub accept: Accept,
    #[serde(default)]
    pub state: PeerState,
}

/// What the endpoint begins with that is a hub.
const VIA: &str = "via:";

impl ClusterPeerSpec {
    /// The endpoints that are addresses.
    pub fn dialled(&self) -> impl Iterator<Item = &String> {
        self.endpoints.iter().filter(|endpoint| !endpoint.starts_with(VIA))
    }

    /// The peers that are to pass datagrams on, in the order in which they are to be asked.
    pub fn hubs(&self) -> impl Iterator<Item = ClusterId> {
        self.endpoints.iter().filter_map(|endpoint| ClusterId::new(endpoint.strip_prefix(VIA)?).ok())
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Which namespaces this peer may contribute to.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Accept {
    /// Only these; empty: all but `kube-*`, `default` and Tombolo's own (decision 1). A `*` at the end matches any rest.
    #[schemars(length(max = 256), inner(length(max = 63)))]
    pub namespaces: Vec<String>,
}

impl Accept {
    pub fn accepts(&self, namespace: &str) -> bool {
        if self.namespaces.is_empty() {
            return !(namespace.starts_with("kube-") || namespace == "default" || namespace == names::SYSTEM_NAMESPACE);
        }
        self.namespaces.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => namespace.starts_with(start),
            None => namespace == pattern,
        })
    }
}

/// From the mildest to the strictest.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
pub enum PeerState {
    #[default]
    Active,
    /// Connected, but its endpoints get no new connections.
    Drained,
    /// Cut off.
    Blocked,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPeerStatus {
    /// The newest record that was verified: base64 of a [`SignedRecord`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub record: String,
    /// Fingerprints of the identities that may speak for it now: two while it replaces its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 64)))]
    pub identities: Vec<String>,
    /// What the record claims and this cluster refused: `10.9.0.0/16 is ours`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub refused: Vec<String>,
    /// Prefixes of this peer that overlap, and how each is seen in this cluster. Kept while the peer claims them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub translations: Vec<TranslatedPrefix>,
    #[serde(default)]
    pub imported_services: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub last_synced: Option<Time>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::kind::conditions_schema")]
    pub conditions: Vec<Condition>,
}

impl PeerState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "Active",
            Self::Drained => "Drained",
            Self::Blocked => "Blocked",
        }
    }
}

impl core::fmt::Display for PeerState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.as_str())
    }
}

impl core::str::FromStr for PeerState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Active, Self::Drained, Self::Blocked];
        all.into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("'{text}' is no state of a peer: write Drained or Blocked"))
    }
}

impl ClusterPeer {
    /// The state in force: what the spec says or the order of the moment ([`names::STATE`]), whichever is stricter.
    pub fn state(&self) -> PeerState {
        self.spec.state.max(self.ordered_state())
    }

    /// What the order of the moment says; `Active` where there is none.
    pub fn ordered_state(&self) -> PeerState {
        order::ordered(&self.metadata)
    }

    /// The newest record known for this peer, already verified against its trusted identities.
    ///
    /// Falls back to the bootstrap record when the learned one is absent, broken or signed by nobody trusted.
    pub fn newest_record(&self) -> Option<MemberRecord> {
        self.newest_signed().map(|(_, record)| record)
    }

    /// The same, with who signed it.
    pub fn newest_signed(&self) -> Option<(IdentityKey, MemberRecord)> {
        let learned = self.status.as_ref().map(|status| status.record.as_str()).unwrap_or_default();
        [learned, &self.spec.record].into_iter().filter(|text| !text.is_empty()).find_map(|text| {
            let signed = SignedRecord::from_base64(text).ok()?;
            let record = signed.verify(&self.spec.identity_keys).ok()?;
            (Some(record.cluster_id.as_str()) == self.metadata.name.as_deref()).then_some((signed.key, record))
        })
    }

    /// The identities that may speak for this peer now: those the operator trusts and those that its newest record leads
    /// to from there, without those it left behind.
    pub fn trusted_identities(&self) -> Vec<IdentityKey> {
        let pinned = &self.spec.identity_keys;
        let Some(record) = self.newest_record() else { return pinned.clone() };
        let left_behind = record.left_behind();
        let reached = succession::reached(pinned, &record.successions, &record.cluster_id);
        let named = record.identity_keys.iter().filter(|key| reached.contains(key) && !pinned.contains(key));
        pinned.iter().filter(|key| !left_behind.contains(key)).chain(named).copied().collect()
    }

    /// How its overlapping prefixes were said to be seen here. [`crate::prefix_claims`] says which of it is in force.
    pub fn translations(&self) -> &[TranslatedPrefix] {
        self.status.as_ref().map(|status| status.translations.as_slice()).unwrap_or_default()
    }
}

impl Kind for ClusterPeer {
    const SCOPE: Scope = Scope::Cluster;

    fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        let name = self.metadata.name.as_deref().unwrap_or_default();
        if let Err(error) = ClusterId::new(name) {
            found.push(Violation::new("metadata.name", error.to_string()));
        }
        if self.spec.identity_keys.is_empty() {
            found.push(Violation::new(
                "spec.identityKeys",
                "name at least one identity: 'tombolo peers export' in the other cluster prints it",
            ));
        }
        match SignedRecord::from_base64(&self.spec.record).map(|signed| signed.verify(&self.spec.identity_keys)) {
            Err(error) => found.push(Violation::new("spec.record", error.to_string())),
            Ok(Err(error)) => found.push(Violation::new("spec.record", error.to_string())),
            Ok(Ok(record)) if record.cluster_id.as_str() != name => found.push(Violation::new(
                "spec.record",
                format!(
                    "is of cluster '{}', but the peer is named '{name}': name it as its cluster",
                    record.cluster_id
                ),
            )),
            Ok(Ok(_)) => {}
        }
        found.extend(order::violation::<PeerState>(&self.metadata));
        for (index, endpoint) in self.spec.endpoints.iter().enumerate() {
            if let Some(Err(error)) = endpoint.strip_prefix(VIA).map(ClusterId::new) {
                found.push(Violation::new(format!("spec.endpoints[{index}]"), error.to_string()));
            }
            if endpoint.strip_prefix(VIA) == Some(name) {
                let remedy = format!("{name} is no hub to itself: name the peer that passes datagrams on to it");
                found.push(Violation::new(format!("spec.endpoints[{index}]"), remedy));
            }
        }
        for (index, prefix) in self.spec.allowed_prefixes.iter().enumerate() {
            if prefix.is_forbidden_to_members() {
                found.push(Violation::new(
                    format!("spec.allowedPrefixes[{index}]"),
                    format!("{prefix} cannot belong to a cluster"),
                ));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_a_peer_may_not_touch_the_systems_namespaces() {
        let accept = Accept::default();
        assert!(accept.accepts("shop"));
        for namespace in ["kube-system", "default", "tombolo-system"] {
            assert!(!accept.accepts(namespace), "{namespace}");
        }
    }

    #[test]
    fn the_stricter_of_spec_and_order_is_in_force_and_an_unknown_order_is_refused_by_name() {
        let peer = |spec: &str, order: &str| -> ClusterPeer {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "birch", "annotations": {names::STATE: order}},
                "spec": {"identityKeys": [], "record": "", "state": spec},
            }))
            .unwrap()
        };
        for (spec, order, state) in [
            ("Active", "Drained", PeerState::Drained),
            ("Drained", "Active", PeerState::Drained),
            ("Drained", "Blocked", PeerState::Blocked),
            ("Blocked", "Drained", PeerState::Blocked),
            ("Active", "nonsense", PeerState::Active),
        ] {
            assert_eq!(peer(spec, order).state(), state, "{spec} {order}");
        }
        let refused =
            |order| peer("Active", order).violations().iter().any(|found| found.to_string().contains(names::STATE));
        assert!(refused("nonsense") && !refused("Drained"));
    }

    #[test]
    fn a_list_of_namespaces_accepts_those_alone() {
        let accept = Accept { namespaces: alloc::vec!["shop".into(), "team-*".into()] };
        assert!(accept.accepts("shop") && accept.accepts("team-a"));
        assert!(!accept.accepts("shop-two") && !accept.accepts("default"));
    }
}
