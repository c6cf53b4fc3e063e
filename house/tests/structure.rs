//! The one rule of structure, and what follows from it.

use house::{files, metadata, read};
use serde_json::Value;

/// The packages of the workspace and, for each, those of them it depends on outside tests.
fn dependencies() -> Vec<(String, Vec<String>)> {
    let metadata = metadata().unwrap();
    let members: Vec<&Value> = metadata["workspace_members"].as_array().unwrap().iter().collect();
    let packages: Vec<&Value> =
        metadata["packages"].as_array().unwrap().iter().filter(|package| members.contains(&&package["id"])).collect();
    let ours: Vec<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    packages
        .iter()
        .map(|package| {
            let uses = package["dependencies"].as_array().unwrap().iter().filter(|uses| uses["kind"].is_null());
            let names = uses.map(|uses| uses["name"].as_str().unwrap()).filter(|name| ours.contains(name));
            (package["name"].as_str().unwrap().to_owned(), names.map(str::to_owned).collect())
        })
        .collect()
}

#[test]
fn gateway_node_dns_and_controller_never_import_each_other() {
    let parts = ["gateway", "node", "dns", "controller"];
    let part_of = |name: &str| parts.iter().find(|part| name == **part || name == format!("{part}-core")).copied();
    for (name, uses) in dependencies() {
        let Some(part) = part_of(&name) else { continue };
        for used in uses {
            assert!(
                part_of(&used).is_none_or(|other| other == part),
                "{name} imports {used}: parts meet in api, routing and store"
            );
        }
    }
}

#[test]
fn thinking_crates_are_no_std_and_touch_nothing() {
    for path in [
        "api/src/lib.rs",
        "routing/src/lib.rs",
        "kernel/core/src/lib.rs",
        "gateway/core/src/lib.rs",
        "node/core/src/lib.rs",
        "controller/core/src/lib.rs",
    ] {
        let head = read(path).unwrap();
        assert!(head.contains("#![no_std]"), "{path} lacks #![no_std]");
        assert!(head.contains("#![forbid(unsafe_code)]"), "{path} lacks #![forbid(unsafe_code)]");
    }
    let touching = [
        "store",
        "identity",
        "clock",
        "prober",
        "kernel",
        "gateway",
        "node",
        "dns",
        "controller",
        "cli",
        "netns-tests",
        "kubernetes",
    ];
    for (name, uses) in dependencies() {
        if name == "api" || name == "routing" || name.ends_with("-core") {
            for used in uses {
                assert!(
                    !touching.contains(&used.as_str()),
                    "{name} thinks, but imports {used}, which touches the world"
                );
            }
        }
    }
}

#[test]
fn every_source_file_is_declared_by_a_module() {
    let files = files().unwrap();
    for path in files.iter().filter(|path| path.ends_with(".rs") && path.contains("/src/")) {
        let (folder, file) = path.rsplit_once('/').unwrap();
        if ["lib.rs", "main.rs", "build.rs"].contains(&file) || folder.ends_with("/bin") || folder.contains("/fuzz/") {
            continue;
        }
        let (module, holders) = if file == "mod.rs" {
            let (above, name) = folder.rsplit_once('/').unwrap();
            (name.to_owned(), vec![format!("{above}/lib.rs"), format!("{above}/mod.rs"), format!("{above}.rs")])
        } else {
            let name = file.trim_end_matches(".rs");
            let holders = ["lib.rs", "main.rs", "mod.rs"].map(|holder| format!("{folder}/{holder}"));
            (name.to_owned(), holders.into_iter().chain([format!("{folder}.rs")]).collect())
        };
        let declared = holders
            .iter()
            .filter_map(|holder| read(holder).ok())
            .any(|text| text.lines().any(|line| line.trim().ends_with(&format!("mod {module};"))));
        // A file beside it may also name it: `#[path = "lane_tests.rs"] mod tests;`.
        let siblings = files.iter().filter(|sibling| sibling.rsplit_once('/').is_some_and(|(at, _)| at == folder));
        let declared = declared
            || siblings.filter_map(|sibling| read(sibling).ok()).any(|text| text.contains(&format!("\"{file}\"")));
        assert!(declared, "{path} is declared by no module: it is never compiled");
    }
}

#[test]
fn no_file_is_so_long_that_a_noun_wants_out() {
    // Near 600 lines a file holds two things (the house rule); tests beside the code count too.
    for path in files().unwrap().iter().filter(|path| path.ends_with(".rs")) {
        let lines = read(path).unwrap().lines().count();
        assert!(lines <= 600, "{path} has {lines} lines: find the noun that wants out");
    }
}

#[test]
fn no_folder_or_file_is_a_drawer_for_everything() {
    for path in files().unwrap() {
        for part in path.split('/') {
            let name = part.split('.').next().unwrap_or_default();
            let drawer = ["common", "util", "utils", "misc", "helper", "helpers", "shared", "stuff"].contains(&name);
            assert!(!drawer, "{path}: name it after what is inside");
        }
    }
}
