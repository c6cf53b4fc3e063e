//! Nothing leaves in clear because a tunnel died: all gateways are killed while a pod keeps sending.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::capture::Capture;
use crate::deployment::Part;
use crate::scenario::three_clusters::ThreeClusters;
use crate::traffic::{http, udp};

/// How long the pod goes on sending without a gateway.
const SENDING: Duration = Duration::from_secs(2);

/// Packets with an address of a pod, a clusterset or an infrastructure range that the router of amber saw while amber's
/// gateways were dead. Every node's default route leads to that router.
pub fn measure(clusters: &ThreeClusters, clusterset: SocketAddr) -> Result<usize> {
    let amber = clusters.amber.cluster();
    let inner = clusters
        .all()
        .iter()
        .map(|deployment| deployment.cluster().ranges())
        .flat_map(|ranges| [ranges.pods(), ranges.clusterset(), ranges.infrastructure()])
        .collect();
    let capture = Capture::of_clear_text(amber.router(), inner)?;
    let gateway = amber.gateway()?;
    for gateway in amber.gateways() {
        clusters.amber.process(Part::Gateway, gateway)?.kill()?;
    }
    let pod = clusters.servers.first().context("no server pod")?;
    let deadline = Instant::now() + SENDING;
    while Instant::now() < deadline {
        // To the service and to the pod itself, in both families; none of them can be answered.
        let _ = http::get(&clusters.client, clusterset, Duration::from_millis(50));
        for address in pod.addresses().with_port(80) {
            let _ = http::get(&clusters.client, address, Duration::from_millis(50));
            let _ = udp::echo(&clusters.client, address, 1, 16, Duration::from_millis(10));
            // A host's own traffic leaves by other rules than a pod's.
            let _ = http::get(gateway, address, Duration::from_millis(50));
        }
    }
    let captured = capture.stop()?;
    ensure!(captured.lost == 0, "the capture missed {} packets, so it proves nothing", captured.lost);
    for packet in &captured.packets {
        eprintln!("in clear: {packet}");
    }
    Ok(captured.wanted)
}

/// Removes every blackhole route of a node, in every table: what the promise rests on.
pub fn remove_blackholes(node: &crate::node::Node) -> Result<()> {
    use nlink::netlink::route::{Ipv4Route, Ipv6Route};
    use nlink::netlink::types::route::RouteType;
    node.links("removing blackholes", async |links| {
        for route in links.get_routes().await? {
            if route.route_type() != RouteType::Blackhole {
                continue;
            }
            let (length, table, metric) = (route.dst_len(), route.table_id(), route.priority().unwrap_or_default());
            match route.destination() {
                Some(IpAddr::V4(prefix)) => {
                    let route =
                        Ipv4Route::from_addr(*prefix, length).table(table).metric(metric).protocol(route.protocol());
                    links.del_route(route.route_type(RouteType::Blackhole)).await?;
                }
                Some(IpAddr::V6(prefix)) => {
                    let route =
                        Ipv6Route::from_addr(*prefix, length).table(table).metric(metric).protocol(route.protocol());
                    links.del_route(route.route_type(RouteType::Blackhole)).await?;
                }
                None => {}
            }
        }
        Ok(())
    })
}
