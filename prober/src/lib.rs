//! Asks the gateways of this cluster for health (DESIGN, decision 8), so that a silent cluster loses its connections
//! and its place in answers without anybody writing an object. Nodes and DNS servers run one [`Prober`] each.
//!
//! Whom to ask comes by a watch channel, what was answered leaves by a queue; nothing else is shared.
#![forbid(unsafe_code)]

mod questions;

use api::health::message::{AgentKey, MAX_MESSAGE, Nonce};
use api::health::{ASK_EVERY, HealthReport, ask_every};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::questions::Questions;

/// What a prober tells.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// The gateway of this slot was asked.
    Asked(u16),
    /// A gateway's verified answer.
    Report(HealthReport),
}

/// Whom to ask, and as whom.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Where each gateway answers, by its slot.
    pub gateways: BTreeMap<u16, Vec<SocketAddr>>,
    /// None until the controller handed it out; nobody is asked before.
    pub key: Option<AgentKey>,
    /// Gateways that said they are going away, and are not used any more: they are told that they may go.
    pub draining: Vec<u16>,
    /// Agents that ask them: where there are very many, each asks more rarely.
    pub agents: usize,
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

/// Asks every gateway, ten times a second and more often while an answer is late, and hands on what they answer as `Told`.
pub struct Prober<Told> {
    targets: watch::Receiver<Targets>,
    told: mpsc::Sender<Told>,
    questions: Questions,
    /// Who was known to be going away when last looked.
    draining: Vec<u16>,
    round: usize,
}

impl<Told: From<News>> Prober<Told> {
    /// `agent` is the name of this node or DNS server, as its key was made for it.
    pub fn new(agent: String, targets: watch::Receiver<Targets>, told: mpsc::Sender<Told>) -> Self {
        Self { targets, told, questions: Questions::new(agent), draining: Vec::new(), round: 0 }
    }

    /// Asks until `stop` is cancelled, or until nobody listens any more.
    pub async fn run(mut self, stop: CancellationToken) {
        // A host may lack a family; gateways of that family are then out of reach for good reason.
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok();
        let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await.ok();
        let (mut first, mut second) = ([0u8; MAX_MESSAGE + 1], [0u8; MAX_MESSAGE + 1]);
        self.take_targets();
        loop {
            let pause = self.questions.next_due().map_or(ASK_EVERY, |due| due.since(clock::now()));
            let news = tokio::select! {
                () = stop.cancelled() => return,
                changed = self.targets.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_targets();
                    self.ask(v4.as_ref(), v6.as_ref()).await
                }
                () = tokio::time::sleep(pause) => self.ask(v4.as_ref(), v6.as_ref()).await,
                received = receive(v4.as_ref(), &mut first) => self.take(&first[..received]),
                received = receive(v6.as_ref(), &mut second) => self.take(&second[..received]),
            };
            for news in news {
                if self.told.send(Told::from(news)).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Gateways that are new are asked at once, for packets wait for them; those that leave wait for our word.
    fn take_targets(&mut self) {
        let targets = self.targets.borrow_and_update().clone();
        // Without a key nobody can be asked.
        let slots = targets.gateways.keys().copied().filter(|_| targets.key.is_some());
        self.questions.set_gateways(slots);
        self.questions.set_pace(ask_every(targets.agents));
        for slot in targets.draining.iter().filter(|slot| !self.draining.contains(slot)) {
            self.questions.hurry(*slot);
        }
        self.draining = targets.draining;
    }

    /// Asks every gateway that is due; one with several addresses by another one each time, so that a broken family costs
    /// a round.
    async fn ask(&mut self, v4: Option<&UdpSocket>, v6: Option<&UdpSocket>) -> Vec<News> {
        let targets = self.targets.borrow().clone();
        let now = clock::now();
        let mut asked = Vec::new();
        let Some(key) = targets.key else { return asked };
        let socket = |address: IpAddr| if address.is_ipv4() { v4 } else { v6 };
        self.round = self.round.wrapping_add(1);
        for slot in self.questions.due(now) {
            let addresses = targets.gateways.get(&slot).map(Vec::as_slice).unwrap_or_default();
            let ways: Vec<_> = addresses.iter().filter_map(|to| socket(to.ip()).map(|socket| (socket, *to))).collect();
            let Some((socket, to)) = ways.get(self.round % ways.len().max(1)) else { continue };
            let mut nonce = Nonce::default();
            if let Err(error) = getrandom::fill(&mut nonce) {
                tracing::warn!(%error, "no random numbers from the kernel: the gateways are not asked");
                return asked;
            }
            let request = self.questions.ask(slot, nonce, &key, targets.draining.contains(&slot), now);
            // What cannot be sent is not answered, and silence is what counts.
            let _ = socket.send_to(&request, *to).await;
            asked.push(News::Asked(slot));
        }
        asked
    }

    fn take(&mut self, datagram: &[u8]) -> Vec<News> {
        self.questions.take(datagram).map(News::Report).into_iter().collect()
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
        let (_targets, seen) =
            watch::channel(Targets { gateways, key: Some(key.clone()), draining: vec![], agents: 1 });
        let (told, mut heard) = mpsc::channel::<News>(8);
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
        assert_eq!(heard.recv().await, Some(News::Asked(0)));
        assert_eq!(heard.recv().await, Some(News::Report(report(0))));
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_gateway_that_is_new_is_asked_at_once_and_nobody_before_there_is_a_key() {
        let gateway = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let gateways = BTreeMap::from([(0, vec![gateway.local_addr().unwrap()])]);
        let (targets, seen) =
            watch::channel(Targets { gateways: gateways.clone(), key: None, draining: vec![], agents: 1 });
        let (told, _heard) = mpsc::channel::<News>(8);
        let stop = CancellationToken::new();
        let running = tokio::spawn(Prober::new("worker".into(), seen, told).run(stop.clone()));
        let key = MasterKey { id: 3, secret: [9; 32] }.agent_key("worker");
        Targets { gateways, key: Some(key.clone()), draining: vec![0], agents: 1 }.send_to(&targets);
        let mut buffer = [0; MAX_MESSAGE];
        let (length, _) = gateway.recv_from(&mut buffer).await.unwrap();
        // The first that comes is signed: without a key nothing was sent.
        let request = UnverifiedRequest::decode(&buffer[..length]).unwrap().verify(&key).unwrap();
        assert!(request.saw_draining);
        drop(targets);
        running.await.unwrap();
    }
}
