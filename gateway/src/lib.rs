//! The gateway part: TUN devices, UDP sockets, boringtun and the control relay around [`gateway_core`], which decides.
//!
//! | module | is |
//! |---|---|
//! | `gateway` | the task that holds a slot, keeps the rest as the objects want it, and leaves gracefully |
//! | `objects`, `roster`, `exports`, `slot` | what the store says, as values: who we are, whom we talk to, what is exported |
//! | `engine` | lanes and control thread of a gateway that holds a slot |
//! | `lane`, `packet_loops` | one WireGuard end: its two threads |
//! | `tun`, `udp`, `session`, `lane_sessions` | the three things a lane touches: device, sockets, boringtun |
//! | `agreement` | which keys both ends of a link are known to have |
//! | `control` | the thread that probes and publishes what the lanes use |
//! | `relay` | bytes between controllers of two clusters |
//! | `transit` | ways to peers by a hub, and this gateway as a hub |
//! | `health` | answers to the probes of nodes and DNS servers |
//! | `surface`, `metrics`, `journal`, `ping`, `announcement` | what an operator sees |
//!
//! Threads: two for each lane, `gateway-control`, `gateway-health`, and one tokio task for everything that waits for
//! the store. Nothing asynchronous is on the way of a packet.

mod agreement;
mod announcement;
mod control;
mod engine;
mod gateway;
mod health;
mod journal;
mod lane;
mod lane_sessions;
mod metrics;
mod objects;
mod packet_loops;
mod ping;
mod relay;
mod session;
mod slot;
mod slot_file;
mod surface;
mod transit;
mod tun;
mod udp;
mod wall_clock;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use api::surface::Surface;
use store::Store;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What one gateway process is told at its start; everything else it reads from the store.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node this gateway runs on: it holds its slot under this name.
    pub node_name: String,
    /// A folder for what must outlive the process. Other parts may use it too: our files begin with `gateway-`.
    pub state: PathBuf,
    /// This cluster's controllers, for the relay: `host:port`, or `unix:` and a path.
    pub controllers: Vec<String>,
    /// Addresses peers may dial, with a port where it is not the lane's; empty for those of the node.
    pub external_addresses: Vec<String>,
    /// The node's addresses inside the cluster, one a family; empty for those its default routes use.
    pub node_addresses: Vec<IpAddr>,
    /// Lane i's device is this and i.
    pub device_prefix: String,
    /// UDP port of lane 0; `None` for the one the LocalCluster names.
    pub port: Option<u16>,
    /// UDP port for the probes of nodes and DNS servers; `None` for [`api::names::ports::HEALTH`].
    pub health_port: Option<u16>,
}

impl Config {
    pub fn new(node_name: impl Into<String>, state: impl Into<PathBuf>) -> Self {
        Self {
            node_name: node_name.into(),
            state: state.into(),
            controllers: Vec::new(),
            external_addresses: Vec::new(),
            node_addresses: Vec::new(),
            device_prefix: "tombolo".to_owned(),
            port: None,
            health_port: None,
        }
    }
}

/// Starts a gateway. It holds a slot when one is free, forwards when it knows its keys, and goes on until `stop`.
///
/// Stopping is graceful: nodes and peers are told, packets are forwarded until all of them know or two seconds have
/// passed, then the devices go away and the task ends.
///
/// # Errors
/// The state folder cannot be made. What is missing later is awaited and said by [`Surface::readiness`].
#[expect(clippy::unused_async, reason = "every part is started alike, and within a runtime")]
pub async fn start(
    config: Config,
    store: Store,
    stop: CancellationToken,
) -> anyhow::Result<(Arc<dyn Surface>, JoinHandle<anyhow::Result<()>>)> {
    let folder = &config.state;
    std::fs::create_dir_all(folder).with_context(|| format!("making the state folder {}", folder.display()))?;
    let journal = journal::EventJournal::open(&folder.join("gateway-journal"))?;
    let shared = surface::Shared::new(&config.node_name, store.clone(), journal);
    let gateway = gateway::Gateway::new(config, store, Arc::clone(&shared))?;
    let task = tokio::spawn(gateway.run(stop));
    Ok((shared, task))
}
