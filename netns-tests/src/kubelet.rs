//! What a kubelet does for the parts of Tombolo on its node, where the world has an API server and no kubelet: it registers
//! the node, and gives each pod the token it is bound to.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use api::names;
use cli::ask::Part;
use serde_json::{Value, json};

use crate::control_plane::ApiServer;
use crate::node::Node;

/// A controller has the Lease, and so may write, some seconds after its start on a busy machine.
const CONTROLLER_LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

impl ApiServer {
    /// Registers a node with its addresses and its pods' prefixes.
    pub fn register_node(&self, node: &Node) -> Result<()> {
        let name = node.node_name();
        let prefixes: Vec<String> = node.pod_ranges().both().iter().map(ToString::to_string).collect();
        let addresses: Vec<Value> = node
            .addresses()
            .both()
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
            .collect();
        let object = |fields: Value| {
            let mut object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
            object
                .as_object_mut()
                .into_iter()
                .for_each(|object| object.extend(fields.as_object().cloned().into_iter().flatten()));
            object
        };
        self.apply(&format!("node-{name}"), &object(json!({"spec": {"podCIDR": prefixes[0], "podCIDRs": prefixes}})))?;
        let status = json!({"status": {"addresses": addresses}}).to_string();
        self.kubectl(&["patch", "node", name, "--subresource=status", "--type=merge", "-p", &status]).map(drop)
    }

    /// Writes the token that a part on a node has, as a projected volume would: of the part's ServiceAccount, for our
    /// audience, bound to a pod on that node.
    pub fn write_token(&self, part: Part, node: &Node, file: &Path) -> Result<()> {
        let account = format!("{}{}", names::SERVICE_ACCOUNTS, part.name());
        let pod = format!("{account}-{}", node.node_name());
        let pods = [
            json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": account, "namespace": names::SYSTEM_NAMESPACE}}),
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": pod, "namespace": names::SYSTEM_NAMESPACE},
                "spec": {"serviceAccountName": account, "nodeName": node.node_name(),
                    "automountServiceAccountToken": false,
                    "containers": [{"name": "tombolo", "image": "tombolo"}]}}),
        ];
        self.apply(&pod, &json!({"apiVersion": "v1", "kind": "List", "items": pods}))?;
        let token = self.kubectl(&[
            "create",
            "token",
            &account,
            "-n",
            names::SYSTEM_NAMESPACE,
            "--audience",
            names::TOKEN_AUDIENCE,
            "--bound-object-kind",
            "Pod",
            "--bound-object-name",
            &pod,
        ])?;
        fs::write(file, token.trim()).with_context(|| format!("writing {}", file.display()))
    }

    /// Writes what agents mount of ConfigMap `agents`; waits until a controller made it.
    pub fn write_enrolment(&self, file: &Path) -> Result<()> {
        let deadline = Instant::now() + CONTROLLER_LIMIT;
        let entry = format!("jsonpath={{.data.{}}}", names::ENROLMENT_DATA);
        loop {
            let arguments = ["get", "configmap", "-n", names::SYSTEM_NAMESPACE, names::AGENTS_CONFIG_MAP, "-o", &entry];
            match self.kubectl(&arguments) {
                Ok(text) if !text.is_empty() => {
                    return fs::write(file, text).with_context(|| format!("writing {}", file.display()));
                }
                answer => ensure!(Instant::now() < deadline, "no controller wrote ConfigMap agents: {answer:?}"),
            }
            std::thread::sleep(PAUSE);
        }
    }
}
