//! `tombolo peers`: whom we trust, and what another cluster needs to know of us.

use std::path::Path;

use api::report::{ControllerReport, PeerSync};

use crate::ask::{Answer, Part, ask};
use crate::output::{Format, Glyph, Outcome, Table, seconds};

/// Prints the peers.
pub async fn run(run_dir: &Path, format: Format) -> anyhow::Result<Outcome> {
    let report: ControllerReport = match crate::ask::expect(run_dir, Part::Controller, "status").await {
        Ok(report) => report,
        Err(outcome) => return Ok(outcome),
    };
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&report.peers)?),
        Format::Text if report.peers.is_empty() => {
            println!("{} knows no peer yet", report.cluster_id);
            eprintln!("  in the other cluster run: tombolo peers export    and put what it prints into this one");
        }
        Format::Text => print!("{}", render(&report.peers)),
    }
    let refused = report.peers.iter().any(|peer| !peer.refused.is_empty());
    Ok(if refused { Outcome::FoundBad } else { Outcome::Good })
}

fn render(peers: &[PeerSync]) -> String {
    let mut table = Table::new(&["PEER", "STATE", "IDENTITY", "RECORD", "PREFIXES", "IN/OUT", "LAST SYNC"]);
    for peer in peers {
        table.row([
            peer.peer.clone(),
            if peer.used.is_empty() { peer.state.clone() } else { peer.used.clone() },
            identity(peer),
            peer.record_generation.map_or_else(|| "?".into(), |generation| format!("gen {generation}")),
            prefixes(peer),
            format!("{}/{}", peer.services_in, peer.services_out),
            peer.last_sync_age.map_or_else(|| "?".into(), seconds),
        ]);
    }
    let mut text = table.render();
    for (peer, refused) in peers.iter().flat_map(|peer| peer.refused.iter().map(move |refused| (&peer.peer, refused))) {
        text.push_str(&format!("{} {peer}: refused: {refused}\n", Glyph::Bad.text()));
    }
    text
}

/// With the one that comes, while it replaces its identity.
fn identity(peer: &PeerSync) -> String {
    match peer.next_fingerprint.as_str() {
        "" => peer.fingerprint.clone(),
        next => format!("{}, next {next}", peer.fingerprint),
    }
}

/// As clients here use them, with the peer's own beside those that are translated.
fn prefixes(peer: &PeerSync) -> String {
    let shown = peer.prefixes.iter().map(|prefix| {
        match peer.translations.iter().find(|translation| translation.seen.to_string() == *prefix) {
            Some(translation) => format!("{prefix} (there {})", translation.real),
            None => prefix.clone(),
        }
    });
    shown.collect::<Vec<_>>().join(",")
}

/// Prints this cluster's ClusterPeer manifest for another cluster.
pub async fn export(run_dir: &Path) -> anyhow::Result<Outcome> {
    match ask(run_dir, Part::Controller, "peer-manifest").await {
        Answer::Known(answer) => {
            if let Some(manifest) = answer.get("manifest").and_then(serde_json::Value::as_str) {
                print!("{manifest}");
                return Ok(Outcome::Good);
            }
            let reason =
                answer.get("reason").and_then(serde_json::Value::as_str).unwrap_or("the controller gave no reason");
            eprintln!("this cluster cannot be introduced yet: {reason}");
            eprintln!("  run: tombolo status    a gateway must run before peers can be told where to dial");
            Ok(Outcome::CouldNotFindOut)
        }
        answer => Ok(crate::ask::explain_silence(run_dir, Part::Controller, &answer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_is_seen_as_another_is_shown_with_the_peers_own() {
        let translation = api::TranslatedPrefix {
            real: "10.1.0.0/16".parse().expect("a prefix"),
            seen: "10.241.0.0/16".parse().expect("a prefix"),
        };
        let peer = PeerSync {
            prefixes: vec!["10.2.0.0/16".into(), "10.241.0.0/16".into()],
            translations: vec![translation],
            ..PeerSync::default()
        };
        assert_eq!(prefixes(&peer), "10.2.0.0/16,10.241.0.0/16 (there 10.1.0.0/16)");
    }
}
