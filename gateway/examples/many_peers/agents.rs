//! Nodes and DNS servers of the measured gateway's own cluster, as far as it can tell: they ask it for health.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use api::health::message::{AgentKey, HealthRequest, MasterKey};
use netns_tests::Node;

/// Questions of one agent in a second.
const PACE: u32 = 10;
/// Between two looks whether somebody is due.
const STEP: Duration = Duration::from_millis(1);

pub(crate) struct Asked {
    pub(crate) questions: u64,
    /// Datagrams; a report has several pages where there are many peers.
    pub(crate) answers: u64,
}

/// Lets so many agents on `node` ask `gateway`, each at its pace and none at the same moment as another.
pub(crate) fn ask(node: &Node, gateway: SocketAddr, master: &MasterKey, agents: u32, time: Duration) -> Result<Asked> {
    let names: Vec<String> = (0..agents).map(|number| format!("node-{number}")).collect();
    let keys: Vec<AgentKey> = names.iter().map(|name| master.agent_key(name)).collect();
    node.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("an agent's socket")?;
        socket.set_nonblocking(true)?;
        let (started, mut asked, mut buffer) = (Instant::now(), Asked { questions: 0, answers: 0 }, [0; 2048]);
        while started.elapsed() < time {
            let due = (started.elapsed().as_secs_f64() * f64::from(agents * PACE)) as u64;
            while asked.questions < due {
                let turn = usize::try_from(asked.questions)? % names.len();
                let mut nonce = [0; 16];
                nonce[..8].copy_from_slice(&asked.questions.to_be_bytes());
                let request = HealthRequest { agent: names[turn].clone(), nonce, saw_draining: false };
                // What does not go out is not answered, which shows.
                let _ = socket.send_to(&request.encode(&keys[turn]), gateway);
                asked.questions += 1;
            }
            while socket.recv(&mut buffer).is_ok() {
                asked.answers += 1;
            }
            std::thread::sleep(STEP);
        }
        Ok(asked)
    })?
}
