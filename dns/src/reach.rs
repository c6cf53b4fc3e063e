//! [`Reach`]: which clusters' endpoints may be answered, and for each other why not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::ClusterId;

/// What is known of the clusters' health. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// `None` where nobody measures, as beside another implementation's controller: then every cluster is in service.
    measured: Option<Arc<Measured>>,
}

/// What the gateways' reports come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// This cluster itself needs no tunnel and is always in service.
    pub local: Option<ClusterId>,
    /// Clusters that packets reach.
    pub up: BTreeSet<ClusterId>,
    /// Those of them that are answered only where no other is: they came back a moment ago, or are about to go.
    pub last_resorts: BTreeSet<ClusterId>,
    /// Why others are out of service, by the name of the reason.
    pub reasons: BTreeMap<ClusterId, String>,
}

impl Reach {
    pub fn measured(measured: Measured) -> Self {
        Self { measured: Some(Arc::new(measured)) }
    }

    /// Whether the cluster's endpoints may be answered. A cluster no gateway speaks of is unknown, and that is not
    /// healthy (decision 8).
    pub fn serves(&self, cluster: &ClusterId) -> bool {
        match &self.measured {
            None => true,
            Some(measured) => measured.local.as_ref() == Some(cluster) || measured.up.contains(cluster),
        }
    }

    /// Whether others are answered in the cluster's stead, where there are any.
    pub fn is_last_resort(&self, cluster: &ClusterId) -> bool {
        self.measured.as_ref().is_some_and(|measured| measured.last_resorts.contains(cluster))
    }

    /// Why the cluster is out of service; `None` while it is in service.
    pub fn reason(&self, cluster: &ClusterId) -> Option<&str> {
        let measured = self.measured.as_ref().filter(|_| !self.serves(cluster))?;
        Some(measured.reasons.get(cluster).map_or("NotAPeer", String::as_str))
    }

    /// Whether anybody measures at all.
    pub fn is_measured(&self) -> bool {
        self.measured.is_some()
    }

    /// Every cluster that is known to be out of service.
    pub fn reasons(&self) -> impl Iterator<Item = (&ClusterId, &str)> {
        self.measured.iter().flat_map(|measured| measured.reasons.iter().map(|(id, reason)| (id, reason.as_str())))
    }
}
