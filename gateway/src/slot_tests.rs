use serde_json::json;

use super::*;

fn lease(slot: u16, holder: &str, renewed: u32) -> Lease {
    serde_json::from_value(json!({
        "metadata": {"name": format!("gateway-slot-{slot}"), "namespace": "tombolo-system"},
        "spec": {
            "holderIdentity": holder, "leaseDurationSeconds": 15,
            "renewTime": format!("2026-01-01T00:00:{renewed:02}.000000Z"),
        },
    }))
    .unwrap()
}

const fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1_000)
}

#[test]
fn a_node_that_holds_a_slot_goes_on_with_it_at_once() {
    let mut leases = Leases::default();
    leases.apply(lease(0, "node-b", 0), at(0));
    leases.apply(lease(1, "node-a", 0), at(0));
    assert_eq!(leases.choose("node-a", 2, Some(0), at(1)), Choice::Ours(1));
}

#[test]
fn a_free_slot_is_taken_and_the_last_one_is_preferred() {
    let mut leases = Leases::default();
    assert_eq!(leases.choose("node-a", 3, Some(2), at(0)), Choice::Free(2));
    leases.apply(lease(2, "node-b", 0), at(0));
    assert_eq!(leases.choose("node-a", 3, Some(2), at(0)), Choice::Free(0));
    leases.apply(lease(0, "", 0), at(0));
    assert_eq!(leases.choose("node-a", 3, None, at(0)), Choice::Free(0), "given back is free");
}

#[test]
fn a_slot_of_another_node_is_free_when_it_was_not_renewed_for_its_duration_by_our_clock() {
    let mut leases = Leases::default();
    leases.apply(lease(0, "node-b", 0), at(100));
    assert_eq!(leases.choose("node-a", 1, None, at(101)), Choice::WaitUntil(at(115)));
    leases.apply(lease(0, "node-b", 5), at(105));
    assert_eq!(leases.choose("node-a", 1, None, at(116)), Choice::WaitUntil(at(120)), "it was renewed");
    leases.reset(vec![lease(0, "node-b", 5)], at(118));
    assert_eq!(leases.choose("node-a", 1, None, at(120)), Choice::Free(0), "seen again is not renewed");
}

#[test]
fn slots_beyond_the_configured_number_are_not_used() {
    let mut leases = Leases::default();
    leases.apply(lease(5, "node-a", 0), at(0));
    assert_eq!(leases.choose("node-a", 2, Some(5), at(0)), Choice::Free(0));
}
