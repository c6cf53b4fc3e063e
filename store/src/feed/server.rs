//! [`Server`]: a controller's end of the feed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Prefix;
use api::keys::IdentityKey;
use api::succession::Succession;
use bytes::Bytes;
use identity::TlsStream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::authority::Lineage;
use super::connection::{next_message, write};
use super::enrolment::EXPORTER_LABEL;
use super::frame::{Decoder, MAX_GREETING_BYTES, MAX_MESSAGE_BYTES};
use super::message::{Claim, ToAgent, ToController, decode, encode};
use super::permission::Denial;
use super::session::Session;
use super::tenure::Tenures;
use super::window::Windows;
use super::{Agent, Enrolment, Role, WRITE_LIMIT};
use crate::Store;

/// How long an agent may take to say who it is.
const GREETING_LIMIT: Duration = Duration::from_secs(3);
/// Messages that may wait for one agent; what fills them waits too.
const OUTBOX: usize = 256;
/// Most agents connected at once: 5 000 nodes with a few agents each.
const MAX_AGENTS: usize = 20_000;
/// Most addresses and pod prefixes an agent may name.
const MAX_ADDRESSES: usize = 64;

/// An agent came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSeen {
    pub role: Role,
    /// The name of its node.
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub pod_prefixes: Vec<Prefix>,
    pub connected: bool,
}

/// Why an agent was turned away. Each has a [name](Refusal::name) for metrics.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("did not say who it is: {0}")]
    BadGreeting(String),
    #[error("{0} is not enrolled: copy the controller's agents.key to its host")]
    NotEnrolled(String),
    #[error("{agent} is not let in by its ServiceAccount token: {why}")]
    TokenRefused { agent: String, why: String },
    #[error("{agent} shows a token that cannot be reviewed now, and was not let in before: {why}")]
    NotReviewed { agent: String, why: String },
    #[error("{0} is connected with another key: two hosts have one name, or its old process still runs")]
    NameTaken(String),
    #[error("{0} agents are connected already")]
    TooMany(usize),
    #[error("broke the protocol: {0}")]
    BadMessage(String),
}

impl Refusal {
    /// The refusal's name, as a metric label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::BadGreeting(_) => "BadGreeting",
            Self::NotEnrolled(_) => "NotEnrolled",
            Self::TokenRefused { .. } => "TokenRefused",
            Self::NotReviewed { .. } => "TokenNotReviewed",
            Self::NameTaken(_) => "NameTaken",
            Self::TooMany(_) => "TooManyAgents",
            Self::BadMessage(_) => "BadMessage",
        }
    }
}

/// Hears of each request that is refused.
type OnDenial = dyn Fn(&Agent, &Denial) + Send + Sync;

/// Serves a store to the agents of this cluster. Cheap to clone; all clones know the same agents.
#[derive(Clone)]
pub struct Server {
    store: Store,
    enrolment: Arc<watch::Sender<Own>>,
    seen: mpsc::UnboundedSender<AgentSeen>,
    agents: Arc<Mutex<Agents>>,
    tenures: Arc<Mutex<Tenures>>,
    windows: Windows,
    denied: Arc<OnDenial>,
}

#[derive(Default)]
struct Agents {
    connected: BTreeMap<(Role, String), Connected>,
    /// Tells a connection from an earlier one of the same agent.
    next: u64,
}

struct Connected {
    key: IdentityKey,
    number: u64,
    replaced: CancellationToken,
}

/// What the controller proves to be.
pub(super) struct Own {
    pub(super) enrolment: Enrolment,
    successions: Vec<Succession>,
}

impl Own {
    /// The message that says how it came to be that.
    fn lineage(&self) -> Result<Bytes, String> {
        let lineage = Lineage { successions: self.successions.clone() };
        encode(&ToAgent::<()>::Lineage(lineage)).map(Bytes::from)
    }

    /// Whether the agent has the secret. It proves that to the identity its connection began with, which may be the one
    /// before by now.
    pub(super) fn check(&self, agent: &Agent, key: IdentityKey, exporter: &[u8; 32], proof: &[u8]) -> bool {
        let before = self.successions.last().map(|last| self.enrolment.with(last.from));
        [Some(&self.enrolment), before.as_ref()].into_iter().flatten().any(|own| own.check(agent, key, exporter, proof))
    }
}

/// Passes on what changes, for as long as anybody listens.
async fn tell_of_successions(mut own: watch::Receiver<Own>, outbox: mpsc::Sender<Bytes>) {
    while own.changed().await.is_ok() {
        let lineage = own.borrow_and_update().lineage();
        if let Ok(lineage) = lineage
            && outbox.send(lineage).await.is_err()
        {
            break;
        }
    }
}

/// One connection's place among the agents; left when dropped.
struct Seat {
    server: Server,
    agent: Agent,
    number: u64,
    replaced: CancellationToken,
}

impl Server {
    /// `seen` hears of every agent that comes or goes.
    pub fn new(store: Store, enrolment: Enrolment, seen: mpsc::UnboundedSender<AgentSeen>) -> Self {
        let tenures = Arc::default();
        let windows = Windows::new(Arc::clone(&store.backend), Arc::clone(&tenures));
        let denied = Arc::new(|_: &Agent, _: &Denial| {});
        let enrolment = Arc::new(watch::Sender::new(Own { enrolment, successions: Vec::new() }));
        Self { store, enrolment, seen, agents: Arc::default(), tenures, windows, denied }
    }

    /// `denied` is called for each request of an agent that is refused, so that it can be counted.
    #[must_use]
    pub fn on_denial(self, denied: impl Fn(&Agent, &Denial) + Send + Sync + 'static) -> Self {
        Self { denied: Arc::new(denied), ..self }
    }

    /// The successions that lead to the controller's identity, oldest first.
    #[must_use]
    pub fn after(self, successions: Vec<Succession>) -> Self {
        self.enrolment.send_modify(|own| own.successions = successions);
        self
    }

    /// The cluster has another identity, which the enrolment names and the last of the successions leads to. Agents that
    /// are connected hear of it at once, the others when they come back.
    pub fn succeed(&self, enrolment: Enrolment, successions: Vec<Succession>) {
        self.enrolment.send_replace(Own { enrolment, successions });
    }

    pub(super) fn deny(&self, agent: &Agent, denial: &Denial) {
        tracing::warn!(agent = agent.name, role = %agent.role, reason = denial.name(), %denial, "an agent's request is refused");
        (self.denied)(agent, denial);
    }

    pub(super) fn own(&self) -> watch::Ref<'_, Own> {
        self.enrolment.borrow()
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn windows(&self) -> &Windows {
        &self.windows
    }

    pub(super) fn tenures(&self) -> std::sync::MutexGuard<'_, Tenures> {
        // The map is whole at every moment, whatever its holder died of.
        self.tenures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one connection that agreed on [`PROTOCOL`](super::PROTOCOL), until it ends.
    ///
    /// Set `TCP_NODELAY` on the socket below, so that changes do not wait for each other. An end of the connection is
    /// no failure; a refusal says who was turned away and why.
    pub async fn serve<IO>(&self, stream: TlsStream<IO>) -> Result<(), Refusal>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let bad = |why: &str| Refusal::BadGreeting(why.to_owned());
        let key = identity::peer_key(stream.get_ref().1).ok_or_else(|| bad("it proved no key"))?;
        let exporter =
            identity::exporter(&stream, EXPORTER_LABEL).map_err(|error| Refusal::BadGreeting(error.to_string()))?;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut own = self.enrolment.subscribe();
        let lineage = own.borrow_and_update().lineage();
        // An agent that pins another identity says nothing before it knows how this one came after it.
        let written = timeout(WRITE_LIMIT, writer.write_all(&lineage.map_err(Refusal::BadGreeting)?)).await;
        written.map_err(|_| bad("it takes nothing"))?.map_err(|error| bad(&error.to_string()))?;
        let mut decoder = Decoder::new(MAX_GREETING_BYTES);
        let greeting = timeout(GREETING_LIMIT, greeting(&mut reader, &mut decoder))
            .await
            .map_err(|_| bad("it said nothing in time"))?;
        let seated = async {
            let (agent, claim) = greeting?;
            let ticket = self.admit(&agent, key, &exporter, claim).await?;
            Ok::<_, Refusal>((self.seat(agent, key)?, ticket))
        };
        let (seat, ticket) = match seated.await {
            Ok(seated) => seated,
            Err(refusal) => {
                let reason = refusal.to_string();
                if let Ok(bytes) = encode(&ToAgent::<()>::Refused { reason }) {
                    let _ = timeout(WRITE_LIMIT, async {
                        writer.write_all(&bytes).await?;
                        writer.shutdown().await
                    })
                    .await;
                }
                return Err(refusal);
            }
        };
        decoder.set_limit(MAX_MESSAGE_BYTES);
        let (outbox, messages) = mpsc::channel(OUTBOX);
        if let Some(Ok(ticket)) = ticket.map(|ticket| encode(&ToAgent::<()>::Ticket(ticket))) {
            // The outbox is empty still.
            let _ = outbox.try_send(Bytes::from(ticket));
        }
        let session = Session::new(self.clone(), &self.store, seat.agent.clone(), outbox.clone());
        tokio::select! {
            () = seat.replaced.cancelled() => Ok(()),
            () = write(writer, messages) => Ok(()),
            () = tell_of_successions(own, outbox) => Ok(()),
            result = session.run(&mut reader, &mut decoder) => result,
        }
    }

    fn agents(&self) -> std::sync::MutexGuard<'_, Agents> {
        // The map is whole at every moment, whatever its holder died of.
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an agent that was let in its place.
    fn seat(&self, agent: Agent, key: IdentityKey) -> Result<Seat, Refusal> {
        let described = agent.described();
        let label = |part: &str| api::cluster_id::is_dns_label(part);
        if agent.name.len() > 253 || !agent.name.split('.').all(label) {
            return Err(Refusal::BadGreeting(format!("the name of {described} is no node name (RFC 1123)")));
        }
        if agent.addresses.len() > MAX_ADDRESSES || agent.pod_prefixes.len() > MAX_ADDRESSES {
            return Err(Refusal::BadGreeting(format!("{described} names more than {MAX_ADDRESSES} addresses")));
        }
        let mut agents = self.agents();
        let count = agents.connected.len();
        let place = (agent.role, agent.name.clone());
        match agents.connected.get(&place) {
            // The operator's tool may run in several terminals, each with a key of its own.
            Some(known) if known.key != key && agent.role != Role::Operator => {
                return Err(Refusal::NameTaken(described));
            }
            // The same agent again: its earlier connection is dead, whether or not that was noticed.
            Some(known) if known.key == key => known.replaced.cancel(),
            _ if count >= MAX_AGENTS => return Err(Refusal::TooMany(count)),
            _ => {}
        }
        agents.next += 1;
        let (number, replaced) = (agents.next, CancellationToken::new());
        agents.connected.insert(place, Connected { key, number, replaced: replaced.clone() });
        drop(agents);
        self.tell(&agent, true);
        Ok(Seat { server: self.clone(), agent, number, replaced })
    }

    fn tell(&self, agent: &Agent, connected: bool) {
        let Agent { role, name, addresses, pod_prefixes } = agent.clone();
        // Nobody listening is the controller's own choice.
        let _ = self.seen.send(AgentSeen { role, name, addresses, pod_prefixes, connected });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let place = (self.agent.role, self.agent.name.clone());
        let mut agents = self.server.agents();
        if agents.connected.get(&place).is_some_and(|known| known.number == self.number) {
            agents.connected.remove(&place);
            drop(agents);
            self.server.tell(&self.agent, false);
        }
    }
}

/// The first message, and the claim in it.
async fn greeting<R: AsyncRead + Unpin>(reader: &mut R, decoder: &mut Decoder) -> Result<(Agent, Claim), Refusal> {
    let bytes = match next_message(reader, decoder).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(Refusal::BadGreeting("it hung up".into())),
        Err(error) => return Err(Refusal::BadGreeting(error)),
    };
    match decode(&bytes).map_err(Refusal::BadGreeting)? {
        ToController::Hello { agent, claim } => Ok((agent, claim)),
        _ => Err(Refusal::BadGreeting("its first message is no greeting".into())),
    }
}
