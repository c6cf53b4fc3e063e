//! How many links one gateway keeps its promise for: a path that died is out of use within half a second.
//!
//! One gateway in a namespace of its own is joined to a crowd of real gateways in another, which share one process, and
//! to one more that is killed again and again. Everything shares this machine's cores, so a gateway with a host of its
//! own does better. `make bench-links` runs it; `--links 100,400` picks the numbers, `--runs 20` how often one is killed.

mod agents;
mod host;
#[path = "../gateway_alone/lines.rs"]
mod lines;
mod member;
#[path = "../gateway_alone/memory.rs"]
#[expect(dead_code, reason = "this program neither cuts off nor removes")]
mod memory;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::scenario::Times;
use netns_tests::{Node, Process, World, world};

use member::{HEALTH_PORT, Member, Orders};

const RUNS: usize = 20;
/// The numbers of links that are measured when none are given.
const LINKS: &str = "50,100,200,400,800";
/// Lanes of every gateway: what an installation has unless it says otherwise is one, and links are what costs.
const LANES: u8 = 4;
/// Nodes and DNS servers that ask the gateway for health while it is looked at a second time.
const AGENTS: u32 = 500;
/// How long the gateway is left alone while its use of the processor is counted.
const QUIET: Duration = Duration::from_secs(10);
/// Longer than any of it takes where it works at all.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const PORT: u16 = 30_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| arguments.iter().skip_while(|argument| *argument != flag).nth(1).cloned();
    let result = match value("--host") {
        Some(folder) => {
            let folder = PathBuf::from(folder);
            host::run(&folder.join("orders"), &folder.join("events"), &folder.join("state")).map(|()| ExitCode::SUCCESS)
        }
        None => world::inside(|| match bench(value("--links"), value("--runs")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bench-links: {error:#}");
                ExitCode::FAILURE
            }
        }),
    };
    result.unwrap_or_else(|error| {
        eprintln!("bench-links: {error:#}");
        ExitCode::FAILURE
    })
}

fn bench(links: Option<String>, runs: Option<String>) -> Result<()> {
    let runs: usize = runs.map_or(Ok(RUNS), |text| text.parse()).context("--runs takes a number")?;
    let links = links.unwrap_or_else(|| LINKS.to_owned());
    let numbers: Vec<u16> =
        links.split(',').map(str::parse).collect::<Result<_, _>>().context("--links takes numbers, as 100,400")?;
    println!(
        "One gateway, {LANES} lanes, joined to many on the same machine; {runs} kills of one peer, one loss of all."
    );
    println!(
        "CPU is the measured gateway's, of one core. Out is the time from the loss until no packet goes that way.\n"
    );
    println!(
        "  {:>5} {:>9} {:>6} {:>14} {:>8} {:>12} {:>11} {:>9} {:>11} {:>12}",
        "links",
        "joined ms",
        "CPU %",
        "with agents",
        "memory",
        "false downs",
        "out p50 ms",
        "worst ms",
        "all out ms",
        "all back ms"
    );
    for number in numbers {
        let measured = measure(number, runs).with_context(|| format!("{number} links"))?;
        println!(
            "  {:>5} {:>9} {:>6.1} {:>14.1} {:>5} MB {:>12} {:>11} {:>9} {:>11} {:>12}",
            number,
            measured.joined.as_millis(),
            measured.cpu * 100.0,
            measured.cpu_with_agents * 100.0,
            measured.memory >> 20,
            measured.false_downs,
            measured.out.percentile(50).as_millis(),
            measured.out.worst().as_millis(),
            measured.all_out.as_millis(),
            measured.all_back.as_millis()
        );
    }
    Ok(())
}

struct Measured {
    /// From the start of the gateway, while all peers call it.
    joined: Duration,
    /// Of one core.
    cpu: f64,
    /// The same while [`AGENTS`] ask it for health.
    cpu_with_agents: f64,
    /// Resident, in bytes.
    memory: u64,
    false_downs: usize,
    out: Times,
    all_out: Duration,
    all_back: Duration,
}

fn measure(links: u16, runs: usize) -> Result<Measured> {
    let lanes = u16::from(LANES);
    ensure!(
        links >= 2 * lanes && links.is_multiple_of(lanes),
        "links come in multiples of {lanes}, at least {}",
        2 * lanes
    );
    let world = World::create()?;
    let place = |name: &str| -> Result<Node> { Ok(world.cluster(name)?.gateway()?.clone()) };
    let (ours, crowds, single) = (place("ours")?, place("crowd")?, place("single")?);
    let address = |node: &Node| node.addresses().v4.into();
    let us = Member::new(0, LANES, PORT, address(&ours))?;
    let lone = Member::new(1, LANES, PORT, address(&single))?;
    let members = links / lanes;
    let crowd = (2..=members)
        .map(|number| Member::new(number, LANES, PORT + number * lanes, address(&crowds)))
        .collect::<Result<Vec<_>>>()?;

    let crowd_process = Host::start(&crowds, &crowd.iter().map(|member| member.orders([&us])).collect::<Vec<_>>())?;
    let lone_orders = [lone.orders([&us])];
    let mut lone_process = Host::start(&single, &lone_orders)?;
    let begun = clock::now();
    let gateway = Host::start(&ours, &[us.orders(crowd.iter().chain([&lone]))])?;
    let joined = gateway.wait_for("PathUp", links.into(), 0)?.since(begun);

    // Paths come up in any order and the first second is full of handshakes.
    std::thread::sleep(Duration::from_secs(2));
    let (mark, cpu_before, started) = (gateway.events()?.len(), gateway.cpu()?, Instant::now());
    std::thread::sleep(QUIET);
    let cpu = (gateway.cpu()? - cpu_before).as_secs_f64() / started.elapsed().as_secs_f64();
    let false_downs = gateway.events()?.iter().skip(mark).filter(|(_, event)| event.contains("PathDown")).count();
    let memory = gateway.memory()?;

    let health = SocketAddr::new(address(&ours), HEALTH_PORT);
    let (cpu_before, started) = (gateway.cpu()?, Instant::now());
    let asked = agents::ask(&single, health, &member::MASTER, AGENTS, QUIET)?;
    let cpu_with_agents = (gateway.cpu()? - cpu_before).as_secs_f64() / started.elapsed().as_secs_f64();
    ensure!(
        asked.answers >= asked.questions * 9 / 10,
        "{} of {} questions were answered",
        asked.answers,
        asked.questions
    );

    let mut out = Vec::new();
    for _ in 0..runs {
        let mark = gateway.events()?.len();
        let killed = clock::now();
        lone_process.process.kill()?;
        out.push(gateway.wait_for("PathDown", lanes.into(), mark)?.since(killed));
        lone_process = Host::start(&single, &lone_orders)?;
        gateway.wait_for("PathUp", lanes.into(), mark)?;
    }

    let (mark, frozen) = (gateway.events()?.len(), clock::now());
    crowd_process.process.freeze()?;
    let others = usize::from(links - lanes);
    let all_out = gateway.wait_for("PathDown", others, mark)?.since(frozen);
    let thawed = clock::now();
    crowd_process.process.thaw()?;
    let all_back = gateway.wait_for("PathUp", others, mark)?.since(thawed);
    for host in [&gateway, &crowd_process, &lone_process] {
        // Hundreds of devices go with it, which takes Linux longer than a kill may.
        let _ = host.process.kill();
        host.process.wait_for_exit(PATIENCE)?;
    }
    Ok(Measured { joined, cpu, cpu_with_agents, memory, false_downs, out: Times::of(out), all_out, all_back })
}

/// A process full of gateways.
struct Host {
    process: Process,
    /// As this program sees it.
    folder: PathBuf,
}

impl Host {
    fn start(node: &Node, orders: &[Orders]) -> Result<Self> {
        let folder = node.run_folder().join("many");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("orders"), serde_json::to_vec(orders)?)?;
        let mut command = Command::new(std::env::current_exe()?);
        // The node sees its run folder as /run.
        command.args(["--host", "/run/many"]);
        let process = node.start("many", command)?;
        process.wait_for_line(host::READY, PATIENCE)?;
        Ok(Self { process, folder })
    }

    /// Every event so far, with its time.
    fn events(&self) -> Result<Vec<(api::time::Instant, String)>> {
        let text = std::fs::read_to_string(self.folder.join("events"))?;
        let event = |line: &str| {
            let (time, event) = line.split_once(' ')?;
            Some((api::time::Instant::from_micros(time.parse().ok()?), event.to_owned()))
        };
        Ok(text.lines().filter_map(event).collect())
    }

    /// Waits for so many events of a name after the first `mark` of all; the time of the last.
    fn wait_for(&self, name: &str, count: usize, mark: usize) -> Result<api::time::Instant> {
        let started = Instant::now();
        loop {
            let events = self.events()?;
            let mut named = events.iter().skip(mark).filter(|(_, event)| event.contains(name));
            if let Some((at, _)) = count.checked_sub(1).and_then(|last| named.nth(last)) {
                return Ok(*at);
            }
            let seen = events.iter().skip(mark).filter(|(_, event)| event.contains(name)).count();
            ensure!(started.elapsed() < PATIENCE, "{seen} of {count} {name} after {PATIENCE:?}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Processor time used so far (proc(5): utime and stime in ticks).
    fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(self.proc().join("stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("stat without a name")?;
        let ticks: Vec<u64> = fields.split(' ').filter_map(|field| field.parse().ok()).collect();
        // After the name and the state: ppid is the first number, utime the eleventh, stime the twelfth.
        let used = ticks.get(10).zip(ticks.get(11)).map(|(user, system)| user + system).context("stat is short")?;
        // USER_HZ is 100 on every Linux that Rust has a target for.
        Ok(Duration::from_millis(used * 10))
    }

    /// Resident memory in bytes.
    fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(self.proc().join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("status without VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes << 10)
    }

    fn proc(&self) -> PathBuf {
        Path::new("/proc").join(self.process.number().to_string())
    }
}
