//! UDP has no connections, and a drain keeps them all the same.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netns_tests::manifest::{self, Service};
use netns_tests::scenario::three_clusters::{PATIENCE, ThreeClusters};
use netns_tests::{Pod, world_test};

const GOOD: i32 = 0;
const PORT: u16 = 7_777;
/// Flows that are opened at most until both pods serve one: half the chance of a miss with each.
const MOST_FLOWS: usize = 40;
/// New flows that leave one of two pods out once in a hundred million times.
const ENOUGH: usize = 27;
/// How often each established flow is used after the drain.
const ROUNDS: usize = 20;

/// Answers every datagram with its pod's name, on both families. Dropping it ends it.
struct Namer {
    stop: Arc<AtomicBool>,
}

impl Namer {
    fn start(pod: &Pod) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (stop.clone(), pod.pod_name().to_owned());
        let socket = pod.run(|| -> Result<UdpSocket> {
            let socket = UdpSocket::bind(("::", PORT))?;
            // So that the thread looks at `stop` now and then.
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        })??;
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((_, client)) = socket.recv_from(&mut buffer) else { continue };
                // One that cannot be answered is missed by who asked.
                let _ = socket.send_to(name.as_bytes(), client);
            }
        });
        Ok(Self { stop })
    }
}

impl Drop for Namer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A flow is a socket: its own port, and one answer to each question.
fn open(client: &Pod, target: SocketAddr) -> Result<UdpSocket> {
    client.run(|| -> Result<UdpSocket> {
        let socket = UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    })?
}

fn who_answers(flow: &UdpSocket) -> Result<String> {
    flow.send(b"who")?;
    let mut buffer = [0; 64];
    let length = flow.recv(&mut buffer).with_context(|| format!("{flow:?} is not answered"))?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

#[test]
fn udp_flows_to_a_drained_nodes_pod_go_on_and_new_ones_go_elsewhere() {
    world_test(|world| {
        let clusters = ThreeClusters::start(world)?;
        clusters.introduce()?;
        let (amber, cedar, client) = (&clusters.amber, &clusters.cedar, &clusters.client);
        amber.apply("shop.yaml", &manifest::namespace("shop"))?;
        let pods: Vec<&Pod> = clusters.servers.iter().filter(|pod| pod.node().cluster_name() == "cedar").collect();
        let _namers = pods.iter().map(|pod| Namer::start(pod)).collect::<Result<Vec<_>>>()?;
        let names =
            Service { ports: Vec::new(), ..Service::http("shop", "names") }.with_port("names", "UDP", PORT, PORT);
        cedar.apply("names.yaml", &names.manifest(&pods))?;
        let [leaving, staying] = pods[..] else { bail!("cedar has {} pods", pods.len()) };
        let node = leaving.node().node_name();
        ensure!(node != staying.node().node_name(), "both pods are on {node}");

        for address in amber.clusterset_addresses("shop", "names", PATIENCE)? {
            let target = SocketAddr::new(address, PORT);
            amber.eventually(PATIENCE, "the service answers", || who_answers(&open(client, target)?))?;
            let mut flows: Vec<(UdpSocket, String)> = Vec::new();
            while [leaving, staying].iter().any(|pod| !flows.iter().any(|(_, name)| name == pod.pod_name())) {
                ensure!(flows.len() < MOST_FLOWS, "{MOST_FLOWS} flows went to one pod");
                let flow = open(client, target)?;
                let name = who_answers(&flow)?;
                flows.push((flow, name));
            }

            cedar.types(&format!("drain node {node}"), GOOD)?;
            amber.eventually(PATIENCE, "new flows go elsewhere", || {
                for _ in 0..ENOUGH {
                    let name = who_answers(&open(client, target)?)?;
                    ensure!(name == staying.pod_name(), "a new flow went to {name}");
                }
                Ok(())
            })?;
            for round in 0..ROUNDS {
                for (flow, name) in &flows {
                    let now = who_answers(flow).with_context(|| format!("round {round} of a flow with {name}"))?;
                    ensure!(now == *name, "a flow with {name} was given to {now}");
                }
            }

            cedar.types(&format!("drain node {node} --undo --wait"), GOOD)?;
            amber.eventually(PATIENCE, "new flows go to both again", || {
                let mut names = (0..ENOUGH).map(|_| who_answers(&open(client, target)?));
                ensure!(names.any(|name| name.is_ok_and(|name| name == leaving.pod_name())), "none went there");
                Ok(())
            })?;
        }
        Ok(())
    });
}
