//! `tombolo status`: is all well?

use std::collections::BTreeMap;
use std::path::Path;

use api::health::Reachability;
use api::report::{
    ControllerReport, DnsReport, FeedReport, GatewayReport, NodeReport, NodeState, PathReport, PeerSync, RefusalReport,
    SessionReport,
};
use serde::Serialize;

use crate::ask::{Part, ask_as, readiness};
use crate::drain::Subject;
use crate::drain::left::Left;
use crate::output::{Format, Glyph, Outcome, Table, seconds};

/// Everything the parts on this host say. A part that does not run here is absent.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub parts: Vec<PartState>,
    pub controller: Option<ControllerReport>,
    pub gateway: Option<GatewayReport>,
    pub node: Option<NodeReport>,
    pub dns: Option<DnsReport>,
    /// What of peers' advertisements is not in force, by peer.
    pub refused_items: Vec<RefusedItems>,
}

/// Items of one peer's advertisement that are not in force.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RefusedItems {
    pub peer: String,
    /// By name of the refusal.
    pub reasons: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartState {
    pub part: &'static str,
    pub ready: bool,
    /// What it awaits, or why it does not answer.
    pub reason: String,
}

/// Asks every part on this host.
pub async fn gather(run_dir: &Path) -> Status {
    let mut status = Status::default();
    for part in Part::ALL {
        if let Some(state) = readiness(run_dir, part).await {
            let reason = state.as_ref().err().cloned().unwrap_or_default();
            status.parts.push(PartState { part: part.name(), ready: state.is_ok(), reason });
        }
    }
    status.controller = ask_as(run_dir, Part::Controller, "status").await;
    let refusals: Option<Vec<RefusalReport>> = ask_as(run_dir, Part::Controller, "refusals").await;
    status.refused_items = refused_items(&refusals.unwrap_or_default());
    status.gateway = ask_as(run_dir, Part::Gateway, "status").await;
    status.node = ask_as(run_dir, Part::Node, "status").await;
    status.dns = ask_as(run_dir, Part::Dns, "status").await;
    status
}

const DRAINING: &str = "Draining";

fn is_drained(peer: &PeerSync) -> bool {
    !matches!(peer.used.as_str(), "" | "Active")
}

/// Who gets no new connections by an operator's word, ours or theirs, for how long, and how many are left on our hosts.
fn drained_notes(status: &Status, notes: &mut Vec<(Glyph, String)>) {
    let Some(controller) = &status.controller else { return };
    let lasting = |age: Option<f64>| age.map(|age| format!(" for {}", seconds(age))).unwrap_or_default();
    let left = |subject: Subject| Left::of(&subject, controller).words();
    for NodeState { node, draining_age, .. } in controller.nodes.iter().filter(|node| node.draining) {
        let (age, left) = (lasting(*draining_age), left(Subject::Node(node.clone())));
        let note = format!("node {node}: Draining{age}, {left} left      undo: tombolo drain node {node} --undo");
        notes.push((Glyph::Warning, note));
    }
    if controller.state == DRAINING {
        let (age, left) = (lasting(controller.state_age), left(Subject::Ourselves));
        let note = format!("this cluster: Draining{age}, {left} left      undo: tombolo drain --undo");
        notes.push((Glyph::Warning, note));
    }
    for peer in controller.peers.iter().filter(|peer| is_drained(peer)) {
        let (name, used) = (&peer.peer, &peer.used);
        let left = match used.as_str() {
            "Blocked" => String::new(),
            _ => format!(", {} left", left(Subject::Drained(name.clone()))),
        };
        let undo = match (used.as_str(), peer.ordered) {
            ("Drained", true) => format!("      undo: tombolo peers drain {name} --undo"),
            ("Blocked", true) => format!("      undo: tombolo peers block {name} --undo"),
            ("Drained" | "Blocked", false) => ", by its manifest".to_owned(),
            _ => ", by its own word".to_owned(),
        };
        let note = format!("{name}: {used}{}{left}{undo}", lasting(peer.used_age));
        notes.push((Glyph::Warning, note));
    }
}

/// Those of a controller's refusals that are items: a connection or message has a source.
fn refused_items(refusals: &[RefusalReport]) -> Vec<RefusedItems> {
    let mut by_peer: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    for refusal in refusals.iter().filter(|refusal| refusal.source.is_empty() && !refusal.peer.is_empty()) {
        *by_peer.entry(&refusal.peer).or_default().entry(refusal.reason.clone()).or_default() += refusal.count;
    }
    by_peer.into_iter().map(|(peer, reasons)| RefusedItems { peer: peer.to_owned(), reasons }).collect()
}

/// Prints the status and says whether all is well.
pub async fn run(run_dir: &Path, format: Format) -> anyhow::Result<Outcome> {
    let status = gather(run_dir).await;
    if status.parts.is_empty() {
        eprintln!("no part of Tombolo runs on this host: {} holds no socket", run_dir.display());
        eprintln!("  run this where a part runs, or name its folder with --run-dir");
        return Ok(Outcome::CouldNotFindOut);
    }
    let mut someone_runs = false;
    for part in Part::ALL {
        someone_runs |= crate::ask::is_running(run_dir, part).await;
    }
    if !someone_runs {
        return Ok(crate::ask::nobody_answers(run_dir));
    }
    let (text, outcome) = render(&status);
    match format {
        Format::Text => print!("{text}"),
        Format::Json => println!("{}", serde_json::to_string_pretty(&status)?),
    }
    Ok(outcome)
}

/// The text for people, and how the command ends.
pub fn render(status: &Status) -> (String, Outcome) {
    let mut text = heading(status);
    let mut notes: Vec<(Glyph, String)> = Vec::new();
    for part in status.parts.iter().filter(|part| !part.ready) {
        notes.push((Glyph::Bad, format!("{}: {}", part.part, part.reason)));
    }
    let peers = peers(status, &mut notes);
    if !peers.is_empty() {
        text.push_str(&peers.render());
    }
    drained_notes(status, &mut notes);
    controller_notes(status, &mut notes);
    for problem in status.gateway.iter().flat_map(|gateway| &gateway.problems) {
        notes.push((Glyph::Warning, problem.clone()));
    }
    for RefusedItems { peer, reasons } in &status.refused_items {
        let count: u64 = reasons.values().sum();
        let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let items = if count == 1 { "item" } else { "items" };
        let note = format!("{peer}: {count} {items} not in force: {}      run: tombolo refusals", reasons.join(", "));
        notes.push((Glyph::Warning, note));
    }
    let feeds = [
        ("gateway", status.gateway.as_ref().map(|report| &report.feed)),
        ("node", status.node.as_ref().map(|report| &report.feed)),
        ("dns", status.dns.as_ref().map(|report| &report.feed)),
    ];
    let objects = status.controller.as_ref().map(|report| &report.objects);
    if let Some(FeedReport { interrupted_for: Some(age), reason }) = objects {
        let age = seconds(*age);
        notes.push((Glyph::Warning, format!("controller: going on with what was known {age} ago: {reason}")));
    }
    for (part, feed) in feeds {
        if let Some(FeedReport { interrupted_for: Some(age), reason }) = feed {
            let age = seconds(*age);
            notes.push((
                Glyph::Warning,
                format!("{part}: no controller for {age}, serving the last known state: {reason}"),
            ));
        }
    }
    for gateway in status.node.iter().flat_map(|node| &node.gateways).filter(|gateway| !gateway.answering) {
        let age = gateway
            .last_answer_age
            .map_or_else(|| "never answered".to_owned(), |age| format!("silent for {}", seconds(age)));
        notes.push((Glyph::Bad, format!("gateway {} at {}: {age}", gateway.slot, gateway.address)));
    }
    for gateway in status.node.iter().flat_map(|node| &node.gateways).filter(|gateway| gateway.draining) {
        let note = format!("gateway {} at {}: Draining, by order or because it stops", gateway.slot, gateway.address);
        notes.push((Glyph::Warning, note));
    }
    for (glyph, note) in &notes {
        text.push_str(&format!("{} {note}\n", glyph.text()));
    }
    let outcome = match notes.iter().any(|(glyph, _)| *glyph != Glyph::Warning) {
        true => Outcome::FoundBad,
        false => Outcome::Good,
    };
    (text, outcome)
}

fn heading(status: &Status) -> String {
    let ready = status.parts.iter().filter(|part| part.ready).count();
    let name = match (&status.controller, &status.node, &status.gateway) {
        (Some(controller), _, _) if !controller.cluster_id.is_empty() => controller.cluster_id.clone(),
        (_, Some(node), _) => node.node.clone(),
        (_, _, Some(gateway)) => gateway.node.clone(),
        _ => "this host".into(),
    };
    let mut line = format!("{name}  v{}  {ready}/{} parts ready", env!("CARGO_PKG_VERSION"), status.parts.len());
    if let Some(controller) = &status.controller {
        let unchecked = match controller.unchecked.len() {
            0 => String::new(),
            count => format!(" ({count} Unchecked)"),
        };
        line.push_str(&format!("  exports {}{unchecked}  imports {}", controller.exports, controller.imports));
    }
    line.push('\n');
    line
}

fn peers(status: &Status, notes: &mut Vec<(Glyph, String)>) -> Table {
    let mut table = Table::new(&["PEER", "STATE", "AGE", "RTT", "LOSS", "MTU", "SERVICES IN/OUT", "SYNC"]);
    let mut names: Vec<&str> =
        status.controller.iter().flat_map(|report| report.peers.iter().map(|peer| peer.peer.as_str())).collect();
    names.extend(status.gateway.iter().flat_map(|report| report.peers.iter().map(|peer| peer.peer.as_str())));
    names.sort_unstable();
    names.dedup();
    for name in names {
        let path = status.gateway.as_ref().and_then(|report| report.peers.iter().find(|peer| peer.peer == name));
        let sync = status.controller.as_ref().and_then(|report| report.peers.iter().find(|peer| peer.peer == name));
        let unknown = || "?".to_owned();
        let state = path.map_or_else(unknown, |path| match path.reachability {
            Reachability::Up => "Up".into(),
            Reachability::Down => "Down".into(),
            Reachability::Unknown => "Unknown".into(),
        });
        if let Some(path) = path.filter(|path| path.reachability != Reachability::Up) {
            let glyph = if path.reachability == Reachability::Down { Glyph::Bad } else { Glyph::Unknown };
            let age = seconds(path.age);
            notes.push((glyph, format!("{name}: {:?} for {age}      run: tombolo explain path {name}", path.reason)));
        }
        notes.extend(path.and_then(partly_down).map(|note| (Glyph::Warning, note)));
        if let Some(sync) = sync.filter(|sync| !sync.synced && sync.state == "Active") {
            notes.push((Glyph::Warning, format!("{name}: not synced: {}", sync.reason)));
        }
        for refused in sync.iter().flat_map(|sync| &sync.refused) {
            notes.push((Glyph::Bad, format!("{name}: refused: {refused}")));
        }
        table.row([
            name.to_owned(),
            state,
            path.map_or_else(unknown, |path| seconds(path.age)),
            path.and_then(|path| path.round_trip_ms).map_or_else(unknown, |rtt| format!("{rtt:.1}ms")),
            path.and_then(|path| path.loss_percent).map_or_else(unknown, |loss| format!("{loss:.1}%")),
            path.map_or_else(unknown, mtu),
            sync.map_or_else(unknown, |sync| format!("{}/{}", sync.services_in, sync.services_out)),
            sync.and_then(|sync| sync.last_sync_age).map_or_else(unknown, seconds),
        ]);
    }
    table
}

/// What to say of a peer that is reached, but not by every lane and gateway.
fn partly_down(path: &PathReport) -> Option<String> {
    let is_down = |session: &&SessionReport| session.reachability == Some(Reachability::Down);
    let first = path.sessions.iter().find(is_down).filter(|_| path.reachability == Reachability::Up)?;
    let (name, all, down) = (&path.peer, path.sessions.len(), path.sessions.iter().filter(is_down).count());
    let (lane, slot, age) = (first.lane, first.peer_slot, seconds(first.age));
    Some(format!(
        "{name}: {down} of {all} sessions Down, lane {lane} to its gateway {slot} for {age}      run: tombolo explain path {name}"
    ))
}

/// With a question mark while it is what is configured and nothing else.
fn mtu(path: &PathReport) -> String {
    let mark = if path.mtu_age.is_some() { "" } else { "?" };
    format!("{}{mark}", path.mtu.map(|mtu| mtu.to_string()).unwrap_or_default())
}

fn controller_notes(status: &Status, notes: &mut Vec<(Glyph, String)>) {
    let Some(controller) = &status.controller else { return };
    for broken in &controller.broken_documents {
        // A file that cannot be read at all has no line.
        let line = if broken.line == 0 { String::new() } else { format!(":{}", broken.line) };
        let object = if broken.object.is_empty() { String::new() } else { format!("{}: ", broken.object) };
        let rest = if broken.last_good_in_force { "; its last good version stays in force" } else { "" };
        notes.push((Glyph::Bad, format!("{}{line}: {object}{}{rest}", broken.file, broken.reason)));
    }
    if let Some(rotation) = &controller.identity_rotation {
        notes.push((Glyph::Warning, crate::identity::describe(rotation)));
    }
    for rotation in controller.rotations.iter().flatten() {
        notes.push((Glyph::Warning, crate::keys::describe(rotation)));
    }
    for service in &controller.unserved {
        notes.push((Glyph::Bad, format!("{service}: nobody answers      run: tombolo explain service {service}")));
    }
}

#[cfg(test)]
mod tests {
    use api::health::PathReason;
    use api::report::{BrokenDocument, PeerSync};

    use super::*;

    fn path(peer: &str, reachability: Reachability, reason: PathReason) -> PathReport {
        let measured = reachability == Reachability::Up;
        PathReport {
            peer: peer.into(),
            reachability,
            reason,
            age: 9.0,
            round_trip_ms: measured.then_some(12.3),
            loss_percent: measured.then_some(0.0),
            mtu: measured.then_some(1420),
            mtu_age: measured.then_some(8.0),
            translations: Vec::new(),
            sessions: vec![],
        }
    }

    fn sync(peer: &str) -> PeerSync {
        let synced = PeerSync {
            peer: peer.into(),
            state: "Active".into(),
            synced: true,
            last_sync_age: Some(0.3),
            ..PeerSync::default()
        };
        PeerSync { services_in: 9, services_out: 17, ..synced }
    }

    fn amber(peers: Vec<PathReport>) -> Status {
        let controller = ControllerReport {
            cluster_id: "amber".into(),
            peers: peers.iter().map(|path| sync(&path.peer)).collect(),
            ..ControllerReport::default()
        };
        Status {
            parts: vec![PartState { part: "controller", ready: true, reason: String::new() }],
            controller: Some(controller),
            gateway: Some(GatewayReport { peers, ..GatewayReport::default() }),
            ..Status::default()
        }
    }

    #[test]
    fn all_is_well_only_when_every_peer_answers() {
        let (text, outcome) = render(&amber(vec![path("birch", Reachability::Up, PathReason::Answering)]));
        assert_eq!(outcome, Outcome::Good);
        assert!(text.contains("birch  Up     9s   12.3ms  0.0%  1420  9/17             0.3s"), "{text}");
    }

    #[test]
    fn a_lane_that_does_not_get_through_is_named_though_the_peer_is_reached() {
        let mut birch = path("birch", Reachability::Up, PathReason::Answering);
        let session = |lane, reachability| SessionReport {
            lane,
            reachability: Some(reachability),
            age: 12.0,
            ..SessionReport::default()
        };
        birch.sessions = vec![session(0, Reachability::Up), session(1, Reachability::Down)];
        let (text, outcome) = render(&amber(vec![birch]));
        assert_eq!(outcome, Outcome::Good);
        assert!(text.contains("! birch: 1 of 2 sessions Down, lane 1 to its gateway 0 for 12s"), "{text}");
    }

    #[test]
    fn exports_whose_endpoints_nobody_checks_are_counted_and_are_no_fault() {
        let mut status = amber(vec![path("birch", Reachability::Up, PathReason::Answering)]);
        let controller = status.controller.as_mut().unwrap();
        (controller.exports, controller.unchecked) = (2, vec!["shop/web".into()]);
        let (text, outcome) = render(&status);
        assert!(text.contains("exports 2 (1 Unchecked)"), "{text}");
        assert_eq!(outcome, Outcome::Good);
    }

    #[test]
    fn unknown_is_shown_as_unknown_and_is_not_good() {
        let (text, outcome) = render(&amber(vec![path("elm", Reachability::Unknown, PathReason::NoHandshakeYet)]));
        assert_eq!(outcome, Outcome::FoundBad);
        assert!(text.contains("elm   Unknown  9s   ?"), "{text}");
        assert!(text.contains("tombolo explain path elm"), "{text}");
    }

    #[test]
    fn items_of_a_peer_that_are_not_in_force_are_counted_by_name_and_are_no_fault_of_this_cluster() {
        let refusal = |reason: &str, source: &str, count| RefusalReport {
            reason: reason.into(),
            peer: "birch".into(),
            source: source.into(),
            count,
            ..RefusalReport::default()
        };
        let refusals = [
            refusal("NamespaceNotAccepted", "", 2),
            refusal("ForeignAddress", "", 1),
            refusal("Flood", "10.2.0.1:7", 9),
        ];
        let mut status = amber(vec![path("birch", Reachability::Up, PathReason::Answering)]);
        status.refused_items = refused_items(&refusals);
        let (text, outcome) = render(&status);
        assert_eq!(outcome, Outcome::Good);
        let note = "birch: 3 items not in force: 1 ForeignAddress, 2 NamespaceNotAccepted      run: tombolo refusals";
        assert!(text.contains(note), "{text}");
    }

    #[test]
    fn a_broken_document_is_named_by_file_line_and_reason() {
        let mut status = amber(vec![]);
        let broken = BrokenDocument {
            file: "web.yaml".into(),
            line: 7,
            object: "Service shop/web".into(),
            reason: "spec.ports: expected a list".into(),
            last_good_in_force: true,
        };
        status.controller.as_mut().unwrap().broken_documents.push(broken);
        let (text, outcome) = render(&status);
        assert_eq!(outcome, Outcome::FoundBad);
        assert!(
            text.contains(
                "web.yaml:7: Service shop/web: spec.ports: expected a list; its last good version stays in force"
            ),
            "{text}"
        );
    }
}
