//! Asks the gateways of this cluster for health (DESIGN, decision 8), so that a silent cluster loses its connections
//! and its place in answers without anybody writing an object. Nodes and DNS servers run one [`Prober`] each.
//!
//! Whom to ask comes by a watch channel, what was answered leaves by a queue; nothing else is shared.
#![forbid(unsafe_code)]

mod questions;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use api::health::HealthReport;
use api::health::message::{AgentKey, MAX_MESSAGE, Nonce};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::questions::Questions;

/// Between two questions to one gateway. Routing takes a gateway as silent after four of them
/// (`routing::gateway_reports::SILENCE`).
const INTERVAL: Duration = Duration::from_millis(100);

/// Whom to ask, and as whom.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Where each gateway answers, by its slot.
    pub gateways: BTreeMap<u16, Vec<SocketAddr>>,
    /// None until the controller handed it out; nobody is asked before.
    pub key: Option<AgentKey>,
    /// Gateways that said they are going away, and are not used any more: they are told that they may go.
    pub draining: Vec<u16>,
}

impl Targets {
    /// Makes these the targets; wakes the prober only when they are others.
    pub fn send_to(self, prober: &watch::Sender<Self>) {
        prober.send_if_modified(|known| {
            let changed = *known != self;
            *known = self;
            changed
        });
    }
}

/// Asks every gateway, ten times a second, and hands on what they answer as `Told`.
pub struct Prober<Told> {
    targets: watch::Receiver<Targets>,
    told: mpsc::Sender<Told>,
    questions: Questions,
    round: usize,
}

impl<Told: From<HealthReport>> Prober<Told> {
    /// `agent` is the name of this node or DNS server, as its key was made for it.
    pub fn new(agent: String, targets: watch::Receiver<Targets>, told: mpsc::Sender<Told>) -> Self {
        Self { targets, told, questions: Questions::new(agent), round: 0 }
    }

    /// Asks until `stop` is cancelled, or until nobody listens any more.
    pub async fn run(mut self, stop: CancellationToken) {
        // A host may lack a family; gateways of that family are then out of reach for good reason.
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok();
        let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await.ok();
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut first, mut second) = ([0u8; MAX_MESSAGE + 1], [0u8; MAX_MESSAGE + 1]);
        loop {
            let report = tokio::select! {
                () = stop.cancelled() => return,
                changed = self.targets.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // A gateway that is new is asked at once: packets wait for it.
                    self.ask(v4.as_ref(), v6.as_ref()).await;
                    None
                }
                _ = tick.tick() => {
                    self.ask(v4.as_ref(), v6.as_ref()).await;
                    None
                }
                received = receive(v4.as_ref(), &mut first) => self.questions.take(&first[..received]),
                received = receive(v6.as_ref(), &mut second) => self.questions.take(&second[..received]),
            };
            if let Some(report) = report
                && self.told.send(Told::from(report)).await.is_err()
            {
                return;
            }
        }
    }

    /// Asks every gateway; one with several addresses by another one each time, so that a broken family costs a round.
    async fn ask(&mut self, v4: Option<&UdpSocket>, v6: Option<&UdpSocket>) {
        let targets = self.targets.borrow_and_update().clone();
        self.questions.retain(|slot| targets.gateways.contains_key(&slot));
        self.round = self.round.wrapping_add(1);
        let Some(key) = targets.key else { return };
        let socket = |address: IpAddr| if address.is_ipv4() { v4 } else { v6 };
        for (slot, addresses) in &targets.gateways {
            let ways: Vec<_> = addresses.iter().filter_map(|to| socket(to.ip()).map(|socket| (socket, *to))).collect();
            let Some((socket, to)) = ways.get(self.round % ways.len().max(1)) else { continue };
            let mut nonce = Nonce::default();
            if let Err(error) = getrandom::fill(&mut nonce) {
                tracing::warn!(%error, "no random numbers from the kernel: the gateways are not asked");
                return;
            }
            let request = self.questions.ask(*slot, nonce, &key, targets.draining.contains(slot));
            // What cannot be sent is not answered, and silence is what counts.
            let _ = socket.send_to(&request, *to).await;
        }
    }
}

/// Waits for a datagram; for ever without a socket.
async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> usize {
    let Some(socket) = socket else { return std::future::pending().await };
    // Errors tell of earlier datagrams that found nobody.
    socket.recv(buffer).await.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use api::health::message::{MasterKey, UnverifiedRequest};

    use super::*;

    #[tokio::test]
    async fn a_gateway_is_asked_and_only_its_own_authenticated_answer_is_taken() {
        let gateway = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let key = MasterKey { id: 3, secret: [9; 32] }.agent_key("worker");
        let gateways = BTreeMap::from([(0, vec![gateway.local_addr().unwrap()])]);
        let (_targets, seen) = watch::channel(Targets { gateways, key: Some(key.clone()), draining: vec![] });
        let (told, mut heard) = mpsc::channel::<HealthReport>(8);
        let stop = CancellationToken::new();
        let running = tokio::spawn(Prober::new("worker".into(), seen, told).run(stop.clone()));
        let mut buffer = [0; MAX_MESSAGE];
        let (length, from) = gateway.recv_from(&mut buffer).await.unwrap();
        let request = UnverifiedRequest::decode(&buffer[..length]).unwrap().verify(&key).unwrap();
        assert_eq!(request.agent, "worker");
        let report = |slot| HealthReport { slot, draining: false, peers: vec![] };
        let forged = MasterKey { id: 3, secret: [8; 32] }.agent_key("worker");
        for (report, key, nonce) in
            [(report(0), &forged, request.nonce), (report(1), &key, request.nonce), (report(0), &key, [0; 16])]
        {
            for page in report.encode(&nonce, key) {
                gateway.send_to(&page, from).await.unwrap();
            }
        }
        for page in report(0).encode(&request.nonce, &key) {
            gateway.send_to(&page, from).await.unwrap();
        }
        assert_eq!(heard.recv().await.expect("a report"), report(0));
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_gateway_that_is_new_is_asked_at_once_and_nobody_before_there_is_a_key() {
        let gateway = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let gateways = BTreeMap::from([(0, vec![gateway.local_addr().unwrap()])]);
        let (targets, seen) = watch::channel(Targets { gateways: gateways.clone(), key: None, draining: vec![] });
        let (told, _heard) = mpsc::channel::<HealthReport>(8);
        let stop = CancellationToken::new();
        let running = tokio::spawn(Prober::new("worker".into(), seen, told).run(stop.clone()));
        let key = MasterKey { id: 3, secret: [9; 32] }.agent_key("worker");
        Targets { gateways, key: Some(key.clone()), draining: vec![0] }.send_to(&targets);
        let mut buffer = [0; MAX_MESSAGE];
        let (length, _) = gateway.recv_from(&mut buffer).await.unwrap();
        // The first that comes is signed: without a key nothing was sent.
        let request = UnverifiedRequest::decode(&buffer[..length]).unwrap().verify(&key).unwrap();
        assert!(request.saw_draining);
        drop(targets);
        running.await.unwrap();
    }
}
