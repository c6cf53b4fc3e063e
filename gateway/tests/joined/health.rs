//! Nodes of the gateway's own cluster ask for health, and nobody else gets it.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use api::health::Reachability;
use api::health::message::{HealthRequest, MasterKey, ReplyPage};
use netns_tests::world_test;
use serde_json::json;

use crate::end::{LIMIT, base64};
use crate::{Outer, joined};

#[test]
fn a_node_with_its_key_learns_which_peers_can_be_reached_and_a_forger_gets_silence() {
    world_test(|world| {
        let (mut one, _other) = joined(world, Outer::V4)?;
        let master = MasterKey { id: 5, secret: [8; 32] };
        one.put(json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "probe-master", "namespace": "tombolo-system"},
            "data": {"current": base64(master.to_text().as_bytes())},
        }))?;
        let worker = one.cluster.worker()?.clone();
        for address in one.node.addresses().both() {
            let target = SocketAddr::new(address, api::names::ports::HEALTH);
            let key = master.agent_key("worker-1");
            let request = HealthRequest { agent: "worker-1".into(), nonce: [4; 16], saw_draining: false };
            let ask = |bytes: &[u8], limit: Duration| -> Result<Option<Vec<u8>>> {
                let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
                let socket = worker.run(|| UdpSocket::bind(any))??;
                socket.set_read_timeout(Some(limit))?;
                socket.connect(target)?;
                socket.send(bytes)?;
                let mut answer = vec![0; 2_048];
                Ok(socket.recv(&mut answer).ok().map(|len| answer[..len].to_vec()))
            };
            one.wait_for("an answer", |_| Ok(ask(&request.encode(&key), Duration::from_millis(200))?.is_some()))?;
            let answer = ask(&request.encode(&key), LIMIT)?.unwrap_or_default();
            let page = ReplyPage::decode(&answer, &key, &[4; 16])?;
            ensure!(page.peers.len() == 1 && page.peers[0].reachability == Reachability::Up, "{page:?}");
            let forged = request.encode(&master.agent_key("worker-2"));
            ensure!(ask(&forged, Duration::from_millis(100))?.is_none(), "a forged request was answered");
        }
        one.wait_for("the forgeries to be counted", |end| Ok(end.counted("ForgedHealthRequest")? == 2))
    });
}
