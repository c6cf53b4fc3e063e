//! Closed until exported, and nobody speaks for another.

use anyhow::{Result, ensure};
use netns_tests::traffic::icmp;
use netns_tests::world_test;
use nlink::netlink::addr::Ipv4Address;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::{Outer, joined, prepared, started};

fn slice(address: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": [address]}], "ports": [{"port": 80, "protocol": "TCP"}],
    })
}

fn export() -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": "web", "namespace": "shop"}, "spec": {},
    })
}

#[test]
fn what_is_not_exported_is_closed_and_counted_an_export_opens_it_and_its_removal_closes_it() {
    world_test(|world| {
        let (one, mut other) = prepared(world, Outer::V4, [1, 1])?;
        other.close()?;
        let (one, mut other) = started(one, other)?;
        let (client, server) = (one.node.pod("client")?, other.node.pod("server")?);
        let _listening = server.run(|| TcpListener::bind("0.0.0.0:80"))??;
        let address = server.addresses().v4;
        let web = SocketAddr::from((address, 80));
        let connects = |limit: Duration| client.run(|| TcpStream::connect_timeout(&web, limit).is_ok());
        let short = Duration::from_millis(300);

        ensure!(!connects(short)?, "closed before it is exported");
        ensure!(icmp::ping_once(&client, address.into(), short)?.is_none(), "not even an echo");
        other.wait_for("two refusals", |end| Ok(end.counted("Unexported")? >= 2))?;
        let refusals = other.ask("refusals")?.to_string();
        ensure!(refusals.contains(&web.to_string()) && refusals.contains("amber"), "{refusals}");

        other.put(slice(&address.to_string()))?;
        other.put(export())?;
        other.wait_for("the export to open it", |_| connects(short))?;
        icmp::ping(&client, address.into())?;

        other.remove(&export())?;
        other.wait_for("the removal to close it", |_| Ok(!connects(short)?))
    });
}

#[test]
fn a_source_that_is_not_the_peers_is_refused_and_counted_by_name() {
    world_test(|world| {
        let (mut one, other) = joined(world, Outer::V4)?;
        // Amber believes that it owns a range of which its record says nothing.
        one.claim_prefix("10.77.0.0/16")?;
        one.node.links("taking a foreign address", async |links| {
            links.add_address(Ipv4Address::new("lo", [10, 77, 0, 1].into(), 32)).await
        })?;
        let target = other.node.infrastructure().v4;
        one.route_from([10, 77, 0, 1].into(), target)?;
        let sends = |_: &crate::end::End| -> Result<bool> {
            icmp::ping_once(&one.node, target.into(), Duration::from_millis(50))?;
            Ok(other.counted("WrongSource")? > 0)
        };
        other.wait_for("the refusal", sends)?;
        let refusals = other.ask("refusals")?.to_string();
        ensure!(refusals.contains("10.77.0.1"), "{refusals}");
        Ok(())
    });
}
