//! The fuzz targets of the checkout, as their manifests name them.

use anyhow::Context;

use crate::{files, read};

/// A fuzz target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FuzzTarget {
    /// The name of the program, unlike that of any other.
    pub name: String,
    /// The folder of its workspace, from the top of the checkout: `dns/fuzz`.
    pub workspace: String,
    /// Its source, from the folder of its workspace: `fuzz_targets/message.rs`.
    pub source: String,
}

/// The folders of all fuzz workspaces.
pub fn workspaces() -> anyhow::Result<Vec<String>> {
    let files = files()?;
    let manifests = files.iter().filter_map(|path| path.strip_suffix("/Cargo.toml"));
    Ok(manifests.filter(|folder| folder.ends_with("/fuzz")).map(str::to_owned).collect())
}

/// All fuzz targets, workspace by workspace.
pub fn all() -> anyhow::Result<Vec<FuzzTarget>> {
    let mut targets = Vec::new();
    for workspace in workspaces()? {
        let manifest = read(&format!("{workspace}/Cargo.toml"))?;
        for section in manifest.split("[[bin]]").skip(1) {
            let value = |key: &str| {
                let line = section.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_prefix('='));
                let text = line.and_then(|rest| rest.trim().strip_prefix('"')?.strip_suffix('"'));
                text.map(str::to_owned).with_context(|| format!("a [[bin]] of {workspace}/Cargo.toml lacks {key}"))
            };
            targets.push(FuzzTarget { name: value("name")?, source: value("path")?, workspace: workspace.clone() });
        }
    }
    Ok(targets)
}
