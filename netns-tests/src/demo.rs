//! `make demo`: the main job, shown in steps with the times that were measured.

use std::fmt::Display;
use std::io::{BufRead, IsTerminal};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hickory_proto::rr::RecordType;

use crate::cluster::ClusterPlan;
use crate::deployment::Part;
use crate::evidence;
use crate::recording;
use crate::scenario::closed::{Closed, Private};
use crate::scenario::cluster_lost::{ClusterLost, ServedTwice};
use crate::scenario::failover::{self, Event, Failover};
use crate::scenario::propagation::{Propagation, Ticking};
use crate::scenario::three_clusters::{PATIENCE, ThreeClusters};
use crate::scenario::two_gateways::TwoGateways;
use crate::scenario::{clear_text, promise, propagation, shares};
use crate::traffic::{dns, http};
use crate::world::World;

const HEADING: &str = "Three clusters on this machine, in network namespaces: no root, no Docker, no Kubernetes.";

/// Shows everything. With `hold`, keeps the clusters up until the input ends; with `record`, draws what was printed.
pub fn run(hold: bool, record: Option<&Path>) -> ExitCode {
    println!("{HEADING}\n");
    let world = match World::create() {
        Ok(world) => world,
        Err(error) => {
            eprintln!("tombolo-world: {error:#}\n  `make doctor` says what this machine lacks");
            return ExitCode::FAILURE;
        }
    };
    match show(&world, hold, record) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            evidence::print(&world.hosts());
            eprintln!("\n✗ {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints one line a step: what was done, what was seen, how long it took.
struct Steps {
    begun: Instant,
    last: Instant,
    printed: Vec<String>,
}

impl Steps {
    fn new() -> Self {
        Self { begun: Instant::now(), last: Instant::now(), printed: vec![HEADING.to_owned(), String::new()] }
    }

    fn done(&mut self, what: &str, seen: impl Display) {
        self.print(format!("✓ {what:<15} {seen:<98} {:>6.2} s", self.last.elapsed().as_secs_f64()));
        self.last = Instant::now();
    }

    /// A step whose times were promised, and kept; `again` says why they were measured twice.
    fn promised(&mut self, what: &str, seen: impl Display, again: Option<String>) {
        self.done(what, seen);
        if let Some(again) = again {
            self.print(format!("  {again}"));
        }
    }

    fn print(&mut self, line: String) {
        println!("{line}");
        self.printed.push(line);
    }
}

fn show(world: &World, hold: bool, record: Option<&Path>) -> Result<()> {
    let mut steps = Steps::new();
    let clusters = ThreeClusters::start_with(world, ClusterPlan { gateways: 2, ..ClusterPlan::default() })?;
    let hosts = world.hosts().len();
    steps.done(
        "clusters",
        format!("amber, birch, cedar: {hosts} namespaces, IPv4 and IPv6; every part of Tombolo is ready"),
    );

    clusters.introduce()?;
    steps.done("introduced", "each to each by the manifest of 'tombolo peers export'; tunnels up, services synced");

    clusters.export_web()?;
    let [v4, v6] = clusters.web()?;
    steps.done("a name", format!("web.shop.svc.clusterset.local in amber: {} and {}", v4.ip(), v6.ip()));

    steps.done("an answer", answers(&clusters, [v4, v6])?);

    let tally = shares::measure(&clusters, v4)?;
    shares::check(&tally)?;
    let got: Vec<String> = shares::WEIGHTS
        .iter()
        .map(|(name, weight)| format!("{name} {weight} → {:.1} %", 100.0 * tally.share(name)))
        .collect();
    steps.done(
        "shares",
        format!(
            "{} over {} connections, p50 {}",
            got.join(", "),
            tally.answered(),
            milliseconds(tally.percentile(0.5))
        ),
    );

    let ticking = Ticking::prepare(&clusters)?;
    let (measured, again) = promise::keep(|| ticking.measure(propagation::CHANGES), Propagation::promises)?;
    let times = [("DNS", &measured.name), ("new connection", &measured.connection)].map(|(what, times)| {
        let (half, most) = (times.percentile(50), times.percentile(99));
        format!("{what} p50 {}, p99 {}", milliseconds(half), milliseconds(most))
    });
    let seen = format!("in birch, seen in amber: {} ({} changes)", times.join("; "), propagation::CHANGES);
    steps.promised("a change", seen, again);

    let private = Private::prepare(&clusters)?;
    let (closed, again) = promise::keep(|| private.measure(), Closed::promises)?;
    let seen = format!(
        "TCP, UDP, ICMP to a pod not exported: refused, counted; export admits in {}, removal closes in {}",
        milliseconds(closed.admitted_after),
        milliseconds(closed.closed_after)
    );
    steps.promised("closed", seen, again);

    let served = ServedTwice::prepare(&clusters, v4)?;
    let (ClusterLost { lost, back }, again) = promise::keep(|| served.measure(), ClusterLost::promises)?;
    let seen = format!(
        "birch killed: connections go to cedar after {}, headless names after {}; used again {} after its return",
        milliseconds(lost.elsewhere_after),
        milliseconds(lost.names_after),
        milliseconds(back.used_after)
    );
    steps.promised("a cluster dies", seen, again);

    let spread = TwoGateways::among(&clusters)?;
    let (killed, again) = promise::keep(|| failover::measure(&spread, Event::KilledHere), Failover::promises)?;
    killed.check()?;
    let seen = format!(
        "one of amber's two killed: {} downloads go on, silent for {} at most; used again {} after its start",
        killed.gone.flows,
        milliseconds(killed.gone.longest_silence),
        milliseconds(killed.used_after)
    );
    steps.promised("a gateway dies", seen, again);

    let leaked = clear_text::measure(&clusters, v4)?;
    ensure!(leaked == 0, "{leaked} packets left in clear while the gateways were dead");
    for gateway in clusters.amber.cluster().gateways() {
        clusters.amber.start_part(Part::Gateway, gateway)?;
    }
    let returned = Instant::now();
    http::get_within(&clusters.client, v4, PATIENCE)?;
    let seen = "both killed: 0 packets in clear at the router; answered again";
    steps.done("no gateway", format!("{seen} {} after their start", milliseconds(returned.elapsed())));

    steps.print(String::new());
    let all = steps.begun.elapsed().as_secs_f64();
    steps.print(format!("Shown in {all:.1} s. Everything above was measured with real packets just now."));
    if let Some(file) = record {
        std::fs::write(file, recording::svg(&steps.printed)).with_context(|| format!("drawing {}", file.display()))?;
    }
    if hold {
        keep_up(&clusters)?;
    }
    Ok(())
}

/// One connection in each family, from the name on: ask DNS, connect, read the answer.
fn answers(clusters: &ThreeClusters, targets: [SocketAddr; 2]) -> Result<String> {
    let mut seen = Vec::new();
    for (server, (target, kind)) in
        clusters.amber.dns()?.into_iter().zip(targets.into_iter().zip([RecordType::A, RecordType::AAAA]))
    {
        let name = "web.shop.svc.clusterset.local.";
        dns::query(&clusters.client, server, name, kind, dns::Transport::Udp, Duration::from_secs(2))?;
        let answer = http::get_within(&clusters.client, target, PATIENCE)?;
        ensure!(
            answer.client == clusters.client.addresses().both()[usize::from(target.is_ipv6())],
            "the source address was lost: {}",
            answer.client
        );
        let family = if target.is_ipv4() { "IPv4" } else { "IPv6" };
        seen.push(format!("{family}: {} of {} in {}", answer.pod, answer.cluster, milliseconds(answer.took)));
    }
    Ok(format!("to a pod in amber, its address kept; {}", seen.join("; ")))
}

fn milliseconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{:.1} ms", time.as_secs_f64() * 1e3)
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}

/// Says how to step into each pod and node, and waits.
fn keep_up(clusters: &ThreeClusters) -> Result<()> {
    println!("\nThe clusters stay up. In another terminal:\n");
    println!("  the client pod in amber   {}", clusters.client.step_in());
    println!("      then: curl http://web.shop.svc.clusterset.local/    dig web.shop.svc.clusterset.local");
    for deployment in clusters.all() {
        for node in deployment.cluster().nodes() {
            println!("  {:<25} {}", node.name(), node.step_in());
        }
    }
    println!("      then: {} tombolo status", crate::host::own_program()?.display());
    println!("  manifests                 {} inside any of them", clusters.amber.manifests().display());
    let [server, _] = clusters.amber.dns()?;
    clusters
        .client
        .use_resolvers(&[server.ip()], "svc.clusterset.local")
        .context("giving the client pod its name server")?;
    if std::io::stdin().is_terminal() {
        println!("\nEnter ends it.");
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
    } else {
        println!("\nIt ends with this process.");
        loop {
            std::thread::park();
        }
    }
    Ok(())
}
