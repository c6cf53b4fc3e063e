//! Any object that has a kind's shape is taken into the zone, whatever is in it, and the zone still answers.
#![no_main]

use api::time::Instant;
use dns::answer::{Transport, answer};
use dns::name::Origin;
use dns::view::{Change, View};
use dns::zone::Zone;
use libfuzzer_sys::fuzz_target;
use serde::de::DeserializeOwned;
use store::Event;

/// Any name under the zone, all types.
const QUERY: &[u8] = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x02db\x04shop\x03svc\x0aclusterset\x05local\0\0\xff\0\x01";

/// The bytes as the only object of a kind; none when they have not its shape.
fn only<K: DeserializeOwned>(bytes: &[u8]) -> Event<K> {
    Event::Reset(serde_json::from_slice(bytes).into_iter().collect())
}

fuzz_target!(|bytes: &[u8]| {
    let now = Instant::from_millis(1);
    let zone = Zone::unknown(Origin::new("clusterset.local").expect("a good name"), &[], 1);
    let mut view = View::new(zone, "dns-1", now);
    let changes = [
        Change::Import(only(bytes)),
        Change::Slice(only(bytes)),
        Change::Local(only(bytes)),
        Change::Peer(only(bytes)),
        Change::Gateway(only(bytes)),
        Change::Policy(only(bytes)),
        Change::ClusterPolicy(only(bytes)),
        Change::Secret(only(bytes)),
    ];
    for change in changes {
        view.apply(change, now);
    }
    if let Some(zone) = view.publish(now) {
        let mut out = Vec::new();
        answer(&zone, QUERY, Transport::Tcp, 0, &mut out);
    }
});
