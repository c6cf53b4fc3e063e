//! Which role may do what. Pure rules: everything not named here is refused.

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

/// Whether an agent may see objects of a kind at all.
pub(crate) fn may_watch(role: Role, kind: KindName) -> Result<(), String> {
    if kind.kind == "Secret" && role == Role::Operator {
        return Err("the operator's tool sees no Secrets: read them on the controller's host".into());
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
pub(crate) fn may_write(role: Role, name: &str, verb: Verb, kind: KindName, key: &ObjectKey) -> Result<(), String> {
    let ours = key.namespace == names::SYSTEM_NAMESPACE;
    let allowed = match (role, kind.kind) {
        (Role::Gateway, "TunnelGateway") => ours && verb == Verb::UpdateStatus,
        (Role::Gateway, "Lease") => ours && key.name.starts_with(SLOT),
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
    Err(format!("the {role} agent of {name} may not {verb} {} {key}", kind.kind))
}

/// Whether a node changes the conditions of its own endpoints alone.
pub(crate) fn may_measure(name: &str, now: &Value, wanted: &Value) -> Result<(), String> {
    let endpoints = |slice| Value::as_array(Value::get(slice, "endpoints")?);
    for wanted in endpoints(wanted).into_iter().flatten() {
        let is_same = |now: &&Value| now.get("addresses") == wanted.get("addresses");
        let Some(now) = endpoints(now).into_iter().flatten().find(is_same) else { continue };
        let node = now.get("nodeName").and_then(Value::as_str).unwrap_or_default();
        if now.get("conditions") != wanted.get("conditions") && node != name {
            let addresses = now.get("addresses").map(ToString::to_string).unwrap_or_default();
            return Err(format!("the node {name} may not measure the endpoint {addresses} of node '{node}'"));
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
        assert!(!may(Role::Gateway, Verb::Create, lease, &system("controller")));
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
