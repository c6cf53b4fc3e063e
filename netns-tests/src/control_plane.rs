//! A real Kubernetes control plane on a node of the world: what a cluster of Kubernetes keeps its objects in.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kubernetes::{Addresses, ControlPlane, Part, Programs, SERVICE_RANGES};
use serde_json::Value;

use crate::host::SHARED_FOLDER;
use crate::node::Node;
use crate::process::Process;

/// Of the API server; nothing else on a node of the world has it.
const API_SERVER_PORT: u16 = 6443;
const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;
const CONTROLLER_MANAGER_PORT: u16 = 10_257;
/// An API server is ready after 2.5 s on a quiet machine; three of them beside a build take this much.
const START_LIMIT: Duration = Duration::from_secs(90);
/// A request of kubectl's, on the same machine.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// Writes a kubeconfig with a context for each control plane, by which its admin asks.
pub fn write_contexts(file: &Path, servers: &[(&str, &ApiServer)]) -> Result<()> {
    let mut all =
        serde_json::json!({"apiVersion": "v1", "kind": "Config", "clusters": [], "users": [], "contexts": []});
    for (name, server) in servers {
        let own: Value = serde_json::from_str(&fs::read_to_string(server.admin_kubeconfig())?)?;
        let list = |all: &mut Value, field: &str, entry: Value| {
            all[field].as_array_mut().into_iter().for_each(|entries| entries.push(entry.clone()));
        };
        list(&mut all, "clusters", serde_json::json!({"name": name, "cluster": own["clusters"][0]["cluster"]}));
        list(&mut all, "users", serde_json::json!({"name": name, "user": own["users"][0]["user"]}));
        list(&mut all, "contexts", serde_json::json!({"name": name, "context": {"cluster": name, "user": name}}));
    }
    fs::write(file, all.to_string()).with_context(|| format!("writing {}", file.display()))
}

/// A control plane that runs on a node. Clones mean the same one.
#[derive(Clone)]
pub struct ApiServer(Arc<Inner>);

struct Inner {
    node: Node,
    plane: ControlPlane,
    parts: Mutex<Vec<(Part, Process)>>,
}

impl ApiServer {
    /// Starts all parts on a node; its API server may not be ready yet: [`Self::wait_until_ready`].
    ///
    /// The programs must be there: call [`Programs::find_or_build`] outside the sandbox and pass their folder in.
    pub fn start(node: &Node) -> Result<Self> {
        let programs = Programs::find_or_build()?;
        let folder = Path::new(SHARED_FOLDER).join(node.cluster_name()).join("kubernetes");
        let addresses = Addresses {
            host: node.addresses().v4.into(),
            api_server: API_SERVER_PORT,
            etcd: ETCD_PORT,
            etcd_peer: ETCD_PEER_PORT,
            controller_manager: CONTROLLER_MANAGER_PORT,
        };
        let plane = ControlPlane::new(&programs, &folder, addresses, SERVICE_RANGES)?;
        let server = Self(Arc::new(Inner { node: node.clone(), plane, parts: Mutex::default() }));
        for part in Part::ALL {
            server.start_part(part)?;
        }
        Ok(server)
    }

    /// Starts a part that was not started, or ended.
    pub fn start_part(&self, part: Part) -> Result<()> {
        let process = self.0.node.start(&format!("kubernetes-{}", part.name()), self.0.plane.command(part))?;
        let mut parts = self.parts();
        parts.retain(|(known, _)| *known != part);
        parts.push((part, process));
        Ok(())
    }

    /// Ends a part at once, as a power cut would.
    pub fn kill_part(&self, part: Part) -> Result<()> {
        let parts = self.parts();
        let (_, process) = parts.iter().find(|(known, _)| *known == part).context("it was not started")?;
        process.kill()
    }

    fn parts(&self) -> MutexGuard<'_, Vec<(Part, Process)>> {
        self.0.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kubeconfig of the user who may do everything.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.0.plane.admin_kubeconfig()
    }

    /// Waits until the API server says that it is ready.
    pub fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let answer = self.kubectl(&["get", "--raw", "/readyz"]);
            if answer.as_ref().is_ok_and(|text| text == "ok") {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the API server of {} is not ready: {answer:?}", self.0.node.name());
            std::thread::sleep(PAUSE);
        }
    }

    /// Runs kubectl on the node, as the user who may do everything; what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.0.plane.kubectl();
        command.args(arguments);
        let output = self.0.node.output_of(command, REQUEST_LIMIT)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(output.status.success(), "kubectl {arguments:?}: {}", text(&output.stderr).trim());
        Ok(text(&output.stdout))
    }

    /// The object, as JSON.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&["get", kind, "-n", namespace, name, "-o", "json"])?)?)
    }

    /// Every object of a kind in a namespace, as JSON.
    pub fn list(&self, kind: &str, namespace: &str) -> Result<Vec<Value>> {
        let list: Value = serde_json::from_str(&self.kubectl(&["get", kind, "-n", namespace, "-o", "json"])?)?;
        Ok(list["items"].as_array().context("a list has items")?.clone())
    }

    /// Applies a file of manifests.
    pub fn apply_file(&self, file: &Path) -> Result<()> {
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file.display().to_string()]).map(|_| ())
    }

    /// Applies one object, or a List of them. `name` tells its file from others.
    pub fn apply(&self, name: &str, object: &Value) -> Result<()> {
        let file = self.0.plane.folder().join(format!("{name}.json"));
        fs::write(&file, object.to_string())?;
        self.apply_file(&file)
    }

    /// Deletes what a file of manifests names.
    pub fn delete_file(&self, file: &Path) -> Result<()> {
        self.kubectl(&["delete", "--ignore-not-found", "-f", &file.display().to_string()]).map(|_| ())
    }

    /// Installs the kinds of Tombolo and its namespace, and waits until they are served.
    pub fn install_kinds(&self) -> Result<()> {
        let definitions: Vec<Value> = api::definitions::all()?;
        let namespace =
            serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tombolo-system"}});
        let items: Vec<Value> = definitions.into_iter().chain([namespace]).collect();
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.apply("kinds", &list)?;
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=20s", "customresourcedefinitions", "--all"])
            .map(|_| ())
    }

    /// The audit log so far: a JSON value for each request that was answered.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.0.plane.audit_log()).context("reading the audit log")?;
        // The last line may be half written.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}
