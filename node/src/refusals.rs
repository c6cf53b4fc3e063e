//! Refused packets, read from the kernel's log: whose they were.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::ClusterId;
use api::report::RefusalReport;
use api::time::Instant;
use kernel::core::{Flow, Refusal};
use kernel::{RefusalLog, Refused};
use node_core::fabric::LOG_GROUP;
use tokio_util::sync::CancellationToken;

/// Different refused flows that are remembered; the longest ago gives way.
const KEPT: usize = 512;
/// How long the thread waits before it looks whether it shall end.
const PATIENCE: Duration = Duration::from_millis(200);

/// The last refused flows.
#[derive(Default)]
pub(crate) struct Ring(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// Without the client's port, which is another one at each try.
    flows: BTreeMap<(Refusal, IpAddr, IpAddr, u8, Option<u16>), Seen>,
    /// Prefixes of the peers, to say whose a packet is.
    peers: Vec<(api::Prefix, ClusterId)>,
    missed: bool,
    /// Listed since the counters were read last, by reason and peer.
    listed: BTreeMap<(Refusal, String), u64>,
    /// The counters as they were read last.
    counted: BTreeMap<Refusal, u64>,
    /// Refused packets by peer and reason; without a peer those that were counted and not listed.
    totals: BTreeMap<(String, String), u64>,
}

struct Seen {
    flow: Flow,
    count: u64,
    last: Instant,
}

impl Ring {
    /// Whose prefixes are whose.
    pub(crate) fn know(&self, peers: Vec<(api::Prefix, ClusterId)>) {
        self.lock().peers = peers;
    }

    fn take(&self, reason: Refusal, flow: Flow, now: Instant) {
        let mut kept = self.lock();
        let peer = kept.owner(flow.source).or(kept.owner(flow.destination)).unwrap_or_default();
        *kept.listed.entry((reason, peer)).or_default() += 1;
        let to = flow.ports.map(|(_, to)| to);
        let key = (reason, flow.source, flow.destination, flow.protocol, to);
        let seen = kept.flows.entry(key).or_insert(Seen { flow, count: 0, last: now });
        *seen = Seen { flow, count: seen.count + 1, last: now };
        if kept.flows.len() > KEPT {
            let oldest = kept.flows.iter().min_by_key(|(_, seen)| seen.last).map(|(key, _)| *key);
            oldest.map(|key| kept.flows.remove(&key));
        }
    }

    /// Takes the kernel's counters, which have every packet, and gives each peer what was listed of them.
    pub(crate) fn reconcile(&self, counted: &BTreeMap<Refusal, u64>) {
        let mut kept = self.lock();
        let listed = std::mem::take(&mut kept.listed);
        for (reason, count) in counted {
            // A table that was made anew begins at zero.
            let mut new =
                kept.counted.get(reason).map_or(*count, |before| count.checked_sub(*before).unwrap_or(*count));
            for ((_, peer), number) in listed.iter().filter(|((listed, _), _)| listed == reason) {
                let of_peer = new.min(*number);
                new -= of_peer;
                *kept.totals.entry((peer.clone(), label(*reason))).or_default() += of_peer;
            }
            *kept.totals.entry((String::new(), label(*reason))).or_default() += new;
        }
        kept.counted.clone_from(counted);
    }

    /// Refused packets by peer and reason since the agent's start.
    pub(crate) fn totals(&self) -> Vec<((String, String), u64)> {
        self.lock().totals.clone().into_iter().collect()
    }

    /// The newest first.
    pub(crate) fn report(&self, now: Instant) -> Vec<RefusalReport> {
        let kept = self.lock();
        let mut seen: Vec<_> = kept.flows.iter().collect();
        seen.sort_by_key(|(_, seen)| std::cmp::Reverse(seen.last));
        seen.into_iter()
            .map(|((reason, ..), seen)| RefusalReport {
                reason: label(*reason),
                peer: kept.owner(seen.flow.source).or(kept.owner(seen.flow.destination)).unwrap_or_default(),
                source: with_port(seen.flow.source, seen.flow.ports.map(|(from, _)| from)),
                destination: with_port(seen.flow.destination, seen.flow.ports.map(|(_, to)| to)),
                protocol: protocol(seen.flow.protocol),
                count: seen.count,
                age: now.since(seen.last).as_secs_f64(),
            })
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn owner(&self, address: IpAddr) -> Option<String> {
        self.peers.iter().find(|(prefix, _)| prefix.contains(address)).map(|(_, id)| id.to_string())
    }
}

/// The metric label. The protocol of what is not exported is beside it in the list; gateways use the same word, so that
/// one sum and one alert have both.
pub(crate) fn label(reason: Refusal) -> String {
    match reason {
        Refusal::UnexportedTcp | Refusal::UnexportedUdp | Refusal::UnexportedEcho | Refusal::UnexportedOther => {
            "Unexported".into()
        }
        other => camel(other.name()),
    }
}

/// `NoEndpoint` of `no_endpoint`.
fn camel(name: &str) -> String {
    let word = |word: &str| {
        let (first, rest) = word.split_at_checked(1).unwrap_or(("", word));
        first.to_ascii_uppercase() + rest
    };
    name.split('_').map(word).collect()
}

fn with_port(address: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => std::net::SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        58 => "ICMPv6".into(),
        132 => "SCTP".into(),
        other => format!("protocol {other}"),
    }
}

/// Reads the kernel's log until `stop`. Without it refusals are still counted, only whose they were is not known.
pub(crate) fn follow(ring: Arc<Ring>, stop: CancellationToken) {
    let mut log = match RefusalLog::open(LOG_GROUP) {
        Ok(log) => log,
        Err(error) => {
            tracing::warn!(%error, "refused packets are counted, but not listed");
            return;
        }
    };
    let run = move || {
        while !stop.is_cancelled() {
            match log.next(PATIENCE) {
                Ok(Some(Refused::Packet { reason, flow, .. })) => ring.take(reason, flow, clock::now()),
                Ok(Some(Refused::Missed)) => {
                    let mut kept = ring.lock();
                    if !std::mem::replace(&mut kept.missed, true) {
                        tracing::warn!("more packets are refused than can be listed; the counters have all of them");
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "refused packets are listed no more");
                    return;
                }
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("refusals".into()).spawn(run) {
        tracing::warn!(%error, "refused packets are counted, but not listed: no thread can be started");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(source: &str, port: u16) -> Flow {
        let (source, destination) = (source.parse().unwrap(), "10.1.2.7".parse().unwrap());
        Flow { source, destination, protocol: 6, ports: Some((port, 8080)) }
    }

    #[test]
    fn tries_of_one_client_are_one_entry_with_the_peer_it_belongs_to() {
        let ring = Ring::default();
        ring.know(vec![("10.2.0.0/16".parse().unwrap(), ClusterId::new("birch").unwrap())]);
        for port in 0..5 {
            ring.take(Refusal::UnexportedTcp, flow("10.2.1.5", 40_000 + port), Instant::from_millis(1_000));
        }
        let report = ring.report(Instant::from_millis(3_000));
        assert_eq!(report.len(), 1);
        assert_eq!((report[0].reason.as_str(), report[0].peer.as_str()), ("Unexported", "birch"));
        assert_eq!((report[0].count, report[0].age), (5, 2.0));
        assert_eq!(report[0].source, "10.2.1.5:40004");
    }

    #[test]
    fn every_counted_packet_is_in_the_totals_and_listed_ones_with_their_peer() {
        let ring = Ring::default();
        ring.know(vec![("10.2.0.0/16".parse().unwrap(), ClusterId::new("birch").unwrap())]);
        ring.reconcile(&BTreeMap::from([(Refusal::UnexportedTcp, 5)]));
        ring.take(Refusal::UnexportedTcp, flow("10.2.1.5", 4), Instant::from_millis(1));
        ring.take(Refusal::UnexportedTcp, flow("10.2.1.6", 4), Instant::from_millis(1));
        ring.reconcile(&BTreeMap::from([(Refusal::UnexportedTcp, 8)]));
        let of = |peer: &str, count| ((peer.to_owned(), "Unexported".to_owned()), count);
        assert_eq!(ring.totals(), [of("", 6), of("birch", 2)]);
    }

    #[test]
    fn the_list_is_bounded_and_the_oldest_gives_way() {
        let ring = Ring::default();
        for number in 0..KEPT as u64 + 10 {
            let source = format!("10.2.{}.{}", number / 250, number % 250);
            ring.take(Refusal::UnexportedTcp, flow(&source, 4), Instant::from_millis(number));
        }
        let report = ring.report(Instant::from_millis(10_000));
        assert_eq!(report.len(), KEPT);
        assert!(!report.iter().any(|entry| entry.source.starts_with("10.2.0.0:")));
    }
}
