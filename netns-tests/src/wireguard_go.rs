//! The peer we did not write: upstream wireguard-go, built from the Go module proxy, run in a node, and configured
//! over its own socket (the cross-platform userspace interface, wireguard.com/xplatform).

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use kubernetes::find_go;
use nix::fcntl::{Flock, FlockArg};

use crate::addresses::Dual;
use crate::host::Host;
use crate::link::Port;
use crate::process::Process;

/// Pinned, so that a failing test means that we changed.
const MODULE: &str = "golang.zx2c4.com/wireguard@v0.0.0-20260522210424-ecfc5a8d5446";
/// What tells the second run where the program is: inside the sandbox there is no module proxy.
pub const PROGRAM_VARIABLE: &str = "TOMBOLO_WORLD_WIREGUARD_GO";
/// It listens on its socket in a few milliseconds; a busy machine gets more.
const START_LIMIT: Duration = Duration::from_secs(20);
/// A silent socket is an error, not something to wait for.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Builds wireguard-go once into the target folder and returns its path.
///
/// Call it outside the sandbox and give the path to [`crate::world_test_with`] as [`PROGRAM_VARIABLE`]:
///
/// ```no_run
/// # use netns_tests::{wireguard_go, world_test_with};
/// let program = wireguard_go::build().expect("wireguard-go");
/// world_test_with(&[(wireguard_go::PROGRAM_VARIABLE, program.as_os_str())], |world| {
///     let node = world.cluster("amber")?.gateway()?.clone();
///     let wireguard = wireguard_go::WireguardGo::start(&node, "wg0")?;
///     Ok(())
/// });
/// ```
///
/// Errors: Go is missing, or the module proxy cannot be reached.
pub fn build() -> Result<PathBuf> {
    // Inside, the variable has it already.
    if let Some(program) = std::env::var_os(PROGRAM_VARIABLE) {
        return Ok(program.into());
    }
    let folder = target_folder()?.join("wireguard-go");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let program = folder.join("wireguard");
    let mark = folder.join("built-from");
    // Tests are parallel, and so may be several runs of them.
    let lock = File::create(folder.join("lock"))?;
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).context("locking the build")?;
    let is_built = program.is_file() && fs::read_to_string(&mark).is_ok_and(|built| built == MODULE);
    if !is_built {
        let go = find_go().context("Go is missing: `make test` needs it to build wireguard-go; https://go.dev/dl")?;
        let output = Command::new(go)
            .args(["install", MODULE])
            .env("GOBIN", &folder)
            // No C compiler is needed for it.
            .env("CGO_ENABLED", "0")
            .current_dir(&folder)
            .output()
            .context("running go")?;
        ensure!(
            output.status.success(),
            "go install {MODULE} failed; is the Go module proxy reachable?\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        fs::write(&mark, MODULE)?;
    }
    drop(lock);
    Ok(program)
}

/// The folder two above the tests' programs: target/<profile>/deps/<test>.
fn target_folder() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    target.or_else(|| program.parent()).map(Path::to_owned).context("this program has no folder")
}

/// A running wireguard-go in a host, with its one interface.
#[derive(Clone, Debug)]
pub struct WireguardGo {
    process: Process,
    port: Port,
    socket: PathBuf,
}

/// A peer as wireguard-go shall know it. Keys are the 32 bytes of WireGuard.
#[derive(Clone, Debug)]
pub struct WireguardPeer {
    pub public_key: [u8; 32],
    pub endpoint: Option<SocketAddr>,
    pub allowed: Vec<IpNet>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive: u16,
}

impl WireguardGo {
    /// Starts it in `host` with an interface of this name, which is then up and has no addresses.
    pub fn start(host: &Host, interface: &str) -> Result<Self> {
        let program = build()?;
        fs::create_dir_all(host.run_folder().join("wireguard"))?;
        let mut command = Command::new(program);
        command.args(["-f", interface]).env("LOG_LEVEL", "verbose");
        let process = host.start(&format!("wireguard-go-{interface}"), command)?;
        process.wait_for_line("UAPI listener started", START_LIMIT)?;
        let socket = host.run_folder().join("wireguard").join(format!("{interface}.sock"));
        let port = Port::new(host, interface);
        port.plug_in()?;
        Ok(Self { process, port, socket })
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its interface.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// Gives it its private key and its UDP port.
    pub fn configure(&self, private_key: &[u8; 32], listen_port: u16) -> Result<()> {
        self.set(&format!("private_key={}\nlisten_port={listen_port}\n", hex(private_key)))
    }

    /// Adds a peer or changes it, and sends the peer's ranges into the tunnel.
    pub fn set_peer(&self, peer: &WireguardPeer) -> Result<()> {
        let mut request = format!("public_key={}\nreplace_allowed_ips=true\n", hex(&peer.public_key));
        if let Some(endpoint) = peer.endpoint {
            request.push_str(&format!("endpoint={endpoint}\n"));
        }
        request.push_str(&format!("persistent_keepalive_interval={}\n", peer.keepalive));
        for range in &peer.allowed {
            request.push_str(&format!("allowed_ip={range}\n"));
        }
        self.set(&request)?;
        peer.allowed.iter().try_for_each(|&range| self.port.set_route(range))
    }

    /// Gives its interface an address of its own in each family.
    pub fn add_addresses(&self, addresses: crate::addresses::Addresses) -> Result<()> {
        let own = Dual { v4: addresses.v4.into(), v6: addresses.v6.into() };
        self.port.add_addresses(addresses, own)
    }

    /// Everything it tells about itself and its peers, by name: `rx_bytes`, `last_handshake_time_sec`, …
    pub fn status(&self) -> Result<Vec<(String, String)>> {
        self.ask("get=1\n\n")
    }

    /// Waits until it has completed a handshake with any peer.
    pub fn wait_for_handshake(&self, limit: Duration) -> Result<()> {
        /// Its socket announces nothing.
        const ASK_EVERY: Duration = Duration::from_millis(20);
        let deadline = Instant::now() + limit;
        loop {
            let shaken = |(name, value): &(String, String)| name == "last_handshake_time_sec" && value != "0";
            if self.status()?.iter().any(shaken) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "wireguard-go has no handshake after {limit:?}");
            std::thread::sleep(ASK_EVERY);
        }
    }

    fn set(&self, settings: &str) -> Result<()> {
        self.ask(&format!("set=1\n{settings}\n")).map(|_| ())
    }

    fn ask(&self, request: &str) -> Result<Vec<(String, String)>> {
        let mut stream =
            UnixStream::connect(&self.socket).with_context(|| format!("connecting to {}", self.socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        for line in BufReader::new(stream).lines() {
            let line = line.context("reading wireguard-go's answer")?;
            match line.split_once('=') {
                Some(("errno", "0")) => return Ok(answer),
                Some(("errno", number)) => bail!("wireguard-go refused with errno {number}: {}", without_keys(request)),
                Some((name, value)) => answer.push((name.into(), value.into())),
                None => {}
            }
        }
        bail!("wireguard-go closed its socket without an answer")
    }
}

/// The request as an error may show it.
fn without_keys(request: &str) -> String {
    request.lines().filter(|line| !line.starts_with("private_key=")).collect::<Vec<_>>().join(", ")
}

fn hex(key: &[u8; 32]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
