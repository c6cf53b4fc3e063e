//! Asks this cluster's gateways for health (DESIGN, decision 8).

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use api::health::HealthReport;
use api::health::message::{AgentKey, HealthRequest, MAX_MESSAGE, Nonce, ReplyPage, ReplyPages};
use node_core::Input;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::owner::Told;

/// Between two questions to one gateway. [`routing::gateway_reports::SILENCE`] is four of them.
const INTERVAL: Duration = Duration::from_millis(100);

/// Questions to one gateway that may still be answered: an answer as late as the silence that ends a gateway's use is
/// of no use any more.
const OPEN: usize = 4;

/// Whom to ask, and as whom.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Targets {
    /// By slot.
    pub(crate) gateways: BTreeMap<u16, Vec<SocketAddr>>,
    /// None until the controller handed it out.
    pub(crate) key: Option<AgentKey>,
    /// Gateways that said they are going away, and that are not used any more.
    pub(crate) left: Vec<u16>,
}

struct Question {
    nonce: Nonce,
    key: AgentKey,
    pages: ReplyPages,
}

/// Asks until the agent stops.
pub(crate) struct Prober {
    agent: String,
    targets: watch::Receiver<Targets>,
    told: mpsc::Sender<Told>,
    open: BTreeMap<u16, VecDeque<Question>>,
    round: usize,
}

impl Prober {
    pub(crate) fn new(agent: String, targets: watch::Receiver<Targets>, told: mpsc::Sender<Told>) -> Self {
        Self { agent, targets, told, open: BTreeMap::new(), round: 0 }
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) {
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
                received = receive(v4.as_ref(), &mut first) => self.take(&first[..received]),
                received = receive(v6.as_ref(), &mut second) => self.take(&second[..received]),
            };
            if let Some(report) = report
                && self.told.send(Told::Input(Box::new(Input::Report(report)))).await.is_err()
            {
                return;
            }
        }
    }

    /// Asks every gateway; one with several addresses by another one each time, so that a broken family costs a round.
    async fn ask(&mut self, v4: Option<&UdpSocket>, v6: Option<&UdpSocket>) {
        let targets = self.targets.borrow_and_update().clone();
        self.open.retain(|slot, _| targets.gateways.contains_key(slot));
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
            let saw_draining = targets.left.contains(slot);
            let request = HealthRequest { agent: self.agent.clone(), nonce, saw_draining }.encode(&key);
            // What cannot be sent is not answered, and silence is what counts.
            let _ = socket.send_to(&request, *to).await;
            let open = self.open.entry(*slot).or_default();
            open.push_back(Question { nonce, key: key.clone(), pages: ReplyPages::default() });
            while open.len() > OPEN {
                open.pop_front();
            }
        }
    }

    /// Takes a page from whoever proves to have been asked.
    fn take(&mut self, datagram: &[u8]) -> Option<HealthReport> {
        for (slot, questions) in &mut self.open {
            for (place, question) in questions.iter_mut().enumerate() {
                let page = ReplyPage::decode(datagram, &question.key, &question.nonce);
                let Some(page) = page.ok().filter(|page| page.slot == *slot) else { continue };
                let report = question.pages.add(page)?;
                // Earlier questions are answered by this as well, and it counts once.
                questions.drain(..=place);
                return Some(report);
            }
        }
        None
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
        let (_targets, seen) = watch::channel(Targets { gateways, key: Some(key.clone()), left: vec![] });
        let (told, mut heard) = mpsc::channel(8);
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
        let Some(Told::Input(taken)) = heard.recv().await else { panic!("no report") };
        assert_eq!(*taken, Input::Report(report(0)));
        stop.cancel();
        running.await.unwrap();
    }
}
