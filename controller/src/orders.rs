//! Carries out the operator's orders: one write to one object, with what was there before as its precondition.

use std::fmt::Display;

use api::kubernetes::Node;
use api::report::OrderReport;
use api::{ClusterPeer, LocalCluster, TunnelGateway, names};
use controller_core::orders::{Order, OrderRefused, ordered_gateway, ordered_local, ordered_node, ordered_peer};
use store::Store;

use crate::keys;

/// The controller itself writes statuses into the same objects: who loses a race reads again. It never loses many.
const TRIES: usize = 10;

/// What became of it, or why not and what to do.
pub(crate) async fn carry_out(store: &Store, order: &Order) -> Result<OrderReport, String> {
    match order {
        Order::Peer { peer, state, undo } => {
            let ordered = |found: &ClusterPeer| ordered_peer(found, *state, *undo);
            let state = |found: &ClusterPeer| found.state().to_string();
            let missing = format!("there is no ClusterPeer {peer}: 'tombolo peers' lists those there are");
            write(store, (None, peer.as_str()), format!("peer {peer}"), missing, ordered, state).await
        }
        Order::Local { undo } => {
            let ordered = |found: &LocalCluster| ordered_local(found, *undo);
            let state = |found: &LocalCluster| found.state().as_str().to_owned();
            let missing = "there is no LocalCluster: write one that says what this cluster is".to_owned();
            write(store, (None, names::LOCAL_CLUSTER), "cluster".to_owned(), missing, ordered, state).await
        }
        // It is not the store that holds the identity: `surface` asks the owner.
        Order::Identity { .. } => Err("the identity is not the store's".into()),
        Order::Keys { slot, retire } => replace_keys(store, *slot, *retire).await,
        Order::Gateway { slot, undo } => {
            let ordered = |found: &TunnelGateway| ordered_gateway(found, *undo);
            let state = |found: &TunnelGateway| if found.is_drained() { "Draining" } else { "Active" }.to_owned();
            let missing = format!("there is no gateway {slot}: 'tombolo status' names those there are");
            let (name, subject) = (names::slot_gateway(*slot), format!("gateway {slot}"));
            write(store, (Some(names::SYSTEM_NAMESPACE), &name), subject, missing, ordered, state).await
        }
        Order::Node { node, undo } => {
            let now = clock::wall();
            let ordered = |found: &Node| ordered_node(found, *undo, now);
            let state = |found: &Node| if api::order::is_drained(found) { "Draining" } else { "Active" }.to_owned();
            let missing = format!("there is no node {node} in this cluster: its agent, or a manifest, makes its Node");
            write(store, (None, node), format!("node {node}"), missing, ordered, state).await
        }
    }
}

/// Begins to replace the keys of one gateway or of all, or ends it.
async fn replace_keys(store: &Store, slot: Option<u16>, retire: bool) -> Result<OrderReport, String> {
    let local = store.get::<LocalCluster>(None, names::LOCAL_CLUSTER).await.map_err(|error| error.to_string())?;
    let slots = local.map_or(0, |local| local.spec.gateways.slots);
    let chosen: Vec<u16> = (0..slots).filter(|held| slot.is_none_or(|slot| slot == *held)).collect();
    if chosen.is_empty() {
        let which = slot.map_or_else(|| "gateway".to_owned(), |slot| format!("gateway {slot}"));
        return Err(format!("there is no {which}: 'tombolo status' names those there are"));
    }
    let mut changed = false;
    for slot in &chosen {
        changed |= match retire {
            true => keys::retire(store, *slot, None).await,
            false => keys::rotate(store, *slot, clock::wall()).await,
        }
        .map_err(|error| error.to_string())?;
    }
    let all: Vec<String> = chosen.iter().map(ToString::to_string).collect();
    let gateways = if all.len() == 1 { "gateway" } else { "gateways" };
    let (before, after) = if retire { ("Rotating", "Steady") } else { ("Steady", "Rotating") };
    let before = if changed { before } else { after }.to_owned();
    Ok(OrderReport { subject: format!("keys of {gateways} {}", all.join(", ")), before, after: after.into(), changed })
}

async fn write<K: store::Kind>(
    store: &Store,
    (namespace, name): (Option<&str>, &str),
    subject: String,
    missing: String,
    ordered: impl Fn(&K) -> Result<Option<K>, OrderRefused>,
    state: impl Fn(&K) -> String,
) -> Result<OrderReport, String> {
    fn words(error: impl Display) -> String {
        error.to_string()
    }
    let mut lost = String::new();
    for _ in 0..TRIES {
        let found = store.get::<K>(namespace, name).await.map_err(words)?.ok_or_else(|| missing.clone())?;
        let before = state(&found);
        let Some(wanted) = ordered(&found).map_err(words)? else {
            return Ok(OrderReport { subject, after: before.clone(), before, changed: false });
        };
        match store.update(&wanted).await {
            Ok(written) => return Ok(OrderReport { subject, before, after: state(&written), changed: true }),
            Err(error) if error.is_conflict() => lost = words(error),
            Err(error) => return Err(words(error)),
        }
    }
    Err(format!("{lost}: order it again"))
}
