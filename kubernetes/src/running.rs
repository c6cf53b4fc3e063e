//! [`Running`]: a control plane on this host, on free ports, ended when it is dropped.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control_plane::{Addresses, ControlPlane, Part, SERVICE_RANGES};
use crate::programs::Programs;

/// An API server is ready after 2.5 s on a quiet machine; one that also builds gets this much.
const START_LIMIT: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often free ports are looked for: another process may take one between the look and the use.
const TRIES: usize = 3;

/// A control plane that runs.
pub struct Running {
    plane: ControlPlane,
    parts: Vec<(Part, Child)>,
}

impl Running {
    /// Starts the parts in `folder` and waits until the API server is ready.
    pub async fn start(programs: &Programs, folder: &Path, parts: &[Part]) -> Result<Self> {
        let mut last = None;
        for attempt in 0..TRIES {
            let plane =
                ControlPlane::new(programs, &folder.join(format!("try-{attempt}")), free_addresses()?, SERVICE_RANGES)?;
            let mut running = Self { plane, parts: Vec::new() };
            match running.bring_up(parts).await {
                Ok(()) => return Ok(running),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("nothing was tried")?)
    }

    async fn bring_up(&mut self, parts: &[Part]) -> Result<()> {
        for part in Part::ALL.into_iter().filter(|part| parts.contains(part)) {
            self.start_part(part)?;
            if part == Part::ApiServer {
                self.wait_until_ready().await?;
            }
        }
        Ok(())
    }

    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Starts a part that was not started, or was killed.
    pub fn start_part(&mut self, part: Part) -> Result<()> {
        let log = self.plane.folder().join(format!("{}.log", part.name()));
        let log = File::options().create(true).append(true).open(&log)?;
        let mut command = self.plane.command(part);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        die_with_the_test(&mut command);
        let child = command.spawn().with_context(|| format!("starting {}", part.name()))?;
        self.parts.retain(|(known, _)| *known != part);
        self.parts.push((part, child));
        Ok(())
    }

    /// Ends a part at once, as a power cut would.
    pub fn kill_part(&mut self, part: Part) -> Result<()> {
        let (_, child) = self.parts.iter_mut().find(|(known, _)| *known == part).context("it was not started")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Stops a part where it stands (SIGSTOP), or lets it go on (SIGCONT).
    pub fn signal_part(&self, part: Part, signal: Signal) -> Result<()> {
        let (_, child) = self.parts.iter().find(|(known, _)| *known == part).context("it was not started")?;
        kill(Pid::from_raw(i32::try_from(child.id())?), signal).context("sending a signal")
    }

    /// Waits until the API server says that it is ready.
    pub async fn wait_until_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        let client = self.client().await?;
        loop {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            match client.request_text(request).await {
                Ok(text) if text == "ok" => return Ok(()),
                answer => {
                    let ended = self
                        .parts
                        .iter_mut()
                        .find_map(|(part, child)| child.try_wait().ok().flatten().map(|status| (part.name(), status)));
                    if let Some((part, status)) = ended {
                        bail!("{part} ended with {status}; {}", self.last_words(part));
                    }
                    if started.elapsed() > START_LIMIT {
                        bail!("the API server is not ready after {START_LIMIT:?}: {answer:?}");
                    }
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A client that may do everything.
    pub async fn client(&self) -> Result<Client> {
        client_of(&self.plane.admin_kubeconfig()).await
    }

    fn last_words(&self, part: &str) -> String {
        let text = std::fs::read_to_string(self.plane.folder().join(format!("{part}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for (_, child) in self.parts.iter_mut().rev() {
            // One that has ended already needs no end.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A client by a kubeconfig.
pub async fn client_of(kubeconfig: &Path) -> Result<Client> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// A test that is killed leaves no API server behind.
fn die_with_the_test(command: &mut std::process::Command) {
    // SAFETY: prctl is one system call, allowed between fork and exec (signal-safety(7) has no objection to it), and
    // nothing is allocated.
    #[expect(unsafe_code, reason = "what runs between fork and exec is not checked by the compiler")]
    unsafe {
        command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
    }
}

fn free_addresses() -> Result<Addresses> {
    // All are held until all are known, so that they differ.
    let held: Vec<TcpListener> =
        (0..4).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<std::io::Result<_>>()?;
    let ports: Vec<u16> = held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<Result<_>>()?;
    let [api_server, etcd, etcd_peer, controller_manager] = ports[..] else { bail!("four ports") };
    Ok(Addresses { host: IpAddr::V4(Ipv4Addr::LOCALHOST), api_server, etcd, etcd_peer, controller_manager })
}
