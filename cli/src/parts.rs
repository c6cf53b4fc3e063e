//! Puts each part together: its store, its configuration, its start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use api::report::{BrokenDocument, ControllerReport};
use api::surface::{Readiness, Surface};
use serde_json::Value;
use store::feed;
use store::folder::{self, Reports};
use tokio_util::sync::CancellationToken;

use crate::arguments::{
    AgentArguments, ControllerArguments, DnsArguments, GatewayArguments, NodeArguments, ObjectsArguments,
    PartArguments, RunArguments,
};
use crate::ask::Part;
use crate::output::Outcome;
use crate::running::{Started, stop_on_signals, until_stopped};

/// The file in the controller's state folder that enrols agents.
pub const ENROLMENT_FILE: &str = "agents.key";

pub async fn controller(run_dir: &Path, arguments: ControllerArguments) -> anyhow::Result<Outcome> {
    crate::logging::start(arguments.part.log_json);
    let stop = stop_on_signals()?;
    let started =
        start_controller(&arguments.part.state.join("controller"), arguments.objects, arguments.listen, &stop).await?;
    until_stopped(vec![started], run_dir, &arguments.part, stop).await
}

pub async fn gateway(run_dir: &Path, arguments: GatewayArguments) -> anyhow::Result<Outcome> {
    crate::logging::start(arguments.part.log_json);
    let stop = stop_on_signals()?;
    let host = Host::of(&arguments.agent, arguments.addresses, Vec::new())?;
    let started =
        start_gateway(&arguments.part.state.join("gateway"), &host, arguments.external_addresses, &stop).await?;
    until_stopped(vec![started], run_dir, &arguments.part, stop).await
}

pub async fn node(run_dir: &Path, arguments: NodeArguments) -> anyhow::Result<Outcome> {
    crate::logging::start(arguments.part.log_json);
    let stop = stop_on_signals()?;
    let host = Host::of(&arguments.agent, arguments.addresses, arguments.pod_prefixes)?;
    let started = start_node(&arguments.part.state.join("node"), &host, &stop).await?;
    until_stopped(vec![started], run_dir, &arguments.part, stop).await
}

pub async fn dns(run_dir: &Path, arguments: DnsArguments) -> anyhow::Result<Outcome> {
    crate::logging::start(arguments.part.log_json);
    let stop = stop_on_signals()?;
    let state = arguments.part.state.join("dns");
    let started = match &arguments.agent {
        Some(agent) => start_dns(&state, &Host::of(agent, Vec::new(), Vec::new())?, arguments.listen, &stop).await?,
        None => {
            let store = store::kubernetes::connect(arguments.kubeconfig.as_deref()).await?;
            let config = dns::Config { listen: arguments.listen, imports_alone: true, ..dns::Config::default() };
            let (surface, work) = dns::start(config, store, stop.clone()).await?;
            Started { part: Part::Dns, surface, work }
        }
    };
    until_stopped(vec![started], run_dir, &arguments.part, stop).await
}

/// Every part in this process. The agents take the feed of their own controller, as those on other hosts do: there is
/// one way for state to reach them.
pub async fn run(run_dir: &Path, arguments: RunArguments) -> anyhow::Result<Outcome> {
    crate::logging::start(arguments.part.log_json);
    let stop = stop_on_signals()?;
    let PartArguments { state, .. } = &arguments.part;
    let controller = start_controller(&state.join("controller"), arguments.objects, arguments.listen, &stop).await?;
    let mut own = arguments.listen;
    if own.ip().is_unspecified() {
        own.set_ip(if own.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    let agent = AgentArguments {
        controllers: vec![own.to_string()],
        enrolment: state.join("controller").join(ENROLMENT_FILE),
        service_account_token: None,
        node: arguments.node,
    };
    let host = Host::of(&agent, arguments.addresses, arguments.pod_prefixes)?;
    let started = vec![
        controller,
        start_gateway(&state.join("gateway"), &host, arguments.external_addresses, &stop).await?,
        start_node(&state.join("node"), &host, &stop).await?,
        start_dns(&state.join("dns"), &host, arguments.dns_listen, &stop).await?,
    ];
    until_stopped(started, run_dir, &arguments.part, stop).await
}

/// What the agents on one host have in common.
struct Host {
    name: String,
    controllers: Vec<String>,
    enrolment: PathBuf,
    token: Option<PathBuf>,
    addresses: Vec<std::net::IpAddr>,
    pod_prefixes: Vec<api::Prefix>,
}

impl Host {
    fn of(
        agent: &AgentArguments,
        addresses: Vec<std::net::IpAddr>,
        pod_prefixes: Vec<api::Prefix>,
    ) -> anyhow::Result<Self> {
        let name = match &agent.node {
            Some(name) => name.clone(),
            None => kernel_host_name()?,
        };
        anyhow::ensure!(
            name.len() <= 253 && name.split('.').all(api::cluster_id::is_dns_label),
            "'{name}' cannot name a node: it must be DNS labels of a-z, 0-9 and '-'; give another one with --name"
        );
        let addresses = if addresses.is_empty() { addresses_towards(&agent.controllers) } else { addresses };
        let controllers = agent.controllers.clone();
        let (enrolment, token) = (agent.enrolment.clone(), agent.service_account_token.clone());
        Ok(Self { name, controllers, enrolment, token, addresses, pod_prefixes })
    }

    /// The controllers' feed, for a part that keeps its own things in `state`.
    fn feed(&self, state: &Path, role: feed::Role) -> anyhow::Result<store::Store> {
        std::fs::create_dir_all(state).with_context(|| format!("cannot make the state folder {}", state.display()))?;
        let store = feed::connect(feed::Config {
            controllers: self.controllers.clone(),
            enrolment: self.enrolment.clone(),
            token: self.token.clone(),
            identity: state.join("identity.key"),
            cache: state.join("feed"),
            role,
            name: self.name.clone(),
            addresses: self.addresses.clone(),
            pod_prefixes: self.pod_prefixes.clone(),
        })?;
        Ok(store)
    }
}

fn kernel_host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("this host has no name: give it one with --name")?;
    Ok(name.to_string_lossy().to_ascii_lowercase())
}

/// The addresses this host has towards its controllers, one a family; towards everywhere where a controller is on this
/// host itself. Asking the kernel for a route sends no packet.
fn addresses_towards(controllers: &[String]) -> Vec<std::net::IpAddr> {
    use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
    // Documentation addresses (RFC 5737, RFC 3849): nobody has them, so their route is the default route.
    let everywhere = ["192.0.2.1:9", "[2001:db8::1]:9"].into_iter().filter_map(|text| text.parse::<SocketAddr>().ok());
    let named = controllers.iter().filter_map(|text| text.to_socket_addrs().ok()).flatten();
    let mut found: Vec<IpAddr> = Vec::new();
    for target in named.filter(|target| !target.ip().is_loopback()).chain(everywhere) {
        if found.iter().any(|address| address.is_ipv4() == target.is_ipv4()) {
            continue;
        }
        let any: SocketAddr = if target.is_ipv4() { ([0u8; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let local = UdpSocket::bind(any).and_then(|socket| socket.connect(target).and_then(|()| socket.local_addr()));
        found.extend(local.ok().map(|address| address.ip()).filter(|address| !address.is_loopback()));
    }
    found
}

async fn start_controller(
    state: &Path,
    objects: ObjectsArguments,
    listen: std::net::SocketAddr,
    stop: &CancellationToken,
) -> anyhow::Result<Started> {
    let on_kubernetes = objects.manifests.is_none();
    let config =
        controller::Config { listen, state: state.to_path_buf(), on_kubernetes, ..controller::Config::default() };
    let Some(manifests) = objects.manifests else {
        let store = store::kubernetes::connect(objects.kubeconfig.as_deref()).await?;
        let (surface, work) = controller::start(config, store, stop.clone()).await?;
        return Ok(Started { part: Part::Controller, surface, work });
    };
    let objects = folder::Config { manifests, state: state.join("objects") };
    // Reading ten thousand manifests takes a moment, and it is no work for an executor's thread.
    let (store, reports) = tokio::task::spawn_blocking(move || folder::open(objects)).await??;
    let (surface, work) = controller::start(config, store, stop.clone()).await?;
    Ok(Started { part: Part::Controller, surface: Arc::new(WithReports { surface, reports }), work })
}

async fn start_gateway(
    state: &Path,
    host: &Host,
    external_addresses: Vec<String>,
    stop: &CancellationToken,
) -> anyhow::Result<Started> {
    let store = host.feed(state, feed::Role::Gateway)?;
    let mut config = gateway::Config::new(&host.name, state);
    config.controllers = host.controllers.clone();
    config.external_addresses = external_addresses;
    config.node_addresses = host.addresses.clone();
    let (surface, work) = gateway::start(config, store, stop.clone()).await?;
    Ok(Started { part: Part::Gateway, surface, work })
}

async fn start_node(state: &Path, host: &Host, stop: &CancellationToken) -> anyhow::Result<Started> {
    let store = host.feed(state, feed::Role::Node)?;
    let config = node::Config::new(&host.name, state);
    let (surface, work) = node::start(config, store, stop.clone()).await?;
    Ok(Started { part: Part::Node, surface, work })
}

async fn start_dns(
    state: &Path,
    host: &Host,
    listen: Vec<std::net::SocketAddr>,
    stop: &CancellationToken,
) -> anyhow::Result<Started> {
    let store = host.feed(state, feed::Role::Dns)?;
    let config = dns::Config { listen, agent: host.name.clone(), ..dns::Config::default() };
    let (surface, work) = dns::start(config, store, stop.clone()).await?;
    Ok(Started { part: Part::Dns, surface, work })
}

/// The controller's surface with what the folder says of its documents: the controller itself does not know which
/// store it has.
struct WithReports {
    surface: Arc<dyn Surface>,
    reports: Reports,
}

impl Surface for WithReports {
    fn readiness(&self) -> Readiness {
        self.surface.readiness()
    }

    fn metrics(&self) -> String {
        self.surface.metrics()
    }

    fn order(&self, order: &str) -> Option<Result<Value, String>> {
        self.surface.order(order)
    }

    fn answer(&self, question: &str) -> Option<Value> {
        let answer = self.surface.answer(question)?;
        if question != "status" {
            return Some(answer);
        }
        let mut report: ControllerReport = serde_json::from_value(answer).ok()?;
        report.broken_documents = self
            .reports
            .current()
            .iter()
            .map(|broken| BrokenDocument {
                file: broken.file.clone(),
                line: broken.line.and_then(|line| usize::try_from(line).ok()).unwrap_or_default(),
                object: broken.object.clone().unwrap_or_default(),
                reason: broken.reason.clone(),
                last_good_in_force: broken.last_good_in_force,
            })
            .collect();
        serde_json::to_value(report).ok()
    }
}
