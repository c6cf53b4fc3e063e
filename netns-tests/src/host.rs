//! A machine of the world by its name: where programs run, settings are made and links end.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nlink::netlink::{Connection, Nftables, Route};

use crate::impair::Obstacles;
use crate::namespace::Namespace;
use crate::process::Process;

/// Where the sandbox's memory file system keeps the folders of all hosts.
const HOSTS_FOLDER: &str = "/run/hosts";
/// One folder that every host of the world sees under this very path.
pub const SHARED_FOLDER: &str = "/run/shared";

/// A node, a pod, a router or the internet. Clones mean the same host.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    name: String,
    namespace: Namespace,
    run: PathBuf,
    processes: Mutex<Vec<Process>>,
    obstacles: Mutex<Obstacles>,
}

impl Host {
    pub(crate) fn create(name: &str) -> Result<Self> {
        let run = Path::new(HOSTS_FOLDER).join(name);
        // The same depth inside and outside, so that one path serves everybody.
        let shared = run.join("shared");
        fs::create_dir_all(&shared).with_context(|| format!("making {}", shared.display()))?;
        fs::create_dir_all(run.join("log"))?;
        fs::create_dir_all(SHARED_FOLDER)?;
        nix::mount::mount(Some(SHARED_FOLDER), &shared, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)
            .context("sharing a folder with a host")?;
        let namespace = Namespace::create(name, &run)?;
        let host = Self(Arc::new(Inner {
            name: name.into(),
            namespace,
            run,
            processes: Mutex::default(),
            obstacles: Mutex::default(),
        }));
        // Duplicate address detection keeps an address unusable for a second; here nobody else can have it.
        host.set("net/ipv6/conf/default/accept_dad", "0")?;
        host.set("net/ipv6/conf/all/accept_dad", "0")?;
        // Nobody sends router advertisements; asking for them only fills captures.
        host.set("net/ipv6/conf/default/router_solicitations", "0")?;
        host.links("starting lo", async |links| links.set_link_up("lo").await)?;
        Ok(host)
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// Where this host's `/run` is for the test itself: `/run/tombolo` of the host is `run().join("tombolo")` here.
    pub fn run_folder(&self) -> &Path {
        &self.0.run
    }

    /// The command that brings a person into this host.
    pub fn step_in(&self) -> String {
        self.0.namespace.step_in()
    }

    /// Runs `work` on a thread whose sockets are this host's.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.0.namespace.run(work)
    }

    /// Sets a kernel setting by its path under /proc/sys, such as `net/ipv4/ip_forward`.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{setting}");
        self.run(|| fs::write(&path, value))?.with_context(|| format!("{}: setting {setting} to {value}", self.name()))
    }

    /// Reads a kernel setting, without the line's end.
    pub fn setting(&self, setting: &str) -> Result<String> {
        let path = format!("/proc/sys/{setting}");
        let value = self.run(|| fs::read_to_string(&path))?;
        Ok(value.with_context(|| format!("{}: reading {setting}", self.name()))?.trim().to_owned())
    }

    /// Does work with this host's links, addresses, routes and rules.
    pub fn links<T: Send>(
        &self,
        purpose: &str,
        work: impl AsyncFnOnce(&Connection<Route>) -> nlink::Result<T> + Send,
    ) -> Result<T> {
        self.netlink(purpose, async || work(&Connection::<Route>::new()?).await)
    }

    /// Does work with this host's nftables.
    pub fn rules<T: Send>(
        &self,
        purpose: &str,
        work: impl AsyncFnOnce(&Connection<Nftables>) -> nlink::Result<T> + Send,
    ) -> Result<T> {
        self.netlink(purpose, async || work(&Connection::<Nftables>::new()?).await)
    }

    pub(crate) fn netlink<T: Send>(
        &self,
        purpose: &str,
        work: impl AsyncFnOnce() -> nlink::Result<T> + Send,
    ) -> Result<T> {
        let result = self.run(|| -> Result<T> {
            // The netlink socket is made on this thread, so it belongs to this namespace.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(work())?)
        });
        result.and_then(|inner| inner).with_context(|| format!("{}: {purpose}", self.name()))
    }

    /// Starts a program here. `label` names it in logs and evidence.
    ///
    /// The program's output goes to `/run/log/<label>.log` of this host and can be waited for.
    pub fn start(&self, label: &str, command: Command) -> Result<Process> {
        let process = Process::start(self, label, command)?;
        let mut processes = self.processes();
        // A process that was started again under its label keeps one entry.
        processes.retain(|known| known.label() != label || known.is_running());
        processes.push(process.clone());
        Ok(process)
    }

    /// Starts this package's own program with `arguments`: a traffic tool, or a part of Tombolo.
    pub fn start_tool(&self, label: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = Command::new(own_program()?);
        command.args(arguments);
        self.start(label, command)
    }

    /// Starts `tombolo` with `arguments`.
    pub fn start_tombolo(&self, label: &str, arguments: &[&str]) -> Result<Process> {
        self.start_tool(label, &[&["tombolo"], arguments].concat())
    }

    /// Runs a program to its end and returns what it wrote; kills it when it takes longer than `limit`.
    pub fn output_of(&self, mut command: Command, limit: Duration) -> Result<Output> {
        let what = format!("{}: running {}", self.name(), command.get_program().to_string_lossy());
        self.namespace().enter(&mut command)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| what.clone())?;
        let number = Pid::from_raw(i32::try_from(child.id())?);
        let (sender, ended) = channel();
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        match ended.recv_timeout(limit) {
            Ok(output) => output.with_context(|| what),
            Err(_) => {
                // It may have ended this very moment, which is as good.
                let _ = kill(number, Signal::SIGKILL);
                bail!("{what} took longer than {limit:?}")
            }
        }
    }

    /// Every process started here that was not replaced under its label.
    pub fn processes(&self) -> MutexGuard<'_, Vec<Process>> {
        self.0.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn obstacles(&self) -> MutexGuard<'_, Obstacles> {
        self.0.obstacles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something accepts TCP connections at `address`, seen from here.
    pub fn accepts(&self, address: SocketAddr) -> Result<bool> {
        let limit = Duration::from_millis(500);
        self.run(|| std::net::TcpStream::connect_timeout(&address, limit).is_ok())
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Host").field(&self.0.name).finish()
    }
}

/// Every host of a world, in the order they were made. Clones mean the same list.
#[derive(Clone, Debug, Default)]
pub struct Hosts(Arc<Mutex<Vec<Host>>>);

impl Hosts {
    /// Makes a host; its name must be new in the world.
    pub(crate) fn add(&self, name: &str) -> Result<Host> {
        ensure!(self.all().iter().all(|host| host.name() != name), "the world has a host {name} already");
        let host = Host::create(name)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(host.clone());
        Ok(host)
    }

    pub fn all(&self) -> Vec<Host> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The path of `tombolo-world`, which Cargo builds beside the tests.
///
/// Errors: it was not built; `cargo build -p netns-tests` does.
pub fn own_program() -> Result<PathBuf> {
    const NAME: &str = "tombolo-world";
    let this = std::env::current_exe().context("finding this program's path")?;
    if this.file_name().is_some_and(|name| name == NAME) {
        return Ok(this);
    }
    // Tests are in target/<profile>/deps, programs one folder above.
    let folders = this.ancestors().skip(1).take(2);
    folders
        .map(|folder| folder.join(NAME))
        .find(|path| path.is_file())
        .with_context(|| format!("{NAME} is not built beside {}; run `cargo build -p netns-tests`", this.display()))
}
