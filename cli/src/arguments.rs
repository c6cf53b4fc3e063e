//! Every command and flag, once. What was typed; the commands themselves say what it means.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::output::Format;

/// Joins Kubernetes clusters: tunnels, names and services between them.
#[derive(Debug, Parser)]
#[command(name = "tombolo", version, propagate_version = true, max_term_width = 100)]
pub struct Arguments {
    #[command(flatten)]
    pub place: Place,
    #[command(subcommand)]
    pub command: Command,
}

/// Where the parts of this host are found.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Folder of the sockets by which the parts on this host are asked.
    #[arg(long, global = true, env = "TOMBOLO_RUN_DIR", default_value = "/run/tombolo", value_name = "DIR")]
    pub run_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run every part on this host over a folder of manifests.
    Run(RunArguments),
    /// Run the gateway: tunnels to the other clusters.
    Gateway(GatewayArguments),
    /// Run the node agent: routes, filters and clusterset IPs of this host.
    Node(NodeArguments),
    /// Run the controller: exports, sync, imports.
    Controller(ControllerArguments),
    /// Run the DNS server of clusterset.local.
    Dns(DnsArguments),

    /// Show this cluster, its parts and its peers.
    Status(Shown),
    /// Show the peers, or print what another cluster needs to know of this one.
    Peers {
        #[command(subcommand)]
        action: Option<PeersCommand>,
        #[command(flatten)]
        shown: Shown,
    },
    /// Introduce two Kubernetes clusters to each other, and show what proves each step.
    Join(JoinArguments),
    /// Take this cluster out for work: every member is asked to give it no new connections; established ones go on.
    Drain {
        #[command(subcommand)]
        part: Option<DrainPart>,
        #[command(flatten)]
        drain: DrainArguments,
    },
    /// Replace the identity by which other clusters know this one.
    Identity {
        #[command(subcommand)]
        action: IdentityCommand,
    },
    /// Replace the WireGuard keys of this cluster's gateways.
    Keys {
        #[command(subcommand)]
        action: KeysCommand,
    },
    /// Show the services of the clusterset and who answers for each.
    Services(Shown),
    /// Say why: who answers for a service, what a name resolves to, how packets reach a peer.
    Explain {
        #[command(subcommand)]
        what: Explain,
    },
    /// Send a real packet to a peer's gateway and wait for its answer.
    Ping {
        /// The peer's cluster id.
        peer: String,
        #[command(flatten)]
        shown: Shown,
    },
    /// Show what changed: transitions, oldest first.
    Events {
        /// How far back: `90s`, `15m`, `1h`, `2d`.
        #[arg(long, default_value = "1h", value_parser = crate::duration::parse)]
        since: std::time::Duration,
        #[command(flatten)]
        shown: Shown,
    },
    /// Show what was refused, by name, with addresses and ports.
    Refusals(Shown),
    /// Put what a helper from outside needs into one archive, without secrets.
    Gather(GatherArguments),
    /// Remove everything Tombolo made in this host's kernel, and restore the settings it changed.
    Cleanup {
        /// Say what would be removed, and remove nothing.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        /// The state folder the node agent was started with.
        #[arg(long, env = "TOMBOLO_STATE", default_value = "/var/lib/tombolo", value_name = "DIR")]
        state: PathBuf,
        #[command(flatten)]
        shown: Shown,
    },
    /// Print the CustomResourceDefinitions of all kinds.
    Crds,
    /// Print a completion script for a shell.
    Completion { shell: clap_complete::Shell },
}

#[derive(Clone, Debug, Args)]
pub struct Shown {
    /// How to print the answer.
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

#[derive(Debug, Subcommand)]
pub enum PeersCommand {
    /// Print the ClusterPeer manifest by which another cluster gets to know this one.
    Export,
    /// Give a peer no new connections; established ones go on.
    Drain {
        /// The peer's cluster id.
        peer: String,
        #[command(flatten)]
        drain: DrainArguments,
    },
    /// Cut a peer off: no tunnel, no routes, no endpoints, no names. Does not ask whom it leaves with nobody.
    Block {
        /// The peer's cluster id.
        peer: String,
        #[command(flatten)]
        drain: DrainArguments,
    },
}

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make new keys and go over to them as each peer knows them; the old ones go when no peer needs them.
    Rotate(KeysArguments),
    /// Take the old keys away now: a peer that is away and knows no others cannot call any more.
    Retire(KeysArguments),
}

#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// Make the next identity and go over to it when every peer trusts it.
    Rotate(IdentityArguments),
    /// Take the old one away now: a peer that does not know the next one must be introduced again.
    Retire(IdentityArguments),
}

#[derive(Clone, Debug, Args)]
pub struct IdentityArguments {
    /// Return when the old identity is gone.
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub shown: Shown,
}

#[derive(Clone, Debug, Args)]
pub struct KeysArguments {
    /// The slot of one gateway, as 'tombolo status' numbers them; all where absent.
    #[arg(long, value_name = "SLOT")]
    pub gateway: Option<u16>,
    /// Return when the old keys are gone.
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub shown: Shown,
}

#[derive(Debug, Subcommand)]
pub enum DrainPart {
    /// Take one gateway of this cluster out: the others carry what it carried, and nothing is lost.
    Gateway {
        /// Its slot, as 'tombolo status' numbers gateways.
        slot: u16,
        #[command(flatten)]
        drain: DrainArguments,
    },
    /// Take the endpoints on one node out: no cluster opens new connections to them; established ones go on.
    Node {
        /// Its name in this cluster.
        node: String,
        #[command(flatten)]
        drain: DrainArguments,
    },
}

/// What the commands that take something out of service have in common.
#[derive(Clone, Debug, Args)]
pub struct DrainArguments {
    /// Take it back.
    #[arg(long)]
    pub undo: bool,
    /// Say which services would move where, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Return when everybody has taken it and no established connection is left.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait: `90s`, `15m`, `1h`. What is left then is named.
    #[arg(long, default_value = "60s", value_parser = crate::duration::parse, value_name = "TIME")]
    pub timeout: std::time::Duration,
    /// Do it although a service would be left with nobody.
    #[arg(long, visible_alias = "allow-unserved")]
    pub force: bool,
    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub shown: Shown,
}

#[derive(Debug, Subcommand)]
pub enum Explain {
    /// Who answers for a service now, with what share, and why the others do not.
    Service {
        /// As `namespace/name`.
        service: String,
        #[command(flatten)]
        shown: Shown,
    },
    /// What a name answers, and from which objects.
    Dns {
        /// A name of the clusterset: `web.shop.svc.clusterset.local`.
        name: String,
        /// A, AAAA, SRV or TXT.
        #[arg(long = "type", default_value = "A", value_name = "TYPE")]
        record_type: String,
        #[command(flatten)]
        shown: Shown,
    },
    /// How packets reach a peer: session, probes, routes.
    Path {
        /// The peer's cluster id.
        peer: String,
        #[command(flatten)]
        shown: Shown,
    },
}

/// What every part has.
#[derive(Clone, Debug, Args)]
pub struct PartArguments {
    /// Folder for what must survive a restart; each part has its own folder in it.
    #[arg(long, env = "TOMBOLO_STATE", default_value = "/var/lib/tombolo", value_name = "DIR")]
    pub state: PathBuf,
    /// Serve /metrics, /healthz and /readyz on this address too; the socket in the run folder always has them.
    #[arg(long, env = "TOMBOLO_METRICS", value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// Log lines as JSON.
    #[arg(long, env = "TOMBOLO_LOG_JSON")]
    pub log_json: bool,
}

#[derive(Debug, Args)]
pub struct GatherArguments {
    /// The archive; `tombolo-<time>.tar.gz` in this folder where absent.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A cluster whose objects are wanted too, by its context in the kubeconfig. May be given several times.
    #[arg(long = "context", value_name = "CONTEXT")]
    pub contexts: Vec<String>,
    /// Where the contexts are; as kubectl finds it where absent.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// How far back events go: `15m`, `24h`.
    #[arg(long, default_value = "24h", value_parser = crate::duration::parse)]
    pub since: std::time::Duration,
    #[command(flatten)]
    pub shown: Shown,
}

#[derive(Debug, Args)]
pub struct JoinArguments {
    /// A context of the kubeconfig.
    #[arg(value_name = "CONTEXT")]
    pub one: String,
    /// The context of another cluster.
    #[arg(value_name = "OTHER")]
    pub other: String,
    /// Where the contexts are; as kubectl finds it where absent.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Let prefixes overlap: each cluster sees the other's translated.
    #[arg(long)]
    pub allow_overlap: bool,
    /// Say what would be written, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// How long to wait for the tunnels: `30s`, `5m`.
    #[arg(long, default_value = "60s", value_parser = crate::duration::parse)]
    pub wait: std::time::Duration,
    #[command(flatten)]
    pub shown: Shown,
}

/// How an agent finds its controller.
#[derive(Clone, Debug, Args)]
pub struct AgentArguments {
    /// A controller of this cluster: `host:port`, or `unix:PATH`. May be given several times.
    #[arg(
        long = "controller",
        env = "TOMBOLO_CONTROLLER",
        value_name = "ADDRESS",
        required = true,
        value_delimiter = ','
    )]
    pub controllers: Vec<String>,
    /// The enrolment file: `agents.key` out of the controller's state folder; on Kubernetes the entry of ConfigMap
    /// `agents`.
    #[arg(long, env = "TOMBOLO_ENROLMENT", value_name = "FILE")]
    pub enrolment: PathBuf,
    /// The ServiceAccount token to be let in by, on Kubernetes: audience `tombolo.dev`, bound to this pod.
    #[arg(long, env = "TOMBOLO_SERVICE_ACCOUNT_TOKEN", value_name = "FILE")]
    pub service_account_token: Option<PathBuf>,
    /// This host's name in the cluster; the kernel's host name where absent.
    #[arg(long = "name", env = "TOMBOLO_NODE", value_name = "NAME")]
    pub node: Option<String>,
}

/// Where the objects are: a folder, or an API server.
#[derive(Debug, Args)]
#[group(required = true)]
pub struct ObjectsArguments {
    /// Folder of manifests. It is read, never written.
    #[arg(long, env = "TOMBOLO_MANIFESTS", value_name = "DIR", conflicts_with_all = ["kubernetes", "kubeconfig"])]
    pub manifests: Option<PathBuf>,
    /// The Kubernetes API server of KUBECONFIG, or of the pod this runs in.
    #[arg(long)]
    pub kubernetes: bool,
    /// The Kubernetes API server that this file names.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ControllerArguments {
    #[command(flatten)]
    pub part: PartArguments,
    #[command(flatten)]
    pub objects: ObjectsArguments,
    /// Where agents and gateways reach the controller.
    #[arg(long, env = "TOMBOLO_LISTEN", default_value = "[::]:7443", value_name = "ADDRESS")]
    pub listen: SocketAddr,
}

#[derive(Debug, Args)]
pub struct GatewayArguments {
    #[command(flatten)]
    pub part: PartArguments,
    #[command(flatten)]
    pub agent: AgentArguments,
    /// This host's addresses inside the cluster, one a family; found by the route to the controller where absent.
    #[arg(long = "address", value_name = "ADDRESS")]
    pub addresses: Vec<std::net::IpAddr>,
    /// Addresses peers dial, tried in order; this host's own where absent.
    #[arg(long = "external-address", value_name = "ADDRESS")]
    pub external_addresses: Vec<String>,
}

#[derive(Debug, Args)]
pub struct NodeArguments {
    #[command(flatten)]
    pub part: PartArguments,
    #[command(flatten)]
    pub agent: AgentArguments,
    /// This host's addresses inside the cluster, one a family; found by the route to the controller where absent.
    #[arg(long = "address", value_name = "ADDRESS")]
    pub addresses: Vec<std::net::IpAddr>,
    /// Prefixes of the pods on this host.
    #[arg(long = "pod-prefix", value_name = "PREFIX")]
    pub pod_prefixes: Vec<api::Prefix>,
}

/// Where a DNS server takes names from: a controller of Tombolo's, or an API server alone.
#[derive(Debug, Args)]
pub struct DnsArguments {
    #[command(flatten)]
    pub part: PartArguments,
    #[command(flatten)]
    pub agent: Option<AgentArguments>,
    /// Answer from the ServiceImports and EndpointSlices of the Kubernetes API server of KUBECONFIG, or of the pod this
    /// runs in, whoever wrote them. Without a controller nobody measures: every cluster counts as healthy.
    #[arg(long, conflicts_with_all = ["controllers", "enrolment", "service_account_token"])]
    pub kubernetes: bool,
    /// The same with the Kubernetes API server that this file names.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["controllers", "enrolment", "service_account_token"])]
    pub kubeconfig: Option<PathBuf>,
    /// Where to answer queries, UDP and TCP. May be given several times.
    #[arg(long, env = "TOMBOLO_DNS_LISTEN", default_values_t = [SocketAddr::from(([0u16; 8], 53))], value_name = "ADDRESS")]
    pub listen: Vec<SocketAddr>,
}

#[derive(Debug, Args)]
pub struct RunArguments {
    #[command(flatten)]
    pub part: PartArguments,
    #[command(flatten)]
    pub objects: ObjectsArguments,
    /// Where agents of other hosts reach the controller.
    #[arg(long, env = "TOMBOLO_LISTEN", default_value = "[::]:7443", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Where to answer DNS queries, UDP and TCP. May be given several times.
    #[arg(long, env = "TOMBOLO_DNS_LISTEN", default_values_t = [SocketAddr::from(([0u16; 8], 53))], value_name = "ADDRESS")]
    pub dns_listen: Vec<SocketAddr>,
    /// This host's name in the cluster; the kernel's host name where absent.
    #[arg(long = "name", env = "TOMBOLO_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// This host's addresses inside the cluster, one a family.
    #[arg(long = "address", value_name = "ADDRESS")]
    pub addresses: Vec<std::net::IpAddr>,
    /// Prefixes of the pods on this host.
    #[arg(long = "pod-prefix", value_name = "PREFIX")]
    pub pod_prefixes: Vec<api::Prefix>,
    /// Addresses peers dial, tried in order; this host's own where absent.
    #[arg(long = "external-address", value_name = "ADDRESS")]
    pub external_addresses: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn every_command_and_flag_is_declared_without_contradiction() {
        super::Arguments::command().debug_assert();
    }
}
