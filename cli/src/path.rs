//! `tombolo explain path` and `tombolo ping`: how packets reach a peer, and whether one does now.

use std::path::Path;

use api::health::Reachability;
use api::report::{GatewayReport, PathReport, PingReport};

use crate::ask::{Part, ask_as, expect};
use crate::output::{Format, Glyph, Outcome, seconds};

/// Prints the way to a peer, hop by hop as this host knows it.
pub async fn explain(run_dir: &Path, peer: &str, format: Format) -> anyhow::Result<Outcome> {
    if !is_cluster_id(peer) {
        return Ok(Outcome::Usage);
    }
    let report: GatewayReport = match expect(run_dir, Part::Gateway, "status").await {
        Ok(report) => report,
        Err(outcome) => return Ok(outcome),
    };
    let Some(path) = report.peers.iter().find(|path| path.peer == peer) else {
        eprintln!("{peer} is no peer of this gateway");
        eprintln!("  run: tombolo peers");
        return Ok(Outcome::FoundBad);
    };
    let node: Option<api::report::NodeReport> = ask_as(run_dir, Part::Node, "status").await;
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(path)?),
        Format::Text => {
            if let Some(node) = &node {
                let glyph = if node.kernel_differences == 0 { Glyph::Good } else { Glyph::Warning };
                let kernel = match node.kernel_differences {
                    0 => "kernel as wanted".to_owned(),
                    count => format!("the kernel differed in {count} places at the last look, and was mended"),
                };
                println!("{} node     {}: {kernel}", glyph.text(), node.node);
            }
            print!("{}", render(path));
        }
    }
    Ok(if path.reachability == Reachability::Up { Outcome::Good } else { Outcome::FoundBad })
}

/// Says so on stderr where it is none.
fn is_cluster_id(peer: &str) -> bool {
    api::ClusterId::new(peer).inspect_err(|error| eprintln!("'{peer}' names no cluster: {error}")).is_ok()
}

fn render(path: &PathReport) -> String {
    let glyph = match path.reachability {
        Reachability::Up => Glyph::Good,
        Reachability::Down => Glyph::Bad,
        Reachability::Unknown => Glyph::Unknown,
    };
    let mut text = String::new();
    for session in &path.sessions {
        let endpoint = session.endpoint.as_deref().unwrap_or("no address known");
        let handshake = session
            .handshake_age
            .map_or_else(|| "no handshake yet".into(), |age| format!("handshake {} ago", seconds(age)));
        let mark = if session.handshake_age.is_some() { Glyph::Good } else { Glyph::Bad };
        text.push_str(&format!(
            "{} session  lane {} → gateway {} lane {}, {endpoint}, {handshake}, {} B in, {} B out\n",
            mark.text(),
            session.lane,
            session.peer_slot,
            session.peer_lane,
            session.received_bytes,
            session.sent_bytes
        ));
    }
    let rtt = path.round_trip_ms.map_or_else(|| "?".into(), |rtt| format!("{rtt:.1}ms"));
    let loss = path.loss_percent.map_or_else(|| "?".into(), |loss| format!("{loss:.1}%"));
    let mtu = path.mtu.map_or_else(|| "?".into(), |mtu| mtu.to_string());
    text.push_str(&format!(
        "{} probes   {:?} ({:?}) for {}, rtt {rtt}, loss {loss}, mtu {mtu}\n",
        glyph.text(),
        path.reachability,
        path.reason,
        seconds(path.age)
    ));
    if path.reachability != Reachability::Up {
        text.push_str("  remedy   check that UDP reaches the peer's endpoint, and that both clusters know each other's newest record:\n");
        text.push_str("           tombolo peers export in each, put into the other\n");
    }
    text
}

/// Sends a real packet through the tunnel and prints its way.
pub async fn ping(run_dir: &Path, peer: &str, format: Format) -> anyhow::Result<Outcome> {
    if !is_cluster_id(peer) {
        return Ok(Outcome::Usage);
    }
    let report: PingReport = match expect(run_dir, Part::Gateway, &format!("ping?peer={peer}")).await {
        Ok(report) => report,
        Err(outcome) => return Ok(outcome),
    };
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Format::Text => match report.round_trip_ms {
            Some(rtt) => println!(
                "{peer} gateway {} lane {}: {rtt:.1}ms direct {}",
                report.peer_slot, report.lane, report.endpoint
            ),
            None => println!("{peer}: no answer: {}", report.reason),
        },
    }
    Ok(if report.round_trip_ms.is_some() { Outcome::Good } else { Outcome::FoundBad })
}
