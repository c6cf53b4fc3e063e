//! What nodes of real clusters already have when Tombolo comes: connections work in spite of it, and servers see whom
//! they talk to.

use anyhow::{Result, ensure};
use netns_tests::deployment::Deployment;
use netns_tests::pod::Pod;
use netns_tests::scenario::three_clusters::{PATIENCE, ThreeClusters};
use netns_tests::traffic::{http, icmp};
use netns_tests::{Node, World, world_test};

/// The clusters with `harden` done on every node of theirs before Tombolo comes, and one client more.
fn joined(world: &World, harden: fn(&Node) -> Result<()>) -> Result<(ThreeClusters, Vec<Pod>)> {
    let [amber, birch, cedar] = ["amber", "birch", "cedar"].map(|name| world.cluster(name));
    let (amber, birch, cedar) = (amber?, birch?, cedar?);
    for cluster in [&amber, &birch, &cedar] {
        cluster.nodes().iter().try_for_each(harden)?;
    }
    let client = amber.worker()?.pod("client")?;
    let servers = vec![birch.worker()?.pod("web-1")?, cedar.worker()?.pod("web-1")?, cedar.gateway()?.pod("web-2")?];
    for server in &servers {
        server.serve_http()?;
    }
    let [amber, birch, cedar] = [&amber, &birch, &cedar].map(Deployment::prepare);
    let clusters = ThreeClusters { amber: amber?, birch: birch?, cedar: cedar?, client, servers };
    Deployment::start_all(&clusters.all())?;
    clusters.introduce()?;
    clusters.export_web()?;
    let clients = vec![clusters.client.clone(), clusters.amber.cluster().gateway()?.pod("client-2")?];
    Ok((clusters, clients))
}

/// Every client reaches every server, on gateway nodes and on workers, by the service's address and by the pod's own,
/// and is seen by its own address.
fn everyone_is_reached(clusters: &ThreeClusters, clients: &[Pod]) -> Result<()> {
    for client in clients {
        for (place, target) in clusters.web()?.into_iter().enumerate() {
            let mut missing: Vec<String> = clusters
                .servers
                .iter()
                .map(|pod| format!("{}/{}", pod.node().cluster_name(), pod.pod_name()))
                .collect();
            clusters.amber.eventually(PATIENCE, &format!("{target} is answered by every server"), || {
                let answer = http::get(client, target, PATIENCE)?;
                let own = client.addresses().both()[place];
                ensure!(answer.client == own, "{} was seen as {}, its address is {own}", client.name(), answer.client);
                missing.retain(|server| *server != format!("{}/{}", answer.cluster, answer.pod));
                ensure!(missing.is_empty(), "not yet answered by {missing:?}");
                Ok(())
            })?;
        }
        for server in &clusters.servers {
            for (target, own) in server.addresses().with_port(80).into_iter().zip(client.addresses().both()) {
                let answer = http::get_within(client, target, PATIENCE)?;
                ensure!(answer.client == own, "{} was seen as {}, its address is {own}", client.name(), answer.client);
                // What is exported may be pinged.
                icmp::ping(client, target.ip())?;
            }
        }
    }
    Ok(())
}

/// Every host reaches the service, and is seen by its infrastructure address.
fn hosts_reach(clusters: &ThreeClusters) -> Result<()> {
    let infrastructure = clusters.amber.cluster().ranges().infrastructure();
    for node in clusters.amber.cluster().nodes() {
        for target in clusters.web()? {
            let answer = http::get_within(node, target, PATIENCE)?;
            ensure!(infrastructure.contains(answer.client), "{} was seen as {}", node.name(), answer.client);
        }
    }
    Ok(())
}

#[test]
fn strict_reverse_path_checks_on_every_node_lose_nothing() {
    world_test(|world| {
        let (clusters, clients) = joined(world, Node::check_reverse_path_strictly)?;
        everyone_is_reached(&clusters, &clients)?;
        hosts_reach(&clusters)
    });
}

#[test]
fn dropping_packets_of_invalid_connections_on_every_node_loses_nothing() {
    world_test(|world| {
        let (clusters, clients) = joined(world, Node::drop_invalid_connections)?;
        everyone_is_reached(&clusters, &clients)?;
        hosts_reach(&clusters)
    });
}

#[test]
fn a_forward_chain_that_drops_all_but_the_clusters_own_pods_and_hosts_lets_them_through() {
    world_test(|world| {
        let (clusters, clients) = joined(world, Node::add_forward_firewall)?;
        everyone_is_reached(&clusters, &clients)?;
        hosts_reach(&clusters)
    });
}

#[test]
fn a_network_plugins_masquerade_does_not_hide_the_client() {
    world_test(|world| {
        let (clusters, clients) = joined(world, Node::add_plugin_masquerade)?;
        everyone_is_reached(&clusters, &clients)?;
        hosts_reach(&clusters)
    });
}

#[test]
fn all_of_them_together_are_withstood_and_may_come_while_tombolo_runs() {
    world_test(|world| {
        fn harden(node: &Node) -> Result<()> {
            node.check_reverse_path_strictly()?;
            node.add_forward_firewall()?;
            node.add_plugin_masquerade()
        }
        let (clusters, clients) = joined(world, |_| Ok(()))?;
        everyone_is_reached(&clusters, &clients)?;
        for deployment in clusters.all() {
            deployment.cluster().nodes().iter().try_for_each(harden)?;
        }
        everyone_is_reached(&clusters, &clients)?;
        hosts_reach(&clusters)
    });
}
