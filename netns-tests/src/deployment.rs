//! Tombolo in a cluster of the world: a folder of manifests, and every part a child process on its node.
//!
//! On Kubernetes the place of the folder is an API server's, and agents enrol by ServiceAccount tokens.
//!
//! The gateway node runs controller, gateway, node agent and DNS; every other node runs the agent, and what the plan of
//! its cluster puts there. What is written here is what `docs/plain-hosts.md` tells an operator to write.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
pub use cli::ask::Part;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::control_plane::ApiServer;
use crate::host::{SHARED_FOLDER, own_program};
use crate::manifest;
use crate::node::Node;
use crate::process::Process;
use crate::terminal::Terminal;

/// Where the controller listens on the gateway node.
const CONTROLLER_PORT: u16 = 7443;
/// The first start of all parts on a busy two-core machine takes a few seconds.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How often a state that nothing announces is asked for.
const PAUSE: Duration = Duration::from_millis(10);

/// Tombolo in one cluster. Clones mean the same deployment.
#[derive(Clone)]
pub struct Deployment(Arc<Inner>);

struct Inner {
    cluster: Cluster,
    folder: PathBuf,
    /// Where its objects are, if not in the folder of manifests.
    api_server: Option<ApiServer>,
    /// Controllers, each on a node of its own.
    replicas: usize,
    /// By part and node: `gateway` of `gateway2` is `gateway2/gateway`.
    processes: Mutex<BTreeMap<String, Process>>,
}

impl Deployment {
    /// Writes the cluster's own manifest and starts nothing.
    pub fn prepare(cluster: &Cluster) -> Result<Self> {
        Self::prepare_with(cluster, &manifest::LocalCluster::of(cluster))
    }

    /// The same with a LocalCluster of the test's own making.
    pub fn prepare_with(cluster: &Cluster, local: &manifest::LocalCluster) -> Result<Self> {
        Self::prepare_in(cluster, local, None, 1)
    }

    /// The same with an API server, which knows the kinds of Tombolo, in the place of the folder, and with controllers on
    /// the cluster's first nodes.
    pub fn prepare_on(cluster: &Cluster, api_server: &ApiServer, replicas: usize) -> Result<Self> {
        cluster.nodes().iter().try_for_each(|node| api_server.register_node(node))?;
        Self::prepare_in(cluster, &manifest::LocalCluster::of(cluster), Some(api_server.clone()), replicas)
    }

    fn prepare_in(
        cluster: &Cluster,
        local: &manifest::LocalCluster,
        api_server: Option<ApiServer>,
        replicas: usize,
    ) -> Result<Self> {
        let folder = Path::new(SHARED_FOLDER).join(cluster.name());
        fs::create_dir_all(folder.join("manifests")).context("making the folder of manifests")?;
        let inner = Inner { cluster: cluster.clone(), folder, api_server, replicas, processes: Mutex::default() };
        let deployment = Self(Arc::new(inner));
        deployment.apply("local.yaml", &local.to_string())?;
        Ok(deployment)
    }

    /// Writes the cluster's manifest, starts every part on every node, and waits until each says it is ready.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let deployment = Self::prepare(cluster)?;
        deployment.start_everything()?;
        Ok(deployment)
    }

    pub fn cluster(&self) -> &Cluster {
        &self.0.cluster
    }

    /// The folder of manifests; tests may write into it as an operator would.
    pub fn manifests(&self) -> PathBuf {
        self.0.folder.join("manifests")
    }

    /// The state folder of one part on one node.
    pub fn state(&self, node: &Node, part: Part) -> PathBuf {
        self.host_state(node).join(part.name())
    }

    /// What every part on a node is given as its state folder.
    fn host_state(&self, node: &Node) -> PathBuf {
        self.0.folder.join(node.node_name())
    }

    /// Every part on every node; waits until all are ready.
    pub fn start_everything(&self) -> Result<()> {
        self.start_parts()?;
        self.wait_until_ready(START_LIMIT)
    }

    /// Every part on every node, in the order a person would start them; waits for none.
    pub fn start_parts(&self) -> Result<()> {
        for node in self.cluster().nodes() {
            for part in Part::ALL {
                if self.runs_on(part, node) {
                    self.start_part(part, node)?;
                }
            }
        }
        Ok(())
    }

    /// [`Self::start_everything`] of every cluster at once. They know nothing of each other yet, so their order cannot
    /// matter.
    pub fn start_all(deployments: &[&Self]) -> Result<()> {
        std::thread::scope(|scope| {
            let starts: Vec<_> = deployments.iter().map(|one| scope.spawn(|| one.start_everything())).collect();
            starts.into_iter().try_for_each(|start| start.join().map_err(|_| anyhow!("starting a cluster panicked"))?)
        })
    }

    /// Whether the deployment puts this part on this node.
    pub fn runs_on(&self, part: Part, node: &Node) -> bool {
        let is_among = |nodes: &[Node]| nodes.iter().any(|one| one.node_name() == node.node_name());
        match part {
            Part::Controller => is_among(self.controllers()),
            Part::Dns => is_among(self.cluster().name_servers()),
            Part::Gateway => is_among(self.cluster().gateways()),
            Part::Node => true,
        }
    }

    /// The nodes that have a controller.
    fn controllers(&self) -> &[Node] {
        let nodes = self.cluster().nodes();
        &nodes[..self.0.replicas.min(nodes.len())]
    }

    /// Starts one part; one that ran before ended already.
    pub fn start_part(&self, part: Part, node: &Node) -> Result<Process> {
        let arguments = self.arguments(part, node)?;
        let borrowed: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let process = node.start_tombolo(part.name(), &borrowed)?;
        self.processes().insert(format!("{}/{}", node.node_name(), part.name()), process.clone());
        Ok(process)
    }

    fn arguments(&self, part: Part, node: &Node) -> Result<Vec<String>> {
        let first = self.cluster().nodes().first().context("a cluster without nodes")?;
        let state = self.host_state(node).display().to_string();
        let mut arguments = vec![part.name().to_owned(), "--state".into(), state];
        let controller_state = self.state(first, Part::Controller);
        if part == Part::Controller {
            let (flag, place) = match &self.0.api_server {
                Some(server) => ("--kubeconfig", server.admin_kubeconfig()),
                None => ("--manifests", self.manifests()),
            };
            arguments.extend([flag.into(), place.display().to_string()]);
            arguments.extend(["--listen".into(), format!("[::]:{CONTROLLER_PORT}")]);
            return Ok(arguments);
        }
        for controller in self.controllers() {
            for address in controller.addresses().with_port(CONTROLLER_PORT) {
                arguments.extend(["--controller".into(), address.to_string()]);
            }
        }
        let mut enrolment = controller_state.join("agents.key");
        if let Some(server) = &self.0.api_server {
            enrolment = self.0.folder.join("enrolment");
            let token = self.0.folder.join(format!("{}-{}.token", part.name(), node.node_name()));
            if !token.exists() {
                server.write_enrolment(&enrolment)?;
                server.write_token(part, node, &token)?;
            }
            arguments.extend(["--service-account-token".into(), token.display().to_string()]);
        }
        arguments.extend(["--enrolment".into(), enrolment.display().to_string()]);
        arguments.extend(["--name".into(), node.node_name().to_owned()]);
        if part != Part::Dns {
            for address in node.addresses().both() {
                arguments.extend(["--address".into(), address.to_string()]);
            }
        }
        // A Kubernetes Node says so itself.
        if part == Part::Node && self.0.api_server.is_none() {
            for prefix in node.pod_ranges().both() {
                arguments.extend(["--pod-prefix".into(), prefix.to_string()]);
            }
        }
        Ok(arguments)
    }

    /// The process of a part. Errors when it was never started.
    pub fn process(&self, part: Part, node: &Node) -> Result<Process> {
        let key = format!("{}/{}", node.node_name(), part.name());
        let process = self.processes().get(&key).cloned();
        process.with_context(|| format!("{key} was never started in {}", self.cluster().name()))
    }

    /// Kills every part of the cluster at once, as a power cut would.
    pub fn kill_everything(&self) -> Result<()> {
        let processes: Vec<Process> = self.processes().values().cloned().collect();
        for process in processes.iter().filter(|process| process.is_running()) {
            process.signal(nix::sys::signal::Signal::SIGKILL)?;
        }
        for process in processes {
            process.wait_for_exit(Duration::from_secs(10))?;
        }
        Ok(())
    }

    /// Waits until an agent keeps `text` on its own disk: from then on it needs no controller to know it.
    pub fn wait_until_kept(&self, node: &Node, part: Part, text: &str, limit: Duration) -> Result<()> {
        let folder = self.state(node, part).join("feed");
        self.eventually(limit, &format!("the {} of {} keeps {text}", part.name(), node.name()), || {
            let mut files = fs::read_dir(&folder)?.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
            ensure!(files.any(|kept| kept.contains(text)), "it is not in {}", folder.display());
            Ok(())
        })
    }

    /// Waits until every part that was started says it is ready.
    pub fn wait_until_ready(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        for node in self.cluster().nodes() {
            for part in Part::ALL {
                if self.process(part, node).is_ok() {
                    self.wait_until_part_is_ready(part, node, deadline.saturating_duration_since(Instant::now()))?;
                }
            }
        }
        Ok(())
    }

    /// Waits until one part says it is ready. Errors when it was never started, or ends.
    pub fn wait_until_part_is_ready(&self, part: Part, node: &Node, limit: Duration) -> Result<()> {
        let process = self.process(part, node)?;
        let deadline = Instant::now() + limit;
        loop {
            let answer = self.http(node, part, "/readyz");
            if matches!(&answer, Ok((200, _))) {
                return Ok(());
            }
            ensure!(process.is_running(), "{process} ended\n{}", process.last_lines(30));
            ensure!(
                Instant::now() < deadline,
                "{process} is not ready after {limit:?}: {answer:?}\n{}",
                process.last_lines(30)
            );
            std::thread::sleep(PAUSE);
        }
    }

    /// Writes a manifest into the folder as careful editors do: beside, then renamed over. With an API server it is
    /// applied there too.
    pub fn apply(&self, file: &str, manifest: &str) -> Result<()> {
        let beside = self.0.folder.join(format!(".{file}.new"));
        fs::write(&beside, manifest).with_context(|| format!("writing {file}"))?;
        let path = self.manifests().join(file);
        fs::rename(&beside, &path).with_context(|| format!("writing {file}"))?;
        self.0.api_server.as_ref().map_or(Ok(()), |server| server.apply_file(&path))
    }

    /// Removes a manifest.
    pub fn remove(&self, file: &str) -> Result<()> {
        if let Some(server) = &self.0.api_server {
            server.delete_file(&self.manifests().join(file))?;
        }
        fs::remove_file(self.manifests().join(file)).with_context(|| format!("removing {file}"))
    }

    /// Introduces clusters to each other by hand, every one to every other: `tombolo peers export` in one, its output
    /// into the folder of the other.
    pub fn introduce(deployments: &[&Self]) -> Result<()> {
        for one in deployments {
            let manifest = one.peer_manifest(START_LIMIT)?;
            for other in deployments.iter().filter(|other| other.cluster().name() != one.cluster().name()) {
                other.apply(&format!("peer-{}.yaml", one.cluster().name()), &manifest)?;
            }
        }
        Ok(())
    }

    /// What `tombolo peers export` prints, once its gateway is known.
    pub fn peer_manifest(&self, limit: Duration) -> Result<String> {
        let node = self.cluster().gateway()?;
        let deadline = Instant::now() + limit;
        loop {
            let output = self.tombolo(node, &["peers", "export"])?;
            if output.status.success() {
                return Ok(String::from_utf8(output.stdout)?);
            }
            ensure!(Instant::now() < deadline, "peers export: {}", String::from_utf8_lossy(&output.stderr).trim());
            std::thread::sleep(PAUSE);
        }
    }

    /// Runs a command of the operator's tool on a node, to its end.
    pub fn tombolo(&self, node: &Node, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(own_program()?);
        command.arg("tombolo").args(arguments);
        node.output_of(command, START_LIMIT)
    }

    /// Types a command at the cluster's gateway host, where its controller is; errors when it ends otherwise than with
    /// `code`. What it printed, both streams.
    pub fn types(&self, command: &str, code: i32) -> Result<String> {
        self.types_on(self.cluster().gateway()?, command, code)
    }

    /// The same on another host of the cluster.
    pub fn types_on(&self, node: &Node, command: &str, code: i32) -> Result<String> {
        let arguments: Vec<&str> = command.split(' ').collect();
        let output = self.tombolo(node, &arguments)?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.code() == Some(code), "tombolo {command}: {}, not {code}:\n{text}", output.status);
        Ok(text)
    }

    /// Types a command at a terminal of the cluster's gateway host, where it may ask.
    pub fn types_at_terminal(&self, command: &str) -> Result<Terminal> {
        let mut program = Command::new(own_program()?);
        program.arg("tombolo").args(command.split(' '));
        Terminal::start(self.cluster().gateway()?, program)
    }

    /// Types a command until it ends with `code` and prints each of `texts`.
    pub fn types_until(&self, limit: Duration, command: &str, code: i32, texts: &[&str]) -> Result<()> {
        self.eventually(limit, &format!("tombolo {command} says {texts:?}"), || {
            let printed = self.types(command, code)?;
            ensure!(texts.iter().all(|text| printed.contains(text)), "tombolo {command}:\n{printed}");
            Ok(())
        })
    }

    /// What a part answers to a question, as JSON.
    pub fn ask(&self, node: &Node, part: Part, question: &str) -> Result<Value> {
        let (status, body) = self.http(node, part, &format!("/ask/{question}"))?;
        ensure!(status == 200, "{} of {}: {question}: {status} {body}", part.name(), node.name());
        Ok(serde_json::from_str(&body)?)
    }

    /// One metric of a part: the sum over all series of that name whose labels contain each of `labels`.
    pub fn metric(&self, node: &Node, part: Part, name: &str, labels: &[&str]) -> Result<f64> {
        let (status, body) = self.http(node, part, "/metrics")?;
        ensure!(status == 200, "{} of {}: /metrics answered {status}", part.name(), node.name());
        let series = body.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let named = series.split('{').next() == Some(name);
            (named && labels.iter().all(|label| series.contains(label))).then(|| value.parse::<f64>().ok())?
        });
        Ok(series.sum())
    }

    fn http(&self, node: &Node, part: Part, path: &str) -> Result<(u16, String)> {
        // The host's /run is a folder of ours, so its sockets can be opened from here.
        let socket = node.run_folder().join("tombolo").join(format!("{}.sock", part.name()));
        crate::traffic::surface::get(&socket, path, Duration::from_secs(5))
    }

    /// Waits until `condition` holds, asking again and again; its last answer is the error.
    pub fn eventually<T>(&self, limit: Duration, what: &str, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
        eventually(limit, what, &mut condition).with_context(|| format!("in cluster {}", self.cluster().name()))
    }

    /// Waits until the gateway says that packets reach `peer` and the controller that its advertisement is known.
    pub fn wait_until_connected(&self, peer: &str, limit: Duration) -> Result<()> {
        let node = self.cluster().gateway()?;
        let label = format!("peer=\"{peer}\"");
        self.eventually(limit, &format!("connected to {peer}"), || {
            let reachable = self.metric(node, Part::Gateway, "tombolo_peer_reachable", &[&label])?;
            ensure!(reachable >= 1.0, "packets do not reach {peer} yet");
            let first = self.cluster().nodes().first().context("a cluster without nodes")?;
            let synced =
                self.metric(first, Part::Controller, "tombolo_sync_last_success_timestamp_seconds", &[&label])?;
            ensure!(synced > 0.0, "nothing was synced from {peer} yet");
            Ok(())
        })
    }

    /// Waits until `node` shares out a service by these weights.
    pub fn wait_for_shares(&self, node: &Node, service: &str, weights: &[(&str, u16)], limit: Duration) -> Result<()> {
        self.eventually(limit, &format!("{service} is shared by {weights:?}"), || {
            let answer = self.ask(node, Part::Node, &format!("explain?service={service}"))?;
            let total: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
            for port in answer["ports"].as_array().context("the service is not known yet")? {
                let shares = port["clusters"].as_array().context("no shares")?;
                for (cluster, weight) in weights {
                    let share = shares.iter().find(|share| share["cluster"] == *cluster);
                    let asked = share.and_then(|share| share["askedPercent"].as_f64()).unwrap_or(0.0);
                    let wanted = 100.0 * f64::from(*weight) / total;
                    ensure!((asked - wanted).abs() < 1.0, "{cluster} is asked for {asked} %, not {wanted} %");
                }
            }
            Ok(())
        })
    }

    /// Where the cluster's first DNS server answers.
    pub fn dns(&self) -> Result<[SocketAddr; 2]> {
        Ok(self.cluster().gateway()?.addresses().with_port(53))
    }

    /// The clusterset addresses of a service in this cluster, waited for.
    pub fn clusterset_addresses(&self, namespace: &str, service: &str, limit: Duration) -> Result<Vec<IpAddr>> {
        use hickory_proto::rr::RecordType;
        let client = self.cluster().gateway()?;
        let [server, _] = self.dns()?;
        let name = format!("{service}.{namespace}.svc.clusterset.local.");
        self.eventually(limit, &format!("{name} resolves in both families"), || {
            let mut found = Vec::new();
            for kind in [RecordType::A, RecordType::AAAA] {
                let transport = crate::traffic::dns::Transport::Udp;
                let answer =
                    crate::traffic::dns::query(client, server, &name, kind, transport, Duration::from_secs(1))?;
                let addresses = crate::traffic::dns::addresses(&answer);
                if addresses.is_empty() {
                    bail!("{name} {kind}: {}", answer.metadata.response_code);
                }
                found.extend(addresses);
            }
            Ok(found)
        })
    }

    fn processes(&self) -> MutexGuard<'_, BTreeMap<String, Process>> {
        self.0.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until `condition` holds, asking again and again; its last answer is the error.
pub fn eventually<T>(limit: Duration, what: &str, condition: &mut dyn FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not within {limit:?}: {what}")));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
