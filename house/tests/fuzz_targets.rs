//! Every reader of bytes that somebody else wrote has a fuzz target, and `make fuzz` finds it.

use std::collections::BTreeSet;

use house::fuzz_targets::{all, workspaces};
use house::{read, root};

/// What reads foreign bytes: where it is declared, and how a fuzz target calls it.
const DECODERS: [(&str, &str, &str); 19] = [
    ("gateway/core/src/packet.rs", "pub fn parse", "Packet::parse"),
    ("gateway/core/src/probe.rs", "pub fn read", "Probe::read"),
    ("gateway/core/src/datagram.rs", "pub fn parse", "Message::parse"),
    ("gateway/core/src/transit.rs", "pub fn parse", "Frame::parse"),
    ("kernel/core/src/refused.rs", "pub fn read", "Flow::read"),
    ("api/src/health/message.rs", "pub fn decode", "UnverifiedRequest::decode"),
    ("api/src/health/message.rs", "pub fn decode", "ReplyPage::decode"),
    ("api/src/member_record.rs", "pub fn from_base64", "SignedRecord::from_base64"),
    ("identity/src/key_file.rs", "pub fn from_pem", "Identity::from_pem"),
    ("dns/src/query.rs", "pub fn read", "dns::answer"),
    ("dns/src/view.rs", "pub fn apply", "view.apply"),
    ("controller/core/src/message.rs", "pub fn next_message", "FrameReader"),
    ("controller/core/src/remote.rs", "pub fn remember", "remote.remember"),
    ("store/src/manifest.rs", "pub fn check", "manifest::check"),
    ("store/src/feed/frame.rs", "pub fn next_message", "frame::{Decoder"),
    ("store/src/feed/enrolment.rs", "pub fn parse", "Enrolment::parse"),
    ("store/src/journal.rs", "fn read_entries", "damage::journal_entries"),
    ("store/src/folder/state_log.rs", "fn take_line", "damage::state_log_lines"),
    ("store/src/feed/cache.rs", "fn take", "damage::feed_cache_lines"),
];

#[test]
fn every_decoder_of_foreign_bytes_has_a_fuzz_target() {
    let sources = all().unwrap().into_iter().map(|target| read(&format!("{}/{}", target.workspace, target.source)));
    let sources: Vec<String> = sources.collect::<Result<_, _>>().unwrap();
    for (file, declared, called) in DECODERS {
        assert!(read(file).unwrap().contains(declared), "{file} has no `{declared}` any more: mend the list here");
        assert!(sources.iter().any(|source| source.contains(called)), "no fuzz target calls {called} ({file})");
    }
}

#[test]
fn every_fuzz_target_named_is_there_and_every_one_there_is_named() {
    let targets = all().unwrap();
    for target in &targets {
        let path = format!("{}/{}", target.workspace, target.source);
        assert!(root().join(&path).is_file(), "{path} is named in its workspace and not there");
    }
    for path in house::files().unwrap().iter().filter(|path| path.contains("/fuzz_targets/")) {
        let named = targets.iter().any(|target| *path == format!("{}/{}", target.workspace, target.source));
        assert!(named, "{path} is not named in the Cargo.toml of its workspace: it is never built");
    }
    // All are built into one folder.
    let names: BTreeSet<&str> = targets.iter().map(|target| target.name.as_str()).collect();
    assert_eq!(names.len(), targets.len(), "two fuzz targets have one name: {names:?}");
}

#[test]
fn every_fuzz_workspace_is_built_from_versions_that_are_written_down() {
    for workspace in workspaces().unwrap() {
        assert!(root().join(&workspace).join("Cargo.lock").is_file(), "{workspace} lacks its Cargo.lock");
    }
}
