//! `tombolo explain path` and `tombolo ping`: how packets reach a peer, and whether one does now.

use std::path::Path;

use api::TranslatedPrefix;
use api::health::Reachability;
use api::report::{GatewayReport, HopReport, NodeReport, PathReport, PingReport, RouteReport};
use serde::Serialize;

use crate::ask::{Part, ask, ask_as, expect};
use crate::output::{Format, Glyph, Outcome, seconds};

/// The way to a peer as this host knows it.
#[derive(Serialize)]
struct Way<'a> {
    #[serde(flatten)]
    path: Option<&'a PathReport>,
    /// Of this host's kernel; none where no node agent runs here.
    routes: Option<&'a [RouteReport]>,
}

/// Prints the way to a peer, hop by hop as this host knows it.
pub async fn explain(run_dir: &Path, peer: &str, format: Format) -> anyhow::Result<Outcome> {
    if !is_cluster_id(peer) {
        return Ok(Outcome::Usage);
    }
    let node: Option<NodeReport> = ask_as(run_dir, Part::Node, "status").await;
    let routes: Option<Option<Vec<RouteReport>>> = ask_as(run_dir, Part::Node, &format!("routes?peer={peer}")).await;
    let gateway = ask(run_dir, Part::Gateway, "status").await;
    if let Some(node) = node.filter(|_| format == Format::Text) {
        print!("{}", render_node(&node));
    }
    let routes = match routes {
        Some(None) => return Ok(no_peer(peer)),
        Some(Some(routes)) => Some(routes),
        None => None,
    };
    if format == Format::Text {
        print!("{}", render_routes(routes.as_deref().unwrap_or_default()));
    }
    let lost = routes.iter().flatten().any(|route| judge(route) == Glyph::Bad);
    let unknown = routes.iter().flatten().any(|route| judge(route) == Glyph::Unknown);
    let report: GatewayReport = match gateway.known().and_then(|answer| serde_json::from_value(answer).ok()) {
        Some(report) => report,
        None => {
            if format == Format::Json && routes.is_some() {
                println!("{}", serde_json::to_string_pretty(&Way { path: None, routes: routes.as_deref() })?);
            }
            eprintln!("what comes after the routes is known to a gateway alone, and none answers on this host");
            eprintln!("  run this on the host of a gateway too: tombolo status    names them");
            return Ok(if lost { Outcome::FoundBad } else { Outcome::CouldNotFindOut });
        }
    };
    let Some(path) = report.peers.iter().find(|path| path.peer == peer) else { return Ok(no_peer(peer)) };
    match format {
        Format::Json => {
            println!("{}", serde_json::to_string_pretty(&Way { path: Some(path), routes: routes.as_deref() })?);
        }
        Format::Text => print!("{}", render(path)),
    }
    Ok(match path.reachability {
        _ if lost => Outcome::FoundBad,
        Reachability::Down => Outcome::FoundBad,
        Reachability::Unknown => Outcome::CouldNotFindOut,
        Reachability::Up if unknown => Outcome::CouldNotFindOut,
        Reachability::Up => Outcome::Good,
    })
}

fn no_peer(peer: &str) -> Outcome {
    eprintln!("{peer} is no peer of this cluster");
    eprintln!("  run: tombolo peers");
    Outcome::FoundBad
}

fn render_node(node: &NodeReport) -> String {
    let glyph = if node.kernel_differences == 0 { Glyph::Good } else { Glyph::Warning };
    let kernel = match node.kernel_differences {
        0 => "kernel as wanted".to_owned(),
        count => format!("the kernel differed in {count} places at the last look, and was mended"),
    };
    format!("{} node     {}: {kernel}\n", glyph.text(), node.node)
}

fn judge(route: &RouteReport) -> Glyph {
    match route.reason.as_str() {
        "" => Glyph::Good,
        _ if route.is_unknown() => Glyph::Unknown,
        _ => Glyph::Bad,
    }
}

/// A line a prefix and way: the kernel's route, its next hop, the node behind it.
fn render_routes(routes: &[RouteReport]) -> String {
    let mut text = String::new();
    for route in routes {
        let glyph = judge(route);
        let mut line = format!("{} route    {}", glyph.text(), route.prefix);
        if !route.reason.is_empty() {
            line.push_str(&format!(" {}", route.reason));
        }
        if let (Some(table), Some(metric)) = (route.table, route.metric) {
            line.push_str(&format!(" table {table} metric {metric}"));
        }
        if let Some(mtu) = route.mtu {
            line.push_str(&format!(" mtu {mtu}"));
        }
        let hops: Vec<String> = route.hops.iter().map(render_hop).collect();
        if !hops.is_empty() {
            line.push_str(&format!(" → {}", hops.join(" or ")));
        }
        text.push_str(&format!("{line}\n"));
        if !route.remedy.is_empty() {
            text.push_str(&format!("  remedy   {}\n", route.remedy));
        }
    }
    text
}

fn render_hop(hop: &HopReport) -> String {
    let gateway = hop.gateway.map_or_else(|| "no gateway".to_owned(), |slot| format!("gateway {slot}"));
    match &hop.node {
        Some(node) => format!("{gateway} on {node} by {}", hop.device),
        None => format!("{gateway} by {}", hop.device),
    }
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
    for TranslatedPrefix { real, seen } in &path.translations {
        text.push_str(&format!("{} address  {seen} is {real} there\n", Glyph::Good.text()));
    }
    for session in &path.sessions {
        let endpoint = session.endpoint.as_deref().unwrap_or("no address known");
        let handshake = session
            .handshake_age
            .map_or_else(|| "no handshake yet".into(), |age| format!("handshake {} ago", seconds(age)));
        let is_down = session.reachability == Some(Reachability::Down);
        let mark = if session.handshake_age.is_some() && !is_down { Glyph::Good } else { Glyph::Bad };
        let down = if is_down { format!("Down for {}, ", seconds(session.age)) } else { String::new() };
        text.push_str(&format!(
            "{} session  lane {} → gateway {} lane {}, {endpoint}, {down}{handshake}, {} B in, {} B out\n",
            mark.text(),
            session.lane,
            session.peer_slot,
            session.peer_lane,
            session.received_bytes,
            session.sent_bytes
        ));
        if is_down && path.reachability == Reachability::Up {
            text.push_str(&format!(
                "  remedy   the other sessions carry its share; does UDP to {endpoint} get through?\n"
            ));
        }
    }
    let rtt = path.round_trip_ms.map_or_else(|| "?".into(), |rtt| format!("{rtt:.1}ms"));
    let loss = path.loss_percent.map_or_else(|| "?".into(), |loss| format!("{loss:.1}%"));
    let mtu = match (path.mtu, path.mtu_age) {
        (Some(mtu), Some(age)) => format!("{mtu} measured {} ago", seconds(age)),
        (Some(mtu), None) => format!("{mtu} not measured yet"),
        (None, _) => "?".into(),
    };
    text.push_str(&format!(
        "{} probes   {:?} ({:?}) for {}, rtt {rtt}, loss {loss}, mtu {mtu}\n",
        glyph.text(),
        path.reachability,
        path.reason,
        seconds(path.age)
    ));
    if path.reachability != Reachability::Up {
        text.push_str(
            "  remedy   check that UDP reaches the peer's endpoint, and that both clusters know each other's\n",
        );
        text.push_str("           newest record: tombolo peers export in each, put into the other\n");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peers_prefix_is_there_stands_before_the_sessions_that_carry_it() {
        let translation = TranslatedPrefix {
            real: "10.1.0.0/16".parse().expect("good"),
            seen: "10.241.0.0/16".parse().expect("good"),
        };
        let path = PathReport {
            peer: "birch".into(),
            reachability: Reachability::Up,
            reason: api::health::PathReason::Answering,
            age: 1.0,
            round_trip_ms: None,
            loss_percent: None,
            mtu: None,
            mtu_age: None,
            translations: vec![translation],
            sessions: vec![api::report::SessionReport::default()],
        };
        let text = render(&path);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("address  10.241.0.0/16 is 10.1.0.0/16 there"), "{text}");
        assert!(lines[1].contains("session"), "{text}");
    }

    #[test]
    fn every_route_says_its_hops_and_one_that_is_amiss_why_and_what_to_do() {
        let hop = HopReport { device: "tombolo".into(), node: Some("172.31.1.10".into()), gateway: Some(0), via: None };
        let good = RouteReport {
            prefix: "10.2.0.0/16".into(),
            table: Some(29_805),
            metric: Some(100),
            mtu: Some(1370),
            hops: vec![hop],
            ..RouteReport::default()
        };
        let bad = RouteReport {
            prefix: "fd00:2::/32".into(),
            reason: "Blackhole".into(),
            remedy: "start a gateway".into(),
            ..RouteReport::default()
        };
        let text = render_routes(&[good, bad]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].ends_with(
                "route    10.2.0.0/16 table 29805 metric 100 mtu 1370 → gateway 0 on 172.31.1.10 by tombolo"
            ),
            "{text}"
        );
        assert!(
            lines[1].ends_with("route    fd00:2::/32 Blackhole") && lines[2] == "  remedy   start a gateway",
            "{text}"
        );
    }
}
