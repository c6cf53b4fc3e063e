//! Against the real kernel, in namespaces of their own: no privilege is needed, and nothing is left behind.

mod cleanup;
mod filter;
mod foreign_bytes;
mod path_mtu;
mod routing;
mod sandbox;
mod scale;
mod sets;
mod translate;

use std::path::PathBuf;

use tempfile::TempDir;

use kernel_core::{Change, Route, RouteKey, Ruleset, State, Target, difference};

use crate::Kernel;

/// An owner whose record of settings is in a folder of its own.
fn open() -> (Kernel, TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    (Kernel::open(&record(&folder)).expect("netlink sockets"), folder)
}

fn record(folder: &TempDir) -> PathBuf {
    folder.path().join("settings")
}

/// Applies changes, none of which may fail.
fn apply(kernel: &mut Kernel, changes: &[Change]) {
    let outcome = kernel.apply(changes);
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    assert_eq!(outcome.applied, changes.len());
}

/// Brings the kernel to what is wanted, and shows that it is there: what is observed differs in nothing.
fn bring(kernel: &mut Kernel, wanted: &State) {
    let observed = kernel.observe().expect("an observed state");
    apply(kernel, &difference(wanted, &observed));
    let observed = kernel.observe().expect("an observed state");
    differs_in_nothing(wanted, &observed);
}

/// A difference may be longer than anybody reads: how long it is and how it begins tell enough.
fn differs_in_nothing(wanted: &State, observed: &State) {
    let changes = difference(wanted, observed);
    let begins: String = format!("{:?}", changes.first()).chars().take(400).collect();
    assert!(
        changes.is_empty(),
        "applied, and yet not as wanted: {} changes, the first of which is {begins}",
        changes.len()
    );
}

/// The table with nothing in its sets.
fn with_table(ruleset: &Ruleset) -> State {
    State { table: Some(ruleset.table()), ..State::default() }
}

fn route_by(destination: &str, target: Target) -> (RouteKey, Route) {
    (RouteKey::carrying(destination.parse().expect("a prefix")), Route::to(target))
}
