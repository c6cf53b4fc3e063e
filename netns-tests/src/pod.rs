//! A pod: a host behind its node's bridge.

use std::ops::Deref;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::addresses::Addresses;
use crate::host::{Host, own_program};
use crate::link::Port;
use crate::node::Node;
use crate::process::Process;

/// Our own tools start in milliseconds; a busy machine gets more.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A pod of a node. Everything a [`Host`] can do, it can do.
#[derive(Clone, Debug)]
pub struct Pod {
    pub(crate) host: Host,
    pub(crate) name: String,
    pub(crate) node: Node,
    pub(crate) addresses: Addresses,
    pub(crate) port: Port,
    /// The other end of that, in the node's bridge.
    pub(crate) node_end: Port,
}

impl Deref for Pod {
    type Target = Host;
    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Pod {
    /// Its name inside the cluster, without the cluster's.
    pub fn pod_name(&self) -> &str {
        &self.name
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its `eth0`.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// Sets the largest packet, in bytes, that the pod takes and its node gives it. The bridge carries what the smallest of
    /// its pods does.
    pub fn set_mtu(&self, bytes: u32) -> Result<()> {
        self.port.set_mtu(bytes)?;
        self.node_end.set_mtu(bytes)
    }

    /// Makes programs in this pod, such as `curl`, ask these name servers.
    ///
    /// Errors: the machine has no /etc/resolv.conf to put the pod's over.
    pub fn use_resolvers(&self, servers: &[std::net::IpAddr], search: &str) -> Result<()> {
        let mut content: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        content.push_str(&format!("search {search}\n"));
        std::fs::write(self.run_folder().join("resolv.conf"), content)?;
        let mut command = Command::new(own_program()?);
        command.args(["mount-over", "/run/resolv.conf", "/etc/resolv.conf"]);
        let output = self.output_of(command, START_LIMIT)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// Starts an HTTP server on port 80 of both families that answers with this pod's name and cluster.
    pub fn serve_http(&self) -> Result<Process> {
        self.serve_http_on(80)
    }

    /// The same on another port.
    pub fn serve_http_on(&self, port: u16) -> Result<Process> {
        let cluster = self.node.cluster_name();
        let port = port.to_string();
        let label = format!("http-{port}");
        self.serve(&label, &["serve-http", "--port", &port, "--pod", &self.name, "--cluster", cluster])
    }

    /// Starts a server that sends a few bytes every few milliseconds to whoever connects, on both families.
    pub fn serve_stream(&self, port: u16) -> Result<Process> {
        self.serve("stream", &["serve-stream", "--port", &port.to_string()])
    }

    /// Starts a server that sends so much to whoever connects that segments are as large as they may be, on both families.
    pub fn serve_bulk(&self, port: u16) -> Result<Process> {
        self.serve("bulk", &["serve-bulk", "--port", &port.to_string()])
    }

    /// Starts a UDP server that sends every datagram back, on both families.
    pub fn serve_udp_echo(&self, port: u16) -> Result<Process> {
        self.serve("udp-echo", &["serve-udp-echo", "--port", &port.to_string()])
    }

    fn serve(&self, label: &str, arguments: &[&str]) -> Result<Process> {
        let server = self.start_tool(label, arguments)?;
        server
            .wait_for_line(crate::traffic::LISTENING, START_LIMIT)
            .with_context(|| format!("{}: {label}", self.host.name()))?;
        Ok(server)
    }
}
