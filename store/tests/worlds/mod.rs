//! Stores to try promises on, each in folders of its own.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod control_plane;

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use identity::Identity;
use store::feed::{self, AgentSeen, Enrolment, Refusal, Role, Server};
use store::{Store, folder};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Stores to try, and what must live as long as they.
pub(crate) struct World {
    /// As the operator's tool has it.
    pub(crate) operator: Store,
    /// As a gateway has it.
    pub(crate) gateway: Store,
    /// The folder behind them.
    pub(crate) owner: Store,
    pub(crate) place: Place,
    /// The controller's listener, where there is one.
    pub(crate) listener: Option<Listener>,
    /// The API server, where there is one.
    pub(crate) turn: Option<control_plane::Turn>,
}

/// A temporary place with a manifests and a state folder.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("manifests")).unwrap();
        Self { folder }
    }
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
    pub(crate) fn manifests(&self) -> PathBuf {
        self.path().join("manifests")
    }
    pub(crate) fn write(&self, file: &str, text: &str) {
        std::fs::write(self.manifests().join(file), text).unwrap();
    }
    pub(crate) fn config(&self) -> folder::Config {
        folder::Config { manifests: self.manifests(), state: self.path().join("state") }
    }
    pub(crate) fn enrolment(&self) -> PathBuf {
        self.path().join("state/agents.key")
    }
    /// How an agent of this place reaches `listener`. Each has its own identity and cache.
    pub(crate) fn agent(&self, role: Role, name: &str, listener: &Listener) -> feed::Config {
        let own = self.path().join(format!("{role}-{name}"));
        feed::Config {
            controllers: vec![listener.address.to_string()],
            enrolment: self.enrolment(),
            token: None,
            identity: own.join("identity.key"),
            cache: own.join("cache"),
            role,
            name: name.into(),
            addresses: vec!["192.0.2.7".parse().unwrap()],
            pod_prefixes: vec!["10.1.0.0/24".parse().unwrap()],
        }
    }
    pub(crate) fn open(&self) -> (Store, folder::Reports) {
        folder::open(self.config()).unwrap()
    }
}

/// A folder, itself.
#[expect(clippy::unused_async, reason = "the other worlds have to wait for theirs")]
pub(crate) async fn folder() -> World {
    let place = Place::new();
    let (store, _) = place.open();
    World { operator: store.clone(), gateway: store.clone(), owner: store, place, listener: None, turn: None }
}

/// The feed of a folder, over TLS on the loopback.
pub(crate) async fn feed() -> World {
    let place = Place::new();
    let (owner, _) = place.open();
    let listener = Listener::start(&place, owner.clone(), "127.0.0.1:0".parse().unwrap()).await;
    let operator = feed::connect(place.agent(Role::Operator, "console", &listener)).unwrap();
    let gateway = feed::connect(place.agent(Role::Gateway, "edge", &listener)).unwrap();
    World { operator, gateway, owner, place, listener: Some(listener), turn: None }
}

/// An API server of Kubernetes, asked by who may do everything.
pub(crate) async fn kubernetes() -> World {
    let (store, turn) = control_plane::store().await;
    World {
        operator: store.clone(),
        gateway: store.clone(),
        owner: store,
        place: Place::new(),
        listener: None,
        turn: Some(turn),
    }
}

/// A controller, as far as the feed needs one. Dropping it cuts every connection.
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    pub(crate) seen: mpsc::UnboundedReceiver<AgentSeen>,
    pub(crate) refusals: mpsc::UnboundedReceiver<Refusal>,
    /// Requests that were refused: the agent's name and the denial's.
    pub(crate) denials: mpsc::UnboundedReceiver<(String, &'static str)>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Listener {
    pub(crate) async fn start(place: &Place, store: Store, address: SocketAddr) -> Self {
        let identity = Identity::load_or_create(place.path().join("state/identity.key")).unwrap();
        let enrolment = Enrolment::load_or_create(place.enrolment(), identity.public()).unwrap();
        let config = identity::server_config(&identity, &[feed::PROTOCOL]).unwrap();
        let (tell, seen) = mpsc::unbounded_channel();
        let (refuse, refusals) = mpsc::unbounded_channel();
        let (deny, denials) = mpsc::unbounded_channel();
        let server = Server::new(store, enrolment, tell)
            .on_denial(move |agent, denial| drop(deny.send((agent.name.clone(), denial.name()))));
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (server, config, refuse) = (server.clone(), config.clone(), refuse.clone());
                connections.spawn(async move {
                    stream.set_nodelay(true).unwrap();
                    if let Ok((stream, _)) = identity::accept(stream, &config, identity::HANDSHAKE_LIMIT).await
                        && let Err(refusal) = server.serve(stream).await
                    {
                        let _ = refuse.send(refusal);
                    }
                });
            }
        });
        Self { address, seen, refusals, denials, accepting }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The longest any wait in these tests may take. Reached only by a failure: every wait is for an event.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) async fn before_the_limit<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, event).await.expect("what was waited for did not happen")
}
