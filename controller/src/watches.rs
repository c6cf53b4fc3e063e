//! Follows every kind the controller works from, and hands each step to the owner.

use std::sync::Arc;

use api::kubernetes::{EndpointSlice, Lease, Namespace, Node, Secret, Service};
use api::names;
use api::time::{Instant, WallTime};
use api::{
    ClusterMember, ClusterPeer, ClusterRoutingPolicy, LocalCluster, RoutingPolicy, ServiceExport, ServiceImport,
    TunnelGateway,
};
use controller_core::Engine;
use controller_core::index::Observed;
use store::{Event, Kind, Store};
use tokio::task::JoinSet;

use crate::connections::{Message, Shared};

fn observed<K>(event: Event<K>) -> Observed<K> {
    match event {
        Event::Reset(all) => Observed::Reset(all),
        Event::Applied(object) => Observed::Applied(object),
        Event::Deleted(object) => Observed::Deleted(object),
    }
}

fn follow<K: Kind>(
    tasks: &mut JoinSet<()>,
    store: &Store,
    shared: &Arc<Shared>,
    take: fn(&mut Engine, Observed<K>, Instant, WallTime),
) {
    let (mut watch, inbox, stop) = (store.watch::<K>(), shared.inbox.clone(), shared.stop.clone());
    tasks.spawn(async move {
        loop {
            let event = tokio::select! {
                event = watch.next() => event,
                () = stop.cancelled() => None,
            };
            let Some(event) = event else { return };
            let step = observed(event);
            let observation = Box::new(move |engine: &mut Engine, now, wall| take(engine, step, now, wall));
            if inbox.send(Message::Observed(observation)).is_err() {
                return;
            }
        }
    });
}

/// Says that the keys of a slot may be others than they were, and what the replicas share.
fn follow_secrets(tasks: &mut JoinSet<()>, store: &Store, shared: &Arc<Shared>) {
    let (mut watch, inbox, stop) = (store.watch::<Secret>(), shared.inbox.clone(), shared.stop.clone());
    tasks.spawn(async move {
        loop {
            let event = tokio::select! {
                event = watch.next() => event,
                () = stop.cancelled() => None,
            };
            let Some(event) = event else { return };
            let is_shared = |secret: &Secret| {
                let metadata = &secret.metadata;
                metadata.name.as_deref() == Some(names::IDENTITY_SECRET)
                    && metadata.namespace.as_deref() == Some(names::SYSTEM_NAMESPACE)
            };
            let is_slots = |secret: &Secret| {
                secret.metadata.name.as_ref().is_some_and(|name| name.starts_with(names::SLOT_SECRETS))
            };
            let messages = match event {
                Event::Reset(all) => {
                    let shared = all.into_iter().find(is_shared).map(Box::new);
                    vec![Message::KeysChanged, Message::SharedState(shared)]
                }
                Event::Applied(secret) if is_shared(&secret) => vec![Message::SharedState(Some(Box::new(secret)))],
                Event::Deleted(secret) if is_shared(&secret) => vec![Message::SharedState(None)],
                Event::Applied(secret) | Event::Deleted(secret) if is_slots(&secret) => vec![Message::KeysChanged],
                _ => Vec::new(),
            };
            for message in messages {
                if inbox.send(message).is_err() {
                    return;
                }
            }
        }
    });
}

/// Starts to follow. The tasks end with the controller, or when the store is gone.
pub(crate) fn follow_all(store: &Store, shared: &Arc<Shared>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let t = &mut tasks;
    follow_secrets(t, store, shared);
    follow::<LocalCluster>(t, store, shared, |engine, step, now, wall| engine.observe_local_cluster(step, now, wall));
    follow::<ClusterPeer>(t, store, shared, |engine, step, now, wall| engine.observe_peers(step, now, wall));
    follow::<ClusterMember>(t, store, shared, |engine, step, _, _| engine.observe_members(step));
    follow::<TunnelGateway>(t, store, shared, |engine, step, _, _| engine.observe_gateways(step));
    follow::<Service>(t, store, shared, |engine, step, _, _| engine.observe_services(step));
    follow::<ServiceExport>(t, store, shared, |engine, step, _, _| engine.observe_exports(step));
    follow::<ServiceImport>(t, store, shared, |engine, step, _, _| engine.observe_imports(step));
    follow::<EndpointSlice>(t, store, shared, |engine, step, _, _| engine.observe_slices(step));
    follow::<Namespace>(t, store, shared, |engine, step, _, _| engine.observe_namespaces(step));
    follow::<Node>(t, store, shared, |engine, step, now, _| engine.observe_nodes(step, now));
    follow::<Lease>(t, store, shared, |engine, step, now, _| engine.observe_leases(step, now));
    follow::<RoutingPolicy>(t, store, shared, |engine, step, _, _| engine.observe_policies(step));
    follow::<ClusterRoutingPolicy>(t, store, shared, |engine, step, _, _| engine.observe_cluster_policies(step));
    tasks
}
