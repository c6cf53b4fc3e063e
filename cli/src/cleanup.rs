//! `tombolo cleanup`: removes everything Tombolo made in this host's kernel.

use std::path::Path;

use serde::Serialize;

use crate::ask::Part;
use crate::confirmation::confirm;
use crate::output::{Format, Glyph, Outcome};

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Nothing is removed.
    pub dry_run: bool,
    /// Nobody is asked.
    pub yes: bool,
}

/// Refuses while the node agent or the gateway runs: they would put everything back at once.
pub async fn run(run_dir: &Path, state: &Path, way: Way, format: Format) -> anyhow::Result<Outcome> {
    for part in [Part::Node, Part::Gateway] {
        if !way.dry_run && crate::ask::is_running(run_dir, part).await {
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
    tokio::task::spawn_blocking(move || remove(&state, way, format)).await?
}

/// Netlink sockets belong to the thread that opens them, so all of it happens on one.
fn remove(state: &Path, way: Way, format: Format) -> anyhow::Result<Outcome> {
    let state = state.join(Part::Node.name());
    if !way.dry_run {
        // A host whose agent never ran has no folder, and then nothing was changed that could be restored.
        std::fs::create_dir_all(&state)?;
    }
    let mut kernel = kernel::Kernel::open(&node::settings_record(&state))?;
    let before = kernel.observe()?;
    if way.dry_run {
        Summary::of(&before, false).print(format)?;
        return Ok(Outcome::Good);
    }
    let cause = "everything of Tombolo's goes from this kernel, and connections by way of it end";
    if !Summary::of(&before, false).is_empty() && !confirm(cause, way.yes, "--yes") {
        return Ok(Outcome::Refused);
    }
    let outcome = kernel.cleanup()?;
    for failure in &outcome.failures {
        eprintln!("{} {:?}: {}", Glyph::Bad.text(), failure.change, failure.error);
    }
    if !outcome.failures.is_empty() {
        eprintln!("  run this again as root: what is left is named above");
        return Ok(Outcome::FoundBad);
    }
    Summary::of(&before, true).print(format)?;
    Ok(Outcome::Good)
}

/// What there is of ours, counted.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    /// Whether it is gone; a dry run leaves it.
    removed: bool,
    links: usize,
    addresses: usize,
    routes: usize,
    rules: usize,
    next_hops: usize,
    tables: usize,
    services: usize,
    /// Settings of others that get their old values back.
    settings: usize,
}

impl Summary {
    fn of(state: &kernel::core::State, removed: bool) -> Self {
        Self {
            removed,
            links: state.links.len(),
            addresses: state.addresses.len(),
            routes: state.routes.len(),
            rules: state.rules.len(),
            next_hops: state.nexthops.len() + state.groups.len(),
            tables: usize::from(state.table.is_some()),
            services: state.services.len(),
            settings: state.settings.len(),
        }
    }

    fn is_empty(&self) -> bool {
        let counts = [self.links, self.addresses, self.routes, self.rules, self.next_hops, self.tables, self.services];
        counts.iter().all(|count| *count == 0) && self.settings == 0
    }

    fn print(&self, format: Format) -> anyhow::Result<()> {
        match format {
            Format::Text => print!("{}", self.text()),
            Format::Json => println!("{}", serde_json::to_string_pretty(self)?),
        }
        Ok(())
    }

    /// A line for each kind of thing, `1 link`, and for the settings that get their old values back.
    fn text(&self) -> String {
        let verb = if self.removed { "removed" } else { "would remove" };
        let counts = [
            (self.links, "link", "links"),
            (self.addresses, "address", "addresses"),
            (self.routes, "route", "routes"),
            (self.rules, "rule", "rules"),
            (self.next_hops, "next hop", "next hops"),
            (self.tables, "nftables table", "nftables tables"),
            (self.services, "service", "services"),
            (self.settings, "changed setting, for its old value", "changed settings, for their old values"),
        ];
        let present = counts.iter().filter(|(count, ..)| *count > 0);
        let lines: String = present
            .map(|(count, one, many)| format!("{verb} {count} {}\n", if *count == 1 { one } else { many }))
            .collect();
        if lines.is_empty() { "nothing of Tombolo's is in this kernel\n".into() } else { lines }
    }
}
