//! Programs and tests are built of the same third-party crates, so that none is compiled twice.

use std::collections::BTreeSet;
use std::process::Command;

/// Every third-party crate with its features, as cargo joins them for a build of the whole workspace.
fn built(edges: &str) -> BTreeSet<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let arguments =
        ["tree", "--locked", "--offline", "--workspace", "--prefix", "none", "-f", "{p} [{f}]", "-e", edges];
    let output = Command::new(cargo).args(arguments).current_dir(house::root()).output().unwrap();
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

#[test]
fn tests_ask_nothing_of_third_party_crates_that_programs_do_not_ask() {
    let tests = built("normal,build,dev");
    let only: Vec<String> = built("normal,build").difference(&tests).cloned().collect();
    assert!(
        only.is_empty(),
        "tests build these with more features, ask for them in house/Cargo.toml too: {only:#?} (cargo tree -e features -i)"
    );
}
