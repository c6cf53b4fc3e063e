//! Follows every kind of object a node needs.

use api::Kind;
use api::kubernetes::{EndpointSlice, Node, Secret, Service};
use api::{
    ClusterPeer, ClusterRoutingPolicy, LocalCluster, RoutingPolicy, ServiceExport, ServiceImport, TunnelGateway,
};
use node_core::{Input, ObjectChange};
use store::{Event, Store};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::owner::Told;

/// The kinds followed: until each was listed once, nothing in the kernel is touched.
pub(crate) const KINDS: [&str; 11] = [
    "LocalCluster",
    "ClusterPeer",
    "TunnelGateway",
    "Node",
    "Service",
    "ServiceExport",
    "ServiceImport",
    "EndpointSlice",
    "RoutingPolicy",
    "ClusterRoutingPolicy",
    "Secret",
];

/// Tells the owner everything there is, and then each change, until `stop`.
pub(crate) fn follow(store: &Store, told: &mpsc::Sender<Told>, stop: &CancellationToken) {
    let follow = Follow { store, told, stop };
    follow.kind::<LocalCluster>(|change| input(Input::LocalClusters(change)));
    follow.kind::<ClusterPeer>(|change| input(Input::ClusterPeers(change)));
    follow.kind::<TunnelGateway>(|change| input(Input::TunnelGateways(change)));
    follow.kind::<Node>(|change| input(Input::Nodes(change)));
    follow.kind::<Service>(|change| input(Input::Services(change)));
    follow.kind::<ServiceExport>(|change| input(Input::ServiceExports(change)));
    follow.kind::<ServiceImport>(|change| input(Input::ServiceImports(change)));
    follow.kind::<EndpointSlice>(|change| input(Input::EndpointSlices(change)));
    follow.kind::<RoutingPolicy>(|change| input(Input::RoutingPolicies(change)));
    follow.kind::<ClusterRoutingPolicy>(|change| input(Input::ClusterRoutingPolicies(change)));
    follow.kind::<Secret>(|change| Told::Secrets(Box::new(change)));
}

fn input(input: Input) -> Told {
    Told::Input(Box::new(input))
}

struct Follow<'a> {
    store: &'a Store,
    told: &'a mpsc::Sender<Told>,
    stop: &'a CancellationToken,
}

impl Follow<'_> {
    fn kind<K: Kind>(&self, tell: fn(ObjectChange<K>) -> Told) {
        let (mut watch, told, stop) = (self.store.watch::<K>(), self.told.clone(), self.stop.clone());
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    () = stop.cancelled() => return,
                    event = watch.next() => event,
                };
                // Without its store the agent keeps what it knows.
                let Some(event) = event else { return };
                let listed = matches!(event, Event::Reset(_));
                let change = match event {
                    Event::Reset(all) => ObjectChange::Reset(all),
                    Event::Applied(object) => ObjectChange::Applied(object),
                    Event::Deleted(object) => ObjectChange::Deleted(object),
                };
                if told.send(tell(change)).await.is_err() {
                    return;
                }
                if listed && told.send(Told::Listed(store::KindName::of::<K>().kind)).await.is_err() {
                    return;
                }
            }
        });
    }
}
