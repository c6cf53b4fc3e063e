//! What lies on our own disk may come back damaged, or written by another version. Each reader takes any bytes, keeps
//! what is whole and says what is not; here they stand side by side, without their files, for who feeds them damage.

use crate::feed;
use crate::folder;
use crate::journal;

/// Reads bytes as a file of the [journal]; how many entries are whole.
pub fn journal_entries(bytes: &[u8]) -> usize {
    journal::read_entries(bytes).map_or(0, |entries| entries.len())
}

/// Reads bytes as lines of the [folder]'s state log; what is wrong with each that is refused.
pub fn state_log_lines(bytes: &[u8]) -> Vec<String> {
    folder::refused_lines(bytes)
}

/// Reads bytes as lines of an agent's copy of the [feed]; what is wrong with each that is refused.
pub fn feed_cache_lines(bytes: &[u8]) -> Vec<String> {
    feed::cache::refused_lines(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whole_counts_and_what_is_damaged_is_named() {
        let entry = r#"{"sequence":1,"at":1,"subject":"path","before":"Up","after":"Down","reason":"SilentPeer"}"#;
        assert_eq!(journal_entries(format!("{entry}\n{{torn\n{entry}\n").as_bytes()), 2);
        assert_eq!(state_log_lines(b"{\"reset\":{\"version\":1}}\n{}\n").len(), 1);
        let line = r#"{"everything":{"group":"","kind":"Nothing","part":0,"last":true,"objects":[]}}"#;
        assert_eq!(feed_cache_lines(format!("{line}\n").as_bytes()).len(), 1);
    }
}
