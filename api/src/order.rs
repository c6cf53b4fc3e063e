//! Orders of the moment: what an operator told an object by command, kept as its annotation [`names::STATE`] so that the
//! manifest stays the operator's.

use alloc::format;
use alloc::string::String;
use core::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::kind::Violation;
use crate::kubernetes::Node;
use crate::local_cluster::LocalState;
use crate::names;

fn text(metadata: &ObjectMeta) -> Option<&str> {
    metadata.annotations.as_ref()?.get(names::STATE).map(String::as_str)
}

/// What the order says; the state without any where there is none, or one that cannot be read ([`violation`] says so).
pub(crate) fn ordered<S: FromStr + Default>(metadata: &ObjectMeta) -> S {
    text(metadata).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Whether an order (`Draining`) takes the endpoints on a node out of service.
pub fn is_drained(node: &Node) -> bool {
    ordered::<LocalState>(&node.metadata) == LocalState::Draining
}

/// Why the order cannot be followed.
pub(crate) fn violation<S: FromStr<Err = String>>(metadata: &ObjectMeta) -> Option<Violation> {
    let reason = text(metadata)?.parse::<S>().err()?;
    Some(Violation::new(format!("metadata.annotations[{}]", names::STATE), reason))
}
