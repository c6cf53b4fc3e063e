//! A gateway goes away, in every way it can, while flows pass through it; then it comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::deployment::{Deployment, Part};
use crate::node::Node;
use crate::scenario::promise::Promise;
use crate::scenario::three_clusters::PATIENCE;
use crate::scenario::two_gateways::{Flows, Seen, TwoGateways};

/// The promise for flows that are under way when a gateway is lost.
pub const SILENT_FOR: Duration = Duration::from_secs(1);
/// How long flows are watched after an event. TCP sends again after 0.2, 0.6 and 1.4 s: a flow that was not carried by
/// then shows a silence beyond the promise, and it is waited for.
const WATCHED: Duration = Duration::from_millis(1_600);

/// What happens to a gateway, or to all of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// SIGKILL in the clients' cluster.
    KilledHere,
    /// SIGKILL in the servers' cluster.
    KilledThere,
    /// The gateway's host loses its link, which shows.
    Unplugged,
    /// Nothing comes or goes, and the link looks well.
    CutOff,
    /// What the host sends is lost.
    Mute,
    /// What is sent to the host is lost.
    Deaf,
    /// The gateway loses its way to the other cluster alone.
    Partitioned,
    /// SIGTERM in the clients' cluster.
    StoppedHere,
    /// SIGTERM in the servers' cluster.
    StoppedThere,
    /// SIGKILL of the node agents of all hosts, in the clients' cluster.
    AgentsKilledHere,
    AgentsKilledThere,
    /// SIGTERM of the same.
    AgentsStoppedHere,
    AgentsStoppedThere,
    /// SIGKILL of every part of the clients' cluster, and their start.
    RestartedHere,
    RestartedThere,
}

impl Event {
    pub const ALL: [Self; 15] = [
        Self::KilledHere,
        Self::KilledThere,
        Self::Unplugged,
        Self::CutOff,
        Self::Mute,
        Self::Deaf,
        Self::Partitioned,
        Self::StoppedHere,
        Self::StoppedThere,
        Self::AgentsKilledHere,
        Self::AgentsKilledThere,
        Self::AgentsStoppedHere,
        Self::AgentsStoppedThere,
        Self::RestartedHere,
        Self::RestartedThere,
    ];

    /// What a table calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KilledHere => "gateway SIGKILL, clients' side",
            Self::KilledThere => "gateway SIGKILL, servers' side",
            Self::Unplugged => "gateway host unplugged",
            Self::CutOff => "gateway host cut off, both ways",
            Self::Mute => "gateway host cut off, one way out",
            Self::Deaf => "gateway host cut off, one way in",
            Self::Partitioned => "gateway without a path to the peer",
            Self::StoppedHere => "gateway stopped, clients' side",
            Self::StoppedThere => "gateway stopped, servers' side",
            Self::AgentsKilledHere => "node agents SIGKILL, clients' side",
            Self::AgentsKilledThere => "node agents SIGKILL, servers' side",
            Self::AgentsStoppedHere => "node agents stopped, clients' side",
            Self::AgentsStoppedThere => "node agents stopped, servers' side",
            Self::RestartedHere => "all parts SIGKILL, clients' side",
            Self::RestartedThere => "all parts SIGKILL, servers' side",
        }
    }

    /// Whether nothing at all may be lost. What a node agent made stays in the kernel however it ends.
    pub const fn is_graceful(self) -> bool {
        use Event::{AgentsKilledHere, AgentsKilledThere, AgentsStoppedHere, AgentsStoppedThere};
        matches!(self, Self::StoppedHere | Self::StoppedThere)
            || matches!(self, AgentsKilledHere | AgentsKilledThere | AgentsStoppedHere | AgentsStoppedThere)
    }

    /// The cluster whose second gateway it happens to.
    fn cluster(self, clusters: &TwoGateways) -> &Deployment {
        match self {
            Self::KilledThere | Self::StoppedThere | Self::AgentsKilledThere | Self::AgentsStoppedThere => {
                &clusters.birch
            }
            Self::RestartedThere => &clusters.birch,
            _ => &clusters.amber,
        }
    }

    fn victim(self, clusters: &TwoGateways) -> Result<&Node> {
        self.cluster(clusters).cluster().gateways().get(1).context("a cluster with one gateway")
    }

    /// Makes it happen. Gives how long flows have no gateway to go by at all: nothing but for a whole cluster.
    pub fn strike(self, clusters: &TwoGateways) -> Result<Duration> {
        let struck = Instant::now();
        if !matches!(self, Self::RestartedHere | Self::RestartedThere) {
            return self.strike_parts(clusters).map(|()| Duration::ZERO);
        }
        let deployment = self.cluster(clusters);
        deployment.kill_everything()?;
        deployment.start_everything()?;
        Ok(struck.elapsed())
    }

    fn strike_parts(self, clusters: &TwoGateways) -> Result<()> {
        let (deployment, node) = (self.cluster(clusters), self.victim(clusters)?);
        match self {
            Self::KilledHere | Self::KilledThere => deployment.process(Part::Gateway, node)?.kill(),
            Self::Unplugged => node.router_port().unplug(),
            Self::CutOff => node.cut_off(),
            Self::Mute => node.mute(),
            Self::Deaf => node.deafen(),
            Self::Partitioned => node.cut_off_from(clusters.birch.cluster(), deployment.cluster().router()),
            Self::StoppedHere | Self::StoppedThere => {
                let status = deployment.process(Part::Gateway, node)?.terminate(PATIENCE)?;
                ensure!(status.success(), "{} ended with {status}", node.name());
                Ok(())
            }
            Self::AgentsKilledHere | Self::AgentsKilledThere => {
                deployment.cluster().nodes().iter().try_for_each(|node| deployment.process(Part::Node, node)?.kill())
            }
            Self::AgentsStoppedHere | Self::AgentsStoppedThere => {
                deployment.cluster().nodes().iter().try_for_each(|node| {
                    let status = deployment.process(Part::Node, node)?.terminate(PATIENCE)?;
                    ensure!(status.success(), "the agent of {} ended with {status}", node.name());
                    Ok(())
                })
            }
            Self::RestartedHere | Self::RestartedThere => Ok(()),
        }
    }

    /// Undoes it.
    pub fn mend(self, clusters: &TwoGateways) -> Result<()> {
        let (deployment, node) = (self.cluster(clusters), self.victim(clusters)?);
        match self {
            Self::KilledHere | Self::KilledThere | Self::StoppedHere | Self::StoppedThere => {
                deployment.start_part(Part::Gateway, node).map(|_| ())
            }
            Self::Unplugged => node.router_port().plug_in(),
            Self::CutOff | Self::Mute | Self::Deaf => node.reconnect(),
            Self::Partitioned => node.mend_all(deployment.cluster().router()),
            Self::AgentsKilledHere | Self::AgentsKilledThere | Self::AgentsStoppedHere | Self::AgentsStoppedThere => {
                let mut nodes = deployment.cluster().nodes().iter();
                nodes.try_for_each(|node| deployment.start_part(Part::Node, node).map(|_| ()))?;
                deployment.wait_until_ready(PATIENCE)
            }
            // It was undone at once.
            Self::RestartedHere | Self::RestartedThere => Ok(()),
        }
    }
}

/// What flows saw of a gateway's end and of its return.
#[derive(Clone, Debug)]
pub struct Failover {
    pub gone: Seen,
    pub back: Seen,
    /// From the return to the moment at which every gateway carried flows again.
    pub used_after: Duration,
}

impl Failover {
    /// What is promised of it.
    pub fn promises(&self) -> Vec<Promise> {
        let silent = |what, seen: &Seen| Promise { what, limit: SILENT_FOR, measured: seen.longest_silence };
        vec![
            silent("a download is silent when a gateway goes", &self.gone),
            silent("a download is silent when it comes back", &self.back),
        ]
    }

    /// Errors when a connection ended.
    pub fn check(&self) -> Result<()> {
        for seen in [&self.gone, &self.back] {
            ensure!(seen.ended.is_empty(), "connections broke: {:?}", seen.ended);
        }
        Ok(())
    }
}

/// Opens flows over all gateways, lets it happen, and then undoes it.
pub fn measure(clusters: &TwoGateways, event: Event) -> Result<Failover> {
    measure_on(&mut clusters.flows()?, clusters, event)
}

/// The same on flows that are open. TCP chooses its way anew whenever it sends again, so they may have to be spread first.
pub fn measure_on(flows: &mut Flows<'_>, clusters: &TwoGateways, event: Event) -> Result<Failover> {
    flows.spread()?;
    begin(flows)?;
    let without_gateways = event.strike(clusters)?;
    let mut gone = end(flows)?;
    // What is promised then counts from the gateways' return.
    gone.longest_silence = gone.longest_silence.saturating_sub(without_gateways);

    begin(flows)?;
    let mended = Instant::now();
    event.mend(clusters)?;
    clusters.wait_until_all_are_used()?;
    let used_after = mended.elapsed();
    flows.spread()?;
    let back = end(flows)?;
    Ok(Failover { gone, back, used_after })
}

fn begin(flows: &mut Flows<'_>) -> Result<()> {
    flows.start_measuring()?;
    flows.wait_until_all_go_on()
}

/// What the flows saw since the beginning until a while after now, when all of them go on.
fn end(flows: &mut Flows<'_>) -> Result<Seen> {
    std::thread::sleep(WATCHED);
    flows.wait_until_all_go_on()?;
    flows.measured()
}
