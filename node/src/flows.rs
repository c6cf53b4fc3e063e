//! What is open between this host, with its pods, and each peer, out of the kernel's list of tracked connections. What a
//! gateway host passes on is not tracked, so each connection is counted where its client or its endpoint lives.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::report::FlowReport;
use api::{ClusterId, Prefix};
use kernel::Flow;

/// Numbers of inward connections in one answer.
const MOST_IDS: usize = 10_000;

/// One entry for each peer, also where nothing is open. It is for the thread that asks, not for the owner of the kernel's
/// state: a host may track a million connections, and somebody who waits for the last one asks again and again.
pub(crate) fn report(prefixes: &[(Prefix, ClusterId)]) -> Result<Vec<FlowReport>, kernel::Error> {
    let peer_of = |address: IpAddr| prefixes.iter().position(|(prefix, _)| prefix.contains(address));
    let picked = kernel::flows(|Flow { from, to, id }| match (peer_of(from), peer_of(to)) {
        (None, Some(place)) => Some((place, None)),
        (Some(place), None) => Some((place, Some(id))),
        _ => None,
    })?;
    let mut reports: BTreeMap<&str, FlowReport> = BTreeMap::new();
    for (_, peer) in prefixes {
        let empty = || FlowReport { peer: peer.to_string(), ..FlowReport::default() };
        reports.entry(peer.as_str()).or_insert_with(empty);
    }
    for (place, inward) in picked {
        let Some(report) = prefixes.get(place).and_then(|(_, peer)| reports.get_mut(peer.as_str())) else { continue };
        match inward {
            None => report.outward += 1,
            Some(id) => {
                report.inward += 1;
                if report.inward_ids.len() < MOST_IDS {
                    report.inward_ids.push(id);
                }
            }
        }
    }
    Ok(reports.into_values().collect())
}
