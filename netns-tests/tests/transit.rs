//! Two clusters that cannot reach each other are joined by a third that both reach.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::deployment::{Deployment, Part};
use netns_tests::manifest::{self, LocalCluster, Service};
use netns_tests::scenario::three_clusters::PATIENCE;
use netns_tests::scenario::two_gateways::path_to;
use netns_tests::traffic::http;
use netns_tests::traffic::stream::Download;
use netns_tests::{Pod, World, world_test};

const BULK: u16 = 9000;
/// Hundreds of full segments.
const MUCH: u64 = 1 << 20;
/// A way by a hub is tried within seconds of silence, and the direct one is looked for every ten.
const CHANGES_OVER: Duration = Duration::from_secs(40);

/// Amber and cedar are cut off from each other; birch reaches both.
struct Apart {
    amber: Deployment,
    birch: Deployment,
    cedar: Deployment,
    client: Pod,
}

impl Apart {
    fn new(world: &World) -> Result<Self> {
        let [amber, birch, cedar] = ["amber", "birch", "cedar"].map(|name| world.cluster(name));
        let (amber, birch, cedar) = (amber?, birch?, cedar?);
        let (client, server) = (amber.worker()?.pod("client")?, cedar.worker()?.pod("server")?);
        server.serve_http()?;
        server.serve_bulk(BULK)?;
        world.cut(&amber, &cedar)?;
        let [amber, birch, cedar] = [&amber, &birch, &cedar].map(Deployment::prepare);
        let apart = Self { amber: amber?, birch: birch?, cedar: cedar?, client };
        Deployment::start_all(&[&apart.amber, &apart.birch, &apart.cedar])?;
        Deployment::introduce(&[&apart.amber, &apart.birch, &apart.cedar])?;
        apart.amber.wait_until_connected("birch", PATIENCE)?;
        apart.cedar.wait_until_connected("birch", PATIENCE)?;
        apart.amber.apply("shop.yaml", &manifest::namespace("shop"))?;
        let web = Service::http("shop", "web").with_port("bulk", "TCP", BULK, BULK);
        apart.cedar.apply("web.yaml", &web.manifest(&[&server]))?;
        Ok(apart)
    }

    /// Amber asks birch to pass its datagrams on to cedar.
    fn name_the_hub(&self) -> Result<()> {
        let peer = self.cedar.peer_manifest(PATIENCE)?;
        self.amber.apply("peer-cedar.yaml", &peer.replacen("spec:\n", "spec:\n  endpoints: ['via:birch']\n", 1))
    }

    fn allow_transit(&self) -> Result<()> {
        let local = LocalCluster::of(self.birch.cluster()).to_string();
        let rule = "  transit:\n  - between: [amber, cedar]\n  gateways:\n";
        self.birch.apply("local.yaml", &local.replacen("  gateways:\n", rule, 1))
    }

    /// Where a deployment's gateway sends what is for a peer.
    fn endpoint(deployment: &Deployment, peer: &str) -> Result<String> {
        let path = path_to(deployment, deployment.cluster().gateway()?, peer)?;
        Ok(path["sessions"][0]["endpoint"].as_str().context("no endpoint yet")?.to_owned())
    }

    /// Waits until both ends are reached by the hub, or until neither is.
    fn is_by_hub(&self, wanted: bool) -> Result<()> {
        self.amber.eventually(CHANGES_OVER, "both ends have the same way", || {
            for (one, peer) in [(&self.amber, "cedar"), (&self.cedar, "amber")] {
                let endpoint = Self::endpoint(one, peer)?;
                ensure!((endpoint == "via:birch") == wanted, "{} sends to {endpoint}", one.cluster().name());
            }
            Ok(())
        })
    }

    fn refused(&self, reason: &str) -> Result<f64> {
        self.birch.metric(self.birch.cluster().gateway()?, Part::Gateway, "tombolo_refusals_total", &[reason])
    }

    fn passed(&self) -> Result<f64> {
        self.birch.metric(self.birch.cluster().gateway()?, Part::Gateway, "tombolo_gateway_transit_passed_total", &[])
    }

    fn downloads(&self) -> Result<Vec<Download>> {
        let addresses = self.amber.clusterset_addresses("shop", "web", PATIENCE)?;
        let begin = |address| {
            let target = SocketAddr::new(address, BULK);
            let start = || Download::start(&self.client, target, PATIENCE / 10);
            self.amber.eventually(PATIENCE, &format!("a download of {target} begins"), start)
        };
        addresses.into_iter().map(begin).collect()
    }
}

#[test]
fn clusters_apart_are_joined_by_a_hub_that_allows_it_and_change_to_the_direct_way_and_back_while_downloads_run() {
    world_test(|world| {
        let apart = Apart::new(world)?;
        apart.name_the_hub()?;
        apart.birch.eventually(PATIENCE, "a hub that was not told to be one refuses", || {
            ensure!(apart.refused("TransitNotAllowed")? > 0.0, "nothing was refused yet");
            Ok(())
        })?;
        ensure!(apart.passed()? == 0.0, "birch passed datagrams on without being told to");

        apart.allow_transit()?;
        apart.amber.wait_until_connected("cedar", CHANGES_OVER)?;
        apart.cedar.wait_until_connected("amber", CHANGES_OVER)?;
        apart.is_by_hub(true)?;
        let shown = apart.amber.tombolo(apart.amber.cluster().gateway()?, &["explain", "path", "cedar"])?;
        let shown = String::from_utf8(shown.stdout)?;
        ensure!(shown.contains("via:birch"), "{shown}");
        for address in apart.amber.clusterset_addresses("shop", "web", PATIENCE)? {
            let target = SocketAddr::new(address, 80);
            apart.amber.eventually(PATIENCE, &format!("{target} is answered"), || {
                let answer = http::get(&apart.client, target, PATIENCE / 10)?;
                ensure!(answer.cluster == "cedar", "answered by {}", answer.cluster);
                Ok(())
            })?;
        }
        let downloads = apart.downloads()?;
        ensure!(downloads.len() == 2, "the service has {} addresses", downloads.len());
        let goes_on = || downloads.iter().try_for_each(|download| download.wait_for(MUCH, PATIENCE));
        goes_on()?;

        world.mend(apart.amber.cluster(), apart.cedar.cluster())?;
        apart.is_by_hub(false)?;
        goes_on()?;
        world.cut(apart.amber.cluster(), apart.cedar.cluster())?;
        apart.is_by_hub(true)?;
        goes_on()?;
        for download in downloads {
            let flow = download.stop();
            ensure!(flow.ended.is_none(), "a connection broke: {flow:?}");
            println!("silent for {:?}", flow.longest_silence);
        }
        Ok(())
    });
}

#[test]
fn two_hubs_that_name_each_other_end_a_datagram_and_say_so() {
    world_test(|world| {
        let apart = Apart::new(world)?;
        // Birch loses cedar too, and asks amber for it, which asks birch.
        world.cut(apart.birch.cluster(), apart.cedar.cluster())?;
        apart.name_the_hub()?;
        let peer = apart.cedar.peer_manifest(PATIENCE)?;
        apart.birch.apply("peer-cedar.yaml", &peer.replacen("spec:\n", "spec:\n  endpoints: ['via:amber']\n", 1))?;
        apart.allow_transit()?;
        let local = LocalCluster::of(apart.amber.cluster()).to_string();
        let rule = "  transit:\n  - between: [birch, cedar]\n  gateways:\n";
        apart.amber.apply("local.yaml", &local.replacen("  gateways:\n", rule, 1))?;
        apart.birch.eventually(CHANGES_OVER, "the datagram ends at the hub", || {
            ensure!(apart.refused("NoTransitPath")? > 0.0, "nothing was refused yet");
            Ok(())
        })?;
        let path = path_to(&apart.amber, apart.amber.cluster().gateway()?, "birch")?;
        ensure!(path["reachability"] == "Up", "the tunnel between the two hubs suffers: {path}");
        Ok(())
    });
}
