//! Any object that has a kind's shape is taken, whatever is in it.
#![no_main]

use api::kubernetes::{EndpointSlice, Node};
use api::time::Instant;
use libfuzzer_sys::fuzz_target;
use node_core::{Input, NodeCore, ObjectChange};

fuzz_target!(|data: &[u8]| {
    let now = Instant::from_millis(1);
    let mut core = NodeCore::new("worker", now);
    if let Ok(slice) = serde_json::from_slice::<EndpointSlice>(data) {
        core.take(Input::EndpointSlices(ObjectChange::Applied(slice)), now);
    }
    if let Ok(node) = serde_json::from_slice::<Node>(data) {
        core.take(Input::Nodes(ObjectChange::Applied(node)), now);
    }
    if let Ok(import) = serde_json::from_slice(data) {
        core.take(Input::ServiceImports(ObjectChange::Applied(import)), now);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<node_core::check::Check>();
    }
    core.delta(now);
});
