//! `tombolo crds`: the CustomResourceDefinitions, for an API server.

use crate::output::Outcome;

/// Prints them as one stream of YAML documents; JSON is YAML, and every tool that applies manifests takes it.
pub fn print() -> anyhow::Result<Outcome> {
    for definition in api::definitions::all()? {
        println!("---\n{}", serde_json::to_string_pretty(&definition)?);
    }
    Ok(Outcome::Good)
}
