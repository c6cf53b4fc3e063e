//! What lies on our own disk, as a broken disk or another version may give it back: journal, state log, cached feed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use store::damage;

fuzz_target!(|bytes: &[u8]| {
    damage::journal_entries(bytes);
    damage::state_log_lines(bytes);
    damage::feed_cache_lines(bytes);
});
