//! Where a peer's gateway is: reachable from one side alone, behind a translation that changes, at another address.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::deployment::Deployment;
use netns_tests::manifest::{self, Service};
use netns_tests::scenario::three_clusters::PATIENCE;
use netns_tests::scenario::two_gateways::path_to;
use netns_tests::traffic::stream::Download;
use netns_tests::{Cluster, Pod, World, world_test};

const STREAM: u16 = 9_000;
/// How long a download is watched after a change. The promise is a second.
const WATCHED: Duration = Duration::from_millis(1_600);
/// A gateway that is not found again is silent for ever; a machine that four tests share may take longer than promised.
const LONGEST: Duration = Duration::from_secs(4);

/// Amber and birch, joined; a client on amber's gateway host and a server on birch's, so that nothing but the tunnel is
/// between them.
struct Joined {
    amber: Deployment,
    birch: Deployment,
    client: Pod,
    server: Pod,
}

impl Joined {
    fn new(world: &World, prepare: impl FnOnce(&Cluster, &Cluster) -> Result<()>) -> Result<Self> {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        prepare(&amber, &birch)?;
        let (client, server) = (amber.gateway()?.pod("client")?, birch.gateway()?.pod("feed-1")?);
        server.serve_stream(STREAM)?;
        let joined = Self { amber: Deployment::start(&amber)?, birch: Deployment::start(&birch)?, client, server };
        Deployment::introduce(&[&joined.amber, &joined.birch])?;
        joined.amber.wait_until_connected("birch", PATIENCE)?;
        joined.birch.wait_until_connected("amber", PATIENCE)?;
        joined.amber.apply("shop.yaml", &manifest::namespace("shop"))?;
        let feed = Service { ports: Vec::new(), ..Service::http("shop", "feed") };
        let feed = feed.with_port("stream", "TCP", STREAM, STREAM);
        joined.birch.apply("feed.yaml", &feed.manifest(&[&joined.server]))?;
        Ok(joined)
    }

    fn downloads(&self) -> Result<Vec<Download>> {
        let targets = self.server.addresses().with_port(STREAM).into_iter();
        let begin = |target| {
            let start = || Download::start(&self.client, target, Duration::from_millis(500));
            self.amber.eventually(PATIENCE, "a download begins", start)
        };
        targets.map(begin).collect()
    }

    /// Where amber's gateway sends birch's packets to.
    fn endpoint_of_birch(&self) -> Result<String> {
        let path = path_to(&self.amber, self.amber.cluster().gateway()?, "birch")?;
        let endpoint = path["sessions"][0]["endpoint"].as_str().context("no endpoint yet")?;
        Ok(endpoint.to_owned())
    }

    /// Lets something happen while downloads run, and holds them to the promise.
    fn goes_on(&self, happens: impl FnOnce() -> Result<()>) -> Result<()> {
        let downloads = self.downloads()?;
        downloads.iter().try_for_each(|download| download.wait_for_more(PATIENCE))?;
        let before = self.endpoint_of_birch()?;
        downloads.iter().for_each(Download::start_measuring);
        happens()?;
        std::thread::sleep(WATCHED);
        for download in downloads {
            download.wait_for_more(PATIENCE)?;
            let flow = download.stop();
            ensure!(flow.ended.is_none(), "the connection broke: {:?}", flow.ended);
            println!("silent for {:?}", flow.longest_silence);
            ensure!(flow.longest_silence < LONGEST, "silent for {:?}", flow.longest_silence);
        }
        let after = self.endpoint_of_birch()?;
        ensure!(before != after, "birch is still at {before}: nothing happened that was to be followed");
        Ok(())
    }
}

#[test]
fn a_cluster_that_can_only_dial_is_joined_and_followed_when_its_translation_changes() {
    world_test(|world| {
        let joined = Joined::new(world, |_, birch| birch.hide_behind_nat())?;
        joined.goes_on(|| joined.birch.cluster().rebind_nat())
    });
}

#[test]
fn a_gateway_whose_address_changes_is_followed_before_anybody_is_told() {
    world_test(|world| {
        let joined = Joined::new(world, |_, _| Ok(()))?;
        let birch = joined.birch.cluster();
        joined.goes_on(|| birch.change_address(birch.gateway()?).map(|_| ()))
    });
}

#[test]
fn a_written_endpoint_that_nobody_answers_at_is_passed_over_for_the_next() {
    world_test(|world| {
        let amber = world.cluster("amber")?;
        let birch = world.cluster("birch")?;
        let own = birch.gateway()?.addresses().both()[0].to_string();
        let nobody = birch.ranges().underlay().at(250).both()[0].to_string();
        let local =
            manifest::LocalCluster { external_addresses: vec![nobody, own], ..manifest::LocalCluster::of(&birch) };
        // Amber cannot be dialled, so that the first packet must go to the right one of birch's addresses.
        amber.hide_behind_nat()?;
        let (one, other) = (Deployment::start(&amber)?, Deployment::prepare_with(&birch, &local)?);
        other.start_everything()?;
        Deployment::introduce(&[&one, &other])?;
        one.wait_until_connected("birch", PATIENCE)?;
        let used = path_to(&one, amber.gateway()?, "birch")?;
        let own = birch.gateway()?.addresses().both()[0];
        let endpoint = used["sessions"][0]["endpoint"].as_str().unwrap_or_default();
        ensure!(endpoint.starts_with(&own.to_string()), "birch is at {own}, and {used} is used");
        Ok(())
    });
}
