//! Which role may do what. Pure rules: everything not named here is refused, by name.

use std::time::Duration;

use api::names;
use serde_json::Value;

use super::Role;
use crate::backend::{KindName, ObjectKey};

/// What somebody wants to do to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Create,
    Update,
    UpdateStatus,
    Delete,
}

/// Why an agent may not do what it asked for. Each has a [name](Denial::name) for metrics.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    #[error("{0}")]
    NotVisible(String),
    #[error("{0}")]
    NotAllowed(String),
    /// A gateway spoke for a slot that is not its own.
    #[error("{0}")]
    SlotNotHeld(String),
    /// A gateway reached for a slot that another one holds.
    #[error("{0}")]
    SlotTaken(String),
    /// A node measured an endpoint of another node.
    #[error("{0}")]
    NotItsEndpoint(String),
}

impl Denial {
    /// The denial's name, as a metric label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotVisible(_) => "NotVisible",
            Self::NotAllowed(_) => "NotAllowed",
            Self::SlotNotHeld(_) => "SlotNotHeld",
            Self::SlotTaken(_) => "SlotTaken",
            Self::NotItsEndpoint(_) => "NotItsEndpoint",
        }
    }
}

/// Whether an agent may see objects of a kind at all.
pub(crate) fn may_watch(role: Role, kind: KindName) -> Result<(), Denial> {
    if kind.kind == "Secret" && role == Role::Operator {
        let why = "the operator's tool sees no Secrets: read them on the controller's host";
        return Err(Denial::NotVisible(why.into()));
    }
    Ok(())
}

/// Whether an agent may see this object. Everything but Secrets is for all.
pub(crate) fn may_see(role: Role, name: &str, kind: KindName, key: &ObjectKey) -> bool {
    if kind.kind != "Secret" {
        return true;
    }
    if role == Role::Operator || key.namespace != names::SYSTEM_NAMESPACE {
        return false;
    }
    let own = key.name == names::agent_secret(name);
    let of_gateways = key.name.starts_with(SLOT) || key.name == names::PROBE_MASTER_SECRET;
    own || (role == Role::Gateway && of_gateways)
}

/// What the names of slot Secrets and slot Leases begin with.
const SLOT: &str = "gateway-slot-";

/// Whether an agent may change this object; the reason when not.
///
/// Of a gateway's own objects `holds_slot` and `may_take_slot` say the rest.
pub(crate) fn may_write(role: Role, name: &str, verb: Verb, kind: KindName, key: &ObjectKey) -> Result<(), Denial> {
    let ours = key.namespace == names::SYSTEM_NAMESPACE;
    let allowed = match (role, kind.kind) {
        (Role::Gateway, "TunnelGateway") => ours && verb == Verb::UpdateStatus,
        (Role::Gateway, "Lease") => is_slot_lease(key),
        (Role::Node, "Lease") => ours && key.name == format!("node-{name}"),
        // Only the readiness it measured; which endpoints is checked by `may_measure`.
        (Role::Node, "EndpointSlice") => verb == Verb::UpdateStatus,
        (Role::Operator, "ClusterPeer" | "RoutingPolicy" | "ClusterRoutingPolicy" | "ServiceExport") => {
            verb != Verb::UpdateStatus
        }
        _ => false,
    };
    if allowed {
        return Ok(());
    }
    let verb = match verb {
        Verb::Create => "create",
        Verb::Update => "update",
        Verb::UpdateStatus => "write the status of",
        Verb::Delete => "delete",
    };
    Err(Denial::NotAllowed(format!("the {role} agent of {name} may not {verb} {} {key}", kind.kind)))
}

/// Whether a Lease is the one of a gateway slot.
pub(crate) fn is_slot_lease(key: &ObjectKey) -> bool {
    let slot = key.name.strip_prefix(SLOT).and_then(|slot| slot.parse().ok());
    key.namespace == names::SYSTEM_NAMESPACE && slot.is_some_and(|slot| names::slot_lease(slot) == key.name)
}

/// The Lease of the slot that a TunnelGateway stands for.
pub(crate) fn lease_of(gateway: &Value) -> Option<ObjectKey> {
    let slot = gateway.pointer("/spec/slot").and_then(Value::as_u64).and_then(|slot| u16::try_from(slot).ok())?;
    Some(ObjectKey::new(Some(names::SYSTEM_NAMESPACE), &names::slot_lease(slot)))
}

fn holder(lease: &Value) -> Option<&str> {
    lease.pointer("/spec/holderIdentity").and_then(Value::as_str).filter(|holder| !holder.is_empty())
}

/// Whether the gateway of node `name` holds the slot by its Lease, and so may speak for it. A Lease that ran out and
/// that nobody else took is still its last holder's.
pub(crate) fn holds_slot(name: &str, gateway: &ObjectKey, lease: Option<&Value>) -> Result<(), Denial> {
    match lease.and_then(holder) {
        Some(holder) if holder == name => Ok(()),
        Some(holder) => Err(Denial::SlotNotHeld(format!(
            "the gateway of {name} may not write the status of TunnelGateway {gateway}: {holder} holds its slot"
        ))),
        None => Err(Denial::SlotNotHeld(format!(
            "the gateway of {name} may not write the status of TunnelGateway {gateway}: it has to hold its slot first"
        ))),
    }
}

/// Whether the gateway of node `name` may make a slot's Lease what it `wants` (`None`: delete it). It takes a slot for
/// itself alone, and from another holder only when that one has not renewed it for the Lease's duration. `unchanged`
/// is for how long this controller has seen the Lease as it is, so that no host's clock counts.
pub(crate) fn may_take_slot(
    name: &str,
    key: &ObjectKey,
    lease: Option<&Value>,
    unchanged: Duration,
    wants: Option<&Value>,
) -> Result<(), Denial> {
    if let Some(other) = wants.and_then(holder).filter(|wanted| *wanted != name) {
        return Err(Denial::NotAllowed(format!("the gateway of {name} may not take the Lease {key} for {other}")));
    }
    let Some((lease, other)) = lease.and_then(|lease| Some((lease, holder(lease).filter(|held| *held != name)?)))
    else {
        return Ok(());
    };
    let seconds = lease.pointer("/spec/leaseDurationSeconds").and_then(Value::as_u64).unwrap_or_default();
    if unchanged >= Duration::from_secs(seconds) {
        return Ok(());
    }
    Err(Denial::SlotTaken(format!(
        "{other} holds the Lease {key}: it is free {seconds} s after {other} was heard last, and that was {} s ago",
        unchanged.as_secs()
    )))
}

/// Whether a node changes the conditions of its own endpoints alone.
pub(crate) fn may_measure(name: &str, now: &Value, wanted: &Value) -> Result<(), Denial> {
    let endpoints = |slice| Value::as_array(Value::get(slice, "endpoints")?);
    for wanted in endpoints(wanted).into_iter().flatten() {
        let is_same = |now: &&Value| now.get("addresses") == wanted.get("addresses");
        let Some(now) = endpoints(now).into_iter().flatten().find(is_same) else { continue };
        let node = now.get("nodeName").and_then(Value::as_str).unwrap_or_default();
        if now.get("conditions") != wanted.get("conditions") && node != name {
            let addresses = now.get("addresses").map(ToString::to_string).unwrap_or_default();
            let why = format!("the node {name} may not measure the endpoint {addresses} of node '{node}'");
            return Err(Denial::NotItsEndpoint(why));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use api::kubernetes::{EndpointSlice, Lease, Secret, Service};
    use api::{ClusterPeer, TunnelGateway};
    use serde_json::json;

    use super::*;

    fn system(name: &str) -> ObjectKey {
        ObjectKey::new(Some(names::SYSTEM_NAMESPACE), name)
    }

    #[test]
    fn an_agent_sees_the_secrets_of_its_work_and_no_others() {
        let secret = KindName::of::<Secret>();
        let sees = |role, key: &ObjectKey| may_see(role, "worker", secret, key);
        for name in ["gateway-slot-0", "probe-master"] {
            assert!(sees(Role::Gateway, &system(name)));
            for role in [Role::Node, Role::Dns, Role::Operator] {
                assert!(!sees(role, &system(name)), "{role} {name}");
            }
        }
        for role in [Role::Gateway, Role::Node, Role::Dns] {
            assert!(sees(role, &system("agent-worker")));
            assert!(!sees(role, &system("agent-other")));
            assert!(!sees(role, &ObjectKey::new(Some("shop"), "agent-worker")));
        }
        assert!(may_watch(Role::Operator, secret).is_err());
    }

    #[test]
    fn an_agent_writes_what_is_its_own_and_nothing_else() {
        let (gateway, lease) = (KindName::of::<TunnelGateway>(), KindName::of::<Lease>());
        let (service, peer) = (KindName::of::<Service>(), KindName::of::<ClusterPeer>());
        let may = |role, verb, kind, key: &ObjectKey| may_write(role, "worker", verb, kind, key).is_ok();
        assert!(may(Role::Gateway, Verb::UpdateStatus, gateway, &system("gateway-0")));
        assert!(!may(Role::Gateway, Verb::Update, gateway, &system("gateway-0")));
        assert!(may(Role::Gateway, Verb::Create, lease, &system("gateway-slot-1")));
        for other in ["controller", "gateway-slot-", "gateway-slot-x", "gateway-slot-01", "gateway-slot-65536"] {
            assert!(!may(Role::Gateway, Verb::Create, lease, &system(other)), "{other}");
        }
        assert!(!may(Role::Gateway, Verb::Create, lease, &ObjectKey::new(Some("shop"), "gateway-slot-1")));
        assert!(may(Role::Node, Verb::Update, lease, &system("node-worker")));
        assert!(!may(Role::Node, Verb::Update, lease, &system("node-other")));
        assert!(may(Role::Operator, Verb::Update, peer, &ObjectKey::new(None, "birch")));
        for role in [Role::Gateway, Role::Node, Role::Dns, Role::Operator] {
            for verb in [Verb::Create, Verb::Update, Verb::UpdateStatus, Verb::Delete] {
                assert!(!may(role, verb, service, &ObjectKey::new(Some("shop"), "web")));
                assert!(!may(Role::Dns, verb, lease, &system("gateway-slot-0")));
            }
        }
    }

    #[test]
    fn a_gateway_speaks_for_the_slot_it_holds_alone() {
        let gateway = system("gateway-3");
        assert_eq!(lease_of(&json!({"spec": {"slot": 3}})), Some(system("gateway-slot-3")));
        assert_eq!(lease_of(&json!({"spec": {"slot": 65_536}})), None);
        let held = |holder: &str| json!({"spec": {"holderIdentity": holder}});
        assert_eq!(holds_slot("worker", &gateway, Some(&held("worker"))), Ok(()));
        for lease in [None, Some(held("")), Some(held("other")), Some(json!({}))] {
            let denial = holds_slot("worker", &gateway, lease.as_ref()).unwrap_err();
            assert_eq!(denial.name(), "SlotNotHeld", "{denial}");
        }
    }

    #[test]
    fn a_slot_is_taken_for_oneself_and_from_a_holder_that_fell_silent_alone() {
        let lease = |holder: &str| json!({"spec": {"holderIdentity": holder, "leaseDurationSeconds": 15}});
        let (ours, others, free) = (lease("worker"), lease("other"), lease(""));
        let key = system("gateway-slot-0");
        let take = |now: Option<&Value>, seconds: u64, wants: Option<&Value>| {
            may_take_slot("worker", &key, now, Duration::from_secs(seconds), wants).map_err(|denial| denial.name())
        };
        for wants in [Some(&ours), Some(&free), None] {
            assert_eq!(take(None, 0, wants), Ok(()));
            assert_eq!(take(Some(&free), 0, wants), Ok(()));
            assert_eq!(take(Some(&ours), 0, wants), Ok(()));
            assert_eq!(take(Some(&others), 15, wants), Ok(()));
            assert_eq!(take(Some(&others), 14, wants), Err("SlotTaken"));
        }
        assert_eq!(take(Some(&free), 0, Some(&others)), Err("NotAllowed"));
    }

    #[test]
    fn a_node_measures_its_own_endpoints_alone() {
        let slice = |first: bool, second: bool| {
            json!({"endpoints": [
                {"addresses": ["10.0.0.1"], "nodeName": "worker", "conditions": {"ready": first}},
                {"addresses": ["10.0.0.2"], "nodeName": "other", "conditions": {"ready": second}},
            ]})
        };
        let slices = KindName::of::<EndpointSlice>();
        let key = ObjectKey::new(Some("shop"), "web-1");
        assert!(may_write(Role::Node, "worker", Verb::UpdateStatus, slices, &key).is_ok());
        assert!(may_measure("worker", &slice(true, true), &slice(false, true)).is_ok());
        assert!(may_measure("worker", &slice(true, true), &slice(true, false)).is_err());
    }
}
