//! `tombolo cleanup`: removes everything Tombolo made in this host's kernel.

use std::path::Path;

use crate::ask::Part;
use crate::output::{Glyph, Outcome};

/// Refuses while the node agent or the gateway runs: they would put everything back at once.
pub async fn run(run_dir: &Path, state: &Path, dry_run: bool) -> anyhow::Result<Outcome> {
    for part in [Part::Node, Part::Gateway] {
        if !dry_run && crate::ask::is_running(run_dir, part).await {
            eprintln!("the {} of this host runs, and would put back what is removed", part.name());
            eprintln!("  stop it first");
            return Ok(Outcome::Refused);
        }
    }
    let record = node::settings_record(&state.join("node"));
    if !record.exists() {
        eprintln!("no record of changed settings at {}: none is restored", record.display());
        eprintln!("  if the node agent was started with another --state, name that");
    }
    let state = state.to_path_buf();
    tokio::task::spawn_blocking(move || remove(&state, dry_run)).await?
}

/// Netlink sockets belong to the thread that opens them, so all of it happens on one.
fn remove(state: &Path, dry_run: bool) -> anyhow::Result<Outcome> {
    let state = state.join(Part::Node.name());
    if !dry_run {
        // A host whose agent never ran has no folder, and then nothing was changed that could be restored.
        std::fs::create_dir_all(&state)?;
    }
    let mut kernel = kernel::Kernel::open(&node::settings_record(&state))?;
    let before = kernel.observe()?;
    if dry_run {
        print!("{}", summary("would remove", &before));
        return Ok(Outcome::Good);
    }
    let outcome = kernel.cleanup()?;
    for failure in &outcome.failures {
        eprintln!("{} {:?}: {}", Glyph::Bad.text(), failure.change, failure.error);
    }
    if !outcome.failures.is_empty() {
        eprintln!("  run this again as root: what is left is named above");
        return Ok(Outcome::FoundBad);
    }
    print!("{}", summary("removed", &before));
    Ok(Outcome::Good)
}

/// A line for each kind of thing, `1 link`, and for the settings that get their old values back.
fn summary(verb: &str, state: &kernel::core::State) -> String {
    let counts = [
        (state.links.len(), "link", "links"),
        (state.addresses.len(), "address", "addresses"),
        (state.routes.len(), "route", "routes"),
        (state.rules.len(), "rule", "rules"),
        (state.nexthops.len() + state.groups.len(), "next hop", "next hops"),
        (usize::from(state.table.is_some()), "nftables table", "nftables tables"),
        (state.services.len(), "service", "services"),
        (state.settings.len(), "changed setting, for its old value", "changed settings, for their old values"),
    ];
    let present = counts.iter().filter(|(count, ..)| *count > 0);
    let lines: String = present
        .map(|(count, one, many)| format!("{verb} {count} {}\n", if *count == 1 { one } else { many }))
        .collect();
    if lines.is_empty() { "nothing of Tombolo's is in this kernel\n".into() } else { lines }
}
