//! `tombolo cleanup`: removes everything Tombolo made in this host's kernel.

use std::path::Path;

use crate::ask::Part;
use crate::output::{Glyph, Outcome};

/// Refuses while the node agent runs: it would put everything back at once.
pub async fn run(run_dir: &Path, state: &Path, dry_run: bool) -> anyhow::Result<Outcome> {
    if crate::ask::readiness(run_dir, Part::Node).await.is_some_and(|answer| answer.is_ok()) {
        eprintln!("the node agent of this host runs, and would put back what is removed");
        eprintln!("  stop it first");
        return Ok(Outcome::Refused);
    }
    let state = state.to_path_buf();
    tokio::task::spawn_blocking(move || remove(&state, dry_run)).await?
}

/// Netlink sockets belong to the thread that opens them, so all of it happens on one.
fn remove(state: &Path, dry_run: bool) -> anyhow::Result<Outcome> {
    let state = state.join(Part::Node.name());
    // A host whose agent never ran has no folder, and then nothing was changed that could be restored.
    std::fs::create_dir_all(&state)?;
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
        (state.links.len(), "links"),
        (state.addresses.len(), "addresses"),
        (state.routes.len(), "routes"),
        (state.rules.len(), "rules"),
        (state.nexthops.len() + state.groups.len(), "next hops"),
        (usize::from(state.table.is_some()), "nftables tables"),
        (state.services.len(), "services"),
        (state.settings.len(), "settings, old values restored"),
    ];
    let lines: String =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{verb} {count} {what}\n")).collect();
    if lines.is_empty() { "nothing of Tombolo's is in this kernel\n".into() } else { lines }
}
