//! The world: clusters joined by an internet, alone in a sandbox, gone with the process.

use std::any::type_name;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::addresses::MAX_CLUSTERS;
use crate::cluster::{Cluster, ClusterPlan};
use crate::evidence;
use crate::host::{Host, Hosts};
use crate::sandbox::{is_inside, sandboxed};

/// A test that takes longer hangs: the slowest of ours waits 30 s, and four may share two cores with a build.
const LIMIT: Duration = Duration::from_secs(120);
/// What the inner run says last. Without it a test that was never found would look like one that passed.
const FINISHED: &str = "[world] the test's body ran to its end";
/// The exit status of a run that reached its limit, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// An internet and the clusters on it.
#[derive(Debug)]
pub struct World {
    hosts: Hosts,
    internet: Host,
    clusters: Mutex<Vec<Cluster>>,
}

impl World {
    /// A world without clusters. Errors outside a sandbox: see [`world_test`] and [`inside`].
    pub fn create() -> Result<Self> {
        ensure!(is_inside(), "a world is made in a sandbox only: use world_test, or world::inside in a program");
        let hosts = Hosts::default();
        let internet = hosts.add("internet")?;
        internet.set("net/ipv4/ip_forward", "1")?;
        internet.set("net/ipv6/conf/all/forwarding", "1")?;
        Ok(Self { hosts, internet, clusters: Mutex::default() })
    }

    /// A cluster with a gateway node and a worker node.
    pub fn cluster(&self, name: &str) -> Result<Cluster> {
        self.cluster_with(name, ClusterPlan::default())
    }

    /// A cluster made as planned. Clusters are numbered from 1 in the order they are made.
    pub fn cluster_with(&self, name: &str, plan: ClusterPlan) -> Result<Cluster> {
        let mut clusters = self.clusters_mut();
        let number = u8::try_from(clusters.len() + 1).ok().filter(|&number| number <= MAX_CLUSTERS);
        let number = number.with_context(|| format!("a world has at most {MAX_CLUSTERS} clusters"))?;
        let cluster = Cluster::create(name, number, plan, &self.hosts, &self.internet)
            .with_context(|| format!("making cluster {name}"))?;
        clusters.push(cluster.clone());
        Ok(cluster)
    }

    /// Every cluster, in order of number.
    pub fn clusters(&self) -> Vec<Cluster> {
        self.clusters_mut().clone()
    }

    /// The router that joins the clusters. It knows their LANs and nothing of their pods: a packet for a pod that
    /// gets here left a cluster in clear text.
    pub fn internet(&self) -> &Host {
        &self.internet
    }

    /// Every host of the world.
    pub fn hosts(&self) -> Vec<Host> {
        self.hosts.all()
    }

    /// A folder that the test and every host see under the same path.
    pub fn shared_folder(&self) -> &'static std::path::Path {
        std::path::Path::new(crate::host::SHARED_FOLDER)
    }

    fn clusters_mut(&self) -> MutexGuard<'_, Vec<Cluster>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the body of a test in a world of its own.
///
/// Call it with a closure, directly in the test function, because the closure's name tells which test to run again
/// inside the sandbox:
///
/// ```no_run
/// # use netns_tests::world_test;
/// #[test]
/// fn a_pod_reaches_its_neighbour() {
///     world_test(|world| {
///         let worker = world.cluster("amber")?.worker()?.clone();
///         let (one, other) = (worker.pod("one")?, worker.pod("other")?);
///         netns_tests::traffic::icmp::ping(&one, other.addresses().v6.into())?;
///         Ok(())
///     });
/// }
/// ```
///
/// When the body fails, panics or takes longer than two minutes, the evidence is printed and the test fails.
pub fn world_test<F>(body: F)
where
    F: FnOnce(&World) -> Result<()>,
{
    world_test_with(&[], body);
}

/// As [`world_test`], with environment variables for the second run that must be found out outside the sandbox, where
/// there is a network: see [`crate::wireguard_go::build`].
pub fn world_test_with<F>(environment: &[(&str, &std::ffi::OsStr)], body: F)
where
    F: FnOnce(&World) -> Result<()>,
{
    if is_inside() {
        run_body(body);
        return;
    }
    let name = test_name::<F>();
    let mut command = Command::new("/proc/self/exe");
    command.args(["--exact", &name, "--nocapture", "--test-threads=1"]).envs(environment.iter().copied());
    let (outcome, finished) = run_sandboxed(command, LIMIT + Duration::from_secs(20)).expect("the sandbox starts");
    assert_eq!(outcome, 0, "{name} failed inside its world: see above");
    assert!(finished, "{name} was not run inside the sandbox: is that the test's whole path?");
}

/// Runs `work` of a program, not a test, in a sandbox: starts this program a second time with the same arguments.
///
/// Outside, returns the second run's exit status; its output is the program's own.
pub fn inside(work: impl FnOnce() -> ExitCode) -> Result<ExitCode> {
    if is_inside() {
        return Ok(work());
    }
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1));
    sandboxed(&mut command);
    let status = command.status().context("starting the sandbox; `make doctor` says what this machine allows")?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

/// Starts `command` in a sandbox and passes on what it prints. Returns its exit status, and whether [`FINISHED`] was
/// among its lines.
fn run_sandboxed(mut command: Command, limit: Duration) -> Result<(i32, bool)> {
    let (output, input) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
    sandboxed(&mut command);
    let mut child = command.spawn().context("`make doctor` says what this machine allows")?;
    drop(command);
    let (line_sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if line_sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let deadline = std::time::Instant::now() + limit;
    let mut finished = false;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now())) {
            Ok(line) if line == FINISHED => finished = true,
            Ok(line) if is_harness_noise(&line) => {}
            // On this thread, so that the harness shows it with this test and only when it fails.
            Ok(line) => println!("{line}"),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                println!("the sandbox did not end within {limit:?}, its own limit included; it is killed");
                child.kill()?;
                break;
            }
        }
    }
    let status = child.wait()?;
    Ok((status.code().unwrap_or(TIMED_OUT.into()), finished))
}

/// Lines of the inner test harness, which would only repeat what the outer one says.
fn is_harness_noise(line: &str) -> bool {
    line.is_empty()
        || line == "running 1 test"
        || line.starts_with("test result: ")
        || (line.starts_with("test ") && line.ends_with(" ... ok"))
}

fn run_body(body: impl FnOnce(&World) -> Result<()>) {
    let world = World::create().expect("an empty world");
    let hosts = world.hosts.clone();
    let (done, watched) = channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if watched.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            eprintln!("the test did not end within {LIMIT:?}");
            evidence::print(&hosts.all());
            std::process::exit(TIMED_OUT.into());
        }
    });
    let outcome = catch_unwind(AssertUnwindSafe(|| body(&world)));
    drop(done);
    // It ends at once: its channel is closed.
    let _ = watchdog.join();
    match outcome {
        Ok(Ok(())) => println!("\n{FINISHED}"),
        Ok(Err(error)) => {
            evidence::print(&world.hosts());
            panic!("{error:?}");
        }
        Err(panic) => {
            evidence::print(&world.hosts());
            resume_unwind(panic);
        }
    }
}

/// The path of the test function whose closure `F` is, without its crate: what the test harness calls it.
fn test_name<F>() -> String {
    let path = type_name::<F>();
    let function = path.strip_suffix("::{{closure}}").filter(|function| !function.contains('{'));
    let name = function.and_then(|function| function.split_once("::")).map(|(_, name)| name.to_owned());
    name.unwrap_or_else(|| panic!("world_test takes a closure written in the test function itself, not {path}"))
}
