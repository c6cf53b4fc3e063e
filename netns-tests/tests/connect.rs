//! What the README promises, each claim once: three clusters, real packets, real names.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use hickory_proto::rr::RecordType;
use netns_tests::deployment::Part;
use netns_tests::scenario::closed::{Closed, Private};
use netns_tests::scenario::cluster_lost::{ClusterLost, ServedTwice};
use netns_tests::scenario::propagation::Ticking;
use netns_tests::scenario::three_clusters::{PATIENCE, ThreeClusters};
use netns_tests::scenario::{clear_text, promise, shares};
use netns_tests::traffic::{dns, http, icmp};
use netns_tests::world_test;

#[test]
fn a_pod_asks_for_a_name_and_a_pod_of_another_cluster_answers_in_both_families() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        for target in clusters.web()? {
            let answer = http::get_within(&clusters.client, target, PATIENCE)?;
            ensure!(answer.cluster == "birch" || answer.cluster == "cedar", "answered by {}", answer.cluster);
            let own = clusters.client.addresses().both();
            ensure!(own.contains(&answer.client), "the server saw {}, not the pod's own address", answer.client);
        }
        Ok(())
    });
}

#[test]
fn a_host_reaches_the_service_too_and_is_seen_by_its_infrastructure_address() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        for node in clusters.amber.cluster().nodes() {
            for target in clusters.web()? {
                let answer = http::get_within(node, target, PATIENCE)?;
                let ranges = clusters.amber.cluster().ranges();
                ensure!(ranges.infrastructure().contains(answer.client), "{}: seen as {}", node.name(), answer.client);
            }
        }
        Ok(())
    });
}

#[test]
fn a_pod_that_is_an_endpoint_of_the_service_it_asks_may_get_itself() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let endpoint = &clusters.servers[0];
        for address in clusters.birch.clusterset_addresses("shop", "web", PATIENCE)? {
            // Local first: birch's only endpoint is the pod that asks.
            let answer = http::get_within(endpoint, std::net::SocketAddr::new(address, 80), PATIENCE)?;
            ensure!(answer.cluster == "birch" && answer.pod == endpoint.pod_name(), "answered by {answer:?}");
        }
        Ok(())
    });
}

#[test]
fn connections_are_shared_as_the_policys_weights_say() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        for target in clusters.web()? {
            shares::check(&shares::measure(&clusters, target)?)?;
        }
        Ok(())
    });
}

#[test]
fn an_endpoint_changed_in_one_cluster_is_seen_in_another() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        // How soon is the demo's to show: a p99 takes 200 changes, and a machine without another world on it. That
        // every change arrives is ours.
        let measured = Ticking::prepare(&clusters)?.measure(20)?;
        ensure!(measured.name.count() == 20 && measured.connection.count() == 20);
        Ok(())
    });
}

#[test]
fn a_cluster_that_dies_is_routed_around_and_used_again_when_it_returns() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let [target, _] = clusters.web()?;
        let served = ServedTwice::prepare(&clusters, target)?;
        promise::keep(|| served.measure(), ClusterLost::promises)?;
        Ok(())
    });
}

#[test]
fn a_pod_is_closed_to_other_clusters_until_it_is_exported_and_closed_again_after() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let private = Private::prepare(&clusters)?;
        promise::keep(|| private.measure(), Closed::promises)?;
        Ok(())
    });
}

#[test]
fn no_packet_leaves_in_clear_when_the_gateway_is_killed() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let [target, _] = clusters.web()?;
        let leaked = clear_text::measure(&clusters, target)?;
        ensure!(leaked == 0, "{leaked} packets with inner addresses reached the router");
        Ok(())
    });
}

#[test]
fn without_the_blackhole_routes_the_same_packets_do_leave_in_clear() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let [target, _] = clusters.web()?;
        for node in clusters.amber.cluster().nodes() {
            // The agent would put them back at once.
            clusters.amber.process(Part::Node, node)?.kill()?;
            clear_text::remove_blackholes(node)?;
        }
        let leaked = clear_text::measure(&clusters, target)?;
        ensure!(leaked > 0, "nothing leaked, so the test above proves nothing");
        Ok(())
    });
}

#[test]
fn a_name_of_an_unknown_namespace_and_a_name_outside_the_zone_are_refused_by_their_codes() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let code = |name: &str| -> Result<String> {
            let [server, _] = clusters.amber.dns()?;
            let limit = Duration::from_secs(2);
            let answer = dns::query(&clusters.client, server, name, RecordType::A, dns::Transport::Udp, limit)?;
            Ok(answer.metadata.response_code.to_string())
        };
        let unknown = code("web.nowhere.svc.clusterset.local.")?;
        ensure!(unknown.contains("Non-Existent"), "an unknown namespace: {unknown}");
        let outside = code("example.org.")?;
        ensure!(outside.contains("Refused"), "outside the zone: {outside}");
        Ok(())
    });
}

#[test]
fn an_exported_pod_is_reached_by_its_own_address_and_another_on_its_node_is_not() {
    world_test(|world| {
        let clusters = ThreeClusters::joined(world)?;
        let other = clusters.birch.cluster().worker()?.pod("other")?;
        other.serve_http()?;
        for address in clusters.servers[0].addresses().with_port(80) {
            http::get_within(&clusters.client, address, PATIENCE)?;
        }
        for address in other.addresses().both() {
            ensure!(icmp::ping_once(&clusters.client, address, Duration::from_millis(300))?.is_none());
            let target = std::net::SocketAddr::new(address, 80);
            ensure!(http::get(&clusters.client, target, Duration::from_millis(300)).is_err(), "{target} answers");
        }
        let families: Vec<bool> = other.addresses().both().iter().map(IpAddr::is_ipv4).collect();
        ensure!(families == [true, false], "both families were tried");
        Ok(())
    });
}
