//! `tombolo drain`, `tombolo drain gateway`, `tombolo drain node`, `tombolo peers drain` and `tombolo peers block`: takes
//! this cluster, one of its gateways or nodes or a peer out of service, and back.
//!
//! What would move is asked of this host's node agent, which decides for real; the order goes to this host's controller.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use api::report::{
    ClusterSeen, ControllerReport, DnsReport, FlowReport, GatewaySeen, MoveReport, MoveShare, NodeReport, OrderReport,
    RouteReport, ServiceReport,
};
use serde::Serialize;
use tokio::time::Instant;

use crate::arguments::DrainArguments;
use crate::ask::{Ordered, Part, ask_as, expect, explain_silence, order};
use crate::output::{Format, Glyph, Outcome};

/// How long `--wait` waits: what is ordered is in force everywhere within seconds, or something is amiss.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(200);
/// Members use us no more when none has opened a connection for so long: a busy one opens several a second.
const QUIET: Duration = Duration::from_secs(2);

/// What is taken out of service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A peer gets no new connections.
    Drained(String),
    /// A peer is cut off.
    Blocked(String),
    /// This cluster gets none.
    Ourselves,
    /// A gateway of this cluster carries nothing, by its slot.
    Gateway(u16),
    /// The endpoints on a node of this cluster get no new connections.
    Node(String),
}

/// The whole answer, as `-o json` prints it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// Ports whose new connections go elsewhere.
    moves: Vec<MoveReport>,
    /// None where nothing was ordered.
    order: Option<OrderReport>,
    /// What is open between this host and the peers in question, after `--wait`.
    left: Option<Vec<FlowReport>>,
}

/// Does it, or says what it would do.
pub async fn run(run_dir: &Path, subject: Subject, drain: &DrainArguments) -> anyhow::Result<Outcome> {
    if let Some(outcome) = unknown(run_dir, &subject).await {
        return Ok(outcome);
    }
    let mut answer = Answer::default();
    if let Subject::Gateway(slot) = subject {
        if let Some(outcome) = irreplaceable(run_dir, slot).await.filter(|_| !drain.undo && !drain.force) {
            return Ok(outcome);
        }
    } else if !drain.undo {
        match expect(run_dir, Part::Node, &subject.question()).await {
            Ok(moves) => answer.moves = moves,
            // Cutting off cannot wait for anybody's opinion.
            Err(_) if drain.force || matches!(subject, Subject::Blocked(_)) => {
                eprintln!("  going on without knowing which services move");
            }
            Err(outcome) => return Ok(outcome),
        }
    }
    let text = drain.shown.format == Format::Text;
    if let Subject::Node(node) = &subject
        && text
        && !drain.undo
    {
        print!("{}", gateways_on(run_dir, node).await);
    }
    if text && !matches!(subject, Subject::Gateway(_)) {
        print!("{}", subject.describe(drain.undo, &answer.moves));
    }
    let refused = subject.refusal(&answer.moves).filter(|_| !drain.force && !drain.undo);
    let outcome = if let Some(reason) = refused {
        eprintln!("refused: {reason}\n  --force does it anyway");
        Outcome::Refused
    } else if drain.dry_run {
        if text {
            println!("nothing was changed");
        }
        Outcome::Good
    } else {
        carry_out(run_dir, &subject, drain, &mut answer).await
    };
    if !text {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    }
    Ok(outcome)
}

/// Says that the subject cannot be ordered about, and how to end.
async fn unknown(run_dir: &Path, subject: &Subject) -> Option<Outcome> {
    if let Subject::Node(node) = subject {
        return match expect::<ControllerReport>(run_dir, Part::Controller, "status").await {
            Ok(report) if report.nodes.iter().any(|known| known.node == *node) => None,
            Ok(report) => {
                let names: Vec<&str> = report.nodes.iter().map(|known| known.node.as_str()).collect();
                eprintln!("{node} is no node of this cluster: it has {}", names.join(", "));
                Some(Outcome::FoundBad)
            }
            Err(outcome) => Some(outcome),
        };
    }
    let peer = subject.peer()?;
    if api::ClusterId::new(peer).is_err() {
        eprintln!("'{peer}' is no cluster id: 'tombolo peers' lists the peers");
        return Some(Outcome::Usage);
    }
    match expect::<ControllerReport>(run_dir, Part::Controller, "status").await {
        Ok(report) if report.peers.iter().any(|known| known.peer == peer) => None,
        Ok(_) => {
            eprintln!("{peer} is no peer of this cluster: 'tombolo peers' lists them");
            Some(Outcome::FoundBad)
        }
        Err(outcome) => Some(outcome),
    }
}

/// What the drain of a node leaves as it is: the gateways on it, a line each.
async fn gateways_on(run_dir: &Path, node: &str) -> String {
    let report: Option<ControllerReport> = ask_as(run_dir, Part::Controller, "status").await;
    let nodes = report.map(|report| report.nodes).unwrap_or_default();
    let slots = nodes.iter().filter(|known| known.node == node).flat_map(|known| &known.gateways);
    let line = |slot| {
        let glyph = Glyph::Warning.text();
        format!(
            "{glyph} gateway {slot} is on {node} and goes on carrying; take it out too: tombolo drain gateway {slot}\n"
        )
    };
    slots.map(line).collect()
}

/// Says why the other gateways could not carry what this one carries, and how to end; none when they can.
async fn irreplaceable(run_dir: &Path, slot: u16) -> Option<Outcome> {
    let node: NodeReport = match expect(run_dir, Part::Node, "status").await {
        Ok(node) => node,
        Err(outcome) => return Some(outcome),
    };
    let runs = node.gateways.iter().any(|gateway| gateway.slot == slot);
    let able = |gateway: &GatewaySeen| gateway.slot != slot && gateway.answering && !gateway.draining;
    let reason = if !runs {
        format!("this cluster has no gateway {slot} that runs: 'tombolo status' names those that do")
    } else if !node.gateways.iter().any(able) {
        format!("no other gateway of this cluster could carry what gateway {slot} carries")
    } else {
        return None;
    };
    eprintln!("refused: {reason}\n  --force does it anyway");
    Some(Outcome::Refused)
}

async fn carry_out(run_dir: &Path, subject: &Subject, drain: &DrainArguments, answer: &mut Answer) -> Outcome {
    let report: OrderReport = match order(run_dir, Part::Controller, &subject.order(drain.undo)).await {
        Ordered::Done(report) => serde_json::from_value(report).unwrap_or_default(),
        Ordered::Refused(reason) => {
            eprintln!("refused: {reason}");
            return Outcome::Refused;
        }
        Ordered::Unanswered(silence) => return explain_silence(run_dir, Part::Controller, &silence),
    };
    let text = drain.shown.format == Format::Text;
    if text {
        println!("{}", ordered(&report));
    }
    let after = report.after.clone();
    answer.order = Some(report);
    if !drain.wait {
        return Outcome::Good;
    }
    let done = match drain.undo {
        true => wait_until_back(run_dir, subject, &after).await,
        false => wait_until_out(run_dir, subject).await,
    };
    let left: Vec<FlowReport> = ask_as(run_dir, Part::Node, "flows").await.unwrap_or_default();
    let left: Vec<FlowReport> = left
        .into_iter()
        .filter(|flows| subject.peer().is_none_or(|peer| flows.peer == peer))
        .map(|flows| FlowReport { inward_ids: Vec::new(), ..flows })
        .collect();
    if text {
        print!("{}", subject.rest(drain.undo, &after, &left));
    }
    answer.left = Some(left);
    match done {
        Ok(()) => Outcome::Good,
        Err(reason) => {
            eprintln!("not within {} s: {reason}\n  the order stands; run: tombolo status", PATIENCE.as_secs());
            Outcome::FoundBad
        }
    }
}

impl Subject {
    fn peer(&self) -> Option<&str> {
        match self {
            Self::Drained(peer) | Self::Blocked(peer) => Some(peer),
            Self::Ourselves | Self::Gateway(_) | Self::Node(_) => None,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Drained(peer) | Self::Blocked(peer) => peer.clone(),
            Self::Ourselves => "this cluster".to_owned(),
            Self::Gateway(slot) => format!("gateway {slot}"),
            Self::Node(node) => format!("node {node}"),
        }
    }

    fn question(&self) -> String {
        match self {
            Self::Drained(peer) | Self::Blocked(peer) => format!("whatif?peer={peer}"),
            Self::Node(node) => format!("whatif?node={node}"),
            Self::Ourselves | Self::Gateway(_) => "whatif".to_owned(),
        }
    }

    fn order(&self, undo: bool) -> String {
        match self {
            Self::Drained(peer) => format!("peer-state?peer={peer}&state=Drained&undo={undo}"),
            Self::Blocked(peer) => format!("peer-state?peer={peer}&state=Blocked&undo={undo}"),
            Self::Ourselves => format!("local-state?undo={undo}"),
            Self::Gateway(slot) => format!("gateway-state?slot={slot}&undo={undo}"),
            Self::Node(node) => format!("node-state?node={node}&undo={undo}"),
        }
    }

    /// What moves, a line each.
    fn describe(&self, undo: bool, moves: &[MoveReport]) -> String {
        if undo {
            return String::new();
        }
        let mut text = String::new();
        for moved in moves {
            let glyph = if moved.after.is_empty() { Glyph::Bad } else { Glyph::Good };
            let port = if moved.port.is_empty() { String::new() } else { format!(" {}", moved.port) };
            let (before, after) = (shares(&moved.before), shares(&moved.after));
            let leaving = match moved.leaving {
                0 => String::new(),
                leaving => format!("{leaving} of {} endpoints leave  ", moved.endpoints),
            };
            text.push_str(&format!("{} {}{port}  {leaving}{before} → {after}\n", glyph.text(), moved.service));
        }
        if moves.is_empty() {
            text.push_str(&format!("no service moves: none is answered by {} now\n", self.name()));
        } else if *self == Self::Ourselves {
            text.push_str("as a member sees it that has no endpoints and no policies of its own\n");
        }
        text
    }

    /// Why it should not be done; a cluster that is cut off is cut off.
    fn refusal(&self, moves: &[MoveReport]) -> Option<String> {
        let mut unserved: Vec<&str> =
            moves.iter().filter(|moved| moved.after.is_empty()).map(|moved| moved.service.as_str()).collect();
        unserved.dedup();
        match (self, unserved.as_slice()) {
            (Self::Blocked(_), _) | (_, []) => None,
            (_, services) => Some(format!("{} would have nobody without {}", services.join(", "), self.name())),
        }
    }

    /// What is left after waiting.
    fn rest(&self, undo: bool, after: &str, left: &[FlowReport]) -> String {
        let count: u64 = match self {
            Self::Ourselves => left.iter().map(|flows| flows.inward).sum(),
            _ => left.iter().map(|flows| flows.outward).sum(),
        };
        match (self, undo) {
            (Self::Blocked(peer), true) if after == "Drained" => {
                format!("{peer} is Drained, as it was before it was cut off; undo: tombolo peers drain {peer} --undo\n")
            }
            (_, true) => format!("{} is used again\n", self.name()),
            (Self::Blocked(peer), _) => format!("{peer} is cut off\n"),
            (Self::Drained(peer), _) => {
                format!("{peer} gets no new connections from this host; {count} established ones are left\n")
            }
            (Self::Node(node), _) => format!("node {node} is out of service\n"),
            (Self::Gateway(slot), _) => format!("gateway {slot} carries nothing of this host any more\n"),
            (Self::Ourselves, _) => {
                format!("no member opens new connections to this host; {count} established ones are left\n")
            }
        }
    }
}

fn ordered(report: &OrderReport) -> String {
    if report.changed {
        format!("{}: {} → {}", report.subject, report.before, report.after)
    } else {
        format!("{}: {} already", report.subject, report.after)
    }
}

fn shares(shares: &[MoveShare]) -> String {
    if shares.is_empty() {
        return "nobody".into();
    }
    let words: Vec<String> = shares.iter().map(|share| format!("{:.0}% {}", share.percent, share.cluster)).collect();
    words.join(", ")
}

/// Looks until `look` finds nothing missing; the last thing that was missing otherwise.
async fn until(mut look: impl AsyncFnMut() -> Result<(), String>) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(()) => return Ok(()),
            Err(missing) if Instant::now() >= deadline => return Err(missing),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

async fn controller(run_dir: &Path) -> Result<ControllerReport, String> {
    ask_as(run_dir, Part::Controller, "status").await.ok_or_else(|| "the controller does not answer".to_owned())
}

/// This host's node agent sees whether the gateway drains, and sends nothing by one that does.
async fn wait_for_gateway(run_dir: &Path, slot: u16, draining: bool) -> Result<(), String> {
    until(async || {
        let silent = || "the node agent does not answer".to_owned();
        let node: NodeReport = ask_as(run_dir, Part::Node, "status").await.ok_or_else(silent)?;
        let seen = node.gateways.iter().find(|gateway| gateway.slot == slot);
        if seen.is_none_or(|gateway| gateway.draining != draining) {
            return Err(format!("gateway {slot} does not say so yet"));
        }
        for cluster in node.clusters.iter().filter(|_| draining) {
            let question = format!("routes?peer={}", cluster.cluster);
            let routes: Option<Vec<RouteReport>> = ask_as(run_dir, Part::Node, &question).await.ok_or_else(silent)?;
            let mut hops = routes.iter().flatten().flat_map(|route| &route.hops);
            if hops.any(|hop| hop.gateway == Some(slot)) {
                return Err(format!("packets to {} still go by it", cluster.cluster));
            }
        }
        Ok(())
    })
    .await
}

async fn wait_for_node(run_dir: &Path, node: &str, draining: bool) -> Result<(), String> {
    until(async || {
        let report = controller(run_dir).await?;
        match report.nodes.iter().any(|known| known.node == node && known.draining == draining) {
            true => Ok(()),
            false => Err(format!("the controller does not know it of node {node} yet")),
        }
    })
    .await
}

/// `after` is the state that the order left in force.
async fn wait_until_back(run_dir: &Path, subject: &Subject, after: &str) -> Result<(), String> {
    if let Subject::Gateway(slot) = subject {
        return wait_for_gateway(run_dir, *slot, false).await;
    }
    if let Subject::Node(node) = subject {
        return wait_for_node(run_dir, node, false).await;
    }
    until(async || {
        let report = controller(run_dir).await?;
        let used = match subject.peer() {
            Some(peer) => report.peers.iter().find(|known| known.peer == peer).map(|known| known.used.clone()),
            None => report.state_age.map(|_| report.state.clone()),
        };
        match used.as_deref() {
            Some(used) if used == after => Ok(()),
            other => Err(format!("{} is {}", subject.name(), other.unwrap_or("not known"))),
        }
    })
    .await
}

async fn wait_until_out(run_dir: &Path, subject: &Subject) -> Result<(), String> {
    if let Subject::Gateway(slot) = subject {
        return wait_for_gateway(run_dir, *slot, true).await;
    }
    if let Subject::Node(node) = subject {
        return wait_for_node(run_dir, node, true).await;
    }
    let Some(peer) = subject.peer() else { return wait_until_shunned(run_dir).await };
    until(async || {
        let silent = || "the node agent does not answer".to_owned();
        let services: Vec<ServiceReport> = ask_as(run_dir, Part::Node, "services").await.ok_or_else(silent)?;
        if let Some(service) = services.iter().find(|service| is_given(service, peer)) {
            return Err(format!("{peer} still gets new connections to {}", service.service));
        }
        let names: Option<DnsReport> = ask_as(run_dir, Part::Dns, "status").await;
        let is_out = |seen: &ClusterSeen| seen.cluster == peer;
        if names.is_some_and(|names| !names.out_of_service.iter().any(is_out)) {
            return Err(format!("DNS still answers with {peer}"));
        }
        if matches!(subject, Subject::Blocked(_)) {
            let question = format!("routes?peer={peer}");
            let routes: Option<Vec<RouteReport>> = ask_as(run_dir, Part::Node, &question).await.ok_or_else(silent)?;
            if let Some(route) = routes.iter().flatten().find(|route| route.reason != "Blackhole") {
                return Err(format!("there is still a route for {}", route.prefix));
            }
        }
        Ok(())
    })
    .await
}

fn is_given(service: &ServiceReport, peer: &str) -> bool {
    let mut shares = service.ports.iter().flat_map(|port| &port.clusters);
    shares.any(|share| share.cluster == peer && (share.asked_percent > 0.0 || share.installed_percent > 0.0))
}

/// Members hear of it by our record; that they act on it shows when they open nothing new.
async fn wait_until_shunned(run_dir: &Path) -> Result<(), String> {
    let (mut known, mut last_new) = (BTreeSet::new(), Instant::now());
    until(async || {
        let report = controller(run_dir).await?;
        if report.state != "Draining" || report.state_age.is_none() {
            return Err("this cluster does not say yet that it drains".to_owned());
        }
        let flows: Vec<FlowReport> =
            ask_as(run_dir, Part::Node, "flows").await.ok_or("the node agent does not answer")?;
        let mut opened = 0;
        for id in flows.iter().flat_map(|flows| &flows.inward_ids) {
            opened += usize::from(known.insert(*id));
        }
        if opened > 0 {
            last_new = Instant::now();
        }
        match last_new.elapsed() >= QUIET {
            true => Ok(()),
            false => Err("members still open connections to this host".to_owned()),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(service: &str, after: &[(&str, f64)]) -> MoveReport {
        let shares = |shares: &[(&str, f64)]| {
            shares
                .iter()
                .map(|(cluster, percent)| MoveShare { cluster: (*cluster).into(), percent: *percent })
                .collect()
        };
        MoveReport {
            service: service.into(),
            port: "http".into(),
            before: shares(&[("birch", 100.0)]),
            after: shares(after),
            ..MoveReport::default()
        }
    }

    #[test]
    fn what_leaves_a_service_with_nobody_is_refused_unless_the_peer_is_cut_off() {
        let moves = [moved("shop/web", &[("cedar", 100.0)]), moved("pay/api", &[])];
        let drained = Subject::Drained("birch".into());
        let text = drained.describe(false, &moves);
        assert!(text.contains("✓ shop/web http  100% birch → 100% cedar\n"), "{text}");
        assert!(text.contains("✗ pay/api http  100% birch → nobody\n"), "{text}");
        assert_eq!(drained.refusal(&moves).unwrap(), "pay/api would have nobody without birch");
        assert_eq!(drained.refusal(&moves[..1]), None);
        assert_eq!(Subject::Blocked("birch".into()).refusal(&moves), None);
        let leaving = [MoveReport { endpoints: 3, leaving: 2, ..moves[0].clone() }];
        let text = Subject::Node("worker".into()).describe(false, &leaving);
        assert!(text.contains("✓ shop/web http  2 of 3 endpoints leave  100% birch → 100% cedar\n"), "{text}");
    }
}
