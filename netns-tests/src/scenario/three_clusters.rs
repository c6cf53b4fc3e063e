//! Amber, birch and cedar: joined, with `shop/web` exported from birch and cedar and a client in amber.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::ClusterPlan;
use crate::deployment::Deployment;
use crate::manifest::{self, Service};
use crate::pod::Pod;
use crate::world::World;

/// The limit for anything that should take a second or two, on a machine that four tests share.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Three clusters on one machine, nothing started yet.
pub struct ThreeClusters {
    pub amber: Deployment,
    pub birch: Deployment,
    pub cedar: Deployment,
    /// In amber, on the worker.
    pub client: Pod,
    /// One in birch, two in cedar, on workers and gateways.
    pub servers: Vec<Pod>,
}

impl ThreeClusters {
    /// Makes the clusters with their pods and starts every part of Tombolo.
    pub fn start(world: &World) -> Result<Self> {
        Self::start_with(world, ClusterPlan::default())
    }

    /// The same with an amber of another plan.
    pub fn start_with(world: &World, amber: ClusterPlan) -> Result<Self> {
        Self::start_as(world, [amber, ClusterPlan::default(), ClusterPlan::default()])
    }

    /// The same with a plan for each, by their names.
    pub fn start_as(world: &World, [amber, birch, cedar]: [ClusterPlan; 3]) -> Result<Self> {
        let amber = world.cluster_with("amber", amber)?;
        let birch = world.cluster_with("birch", birch)?;
        let cedar = world.cluster_with("cedar", cedar)?;
        let client = amber.worker()?.pod("client")?;
        let servers =
            vec![birch.worker()?.pod("web-1")?, cedar.worker()?.pod("web-1")?, cedar.gateway()?.pod("web-2")?];
        for server in &servers {
            server.serve_http()?;
        }
        let [amber, birch, cedar] = [&amber, &birch, &cedar].map(Deployment::prepare);
        let world = Self { amber: amber?, birch: birch?, cedar: cedar?, client, servers };
        Deployment::start_all(&world.all())?;
        Ok(world)
    }

    pub fn all(&self) -> [&Deployment; 3] {
        [&self.amber, &self.birch, &self.cedar]
    }

    /// Introduces every cluster to every other and waits until packets pass between all of them.
    pub fn introduce(&self) -> Result<()> {
        Deployment::introduce(&self.all())?;
        for one in self.all() {
            for other in self.all().iter().filter(|other| other.cluster().name() != one.cluster().name()) {
                one.wait_until_connected(other.cluster().name(), PATIENCE)?;
            }
        }
        Ok(())
    }

    /// Exports `shop/web` from birch and cedar.
    pub fn export_web(&self) -> Result<()> {
        // A service is imported only where its namespace exists (KEP-1645); amber has nothing else in it.
        self.amber.apply("shop.yaml", &manifest::namespace("shop"))?;
        let web = Service::http("shop", "web");
        let of = |cluster: &str| -> Vec<&Pod> {
            self.servers.iter().filter(|pod| pod.node().cluster_name() == cluster).collect()
        };
        self.birch.apply("web.yaml", &web.manifest(&of("birch")))?;
        self.cedar.apply("web.yaml", &web.manifest(&of("cedar")))
    }

    /// Where `shop/web` answers in amber, waited for: IPv4, then IPv6.
    pub fn web(&self) -> Result<[SocketAddr; 2]> {
        let addresses = self.amber.clusterset_addresses("shop", "web", PATIENCE)?;
        let of = |wanted: fn(&IpAddr) -> bool| addresses.iter().copied().find(wanted).context("one family is missing");
        Ok([SocketAddr::new(of(IpAddr::is_ipv4)?, 80), SocketAddr::new(of(IpAddr::is_ipv6)?, 80)])
    }

    /// Everything up to the first answer in both families from both exporting clusters.
    pub fn joined(world: &World) -> Result<Self> {
        let clusters = Self::start(world)?;
        clusters.introduce()?;
        clusters.export_web()?;
        for target in clusters.web()? {
            clusters.wait_for_answers_from(target, &["birch", "cedar"])?;
        }
        Ok(clusters)
    }

    /// Waits until each of these clusters has answered the client at `target`.
    pub fn wait_for_answers_from(&self, target: SocketAddr, clusters: &[&str]) -> Result<()> {
        let mut missing: Vec<&str> = clusters.to_vec();
        self.amber.eventually(PATIENCE, &format!("{target} is answered by {clusters:?}"), || {
            let answer = crate::traffic::http::get(&self.client, target, Duration::from_millis(500))?;
            missing.retain(|cluster| *cluster != answer.cluster);
            anyhow::ensure!(missing.is_empty(), "no answer from {missing:?} yet");
            Ok(())
        })
    }
}
