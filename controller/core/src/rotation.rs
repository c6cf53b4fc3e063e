//! Rotation of the gateways' keys: when the old ones of a slot may go.
//!
//! | step | who | what |
//! |---|---|---|
//! | 1 | the controller | makes the next key of each lane, beside the current one, in the slot's Secret; the record announces both |
//! | 2 | gateways on both sides | bring up a link for each pair of keys they know, and go over to the newest that has proved itself |
//! | 3 | the gateway of the slot | says in its TunnelGateway which peers still need the old keys |
//! | 4 | the controller | when none does, puts the next keys in the place of the current ones, in one write |
//!
//! Each step follows from what is there, so it does not matter who was killed when. A peer that is away keeps step 4 from
//! coming, for it can call with the keys it knows alone, and hears of the new ones through the tunnel; but not for ever.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use api::TunnelGateway;
use api::keys::TunnelKey;
use api::time::WallTime;

use crate::engine::Engine;
use crate::membership::KeysOfSlot;

/// How long the old keys are kept for peers that are away: over a long weekend, and what is wrong with a peer by then is
/// not mended by waiting. After that it needs the record from somebody else, or by hand.
pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// How far the change of one slot's keys has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    pub slot: u16,
    pub age: Duration,
    /// Who still needs the old keys; `None` while the gateway has not told.
    pub waiting_for: Option<Vec<String>>,
    /// The keys that come.
    pub next_keys: Vec<TunnelKey>,
}

impl Rotation {
    /// What is known of a slot's rotation; `None` when its keys do not rotate.
    pub fn of(slot: u16, keys: &KeysOfSlot, gateway: Option<&TunnelGateway>, now: WallTime) -> Option<Self> {
        let since = keys.rotating_since?;
        let next_keys: Vec<TunnelKey> = keys.lanes.iter().filter_map(|lane| lane.next_key).collect();
        let told = gateway.and_then(|gateway| gateway.status.as_ref()?.rotation.as_ref());
        // What it said of other keys says nothing of these.
        let told = told.filter(|told| told.next_keys == next_keys);
        Some(Self {
            slot,
            age: Duration::from_millis(now.as_millis().saturating_sub(since.as_millis())),
            waiting_for: told.map(|told| told.waiting_for.clone()),
            next_keys,
        })
    }

    /// Whether the old keys are to be taken away now.
    pub fn is_over(&self) -> bool {
        self.age >= LONGEST || self.waiting_for.as_ref().is_some_and(Vec::is_empty)
    }
}

impl Engine {
    /// Every slot whose keys rotate; `None` until the keys were read.
    pub fn rotations(&self, now: WallTime) -> Option<Vec<Rotation>> {
        let of = |(slot, keys): (&u16, &KeysOfSlot)| {
            let gateway = self.gateways().find(|gateway| gateway.spec.slot == *slot);
            Rotation::of(*slot, keys, gateway, now)
        };
        (!self.slot_keys.is_empty()).then(|| self.slot_keys.iter().filter_map(of).collect())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use api::tunnel_gateway::KeyRotation;

    use super::*;
    use crate::membership::LaneKeys;

    const NOW: WallTime = WallTime::from_millis(1_700_000_000_000);

    fn keys(since: Option<Duration>) -> KeysOfSlot {
        let next_key = since.map(|_| TunnelKey([2; 32]));
        let since = since.map(|age| WallTime::from_millis(NOW.as_millis() - age.as_millis() as u64));
        KeysOfSlot { lanes: [LaneKeys { key: TunnelKey([1; 32]), next_key }].into(), rotating_since: since }
    }

    fn gateway(next: u8, waiting_for: &[&str]) -> TunnelGateway {
        let mut gateway = TunnelGateway::default();
        gateway.status.get_or_insert_default().rotation = Some(KeyRotation {
            next_keys: [TunnelKey([next; 32])].into(),
            waiting_for: waiting_for.iter().map(ToString::to_string).collect(),
        });
        gateway
    }

    fn rotation(age: Duration, gateway: Option<&TunnelGateway>) -> Rotation {
        Rotation::of(0, &keys(Some(age)), gateway, NOW).unwrap()
    }

    #[test]
    fn old_keys_go_when_the_gateway_says_that_nobody_needs_them() {
        let minute = Duration::from_secs(60);
        assert_eq!(Rotation::of(0, &keys(None), Some(&gateway(2, &[])), NOW), None);
        assert!(rotation(minute, Some(&gateway(2, &[]))).is_over());
        let waits = rotation(minute, Some(&gateway(2, &["cedar"])));
        assert!(!waits.is_over());
        assert_eq!((waits.age, waits.waiting_for), (minute, Some(["cedar".to_string()].into())));
    }

    #[test]
    fn what_was_said_of_other_keys_ends_nothing_and_a_gateway_that_says_nothing_is_waited_for() {
        for silent in [Some(&gateway(9, &[])), Some(&TunnelGateway::default()), None] {
            let rotation = rotation(Duration::from_secs(60), silent);
            assert!(!rotation.is_over() && rotation.waiting_for.is_none());
        }
    }

    #[test]
    fn nobody_is_waited_for_for_ever() {
        let almost = LONGEST - Duration::from_secs(1);
        assert!(!rotation(almost, Some(&gateway(2, &["cedar"]))).is_over());
        assert!(rotation(LONGEST, Some(&gateway(2, &["cedar"]))).is_over());
        assert!(rotation(LONGEST, None).is_over());
    }
}
