//! The engine with a store that is a map: every write happens, and is shown.

use alloc::collections::BTreeMap;

use api::Kind;
use api::ServiceExport;
use api::member_record::{MemberState, bytes_to_sign};
use ed25519_dalek::{Signer, SigningKey};
use serde_json::json;

use super::*;
use crate::advertisement::ItemKey;
use crate::index::Observed;
use crate::plan::{Object, Verb};
use crate::slices;
use crate::testing::{self, cluster, time};

pub(super) const T0: Instant = Instant::from_millis(0);

pub(super) fn object<K: Kind>(value: serde_json::Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// Source cluster, addresses with readiness, ports.
pub(super) type ShownSlice = (String, Vec<(String, bool)>, Vec<String>);

pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) objects: BTreeMap<(&'static str, ObjectKey), Object>,
    pub(super) version: u64,
    /// Every write that happened, as verb, kind and name.
    pub(super) log: Vec<(Verb, &'static str, String)>,
}

pub(super) fn local_cluster() -> LocalCluster {
    object(json!({ "apiVersion": "tombolo.dev/v1alpha1", "kind": "LocalCluster", "metadata": { "name": "local" },
        "spec": { "clusterId": "amber", "clusterSetId": "demo", "podPrefixes": ["10.1.0.0/16"],
                  "clusterSetPrefixes": ["10.200.0.0/24"], "infrastructurePrefixes": ["10.250.1.0/24"] } }))
}

pub(super) fn signed_record(name: &str, seed: u8, generation: u64, set: &str) -> SignedRecord {
    signed_record_in(name, seed, generation, set, MemberState::Active)
}

pub(super) fn signed_record_in(name: &str, seed: u8, generation: u64, set: &str, state: MemberState) -> SignedRecord {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let identity = IdentityKey(key.verifying_key().to_bytes());
    let local = object::<LocalCluster>(json!({ "apiVersion": "tombolo.dev/v1alpha1", "kind": "LocalCluster",
        "metadata": { "name": "local" },
        "spec": { "clusterId": name, "clusterSetId": set, "podPrefixes": [format!("10.{seed}.0.0/16")] } }));
    let record = membership::own_record(&local, &identity.into(), "e", &SlotKeys::new(), [].into_iter());
    let bytes = serde_json::to_vec(&MemberRecord { generation, state, ..record }).unwrap();
    let signature = key.sign(&bytes_to_sign(&bytes)).to_bytes().to_vec();
    SignedRecord { record: bytes, key: identity, signature }
}

pub(super) fn peer(name: &str, seed: u8) -> ClusterPeer {
    let record = signed_record(name, seed, 1, "demo");
    object(json!({ "apiVersion": "tombolo.dev/v1alpha1", "kind": "ClusterPeer", "metadata": { "name": name },
        "spec": { "identityKeys": [record.key], "record": record.to_base64() } }))
}

impl World {
    pub(super) fn empty() -> Self {
        let engine = Engine::new(IdentityKey([1; 32]), "e".into(), None, Bounds::default(), T0);
        Self { engine, objects: BTreeMap::new(), version: 0, log: Vec::new() }
    }

    /// Amber, which trusts birch (10.2.0.0/16) and cedar (10.3.0.0/16), and has the namespace `shop`.
    pub(super) fn new() -> Self {
        let mut world = Self::empty();
        world.show_resets();
        world.put(local_cluster());
        world.put(peer("birch", 2));
        world.put(peer("cedar", 3));
        world.put_namespace("shop");
        world.settle();
        world
    }

    pub(super) fn show_resets(&mut self) {
        macro_rules! resets {
            ($($variant:ident => $observe:ident $(, $argument:expr)*;)+) => {
                $({
                    let all = self.objects.values().filter_map(|object| match object {
                        Object::$variant(object) => Some((**object).clone()),
                        _ => None,
                    });
                    let all = all.collect();
                    self.engine.$observe(Observed::Reset(all) $(, $argument)*);
                })+
            };
        }
        resets!(
            LocalCluster => observe_local_cluster, T0, time(100);
            ClusterPeer => observe_peers, T0, time(100);
            ClusterMember => observe_members;
            TunnelGateway => observe_gateways;
            RoutingPolicy => observe_policies;
            ClusterRoutingPolicy => observe_cluster_policies;
            ServiceImport => observe_imports;
            EndpointSlice => observe_slices;
            ServiceExport => observe_exports;
            Node => observe_nodes, T0;
        );
        self.engine.observe_services(Observed::Reset(vec![]));
        self.engine.observe_namespaces(Observed::Reset(vec![]));
    }

    pub(super) fn put_namespace(&mut self, name: &str) {
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        self.engine.observe_namespaces(Observed::Applied(object(namespace)));
    }

    pub(super) fn put(&mut self, object: impl Into<Object>) {
        let object = self.stored(object.into());
        self.engine.take_in(Some(object), None, T0, time(100));
    }

    /// Does what a store does: uid, times, versions.
    fn stored(&mut self, object: Object) -> Object {
        self.version += 1;
        let version = self.version;
        let object = edit(object, |meta, kind| {
            let key = (kind, key_of(meta));
            let uid = self.objects.get(&key).and_then(|held| held.metadata().uid.clone());
            meta.uid = Some(uid.unwrap_or_else(|| format!("uid-{version}")));
            meta.resource_version = Some(format!("{version}"));
            meta.creation_timestamp.get_or_insert_with(|| crate::condition::object_time(time(version)));
        });
        self.objects.insert((object.kind(), key_of(object.metadata())), object.clone());
        object
    }

    /// Lets the engine write until nothing is due. Returns how many writes there were.
    pub(super) fn settle(&mut self) -> usize {
        let mut total = 0;
        for _ in 0..20 {
            self.engine.advertise(T0, time(100));
            let planned = self.engine.plan(time(100));
            if planned.is_empty() {
                return total;
            }
            for (subject, writes) in planned {
                total += writes.len();
                let outcomes = writes.into_iter().map(|write| self.write(write)).collect();
                self.engine.finished(&subject, outcomes, T0, time(100));
            }
        }
        panic!("the engine writes without end: {:?}", self.log);
    }

    fn write(&mut self, Write { verb, object }: Write) -> Outcome {
        let key = (object.kind(), key_of(object.metadata()));
        self.log.push((verb, key.0, key.1.name.clone()));
        let held = self.objects.get(&key);
        match verb {
            Verb::Create => assert!(held.is_none(), "{key:?} is there already"),
            _ => assert_eq!(
                held.map(|held| &held.metadata().resource_version),
                Some(&object.metadata().resource_version),
                "{key:?} was written on the past"
            ),
        }
        match verb {
            Verb::Delete => {
                self.objects.remove(&key);
                Outcome::Deleted(object)
            }
            _ => Outcome::Written(self.stored(object)),
        }
    }

    pub(super) fn get<K: Kind>(&self, namespace: &str, name: &str) -> Option<K> {
        let key = (K::kind(&()).into_owned(), ObjectKey { namespace: namespace.into(), name: name.into() });
        let held = self.objects.iter().find(|((kind, held), _)| *kind == key.0 && *held == key.1)?.1;
        Some(object(as_json(held)))
    }

    pub(super) fn import(&self) -> Option<ServiceImport> {
        self.get("shop", "web")
    }

    /// The imported slices: source cluster, addresses with readiness, ports.
    pub(super) fn slices(&self) -> Vec<ShownSlice> {
        let slices = self.objects.values().filter_map(|object| match object {
            Object::EndpointSlice(slice) => Some(slice),
            _ => None,
        });
        let mut shown: Vec<_> = slices
            .map(|slice| {
                let endpoints = slice.endpoints.iter().flatten();
                let endpoints = endpoints
                    .map(|e| (e.addresses[0].clone(), e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)));
                let ports = slice.ports.iter().flatten().map(|port| port.name.clone().unwrap_or_default());
                let cluster = slices::label(slice, names::mcs::SOURCE_CLUSTER).unwrap_or_default();
                (cluster.to_string(), endpoints.collect(), ports.collect())
            })
            .collect();
        shown.sort();
        shown
    }

    pub(super) fn hears(&mut self, from: &str, second: u64, addresses: &[&str]) {
        let (web, from) = (ServiceName::new("shop", "web"), cluster(from));
        let mut said = Advertisement::default();
        said.put(ItemKey::service(web.clone()), testing::service(second));
        if !addresses.is_empty() {
            said.put(ItemKey::slice(web, "a"), testing::slice(addresses));
        }
        self.hears_all(&from, said);
    }

    pub(super) fn hears_all(&mut self, from: &ClusterId, said: Advertisement) {
        let token = Token { epoch: "e".into(), hash: said.hash() };
        self.engine.set_synced(from, None, T0, time(100));
        self.engine.hear_snapshot(from, said, token, T0, time(100));
    }

    /// Exports shop/web from amber itself.
    pub(super) fn exports(&mut self, created: u64, address: &str) {
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "ipFamilies": ["IPv4"], "ports": [{ "name": "tcp", "port": 42, "protocol": "TCP" },
                                                        { "name": "udp", "port": 42, "protocol": "UDP" }] } });
        self.engine.observe_services(Observed::Applied(object(service)));
        let slice = json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": "web-1", "namespace": "shop", "labels": { "kubernetes.io/service-name": "web" } },
            "ports": [{ "name": "tcp", "protocol": "TCP", "port": 8042 }], "endpoints": [{ "addresses": [address] }] });
        self.engine.observe_slices(Observed::Applied(object(slice)));
        let mut export: ServiceExport =
            object(json!({ "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
            "metadata": { "name": "web", "namespace": "shop" }, "spec": {} }));
        export.metadata.creation_timestamp = Some(crate::condition::object_time(time(created)));
        let export = self.stored(export.into());
        let Object::ServiceExport(export) = export else { unreachable!() };
        self.engine.observe_exports(Observed::Applied(*export));
    }

    /// The condition's status and reason.
    pub(super) fn condition<K: Kind>(&self, namespace: &str, name: &str, kind: &str) -> Option<(String, String)> {
        let object: K = self.get(namespace, name)?;
        let value = serde_json::to_value(object).unwrap();
        let all = value.pointer("/status/conditions")?.as_array()?;
        let found = all.iter().find(|condition| condition["type"] == kind)?;
        Some((found["status"].as_str()?.into(), found["reason"].as_str()?.into()))
    }
}

fn key_of(meta: &api::kubernetes::ObjectMeta) -> ObjectKey {
    ObjectKey { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
}

macro_rules! each {
    ($object:expr, $inner:ident => $do:expr; $($kind:ident)+) => {
        match $object { $(Object::$kind($inner) => $do),+ }
    };
}

fn edit(object: Object, change: impl FnOnce(&mut api::kubernetes::ObjectMeta, &'static str)) -> Object {
    let kind = object.kind();
    each!(object, inner => { let mut inner = inner; change(&mut inner.metadata, kind); (*inner).into() };
        ServiceImport EndpointSlice ServiceExport ClusterPeer ClusterMember TunnelGateway RoutingPolicy
        ClusterRoutingPolicy LocalCluster Node)
}

fn as_json(object: &Object) -> serde_json::Value {
    each!(object, inner => serde_json::to_value(&**inner).unwrap();
        ServiceImport EndpointSlice ServiceExport ClusterPeer ClusterMember TunnelGateway RoutingPolicy
        ClusterRoutingPolicy LocalCluster Node)
}
