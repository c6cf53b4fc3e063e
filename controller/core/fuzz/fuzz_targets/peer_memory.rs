//! What was kept on disk of a peer, as anybody may have changed it: nothing outside the peer's own prefixes counts, and
//! what is taken back can be kept again.
#![no_main]

use api::ClusterId;
use api::time::{Instant, WallTime};
use controller_core::remote::{Memory, RemoteIndex};
use controller_core::validity::{Bounds, Terms};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(memory) = serde_json::from_slice::<Memory>(bytes) else { return };
    let birch = ClusterId::new("birch").expect("a good id");
    let (now, wall) = (Instant::from_millis(1), WallTime::from_millis(1));
    let mut remote = RemoteIndex::new(Bounds::default());
    let prefixes = vec!["10.2.0.0/16".parse().expect("a good prefix"), "fd02::/48".parse().expect("a good prefix")];
    remote.set_terms(&birch, Some(Terms { prefixes, ..Terms::default() }), now, wall);
    remote.remember(&birch, memory, now, wall);
    let kept = remote.memory(&birch).expect("what is known is kept");
    let text = serde_json::to_vec(&kept).expect("what is kept can be written");
    assert_eq!(serde_json::from_slice::<Memory>(&text).expect("what was written can be read"), kept);
});
