//! [`Objects`]: what the store says, as far as a gateway needs it, followed by watches.

use std::collections::BTreeMap;

use api::health::message::MasterKey;
use api::kubernetes::{EndpointSlice, Lease, Secret};
use api::local_cluster::PodReachability;
use api::names::{self, LOCAL_CLUSTER, PROBE_MASTER_SECRET, SYSTEM_NAMESPACE};
use api::{ClusterPeer, Kind, LocalCluster, ServiceExport, TunnelGateway};
use gateway_core::ExportChange;
use gateway_core::export_index::{ExportIndex, key_of};
use store::{Event, Store, Watch};

use crate::session::{LaneKey, LaneKeys};
use crate::slot::Leases;

/// The watches, one for each kind.
pub(crate) struct Watches {
    local: Watch<LocalCluster>,
    peers: Watch<ClusterPeer>,
    secrets: Watch<Secret>,
    gateways: Watch<TunnelGateway>,
    leases: Watch<Lease>,
    exports: Watch<ServiceExport>,
    slices: Watch<EndpointSlice>,
}

/// What was last read.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) local: Option<LocalCluster>,
    pub(crate) peers: BTreeMap<String, ClusterPeer>,
    pub(crate) gateways: BTreeMap<String, TunnelGateway>,
    pub(crate) leases: Leases,
    pub(crate) exports: ExportIndex,
    secrets: BTreeMap<String, Secret>,
    /// Whether the first list of Leases has come: without it every slot looks free.
    pub(crate) leases_known: bool,
}

/// What one event of the store means.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Change {
    /// Something other than endpoints changed.
    pub(crate) settings: bool,
    pub(crate) exports: Vec<ExportChange>,
}

const SETTINGS: Change = Change { settings: true, exports: Vec::new() };

impl Watches {
    pub(crate) fn open(store: &Store) -> Self {
        Self {
            local: store.watch(),
            peers: store.watch(),
            secrets: store.watch(),
            gateways: store.watch(),
            leases: store.watch(),
            exports: store.watch(),
            slices: store.watch(),
        }
    }

    /// Waits for the next event and takes it. `None` when the store is gone. Cancel safe.
    pub(crate) async fn next(&mut self, objects: &mut Objects) -> Option<Change> {
        tokio::select! {
            event = self.local.next() => event.map(|event| objects.take_local(event)),
            event = self.peers.next() => event.map(|event| follow(&mut objects.peers, event, |_| true)),
            event = self.secrets.next() => event.map(|event| follow(&mut objects.secrets, event, is_ours)),
            event = self.gateways.next() => event.map(|event| follow(&mut objects.gateways, event, is_ours)),
            event = self.leases.next() => event.map(|event| objects.take_lease(event)),
            event = self.exports.next() => event.map(|event| objects.take_export(event)),
            event = self.slices.next() => event.map(|event| objects.take_slice(event)),
        }
    }
}

fn is_ours<K: Kind>(object: &K) -> bool {
    object.meta().namespace.as_deref() == Some(SYSTEM_NAMESPACE)
}

fn name_of<K: Kind>(object: &K) -> String {
    object.meta().name.clone().unwrap_or_default()
}

/// Keeps a map by name of the objects that concern us.
fn follow<K: Kind>(known: &mut BTreeMap<String, K>, event: Event<K>, concerns: impl Fn(&K) -> bool) -> Change {
    match event {
        Event::Reset(all) => {
            *known =
                all.into_iter().filter(|object| concerns(object)).map(|object| (name_of(&object), object)).collect();
        }
        Event::Applied(object) if concerns(&object) => _ = known.insert(name_of(&object), object),
        Event::Deleted(object) if concerns(&object) => _ = known.remove(&name_of(&object)),
        Event::Applied(_) | Event::Deleted(_) => return Change::default(),
    }
    SETTINGS
}

impl Objects {
    /// The lanes' keys of a slot; `None` before the controller has made all of them.
    pub(crate) fn lane_keys(&self, slot: u16, lanes: u16) -> Option<Vec<LaneKeys>> {
        let secret = self.secrets.get(&names::slot_secret(slot))?;
        let data = secret.data.as_ref()?;
        let key = |entry: String| <[u8; 32]>::try_from(data.get(&entry)?.0.as_slice()).ok().map(LaneKey::new);
        let keys = |lane| {
            let current = key(names::lane_key(lane))?;
            Some(LaneKeys { next: key(names::next_lane_key(lane)).filter(|next| *next != current), current })
        };
        (0..lanes).map(keys).collect()
    }

    /// The keys behind the probes of nodes and DNS servers. What cannot be read is left out.
    pub(crate) fn probe_masters(&self) -> Vec<MasterKey> {
        let data = self.secrets.get(PROBE_MASTER_SECRET).and_then(|secret| secret.data.as_ref());
        let texts = data.into_iter().flatten().filter_map(|(_, value)| std::str::from_utf8(&value.0).ok());
        texts.filter_map(MasterKey::from_text).collect()
    }

    /// Everything a lane that starts must be told.
    pub(crate) fn all_exports(&self) -> Vec<ExportChange> {
        std::iter::once(self.reachability()).chain(self.exports.everything()).collect()
    }

    fn reachability(&self) -> ExportChange {
        let open = self.local.as_ref().is_some_and(|local| local.spec.pod_reachability == PodReachability::Open);
        ExportChange::SetOpen(open)
    }

    fn take_local(&mut self, event: Event<LocalCluster>) -> Change {
        match event {
            Event::Reset(all) => self.local = all.into_iter().find(|local| name_of(local) == LOCAL_CLUSTER),
            Event::Applied(local) if name_of(&local) == LOCAL_CLUSTER => self.local = Some(local),
            Event::Deleted(local) if name_of(&local) == LOCAL_CLUSTER => self.local = None,
            Event::Applied(_) | Event::Deleted(_) => return Change::default(),
        }
        Change { settings: true, exports: vec![self.reachability()] }
    }

    fn take_lease(&mut self, event: Event<Lease>) -> Change {
        let now = clock::now();
        match event {
            Event::Reset(all) => {
                self.leases.reset(all.into_iter().filter(is_ours).collect(), now);
                self.leases_known = true;
            }
            Event::Applied(lease) if is_ours(&lease) => self.leases.apply(lease, now),
            Event::Deleted(lease) if is_ours(&lease) => self.leases.remove(&name_of(&lease)),
            Event::Applied(_) | Event::Deleted(_) => return Change::default(),
        }
        SETTINGS
    }

    fn take_export(&mut self, event: Event<ServiceExport>) -> Change {
        let exports = match event {
            Event::Reset(all) => self.exports.reset_exports(&all),
            Event::Applied(export) => self.exports.apply_export(&export),
            Event::Deleted(export) => self.exports.remove_export(key_of(&export.metadata)),
        };
        Change { settings: false, exports }
    }

    fn take_slice(&mut self, event: Event<EndpointSlice>) -> Change {
        let exports = match event {
            Event::Reset(all) => self.exports.reset_slices(&all, clock::now()),
            Event::Applied(slice) => self.exports.apply_slice(&slice, clock::now()),
            Event::Deleted(slice) => self.exports.remove_slice(&key_of(&slice.metadata), clock::now()),
        };
        Change { settings: false, exports }
    }
}
