//! [`Besieged`]: a cluster that imports from an honest one and from one whose key a liar holds.

use std::collections::BTreeSet;

use api::member_record::SignedRecord;
use api::service_import::{ImportPort, ImportType};
use api::time::WallTime;
use controller_core::advertisement::{
    AdvertisedEndpoint, AdvertisedService, AdvertisedSlice, Family, Item, ItemKey, ServiceName, TargetPort,
};
use serde_json::Value;

use super::liar::{Liar, Words};
use super::{Cluster, Splice, eventually};

/// 2026-01-01: no time that a cluster would not believe.
pub(crate) const PLAUSIBLE: WallTime = WallTime::from_millis(1_767_225_600_000);

/// amber imports from cedar, which is honest, and from birch, whose key a liar holds.
pub(crate) struct Besieged {
    pub(crate) amber: Cluster,
    pub(crate) cedar: Cluster,
    pub(crate) liar: Liar,
    _splices: [Splice; 2],
    /// The liar's folder, with its key.
    _birch: Cluster,
}

impl Besieged {
    pub(crate) async fn with(script: impl Fn(usize, &SignedRecord) -> Words + Send + Sync + 'static) -> Self {
        let (amber, mut birch, cedar) =
            (Cluster::start("amber", 1).await, Cluster::start("birch", 2).await, Cluster::start("cedar", 3).await);
        amber.trust(&birch).await;
        amber.trust(&cedar).await;
        cedar.trust(&amber).await;
        cedar.export(&["10.3.0.1"]);
        let liar = Liar::instead_of(&mut birch, script).await;
        let splices = [Splice::to(amber.socket(), "birch", liar.socket()), Splice::new(&amber, &cedar)];
        Self { amber, cedar, liar, _splices: splices, _birch: birch }
    }

    /// Stops both controllers, so that nothing of this is left running.
    pub(crate) async fn end(mut self) {
        self.amber.stop().await;
        self.cedar.stop().await;
    }

    pub(crate) async fn until_refused(&self, reason: &str) {
        let refused = || async {
            let refusals = self.amber.surface().answer("refusals")?;
            let named = |refusal: &Value| refusal["reason"] == reason && refusal["peer"] == "birch";
            refusals.as_array()?.iter().any(named).then_some(())
        };
        let shown = || self.amber.surface().answer("refusals").unwrap_or_default();
        eventually(&format!("birch is refused as {reason}"), refused, shown).await;
    }

    /// What the honest cluster changes reaches amber, while the other goes on lying.
    pub(crate) async fn the_honest_one_is_heard(&self) {
        for address in ["10.3.0.7", "10.3.0.8"] {
            self.cedar.endpoints(&[address]);
            let arrived = || async {
                let imported = self.amber.imported().await;
                imported.contains(&("cedar".into(), address.into(), true)).then_some(())
            };
            let shown = || self.amber.surface().answer("status").unwrap_or_default();
            eventually(&format!("{address} of cedar arrives"), arrived, shown).await;
        }
    }

    pub(crate) async fn imported_from_birch(&self) -> BTreeSet<String> {
        let imported = self.amber.imported().await;
        imported.into_iter().filter(|(source, ..)| source == "birch").map(|(_, address, _)| address).collect()
    }
}

pub(crate) fn service(first_exported: WallTime) -> Item {
    Item::Service(AdvertisedService {
        service_type: ImportType::ClusterSetIP,
        ports: vec![ImportPort { name: "http".into(), protocol: "TCP".into(), app_protocol: None, port: 80 }],
        session_affinity: None,
        session_affinity_config: None,
        internal_traffic_policy: None,
        traffic_distribution: None,
        exported_labels: [].into(),
        exported_annotations: [].into(),
        ip_families: vec![Family::V4],
        first_exported,
    })
}

pub(crate) fn slice(addresses: &[&str]) -> Item {
    let endpoint = |address: &&str| AdvertisedEndpoint {
        address: address.parse().unwrap(),
        hostname: None,
        node: None,
        zone: None,
        ready: true,
        finishing: false,
    };
    Item::Slice(AdvertisedSlice {
        family: Family::V4,
        ports: vec![TargetPort { name: "http".into(), protocol: "TCP".into(), port: 8080, app_protocol: None }],
        endpoints: addresses.iter().map(endpoint).collect(),
    })
}

pub(crate) fn named(namespace: &str, name: &str) -> ItemKey {
    ItemKey::service(ServiceName::new(namespace, name))
}

pub(crate) fn slice_of(name: &str) -> ItemKey {
    ItemKey::slice(ServiceName::new("shop", name), "a")
}

/// Something true, so that it is seen what is left of it.
pub(crate) fn honest() -> Vec<(ItemKey, Item)> {
    vec![(named("shop", "web"), service(PLAUSIBLE)), (slice_of("web"), slice(&["10.2.0.1"]))]
}

pub(crate) fn words(frames: Vec<Vec<u8>>) -> Words {
    Box::new(frames.into_iter())
}
