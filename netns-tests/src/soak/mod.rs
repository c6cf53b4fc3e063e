//! `make soak`, its part with real packets: steady load while a seeded schedule kills, stops, cuts and drains. Whatever
//! is lost or late has to be the doing of something on the schedule, within what is promised for it.
//!
//! [`schedule`] and [`attribution`] think; this file does.

pub mod attribution;
pub mod schedule;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::rr::RecordType;

use crate::cluster::ClusterPlan;
use crate::deployment::{Deployment, Part};
use crate::evidence;
use crate::scenario::cluster_lost::{self, ServedTwice};
use crate::scenario::failover::SILENT_FOR;
use crate::scenario::other_programs::OtherPrograms;
use crate::scenario::three_clusters::{PATIENCE, ThreeClusters};
use crate::scenario::two_gateways::TwoGateways;
use crate::soak::attribution::{Incident, attribute};
use crate::soak::schedule::{Blow, Entry, Schedule};
use crate::traffic::dns;
use crate::traffic::load::{Harmed, Hurt, Load, Rates, Report, Targets};
use crate::traffic::lookups::Lookups;
use crate::traffic::stream::Download;
use crate::world::World;

/// Connections that stay open all the time.
const DOWNLOADS: usize = 8;
/// How long flows are watched after something happened or was undone: more than the promise and a retransmission.
const WATCHED: Duration = Duration::from_millis(1_600);
/// What nobody explains is told up to here; more of it says no more.
const MOST_TOLD: usize = 10;

/// How long, how much, and which schedule.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub lasts: Duration,
    pub seed: u64,
    pub rates: Rates,
}

/// Soaks in a world of its own and prints what happened.
pub fn run(plan: Plan) -> ExitCode {
    let world = match World::create() {
        Ok(world) => world,
        Err(error) => {
            eprintln!("soak: {error:#}\n  `make doctor` says what this machine lacks");
            return ExitCode::FAILURE;
        }
    };
    match Soak::begin(&world, plan.rates).and_then(|soak| soak.live(plan)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            evidence::print(&world.hosts());
            eprintln!("\n✗ {error:#}");
            eprintln!("  again: SECONDS=60 FIRST={} make soak-namespaces", plan.seed);
            ExitCode::FAILURE
        }
    }
}

/// Three clusters under load: amber's client asks, birch and cedar answer, and amber's two DNS servers.
pub struct Soak {
    three: ThreeClusters,
    gateways: TwoGateways,
    load: Load,
    downloads: Vec<Download>,
    incidents: Vec<Incident>,
}

impl Soak {
    /// Joins the clusters and begins the load.
    pub fn begin(world: &World, rates: Rates) -> Result<Self> {
        let two = ClusterPlan { gateways: 2, ..ClusterPlan::default() };
        let amber = ClusterPlan { name_servers: 2, ..two };
        let three = ThreeClusters::start_as(world, [amber, two, ClusterPlan::default()])?;
        three.introduce()?;
        three.export_web()?;
        let pages = three.web()?;
        for target in pages {
            three.wait_for_answers_from(target, &["birch", "cedar"])?;
        }
        let gateways = TwoGateways::among(&three)?;
        ServedTwice::prepare(&three, pages[0])?;
        let downloads = gateways.targets(TwoGateways::STREAM).into_iter().cycle().take(DOWNLOADS);
        let downloads = downloads
            .map(|target| Download::start(&three.client, target, PATIENCE))
            .collect::<Result<Vec<_>>>()
            .context("a download does not begin")?;
        let echoes = gateways.targets(TwoGateways::ECHO).to_vec();
        let targets = Targets { pages: pages.to_vec(), echoes, lookups: lookups(&three, pages)? };
        let load = Load::start(&three.client, targets, rates)?;
        let soak = Self { three, gateways, load, downloads, incidents: Vec::new() };
        std::thread::sleep(Load::FULL_AFTER + WATCHED);
        let hurt = soak.load.so_far().hurt;
        let Some(first) = hurt.first() else { return Ok(soak) };
        bail!(
            "{} were lost or late before anything happened ({}): this machine does not carry {} connections, {} \
             datagrams and {} DNS queries a second, or others use it; lower CONNECTIONS, DATAGRAMS and QUERIES",
            hurt.iter().map(|hurt| hurt.count).sum::<u64>(),
            first.what,
            rates.connections,
            rates.datagrams,
            rates.queries
        )
    }

    fn live(mut self, plan: Plan) -> Result<()> {
        let Rates { connections, datagrams, queries } = plan.rates;
        println!(
            "Three clusters under {connections} connections, {datagrams} datagrams and {queries} DNS queries a second for {} \
             s, seed {}.\n",
            plan.lasts.as_secs(),
            plan.seed
        );
        println!("  {:>7}  {:<34} {:>8} {:>12} {:>10}", "at", "event", "lasted", "lost or late", "silence");
        let begun = Instant::now();
        for entry in Schedule::new(plan.seed) {
            if begun.elapsed() > plan.lasts {
                break;
            }
            let others = OtherPrograms::watch()?;
            let suffered = self.suffer(entry);
            let percent = others.percent()?;
            suffered.with_context(|| format!("other programs took {percent:.0} % of the cores"))?;
        }
        let incidents = std::mem::take(&mut self.incidents);
        let report = self.load.stop()?;
        let Report { requests, datagrams, lookups, .. } = &report;
        judge(&incidents, &report.hurt)?;
        let hurt: u64 = report.hurt.iter().map(|hurt| hurt.count).sum();
        println!(
            "\n✓ {} events in {} s: {requests} requests, {datagrams} datagrams, {lookups} names at two servers; {hurt} were \
             lost or late, each within what is promised for an event",
            incidents.len(),
            begun.elapsed().as_secs()
        );
        Ok(())
    }

    /// Lets one thing happen, undoes it, and errors when clients noticed more of it than is promised.
    pub fn suffer(&mut self, entry: Entry) -> Result<()> {
        std::thread::sleep(entry.after);
        let blow = entry.blow;
        self.downloads.iter().for_each(Download::start_measuring);
        let begun = self.load.begun().elapsed();
        let without_gateways = self.strike(blow).with_context(|| format!("{} cannot be done", blow.name()))?;
        let happened = self.load.begun().elapsed();
        let (name, noticed_for, servers) = (blow.name(), blow.noticed_for(), blow.servers());
        self.incidents.push(Incident { name, begun, happened, noticed_for, servers, undone: None });
        std::thread::sleep(entry.lasts.max(WATCHED));
        let lasted = self.load.begun().elapsed() - begun;
        self.mend(blow).with_context(|| format!("{} cannot be undone", blow.name()))?;
        let undone = self.load.begun().elapsed();
        self.incidents.iter_mut().rev().take(1).for_each(|incident| incident.undone = Some(undone));
        std::thread::sleep(WATCHED);
        let silence = self.longest_silence()?;
        let explained = judge(&self.incidents, &self.load.so_far().hurt)?;
        println!(
            "✓ {:>6.1}s  {name:<34} {:>7.1}s {:>12} {:>8}ms",
            begun.as_secs_f64(),
            lasted.as_secs_f64(),
            explained.last().copied().unwrap_or_default(),
            silence.as_millis()
        );
        // Where a cluster was started anew as a whole, it counts from its return.
        let promised = SILENT_FOR + without_gateways;
        ensure!(silence < promised, "{name}: a download was silent for {silence:?}, promised is {promised:?}");
        Ok(())
    }

    /// Errors when something was lost or late up to now that nothing on the schedule explains.
    pub fn judge(&self) -> Result<()> {
        judge(&self.incidents, &self.load.so_far().hurt).map(drop)
    }

    /// The clusters, for those who want to do them something that is not on the schedule.
    pub fn clusters(&self) -> &ThreeClusters {
        &self.three
    }

    fn longest_silence(&self) -> Result<Duration> {
        let mut longest = Duration::ZERO;
        for download in &self.downloads {
            let seen = download.so_far();
            if let Some(reason) = seen.ended {
                bail!("a connection broke: {reason}");
            }
            longest = longest.max(seen.longest_silence);
        }
        Ok(longest)
    }

    /// Gives how long flows have no gateway to go by at all.
    fn strike(&self, blow: Blow) -> Result<Duration> {
        let (amber, cedar) = (&self.three.amber, &self.three.cedar);
        match blow {
            Blow::Gateway(event) => return event.strike(&self.gateways),
            Blow::ControllerKilled => amber.process(Part::Controller, amber.cluster().gateway()?)?.kill(),
            Blow::GatewayDrained => order(amber, "drain gateway 1 --wait"),
            Blow::PeerDrained => order(amber, "peers drain cedar"),
            Blow::ClusterDrained => order(cedar, "drain"),
            Blow::ClusterCutOff => {
                cedar.cluster().cut_off()?;
                self.load.cluster_is_lost(cedar.cluster().name());
                Ok(())
            }
        }?;
        Ok(Duration::ZERO)
    }

    fn mend(&self, blow: Blow) -> Result<()> {
        let (amber, cedar) = (&self.three.amber, &self.three.cedar);
        match blow {
            Blow::Gateway(event) => event.mend(&self.gateways)?,
            Blow::ControllerKilled => drop(amber.start_part(Part::Controller, amber.cluster().gateway()?)?),
            Blow::GatewayDrained => order(amber, "drain gateway 1 --undo --wait")?,
            Blow::PeerDrained => order(amber, "peers drain cedar --undo --wait")?,
            Blow::ClusterDrained => order(cedar, "drain --undo --wait")?,
            Blow::ClusterCutOff => {
                self.load.cluster_is_back(cedar.cluster().name());
                cedar.cluster().reconnect()?;
            }
        }
        self.three.all().iter().try_for_each(|deployment| deployment.wait_until_ready(PATIENCE))?;
        amber.wait_until_connected(cedar.cluster().name(), PATIENCE)?;
        self.gateways.wait_until_all_are_used()?;
        for target in self.three.web()? {
            self.three.wait_for_answers_from(target, &["birch", "cedar"])?;
        }
        Ok(())
    }
}

/// Both services, at all DNS servers of amber.
fn lookups(three: &ThreeClusters, pages: [SocketAddr; 2]) -> Result<Lookups> {
    let mut right: BTreeMap<IpAddr, Option<String>> = pages.iter().map(|page| (page.ip(), None)).collect();
    for server in &three.servers {
        let cluster = Some(server.node().cluster_name().to_owned());
        right.extend(server.addresses().both().map(|address| (address, cluster.clone())));
    }
    let name = |service: &str| format!("{service}.shop.svc.clusterset.local.");
    let lookups = Lookups {
        servers: three.amber.cluster().name_servers().iter().map(|node| node.addresses().with_port(53)).collect(),
        names: vec![name("web"), name(cluster_lost::HEADLESS)],
        right,
    };
    // The second server hears of new services when the first does, and not because of it.
    for server in lookups.servers.iter().flatten() {
        for name in &lookups.names {
            three.amber.eventually(PATIENCE, &format!("{server} knows {name}"), || {
                let kind = RecordType::A;
                let answer = dns::query(&three.client, *server, name, kind, dns::Transport::Udp, PATIENCE)?;
                ensure!(!dns::addresses(&answer).is_empty(), "{}", answer.metadata.response_code);
                Ok(())
            })?;
        }
    }
    Ok(lookups)
}

/// Types a command that must end well.
fn order(deployment: &Deployment, command: &str) -> Result<()> {
    deployment.types(command, 0).map(drop)
}

/// How much each incident explains. Errors: something is explained by none.
fn judge(incidents: &[Incident], hurt: &[Hurt]) -> Result<Vec<u64>> {
    let (explained, mut unexplained) = attribute(incidents, hurt);
    if unexplained.is_empty() {
        return Ok(explained);
    }
    // What another server made good comes last.
    unexplained.sort_by_key(|one| one.of == Harmed::OneServer);
    let mut text = String::from("lost or late, and no event explains it:\n");
    for one in unexplained.iter().take(MOST_TOLD) {
        let last = incidents.iter().rfind(|incident| incident.begun <= one.ended);
        let since = last.map_or_else(
            || "before any event".to_owned(),
            |incident| {
                let after = one.begun.as_secs_f64() - incident.happened.as_secs_f64();
                format!("begun {after:.2} s after '{}'", incident.name)
            },
        );
        text.push_str(&format!(
            "  at {:.2} to {:.2} s, {} times: {}; {since}\n",
            one.begun.as_secs_f64(),
            one.ended.as_secs_f64(),
            one.count,
            one.what
        ));
    }
    if unexplained.len() > MOST_TOLD {
        text.push_str(&format!("  and {} more\n", unexplained.len() - MOST_TOLD));
    }
    bail!(text)
}
