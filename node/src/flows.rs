//! What is open between this host, with its pods, and others, out of the kernel's list of tracked connections. What a
//! gateway host passes on is not tracked, so each connection is counted where its client or its endpoint lives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::report::FlowReport;
use api::{ClusterId, Prefix};
use kernel::Flow;

/// Numbers of inward connections in one answer.
const MOST_IDS: usize = 10_000;

/// What is open now.
#[derive(Debug, Default)]
pub(crate) struct Open {
    /// One entry for each peer, also where nothing is open.
    pub(crate) peers: Vec<FlowReport>,
    /// Connections to the endpoints that were named, from elsewhere in this cluster.
    pub(crate) own: u64,
}

/// Whose connection it is.
enum Whose {
    Outward(usize),
    Inward(usize, u32),
    Own,
}

/// Counts everything there is. It is for the thread that asks, not for the owner of the kernel's state: a host may track a
/// million connections, and somebody who waits for the last one asks again and again.
pub(crate) fn count(
    prefixes: &[(Prefix, ClusterId)],
    endpoints: &BTreeSet<(IpAddr, u16)>,
) -> Result<Open, kernel::Error> {
    let peer_of = |address: IpAddr| prefixes.iter().position(|(prefix, _)| prefix.contains(address));
    let picked = kernel::flows(|Flow { from, to, port, id }| match (peer_of(from), peer_of(to)) {
        (None, Some(place)) => Some(Whose::Outward(place)),
        (Some(place), None) => Some(Whose::Inward(place, id)),
        (None, None) if endpoints.contains(&(to, port)) => Some(Whose::Own),
        _ => None,
    })?;
    let mut reports: BTreeMap<&str, FlowReport> = BTreeMap::new();
    for (_, peer) in prefixes {
        let empty = || FlowReport { peer: peer.to_string(), ..FlowReport::default() };
        reports.entry(peer.as_str()).or_insert_with(empty);
    }
    let mut own = 0;
    for whose in picked {
        let place = match whose {
            Whose::Outward(place) | Whose::Inward(place, _) => place,
            Whose::Own => {
                own += 1;
                continue;
            }
        };
        let Some(report) = prefixes.get(place).and_then(|(_, peer)| reports.get_mut(peer.as_str())) else { continue };
        match whose {
            Whose::Inward(_, id) => {
                report.inward += 1;
                if report.inward_ids.len() < MOST_IDS {
                    report.inward_ids.push(id);
                }
            }
            Whose::Outward(_) | Whose::Own => report.outward += 1,
        }
    }
    Ok(Open { peers: reports.into_values().collect(), own })
}
