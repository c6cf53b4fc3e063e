//! Asks this cluster's gateways for health (DESIGN, decision 8), so that a silent cluster leaves answers without
//! anybody writing an object.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use api::health::HealthReport;
use api::health::message::{AgentKey, HealthRequest, MAX_MESSAGE, Nonce, ReplyPage, ReplyPages};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Between two questions to one gateway. Routing takes a gateway as silent after four of them
/// ([`routing::gateway_reports::SILENCE`]).
const INTERVAL: Duration = Duration::from_millis(100);

/// Questions to one gateway that may still be answered: an answer later than this is no news to routing.
const OPEN: usize = 4;

/// Whom to ask, and as whom.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Targets {
    /// By slot.
    pub(crate) gateways: BTreeMap<u16, Vec<SocketAddr>>,
    pub(crate) key: Option<AgentKey>,
    /// Gateways that said they are going away.
    pub(crate) draining: Vec<u16>,
}

/// The question that is open with one gateway.
struct Open {
    nonce: Nonce,
    key: AgentKey,
    pages: ReplyPages,
}

/// Asks until the server stops.
pub(crate) struct Prober {
    agent: String,
    targets: watch::Receiver<Targets>,
    reports: mpsc::Sender<HealthReport>,
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    /// The latest questions to each gateway, the newest last.
    open: BTreeMap<u16, VecDeque<Open>>,
    round: usize,
}

impl Prober {
    pub(crate) async fn new(
        agent: String,
        targets: watch::Receiver<Targets>,
        reports: mpsc::Sender<HealthReport>,
    ) -> Self {
        // A host may lack a family; gateways of that family are then out of reach for good reason.
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok();
        let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await.ok();
        Self { agent, targets, reports, v4, v6, open: BTreeMap::new(), round: 0 }
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = [0u8; MAX_MESSAGE + 1];
        let mut second = [0u8; MAX_MESSAGE + 1];
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => self.ask().await,
                received = receive(self.v4.as_ref(), &mut first) => self.take(&first[..received]).await,
                received = receive(self.v6.as_ref(), &mut second) => self.take(&second[..received]).await,
            }
        }
    }

    /// Asks every gateway; one with several addresses on another one each time, so that a broken family costs a round.
    async fn ask(&mut self) {
        let targets = self.targets.borrow().clone();
        self.open.retain(|slot, _| targets.gateways.contains_key(slot));
        self.round = self.round.wrapping_add(1);
        let Some(key) = targets.key else {
            return;
        };
        for (slot, addresses) in &targets.gateways {
            let reachable: Vec<_> = addresses.iter().filter(|address| self.socket(address.ip()).is_some()).collect();
            let Some(address) = reachable.get(self.round % reachable.len().max(1)) else {
                continue;
            };
            let mut nonce = Nonce::default();
            if let Err(error) = getrandom::fill(&mut nonce) {
                tracing::warn!(%error, "no random numbers from the kernel: the gateways are not asked");
                return;
            }
            let saw_draining = targets.draining.contains(slot);
            let request = HealthRequest { agent: self.agent.clone(), nonce, saw_draining }.encode(&key);
            if let Some(socket) = self.socket(address.ip()) {
                // What cannot be sent is not answered, and silence is what counts.
                let _ = socket.send_to(&request, **address).await;
            }
            let open = self.open.entry(*slot).or_default();
            if open.len() == OPEN {
                open.pop_front();
            }
            open.push_back(Open { nonce, key: key.clone(), pages: ReplyPages::default() });
        }
    }

    fn socket(&self, address: IpAddr) -> Option<&UdpSocket> {
        if address.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    /// Takes a page from whoever proves to have been asked.
    async fn take(&mut self, datagram: &[u8]) {
        let mut report = None;
        'slots: for (slot, questions) in &mut self.open {
            for (index, open) in questions.iter_mut().enumerate().rev() {
                let Ok(page) = ReplyPage::decode(datagram, &open.key, &open.nonce) else {
                    continue;
                };
                if page.slot == *slot {
                    report = open.pages.add(page);
                    if report.is_some() {
                        // Older answers would be older news.
                        questions.drain(..=index);
                    }
                }
                break 'slots;
            }
        }
        if let Some(report) = report {
            // The receiver is gone only when the server stops.
            let _ = self.reports.send(report).await;
        }
    }
}

/// Waits for a datagram; for ever without a socket.
async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> usize {
    let Some(socket) = socket else {
        return std::future::pending().await;
    };
    // Errors tell of earlier datagrams that found nobody.
    socket.recv(buffer).await.unwrap_or(0)
}
