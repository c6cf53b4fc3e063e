//! A gateway of several lanes, one of which does not get through.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use netns_tests::deployment::{Deployment, Part};
use netns_tests::manifest::{self, LocalCluster, Service};
use netns_tests::scenario::three_clusters::PATIENCE;
use netns_tests::traffic::http;
use netns_tests::{World, world_test};

/// Flows are spread by their ports: so many use both lanes, but for once in a million million times.
const CONNECTIONS: usize = 40;
/// Below the second after which a lost SYN is sent again.
const LIMIT: Duration = Duration::from_millis(900);
/// Of lane 1.
const PORT: u16 = 51_821;

#[test]
fn a_firewall_that_drops_one_lanes_port_leaves_all_connections_to_the_other_lane_until_it_is_opened() {
    world_test(|world: &World| {
        let (amber, birch) = (world.cluster("amber")?, world.cluster("birch")?);
        let (server, client) = (amber.worker()?.pod("server")?, birch.worker()?.pod("client")?);
        server.serve_http()?;
        let prepare =
            |cluster| Deployment::prepare_with(cluster, &LocalCluster { lanes: 2, ..LocalCluster::of(cluster) });
        let both = [prepare(&amber)?, prepare(&birch)?];
        let [served, asking] = &both;
        Deployment::start_all(&both.each_ref())?;
        Deployment::introduce(&both.each_ref())?;
        served.wait_until_connected("birch", PATIENCE)?;
        asking.wait_until_connected("amber", PATIENCE)?;
        for deployment in &both {
            deployment.apply("shop.yaml", &manifest::namespace("shop"))?;
        }
        served.apply("web.yaml", &Service::http("shop", "web").manifest(&[&server]))?;
        let targets: Vec<SocketAddr> = asking
            .clusterset_addresses("shop", "web", PATIENCE)?
            .into_iter()
            .map(|address| SocketAddr::new(address, 80))
            .collect();
        let all_are_answered = |what: &str| {
            asking.eventually(PATIENCE, what, || {
                for target in &targets {
                    let tally = http::get_many(&client, *target, CONNECTIONS, LIMIT)?;
                    ensure!(tally.failed == 0, "{} of {CONNECTIONS} connections failed", tally.failed);
                }
                Ok(())
            })
        };
        let lanes_up = |expected: [&str; 2]| {
            asking.eventually(PATIENCE, &format!("lanes are {expected:?}"), || {
                let status = asking.ask(birch.gateway()?, Part::Gateway, "status")?;
                let sessions = status["peers"][0]["sessions"].as_array().context("no sessions")?;
                let states: Vec<&str> =
                    sessions.iter().filter_map(|session| session["reachability"].as_str()).collect();
                ensure!(states == expected, "{sessions:?}");
                Ok(())
            })
        };
        all_are_answered("both lanes carry")?;
        lanes_up(["Up", "Up"])?;
        birch.lose_udp_port(PORT)?;
        lanes_up(["Up", "Down"])?;
        all_are_answered("the other lane carries everything")?;
        birch.mend_udp_port()?;
        lanes_up(["Up", "Up"])?;
        all_are_answered("both lanes carry again")?;
        Ok(())
    });
}
