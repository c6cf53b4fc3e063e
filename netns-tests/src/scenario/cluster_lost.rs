//! A cluster dies at once with all its parts; new connections and names go elsewhere; it comes back, proves itself, and
//! is used again.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use hickory_proto::rr::RecordType;
use serde_json::Value;

use crate::deployment::Part;
use crate::manifest::Service;
use crate::node::Node;
use crate::pod::Pod;
use crate::scenario::promise::Promise;
use crate::scenario::three_clusters::{PATIENCE, ThreeClusters};
use crate::traffic::{dns, http};

/// The promise for new connections and for headless names after a cluster was lost.
pub const ELSEWHERE_WITHIN: Duration = Duration::from_secs(2);
/// The promise for a cluster that is back, from its gateways' start.
pub const USED_AGAIN_WITHIN: Duration = Duration::from_secs(3);
/// How long a cluster that comes back has to prove itself before it is used.
pub const PROVEN_FOR: Duration = Duration::from_secs(1);
/// So many answers in a row without a failure mean that the lost cluster is routed around.
const IN_A_ROW: usize = 50;
/// One try. Many times what an answer takes, few enough lost ones to see when the next is answered.
const ATTEMPT: Duration = Duration::from_millis(250);
/// Between two questions to a DNS server, which answers in far less.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// The headless service, in the namespace `shop`.
pub const HEADLESS: &str = "members";

/// `shop/web`, and a headless service beside it, both served by birch and by cedar, asked for in amber.
pub struct ServedTwice<'a> {
    clusters: &'a ThreeClusters,
    web: SocketAddr,
}

/// What was measured of a cluster's end.
#[derive(Clone, Debug)]
pub struct Lost {
    /// From the kill to the first of fifty connections in a row that another cluster answered.
    pub elsewhere_after: Duration,
    /// Connections that failed before that.
    pub failed: usize,
    /// From the kill to the first of fifty answers in a row that name living endpoints only.
    pub names_after: Duration,
}

/// What was measured of its return.
#[derive(Clone, Debug)]
pub struct Back {
    /// From its first gateway's readiness to the first connection that the cluster answered again.
    pub used_after: Duration,
    /// How long a gateway of the client's cluster had reached it by then without a break.
    pub proven_for: Duration,
    /// What gateways and node noted meanwhile, with when it was, seen from the moment of use.
    pub story: Vec<String>,
    /// How often the client's node took it out again while it was watched.
    pub changes_of_mind: usize,
}

/// A loss and a return.
pub struct ClusterLost {
    pub lost: Lost,
    pub back: Back,
}

impl ClusterLost {
    /// The times that are promised.
    pub fn promises(&self) -> Vec<Promise> {
        let within = |what, limit, measured| Promise { what, limit, measured };
        vec![
            within("new connections elsewhere after a cluster was lost", ELSEWHERE_WITHIN, self.lost.elsewhere_after),
            within("headless names without a cluster that was lost", ELSEWHERE_WITHIN, self.lost.names_after),
            within("a cluster that is back is used again", USED_AGAIN_WITHIN, self.back.used_after),
        ]
    }
}

impl<'a> ServedTwice<'a> {
    /// Exports the headless service, and waits until everything is answered by birch and cedar. `web` is where `shop/web`
    /// answers in amber.
    pub fn prepare(clusters: &'a ThreeClusters, web: SocketAddr) -> Result<Self> {
        let served = Self { clusters, web };
        for deployment in [&clusters.birch, &clusters.cedar] {
            let headless = Service::http("shop", HEADLESS).headless();
            deployment.apply("members.yaml", &headless.manifest(&served.pods_of(deployment.cluster().name())))?;
        }
        served.wait_until_both_serve()?;
        Ok(served)
    }

    /// Lets birch die, and brings it back.
    pub fn measure(&self) -> Result<ClusterLost> {
        let lost = self.lose()?;
        Ok(ClusterLost { lost, back: self.bring_back(Duration::ZERO)? })
    }

    /// Kills every part of birch, while a client in amber keeps connecting and asking.
    pub fn lose(&self) -> Result<Lost> {
        let client = &self.clusters.client;
        let killed = Instant::now();
        self.clusters.birch.kill_everything()?;
        let (connections, names) = std::thread::scope(|scope| {
            let names = scope.spawn(|| until_steady(killed, "names", || self.names_living_ones()));
            let connections = until_steady(killed, "connections", || {
                // Its pods live on: a connection made before the gateway was gone may still be answered.
                Ok(http::get(client, self.web, ATTEMPT)?.cluster != "birch")
            });
            (connections, joined(names))
        });
        let ((elsewhere_after, failed), (names_after, _)) = (connections?, names?);
        Ok(Lost { elsewhere_after, failed, names_after })
    }

    /// Starts birch, waits until it is used, and watches for so long whether it stays so.
    pub fn bring_back(&self, watched: Duration) -> Result<Back> {
        let birch = &self.clusters.birch;
        let begun = wall_time()?;
        let (used, ready) = std::thread::scope(|scope| {
            let used = scope.spawn(|| self.wait_until_birch_answers());
            let ready = birch.start_parts().and_then(|()| {
                birch.wait_until_part_is_ready(Part::Gateway, birch.cluster().gateway()?, PATIENCE)?;
                Ok(Instant::now())
            });
            (joined(used), ready)
        });
        let (ready, (used, used_at)) = (ready.context("starting birch again")?, used?);
        std::thread::sleep(watched);
        let amber = self.clusters.amber.cluster();
        let mut paths = Vec::new();
        for gateway in amber.gateways() {
            let events = self.events_since(begun, Part::Gateway, gateway)?.into_iter();
            paths.extend(events.map(|event| (gateway.node_name().to_owned(), event)));
        }
        paths.sort_by_key(|(_, event)| at(event));
        let before = paths.iter().filter(|(_, event)| at(event) <= used_at);
        let reached = reached_since(before.map(|(gateway, event)| (gateway.as_str(), event)));
        let noted = self.events_since(begun, Part::Node, amber.worker()?)?;
        let all = paths.iter().map(|(gateway, event)| (gateway.as_str(), event));
        let all = all.chain(noted.iter().map(|event| ("worker", event)));
        let mut story: Vec<(Duration, String)> = all
            .map(|(host, event)| {
                let text = |field: &str| event[field].as_str().unwrap_or_default();
                (
                    at(event),
                    format!("{host}: {} {} → {} {}", text("subject"), text("before"), text("after"), text("reason")),
                )
            })
            .chain([(used_at, "client: answered by birch".to_owned())])
            .collect();
        story.sort();
        birch.wait_until_ready(PATIENCE)?;
        self.wait_until_both_serve()?;
        Ok(Back {
            used_after: used.saturating_duration_since(ready),
            proven_for: reached.map(|since| used_at.saturating_sub(since)).unwrap_or_default(),
            story: story
                .into_iter()
                .map(|(when, what)| format!("{:>6} ms  {what}", milliseconds(when, used_at)))
                .collect(),
            changes_of_mind: noted.iter().filter(|event| at(event) > used_at && takes_birch_out(event)).count(),
        })
    }

    /// When birch answered, on both clocks.
    fn wait_until_birch_answers(&self) -> Result<(Instant, Duration)> {
        let begun = Instant::now();
        loop {
            if http::get(&self.clusters.client, self.web, ATTEMPT).is_ok_and(|answer| answer.cluster == "birch") {
                return Ok((Instant::now(), wall_time()?));
            }
            ensure!(begun.elapsed() < PATIENCE, "birch does not answer again {PATIENCE:?} after its start");
        }
    }

    fn wait_until_both_serve(&self) -> Result<()> {
        self.clusters.amber.eventually(PATIENCE, "the headless service has endpoints in birch and cedar", || {
            let named = self.named()?;
            for cluster in [&self.clusters.birch, &self.clusters.cedar] {
                let pods = cluster.cluster().ranges().pods();
                let count = named.iter().filter(|address| pods.contains(**address)).count();
                let wanted = 2 * self.pods_of(cluster.cluster().name()).len();
                ensure!(count == wanted, "{} has {count} of {wanted} in {named:?}", cluster.cluster().name());
            }
            Ok(())
        })?;
        self.clusters.wait_for_answers_from(self.web, &["birch", "cedar"])
    }

    /// Whether the headless name has endpoints, and none of them in birch.
    fn names_living_ones(&self) -> Result<bool> {
        std::thread::sleep(ASK_EVERY);
        let named = self.named()?;
        ensure!(!named.is_empty(), "the name has no endpoints");
        let dead = self.clusters.birch.cluster().ranges().pods();
        Ok(!named.iter().any(|address| dead.contains(*address)))
    }

    /// What amber's DNS server says of the headless name, in both families. Errors when one has no answer.
    fn named(&self) -> Result<Vec<IpAddr>> {
        let name = format!("{HEADLESS}.shop.svc.clusterset.local.");
        let mut named = Vec::new();
        for (server, kind) in self.clusters.amber.dns()?.into_iter().zip([RecordType::A, RecordType::AAAA]) {
            let answer = dns::query(&self.clusters.client, server, &name, kind, dns::Transport::Udp, ATTEMPT)?;
            let addresses = dns::addresses(&answer);
            ensure!(!addresses.is_empty(), "{name} {kind}: {}", answer.metadata.response_code);
            named.extend(addresses);
        }
        Ok(named)
    }

    fn pods_of(&self, cluster: &str) -> Vec<&Pod> {
        self.clusters.servers.iter().filter(|pod| pod.node().cluster_name() == cluster).collect()
    }

    /// What a part of amber noted since then.
    fn events_since(&self, begun: Duration, part: Part, node: &Node) -> Result<Vec<Value>> {
        let seconds = wall_time()?.saturating_sub(begun).as_secs() + 1;
        let events = self.clusters.amber.ask(node, part, &format!("events?since={seconds}"))?;
        let events = events.as_array().context("no list of events")?;
        Ok(events.iter().filter(|event| at(event) >= begun).cloned().collect())
    }
}

/// A moment as others see it, from another one on; negative before it.
fn milliseconds(moment: Duration, from: Duration) -> i128 {
    moment.as_millis().cast_signed() - from.as_millis().cast_signed()
}

/// Since when one path to birch or another was up without a break, after these events of the client's gateways in their
/// order; `None` where none is up.
fn reached_since<'a>(events: impl Iterator<Item = (&'a str, &'a Value)>) -> Option<Duration> {
    let (mut up, mut since) = (BTreeSet::new(), None);
    for (gateway, event) in events {
        let Some(path) = event["subject"].as_str().filter(|subject| subject.contains("→birch ")) else { continue };
        match (event["before"] == "Up", event["after"] == "Up") {
            (false, true) => {
                since = since.filter(|_| !up.is_empty()).or(Some(at(event)));
                up.insert((gateway, path));
            }
            (true, false) => drop(up.remove(&(gateway, path))),
            _ => {}
        }
    }
    since.filter(|_| !up.is_empty())
}

/// Whether the node found that packets do not reach birch, or gave its share of a service to others.
fn takes_birch_out(event: &Value) -> bool {
    let [subject, before, after] =
        ["subject", "before", "after"].map(|field| event[field].as_str().unwrap_or_default());
    (subject == "path birch" && before == "Up" && after != "Up")
        || (subject.starts_with("share ") && before.contains("birch") && !after.contains("birch"))
}

/// From `begun` to the first of fifty in a row that were good, and how many failed before.
fn until_steady(begun: Instant, what: &str, mut is_good: impl FnMut() -> Result<bool>) -> Result<(Duration, usize)> {
    let (mut good, mut failed, mut first_good) = (0, 0, begun);
    while good < IN_A_ROW {
        let started = Instant::now();
        let tried = is_good();
        match tried {
            Ok(true) if good == 0 => (good, first_good) = (1, started),
            Ok(true) => good += 1,
            Ok(false) => good = 0,
            Err(_) => (good, failed) = (0, failed + 1),
        }
        ensure!(started - begun < PATIENCE, "{what} still fail {PATIENCE:?} after birch was killed: {tried:?}");
    }
    Ok((first_good - begun, failed))
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a client panicked"))?
}

/// Since 1970, as events have it.
fn wall_time() -> Result<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")
}

fn at(event: &Value) -> Duration {
    Duration::from_millis(event["at"].as_u64().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_path_that_was_up_and_a_share_that_was_birchs_can_be_taken_away() {
        let event =
            |subject: &str, before: &str, after: &str| json!({"subject": subject, "before": before, "after": after});
        for taken in [
            event("path birch", "Up", "Down"),
            event("path birch", "Up", "Unknown"),
            event("share shop/web http", "33% birch, 67% cedar", "100% cedar"),
        ] {
            assert!(takes_birch_out(&taken), "{taken}");
        }
        for other in [
            event("path birch", "Down", "Up"),
            event("path birch", "Up", "Up"),
            event("path cedar", "Up", "Down"),
            event("share shop/web http", "100% cedar", "33% birch, 67% cedar"),
            event("share shop/web http", "33% birch, 67% cedar", "50% birch, 50% cedar"),
            json!({}),
        ] {
            assert!(!takes_birch_out(&other), "{other}");
        }
    }

    #[test]
    fn a_cluster_is_proven_since_it_was_last_reached_by_no_path_at_all() {
        let event = |subject: &str, after: &str, at: u64| {
            let before = if after == "Up" { "Down" } else { "Up" };
            json!({"subject": subject, "before": before, "after": after, "at": at})
        };
        let moved = json!({"subject": "path amber→birch gateway 0 lane 0", "before": "a", "after": "b", "at": 9});
        let (zero, one) = ("path amber→birch gateway 0 lane 0", "path amber→birch gateway 1 lane 0");
        let events = [
            ("gateway", event(zero, "Up", 1)),
            ("gateway2", event(zero, "Up", 2)),
            ("gateway", event("path amber→cedar gateway 0 lane 0", "Up", 3)),
            // The other gateway still reaches it.
            ("gateway", event(zero, "Down", 4)),
            ("gateway", event(one, "Up", 5)),
            ("gateway2", event(zero, "Down", 6)),
            ("gateway", moved),
            ("gateway", event(one, "Down", 10)),
            ("gateway2", event(one, "Up", 12)),
        ];
        let since = |count: usize| reached_since(events[..count].iter().map(|(gateway, event)| (*gateway, event)));
        let at = |milliseconds| Some(Duration::from_millis(milliseconds));
        assert_eq!([since(0), since(1), since(7), since(8), since(9)], [None, at(1), at(1), None, at(12)]);
    }

    #[test]
    fn the_time_is_that_of_the_first_of_a_row_that_no_failure_broke() {
        let mut number = 0;
        let (_, failed) = until_steady(Instant::now(), "tests", || {
            number += 1;
            match number {
                3 => anyhow::bail!("once"),
                5 => Ok(false),
                _ => Ok(true),
            }
        })
        .unwrap();
        assert_eq!((failed, number), (1, 5 + IN_A_ROW));
    }
}
