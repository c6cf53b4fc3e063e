//! `--wait`: until what was ordered is in force everywhere, and nothing is left.
//!
//! First whoever must act says that it has taken the order: the members, by what they acknowledge of our record and
//! endpoints; our own hosts, by what they count. Then the counts of all hosts fall to nothing. Who is away is named, and
//! not waited for.

use std::path::Path;
use std::time::Duration;

use api::report::{ClusterSeen, ControllerReport, DnsReport, NodeReport, PeerSync, RouteReport, ServiceReport};
use serde::Serialize;
use tokio::time::Instant;

use super::Subject;
use super::left::Left;
use crate::ask::{Part, ask_as};

/// How often it looks.
const LOOK: Duration = Duration::from_millis(200);

/// A member's hosts follow its controller, and what was on its way arrives: nothing is left when nothing was for so long.
const QUIET: Duration = Duration::from_secs(2);

/// What waiting brought.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Waited {
    /// Members that took it.
    pub(super) taken_by: Vec<String>,
    /// Members that are not connected, and hear of it when they are.
    pub(super) away: Vec<String>,
    /// What is left, where it is counted.
    pub(super) left: Left,
    /// What was still missing when the time was over.
    pub(super) missing: Option<String>,
}

/// Waits for an order that takes something out.
pub(super) async fn until_out(run_dir: &Path, subject: &Subject, limit: Duration) -> Waited {
    let deadline = Instant::now() + limit;
    let mut waited = Waited::default();
    waited.missing = match in_force(run_dir, subject, deadline).await {
        Err(missing) => Some(missing),
        Ok(()) if !subject.leaves_connections() => None,
        Ok(()) => finished(run_dir, subject, deadline, &mut waited).await.err(),
    };
    waited
}

/// Waits for an order that is taken back; `after` is the state it leaves in force.
pub(super) async fn until_back(run_dir: &Path, subject: &Subject, after: &str, limit: Duration) -> Waited {
    let deadline = Instant::now() + limit;
    let back = match subject {
        Subject::Gateway(slot) => gateway(run_dir, *slot, false, deadline).await,
        Subject::Node(node) => self::node(run_dir, node, false, deadline).await,
        Subject::Ourselves | Subject::Drained(_) | Subject::Blocked(_) => {
            until(deadline, async || {
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
    };
    Waited { missing: back.err(), ..Waited::default() }
}

/// Until this host, or its controller, has taken the order.
async fn in_force(run_dir: &Path, subject: &Subject, deadline: Instant) -> Result<(), String> {
    match subject {
        Subject::Gateway(slot) => gateway(run_dir, *slot, true, deadline).await,
        Subject::Drained(peer) => unused(run_dir, peer, false, deadline).await,
        Subject::Blocked(peer) => unused(run_dir, peer, true, deadline).await,
        Subject::Node(node) => self::node(run_dir, node, true, deadline).await,
        Subject::Ourselves => {
            until(deadline, async || {
                let report = controller(run_dir).await?;
                match (report.state.as_str(), report.state_age, report.record_state.as_str()) {
                    ("Draining", Some(_), "Draining") => Ok(()),
                    _ => Err("this cluster does not say yet that it drains".to_owned()),
                }
            })
            .await
        }
    }
}

/// Until every member that is connected says that it has taken what we say now, and the hosts of this cluster count nothing
/// any more.
async fn finished(run_dir: &Path, subject: &Subject, deadline: Instant, waited: &mut Waited) -> Result<(), String> {
    // What comes after the order need not be waited for: exports of a busy cluster change all the time.
    let first = until(deadline, async || controller(run_dir).await).await?;
    let mut quiet_since = None;
    until(deadline, async || {
        let report = controller(run_dir).await?;
        let has_taken = |peer: &&PeerSync| match subject {
            Subject::Ourselves => peer.record_taken >= first.record_generation,
            Subject::Node(_) => peer.exports_taken >= Some(first.exports_revision),
            Subject::Drained(_) | Subject::Blocked(_) | Subject::Gateway(_) => true,
        };
        let of_members = matches!(subject, Subject::Ourselves | Subject::Node(_));
        let members = report.peers.iter().filter(|peer| of_members && peer.state != "Blocked");
        let (here, away): (Vec<&PeerSync>, Vec<&PeerSync>) = members.partition(|peer| peer.told);
        let (taken, not_yet): (Vec<&PeerSync>, Vec<&PeerSync>) = here.into_iter().partition(has_taken);
        let names = |peers: Vec<&PeerSync>| peers.into_iter().map(|peer| peer.peer.clone()).collect::<Vec<_>>();
        (waited.taken_by, waited.away) = (names(taken), names(away));
        waited.left = Left::of(subject, &report);
        let not_yet = names(not_yet);
        let missing = match not_yet.as_slice() {
            [] => waited.left.reason(),
            names => Some(format!("{} did not say yet to have taken it", names.join(", "))),
        };
        if let Some(missing) = missing {
            quiet_since = None;
            return Err(missing);
        }
        match quiet_since.get_or_insert_with(Instant::now).elapsed() >= QUIET {
            true => Ok(()),
            false => Err("the last connection has only just ended".to_owned()),
        }
    })
    .await
}

/// Looks until `look` finds nothing missing; the last thing that was missing otherwise.
async fn until<T>(deadline: Instant, mut look: impl AsyncFnMut() -> Result<T, String>) -> Result<T, String> {
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(missing) if Instant::now() >= deadline => return Err(missing),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

async fn controller(run_dir: &Path) -> Result<ControllerReport, String> {
    ask_as(run_dir, Part::Controller, "status").await.ok_or_else(|| "the controller does not answer".to_owned())
}

fn silent() -> String {
    "the node agent does not answer".to_owned()
}

/// The controller says whether the node drains.
async fn node(run_dir: &Path, node: &str, draining: bool, deadline: Instant) -> Result<(), String> {
    until(deadline, async || {
        let report = controller(run_dir).await?;
        match report.nodes.iter().any(|known| known.node == node && known.draining == draining) {
            true => Ok(()),
            false => Err(format!("the controller does not know it of node {node} yet")),
        }
    })
    .await
}

/// This host's node agent sees whether the gateway drains, and sends nothing by one that does.
async fn gateway(run_dir: &Path, slot: u16, draining: bool, deadline: Instant) -> Result<(), String> {
    until(deadline, async || {
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

/// This host gives the peer nothing, DNS here leaves it out, and no route leads there where it is cut off.
async fn unused(run_dir: &Path, peer: &str, cut_off: bool, deadline: Instant) -> Result<(), String> {
    until(deadline, async || {
        let services: Vec<ServiceReport> = ask_as(run_dir, Part::Node, "services").await.ok_or_else(silent)?;
        if let Some(service) = services.iter().find(|service| is_given(service, peer)) {
            return Err(format!("{peer} still gets new connections to {}", service.service));
        }
        let names: Option<DnsReport> = ask_as(run_dir, Part::Dns, "status").await;
        let is_out = |seen: &ClusterSeen| seen.cluster == peer;
        if names.is_some_and(|names| !names.out_of_service.iter().any(is_out)) {
            return Err(format!("DNS still answers with {peer}"));
        }
        if cut_off {
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
