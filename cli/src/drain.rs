//! `tombolo drain`, `tombolo drain gateway`, `tombolo drain node`, `tombolo peers drain` and `tombolo peers block`: takes
//! this cluster, one of its gateways or nodes or a peer out of service, and back.
//!
//! What would move is asked of this host's node agent, which decides for real; the order goes to this host's controller.

pub mod left;
mod waiting;

use std::path::Path;

use api::report::{ControllerReport, GatewaySeen, MoveReport, MoveShare, NodeReport, OrderReport};
use serde::Serialize;

use self::waiting::Waited;
use crate::arguments::DrainArguments;
use crate::ask::{Ordered, Part, ask_as, expect, explain_silence, order};
use crate::confirmation::confirm;
use crate::output::{Format, Glyph, Outcome};

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
    /// What waiting brought; none without `--wait`.
    waited: Option<Waited>,
}

/// Does it, or says what it would do.
pub async fn run(run_dir: &Path, subject: Subject, drain: &DrainArguments) -> anyhow::Result<Outcome> {
    if let Some(outcome) = unknown(run_dir, &subject).await {
        return Ok(outcome);
    }
    let mut answer = Answer::default();
    let sure = drain.force || drain.yes;
    if let Subject::Gateway(slot) = subject {
        match irreplaceable(run_dir, slot).await.filter(|_| !drain.undo && !sure) {
            Some(Err(outcome)) => return Ok(outcome),
            Some(Ok(reason)) if drain.dry_run => {
                eprintln!("refused: {reason}\n  --force does it anyway");
                return Ok(Outcome::Refused);
            }
            Some(Ok(reason)) if !confirm(&reason, sure, "--force") => return Ok(Outcome::Refused),
            _ => {}
        }
    } else if !drain.undo {
        match expect(run_dir, Part::Node, &subject.question()).await {
            Ok(moves) => answer.moves = moves,
            // Cutting off cannot wait for anybody's opinion.
            Err(_) if sure || matches!(subject, Subject::Blocked(_)) => {
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
    let refused = subject.refusal(&answer.moves).filter(|_| !drain.undo);
    let ends = subject.ends_connections().filter(|_| !drain.undo);
    let outcome = if let Some(reason) = refused.as_ref().filter(|_| drain.dry_run && !sure) {
        eprintln!("refused: {reason}\n  --force does it anyway");
        Outcome::Refused
    } else if drain.dry_run {
        if text {
            println!("nothing was changed");
        }
        Outcome::Good
    } else if !refused.is_none_or(|reason| confirm(&reason, sure, "--force"))
        || !ends.is_none_or(|cause| confirm(&cause, sure, "--yes"))
    {
        Outcome::Refused
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

/// Why the other gateways could not carry what this one carries, or how to end where that cannot be found out; none when
/// they can.
async fn irreplaceable(run_dir: &Path, slot: u16) -> Option<Result<String, Outcome>> {
    let node: NodeReport = match expect(run_dir, Part::Node, "status").await {
        Ok(node) => node,
        Err(outcome) => return Some(Err(outcome)),
    };
    let runs = node.gateways.iter().any(|gateway| gateway.slot == slot);
    let able = |gateway: &GatewaySeen| gateway.slot != slot && gateway.answering && !gateway.draining;
    if !runs {
        Some(Ok(format!("this cluster has no gateway {slot} that runs: 'tombolo status' names those that do")))
    } else if !node.gateways.iter().any(able) {
        Some(Ok(format!("no other gateway of this cluster could carry what gateway {slot} carries")))
    } else {
        None
    }
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
    let waited = match drain.undo {
        true => waiting::until_back(run_dir, subject, &after, drain.timeout).await,
        false => waiting::until_out(run_dir, subject, drain.timeout).await,
    };
    let missing = waited.missing.clone();
    if text {
        print!("{}", subject.rest(drain.undo, &after, &waited));
    }
    answer.waited = Some(waited);
    match missing {
        None => Outcome::Good,
        Some(reason) => {
            eprintln!("not within {} s: {reason}\n  the order stands; run: tombolo status", drain.timeout.as_secs());
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

    /// As orders and events name it.
    pub fn key(&self) -> String {
        match self {
            Self::Drained(peer) | Self::Blocked(peer) => format!("peer {peer}"),
            Self::Ourselves => "cluster".to_owned(),
            Self::Gateway(slot) => format!("gateway {slot}"),
            Self::Node(node) => format!("node {node}"),
        }
    }

    /// Whether established connections go on that are worth waiting for.
    fn leaves_connections(&self) -> bool {
        match self {
            Self::Drained(_) | Self::Ourselves | Self::Node(_) => true,
            Self::Blocked(_) | Self::Gateway(_) => false,
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

    /// What ends at once, for who is asked whether to go on; none where what is open goes on.
    fn ends_connections(&self) -> Option<String> {
        match self {
            Self::Blocked(peer) => Some(format!("every connection with {peer} ends at once")),
            Self::Drained(_) | Self::Ourselves | Self::Gateway(_) | Self::Node(_) => None,
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

    /// What waiting brought.
    fn rest(&self, undo: bool, after: &str, waited: &Waited) -> String {
        let mut text = String::new();
        if !waited.taken_by.is_empty() {
            text.push_str(&format!("taken by {}\n", waited.taken_by.join(", ")));
        }
        if !waited.away.is_empty() {
            let (glyph, names) = (Glyph::Unknown.text(), waited.away.join(", "));
            text.push_str(&format!("{glyph} away: {names}; they hear of it when they are connected again\n"));
        }
        if waited.missing.is_some() {
            text.push_str(&waited.left.lines());
            return text;
        }
        text.push_str(&match (self, undo) {
            (Self::Blocked(peer), true) if after == "Drained" => {
                format!("{peer} is Drained, as it was before it was cut off; undo: tombolo peers drain {peer} --undo\n")
            }
            (_, true) => format!("{} is used again\n", self.name()),
            (Self::Blocked(peer), _) => format!("{peer} is cut off\n"),
            (Self::Gateway(slot), _) => format!("gateway {slot} carries nothing of this host any more\n"),
            (Self::Drained(_) | Self::Ourselves | Self::Node(_), _) => {
                format!("{} gets no new connections, and no established one is left\n", self.name())
            }
        });
        text
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
