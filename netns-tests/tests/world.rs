//! The world itself: what other tests rely on.

use std::time::Duration;

use anyhow::ensure;
use netns_tests::traffic::{http, icmp};
use netns_tests::world_test;

const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn pods_of_one_cluster_reach_each_other_and_gateways_of_all() {
    world_test(|world| {
        for name in ["amber", "birch", "cedar"] {
            world.cluster(name)?;
        }
        let [amber, birch, cedar] = <[_; 3]>::try_from(world.clusters()).expect("three clusters");
        let server = amber.gateway()?.pod("server")?;
        let client = amber.worker()?.pod("client")?;
        server.serve_http()?;
        for target in server.addresses().with_port(80) {
            let answer = http::get(&client, target, LIMIT)?;
            ensure!((answer.pod.as_str(), answer.cluster.as_str()) == ("server", "amber"), "{answer:?}");
            ensure!(client.addresses().both().contains(&answer.client), "{answer:?}");
        }
        for other in [&birch, &cedar] {
            for address in other.gateway()?.addresses().both() {
                icmp::ping(amber.gateway()?, address)?;
            }
        }
        Ok(())
    });
}
