//! What a controller's feed promises beyond the contract of every backend.

mod worlds;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::kubernetes::{EndpointSlice, Lease, LeaseSpec, ObjectMeta, Secret, Service};
use api::tunnel_gateway::{TunnelGatewaySpec, TunnelGatewayStatus};
use api::{ServiceExport, TunnelGateway};
use identity::Identity;
use store::feed::message::{ToAgent, ToController, decode, encode};
use store::feed::{self, AgentSeen, Enrolment, Refusal, Role};
use store::{Error, Event, Kind, Preconditions, Store, Watch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use worlds::{Listener, Place, before_the_limit};

fn metadata(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta { namespace: Some(namespace.into()), name: Some(name.into()), ..Default::default() }
}

fn service(name: &str) -> Service {
    Service { metadata: metadata("shop", name), ..Default::default() }
}

fn secret(name: &str) -> Secret {
    Secret { metadata: metadata("tombolo-system", name), ..Default::default() }
}

fn names<K: Kind>(objects: &[K]) -> Vec<&str> {
    objects.iter().filter_map(|object| object.meta().name.as_deref()).collect()
}

/// A folder and a listener that serves it.
async fn controller() -> (Place, Store, Listener) {
    let place = Place::new();
    let (owner, _) = place.open();
    let listener = Listener::start(&place, owner.clone(), "127.0.0.1:0".parse().unwrap()).await;
    (place, owner, listener)
}

/// The next everything.
async fn reset<K: Kind>(watch: &mut Watch<K>) -> Vec<K> {
    match before_the_limit(watch.next()).await {
        Some(Event::Reset(all)) => all,
        other => panic!("a Reset was to come, not {other:?}"),
    }
}

async fn interrupted(store: &Store, wanted: impl Fn(&str) -> bool) {
    before_the_limit(async {
        while !store.interruption().is_some_and(|why| wanted(&why.reason)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_controller_hears_which_agents_come_and_go() {
    let (place, _owner, mut listener) = controller().await;
    let store = feed::connect(place.agent(Role::Node, "worker", &listener)).unwrap();
    let mut seen = AgentSeen {
        role: Role::Node,
        name: "worker".into(),
        addresses: vec!["192.0.2.7".parse().unwrap()],
        pod_prefixes: vec!["10.1.0.0/24".parse().unwrap()],
        connected: true,
    };
    assert_eq!(before_the_limit(listener.seen.recv()).await.as_ref(), Some(&seen));
    drop(store);
    seen.connected = false;
    assert_eq!(before_the_limit(listener.seen.recv()).await, Some(seen));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_state_is_served_at_once_while_no_controller_answers() {
    let (place, owner, listener) = controller().await;
    let made = owner.create(&service("web")).await.unwrap();
    let config = place.agent(Role::Dns, "worker", &listener);
    let store = feed::connect(config.clone()).unwrap();
    let mut watch = store.watch::<Service>();
    assert_eq!(reset(&mut watch).await, vec![made.clone()]);
    let kept = fs::read_dir(&config.cache).unwrap().map(|entry| entry.unwrap().path()).next().unwrap();
    assert!(fs::read_to_string(&kept).unwrap().contains("web"), "what is served is on disk");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(store.interruption().is_none());

    // The controller dies: what was known stays readable, and why nothing new comes is said.
    let address = listener.address;
    drop(listener);
    interrupted(&store, |_| true).await;
    assert_eq!(store.list::<Service>().await.unwrap(), vec![made.clone()]);
    let refusal = store.create(&service("other")).await.unwrap_err();
    assert!(matches!(refusal, Error::Unavailable(_)), "{refusal}");
    drop((store, watch));

    // The agent starts again without one.
    let store = feed::connect(config).unwrap();
    assert_eq!(reset(&mut store.watch::<Service>()).await, vec![made.clone()]);
    assert_eq!(store.get::<Service>(Some("shop"), "web").await.unwrap(), Some(made.clone()));
    assert!(matches!(store.list::<Lease>().await, Err(Error::Unavailable(_))), "what was never asked for is not known");

    // It comes back with something new.
    let mut watch = store.watch::<Service>();
    assert_eq!(reset(&mut watch).await, vec![made]);
    let new = owner.create(&service("new")).await.unwrap();
    let _listener = Listener::start(&place, owner, address).await;
    // A new listener knows no changes, so it says everything.
    assert_eq!(names(&reset(&mut watch).await), ["new", "web"]);
    assert_eq!(store.get::<Service>(Some("shop"), "new").await.unwrap(), Some(new));
    interruption_ends(&store).await;
}

async fn interruption_ends(store: &Store) {
    before_the_limit(async {
        while store.interruption().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_did_not_change_during_an_interruption_is_no_news() {
    let (place, owner, listener) = controller().await;
    owner.create(&service("web")).await.unwrap();
    let store = feed::connect(place.agent(Role::Dns, "worker", &listener)).unwrap();
    let mut watch = store.watch::<Service>();
    reset(&mut watch).await;
    let address = listener.address;
    drop(listener);
    interrupted(&store, |_| true).await;
    let _listener = Listener::start(&place, owner.clone(), address).await;
    interruption_ends(&store).await;
    let new = owner.create(&service("new")).await.unwrap();
    // Either the new everything has it, or it comes by itself; the old everything alone does not come again.
    match before_the_limit(watch.next()).await {
        Some(Event::Applied(object)) => assert_eq!(object, new),
        Some(Event::Reset(all)) => assert_eq!(names(&all), ["new", "web"]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_agent_without_the_secret_is_turned_away_by_name() {
    let (place, _owner, mut listener) = controller().await;
    let mut config = place.agent(Role::Node, "worker", &listener);
    let copied = fs::read_to_string(place.enrolment()).unwrap();
    let other = place.path().join("other.key");
    let controller = Enrolment::load(place.enrolment()).unwrap().controller();
    Enrolment::load_or_create(&other, controller).unwrap();
    config.enrolment = other.clone();
    let store = feed::connect(config).unwrap();
    let refusal = before_the_limit(listener.refusals.recv()).await.unwrap();
    assert!(matches!(refusal, Refusal::NotEnrolled(_)), "{refusal}");
    interrupted(&store, |reason| reason.contains("not enrolled")).await;
    // It needs no restart to be enrolled.
    fs::write(&other, copied).unwrap();
    interruption_ends(&store).await;
}

#[tokio::test]
async fn a_second_host_of_one_name_is_turned_away_until_the_first_is_gone() {
    let (place, _owner, mut listener) = controller().await;
    let first = feed::connect(place.agent(Role::Node, "worker", &listener)).unwrap();
    before_the_limit(listener.seen.recv()).await;
    let mut config = place.agent(Role::Node, "worker", &listener);
    config.identity = place.path().join("reinstalled/identity.key");
    config.cache = place.path().join("reinstalled/cache");
    let second = feed::connect(config).unwrap();
    let refusal = before_the_limit(listener.refusals.recv()).await.unwrap();
    assert!(matches!(refusal, Refusal::NameTaken(_)), "{refusal}");
    interrupted(&second, |reason| reason.contains("another key")).await;
    // The same name in another role is another agent.
    let dns = feed::connect(place.agent(Role::Dns, "worker", &listener)).unwrap();
    interruption_ends(&dns).await;
    drop(first);
    interruption_ends(&second).await;
}

#[tokio::test]
async fn a_controller_with_another_key_is_refused_by_name() {
    let (place, _owner, listener) = controller().await;
    let mut config = place.agent(Role::Node, "worker", &listener);
    config.enrolment = place.path().join("other.key");
    Enrolment::load_or_create(&config.enrolment, Identity::generate().unwrap().public()).unwrap();
    let store = feed::connect(config).unwrap();
    interrupted(&store, |reason| reason.contains("not among the trusted identities")).await;
}

#[tokio::test]
async fn an_agent_sees_its_own_secrets_and_writes_its_own_objects_alone() {
    let (place, owner, listener) = controller().await;
    for name in ["agent-worker", "agent-other", "probe-master", "gateway-slot-0"] {
        owner.create(&secret(name)).await.unwrap();
    }
    let node = feed::connect(place.agent(Role::Node, "worker", &listener)).unwrap();
    assert_eq!(names(&node.list::<Secret>().await.unwrap()), ["agent-worker"]);
    assert_eq!(names(&reset(&mut node.watch::<Secret>()).await), ["agent-worker"]);
    let hidden = node.get::<Secret>(Some("tombolo-system"), "probe-master").await;
    assert!(matches!(hidden, Err(Error::Forbidden(_))), "{hidden:?}");
    assert!(matches!(node.create(&service("web")).await, Err(Error::Forbidden(_))));
    let gateway = feed::connect(place.agent(Role::Gateway, "edge", &listener)).unwrap();
    assert_eq!(names(&gateway.list::<Secret>().await.unwrap()), ["gateway-slot-0", "probe-master"]);
    let operator = feed::connect(place.agent(Role::Operator, "console", &listener)).unwrap();
    assert!(matches!(operator.list::<Secret>().await, Err(Error::Forbidden(_))));
    // A Secret that an agent may not see is not news to it either.
    let mut watch = node.watch::<Secret>();
    reset(&mut watch).await;
    owner.delete::<Secret>(Some("tombolo-system"), "probe-master", Preconditions::default()).await.unwrap();
    owner.delete::<Secret>(Some("tombolo-system"), "agent-worker", Preconditions::default()).await.unwrap();
    match before_the_limit(watch.next()).await {
        Some(Event::Deleted(object)) => assert_eq!(object.metadata.name.as_deref(), Some("agent-worker")),
        other => panic!("{other:?}"),
    }
}

/// The Lease of slot 0, held by the gateway of `holder` for an hour.
fn slot(holder: &str) -> Lease {
    Lease {
        metadata: metadata("tombolo-system", "gateway-slot-0"),
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(3600),
            ..Default::default()
        }),
    }
}

fn held_by(lease: &Lease, holder: &str) -> Lease {
    Lease { metadata: lease.metadata.clone(), ..slot(holder) }
}

fn spoken_for(gateway: &TunnelGateway, node: &str) -> TunnelGateway {
    let status = Some(TunnelGatewayStatus { node: node.into(), ..Default::default() });
    TunnelGateway { status, ..gateway.clone() }
}

#[tokio::test]
async fn a_gateway_writes_the_status_of_the_slot_it_holds_alone() {
    let (place, owner, mut listener) = controller().await;
    let new = TunnelGateway {
        metadata: metadata("tombolo-system", "gateway-0"),
        spec: TunnelGatewaySpec { slot: 0 },
        status: None,
    };
    let made = owner.create(&new).await.unwrap();
    let edge = feed::connect(place.agent(Role::Gateway, "edge", &listener)).unwrap();
    let other = feed::connect(place.agent(Role::Gateway, "other", &listener)).unwrap();
    assert!(
        matches!(edge.update_status(&spoken_for(&made, "edge")).await, Err(Error::Forbidden(_))),
        "nobody holds it"
    );
    assert_eq!(before_the_limit(listener.denials.recv()).await, Some(("edge".into(), "SlotNotHeld")));
    let lease = edge.create(&slot("edge")).await.unwrap();
    let said = edge.update_status(&spoken_for(&made, "edge")).await.unwrap();
    assert!(matches!(other.update_status(&spoken_for(&said, "other")).await, Err(Error::Forbidden(_))));
    assert_eq!(before_the_limit(listener.denials.recv()).await, Some(("other".into(), "SlotNotHeld")));

    // Nor does it take the slot by force, or give it to somebody, or take it away.
    let taken = other.update(&held_by(&lease, "other")).await.unwrap_err();
    assert!(taken.is_conflict() && taken.to_string().contains("edge holds"), "{taken}");
    assert_eq!(before_the_limit(listener.denials.recv()).await, Some(("other".into(), "SlotTaken")));
    assert!(other.delete::<Lease>(Some("tombolo-system"), "gateway-slot-0", Preconditions::default()).await.is_err());
    assert_eq!(before_the_limit(listener.denials.recv()).await, Some(("other".into(), "SlotTaken")));
    assert!(matches!(edge.update(&held_by(&lease, "other")).await, Err(Error::Forbidden(_))));
    assert_eq!(before_the_limit(listener.denials.recv()).await, Some(("edge".into(), "NotAllowed")));
    assert_eq!(owner.get::<TunnelGateway>(Some("tombolo-system"), "gateway-0").await.unwrap(), Some(said.clone()));

    // Who fell silent for the Lease's duration loses the slot, and with it the word.
    let mut run_out = lease.clone();
    run_out.spec.as_mut().unwrap().lease_duration_seconds = Some(0);
    let run_out = edge.update(&run_out).await.unwrap();
    other.update(&held_by(&run_out, "other")).await.unwrap();
    let said = other.update_status(&spoken_for(&said, "other")).await.unwrap();
    assert!(matches!(edge.update_status(&spoken_for(&said, "edge")).await, Err(Error::Forbidden(_))));
    assert_eq!(before_the_limit(listener.denials.recv()).await, Some(("edge".into(), "SlotNotHeld")));
}

#[tokio::test]
async fn a_node_writes_the_readiness_of_its_own_endpoints_alone() {
    let (place, owner, listener) = controller().await;
    let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
        "metadata": { "name": "web-1", "namespace": "shop" },
        "addressType": "IPv4",
        "endpoints": [
            { "addresses": ["10.1.0.5"], "nodeName": "worker" },
            { "addresses": ["10.1.0.6"], "nodeName": "other" },
        ],
    }))
    .unwrap();
    owner.create(&slice).await.unwrap();
    let node = feed::connect(place.agent(Role::Node, "worker", &listener)).unwrap();
    let read = node.get::<EndpointSlice>(Some("shop"), "web-1").await.unwrap().unwrap();
    let measured = |index: usize| {
        let mut slice = read.clone();
        slice.endpoints.as_mut().unwrap()[index].conditions =
            Some(api::kubernetes::EndpointConditions { ready: Some(false), ..Default::default() });
        slice
    };
    assert!(matches!(node.update_status(&measured(1)).await, Err(Error::Forbidden(_))));
    let written = node.update_status(&measured(0)).await.unwrap();
    assert_eq!(written.endpoints.unwrap()[0].conditions.as_ref().unwrap().ready, Some(false));
    assert!(matches!(node.update(&measured(0)).await, Err(Error::Forbidden(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_many_messages_arrives_whole() {
    let (place, owner, listener) = controller().await;
    for index in 0..300 {
        let mut export = ServiceExport { metadata: metadata("shop", &format!("web-{index:03}")), ..Default::default() };
        export.spec.exported_annotations = BTreeMap::from([("filler".into(), "x".repeat(8 * 1024))]);
        owner.create(&export).await.unwrap();
    }
    let store = feed::connect(place.agent(Role::Dns, "worker", &listener)).unwrap();
    assert_eq!(reset(&mut store.watch::<ServiceExport>()).await.len(), 300);
    assert_eq!(store.list::<ServiceExport>().await.unwrap().len(), 300);
}

/// Passes bytes on between agents and a controller, counts what the controller says, and hangs up when told to.
struct Wire {
    address: std::net::SocketAddr,
    said: Arc<AtomicUsize>,
    /// Whether connections are passed on.
    open: tokio::sync::watch::Sender<bool>,
}

impl Wire {
    async fn to(controller: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let said = Arc::<AtomicUsize>::default();
        let (open, is_open) = tokio::sync::watch::channel(true);
        let counter = said.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (mut is_open, counter) = (is_open.clone(), counter.clone());
                tokio::spawn(async move {
                    if !*is_open.borrow() {
                        return;
                    }
                    let far = TcpStream::connect(controller).await.unwrap();
                    let ((mut near_in, mut near_out), (mut far_in, mut far_out)) =
                        (near.into_split(), far.into_split());
                    let up = tokio::io::copy(&mut near_in, &mut far_out);
                    let down = async {
                        let mut buffer = vec![0; 16 * 1024];
                        while let Ok(count @ 1..) = far_in.read(&mut buffer).await {
                            counter.fetch_add(count, Ordering::Relaxed);
                            if near_out.write_all(&buffer[..count]).await.is_err() {
                                break;
                            }
                        }
                    };
                    tokio::select! {
                        _ = up => {}
                        () = down => {}
                        _ = is_open.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { address, said, open }
    }

    fn said(&self) -> usize {
        self.said.load(Ordering::Relaxed)
    }
}

fn large_export(name: &str) -> ServiceExport {
    let mut export = ServiceExport { metadata: metadata("shop", name), ..Default::default() };
    export.spec.exported_annotations = BTreeMap::from([("filler".into(), "x".repeat(8 * 1024))]);
    export
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_is_told_what_it_missed_and_little_else() {
    let (place, owner, listener) = controller().await;
    for index in 0..300 {
        owner.create(&large_export(&format!("web-{index:03}"))).await.unwrap();
    }
    let wire = Wire::to(listener.address).await;
    let mut config = place.agent(Role::Dns, "worker", &listener);
    config.controllers = vec![wire.address.to_string()];
    let mut store = feed::connect(config.clone()).unwrap();
    let mut watch = store.watch::<ServiceExport>();
    assert_eq!(reset(&mut watch).await.len(), 300);
    let everything = wire.said();
    assert!(everything > 300 * 8 * 1024, "{everything} bytes");

    for restarted in [false, true] {
        wire.open.send_replace(false);
        interrupted(&store, |_| true).await;
        let made = owner.create(&large_export("new")).await.unwrap();
        let gone = owner.get::<ServiceExport>(Some("shop"), "web-000").await.unwrap();
        owner.delete::<ServiceExport>(Some("shop"), "web-000", Preconditions::default()).await.unwrap();
        let before = wire.said();
        if restarted {
            store = feed::connect(config.clone()).unwrap();
            watch = store.watch();
            assert_eq!(reset(&mut watch).await.len(), 300, "what it had is there at once");
        }
        wire.open.send_replace(true);
        assert_eq!(before_the_limit(watch.next()).await, Some(Event::Applied(made.clone())), "restarted: {restarted}");
        assert_eq!(before_the_limit(watch.next()).await, gone.clone().map(Event::Deleted));
        let moved = wire.said() - before;
        assert!(moved < everything / 20, "{moved} bytes for two changes, everything has {everything}");
        // As it was, for the second round.
        owner.delete::<ServiceExport>(Some("shop"), "new", Preconditions::default()).await.unwrap();
        assert!(matches!(before_the_limit(watch.next()).await, Some(Event::Deleted(_))));
        let again = owner.create(&large_export("web-000")).await.unwrap();
        assert_eq!(before_the_limit(watch.next()).await, Some(Event::Applied(again)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_whose_state_was_restored_from_a_copy_gives_everything() {
    let (place, owner, listener) = controller().await;
    owner.create(&service("kept")).await.unwrap();
    let state = place.path().join("state");
    let copies: Vec<_> = fs::read_dir(&state)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "log"))
        .map(|path| (fs::read(&path).unwrap(), path))
        .collect();
    let lost = owner.create(&service("lost")).await.unwrap();
    let store = feed::connect(place.agent(Role::Dns, "worker", &listener)).unwrap();
    let mut watch = store.watch::<Service>();
    assert_eq!(names(&reset(&mut watch).await), ["kept", "lost"]);

    let address = listener.address;
    drop(listener);
    interrupted(&store, |_| true).await;
    let config = place.config();
    let owner = tokio::task::spawn_blocking(move || {
        // Its connections may hold it a moment longer: the lock says when it is gone.
        drop(owner);
        let began = std::time::Instant::now();
        while let Err(error) = store::folder::open(config.clone()).map(drop) {
            assert!(began.elapsed() < Duration::from_secs(20), "{error}");
            std::thread::sleep(Duration::from_millis(10));
        }
        for entry in fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.extension().is_some_and(|end| end == "log") {
                fs::remove_file(entry).unwrap();
            }
        }
        copies.into_iter().for_each(|(bytes, path)| fs::write(path, bytes).unwrap());
        store::folder::open(config).unwrap().0
    })
    .await
    .unwrap();
    let other = owner.create(&service("other")).await.unwrap();
    assert_eq!(other.metadata.resource_version, lost.metadata.resource_version, "its versions are given out again");
    let _listener = Listener::start(&place, owner, address).await;
    assert_eq!(names(&reset(&mut watch).await), ["kept", "other"]);
}

/// Passes bytes on between agents and a controller, until it is told to swallow them.
async fn silent_proxy(to: std::net::SocketAddr) -> (std::net::SocketAddr, tokio::sync::watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (silence, silent) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(to).await.unwrap();
            let (near, far) = (near.into_split(), far.into_split());
            for (mut from, mut to) in [(near.0, far.1), (far.0, near.1)] {
                let silent = silent.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 4096];
                    while let Ok(count @ 1..) = from.read(&mut buffer).await {
                        if !*silent.borrow() && to.write_all(&buffer[..count]).await.is_err() {
                            break;
                        }
                    }
                    // A dead connection does not say that it is.
                    if *silent.borrow() {
                        std::future::pending::<()>().await;
                    }
                });
            }
        }
    });
    (address, silence)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_went_dead_without_a_word_is_noticed_by_both_ends() {
    let (place, _owner, mut listener) = controller().await;
    let (address, silence) = silent_proxy(listener.address).await;
    let mut config = place.agent(Role::Node, "worker", &listener);
    config.controllers = vec![address.to_string()];
    let store = feed::connect(config).unwrap();
    assert!(before_the_limit(listener.seen.recv()).await.unwrap().connected);
    interruption_ends(&store).await;
    silence.send_replace(true);
    interrupted(&store, |reason| reason.contains("said nothing")).await;
    assert!(!before_the_limit(listener.seen.recv()).await.unwrap().connected);
}

#[tokio::test]
async fn an_agent_takes_whichever_controller_answers() {
    let (place, _owner, listener) = controller().await;
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = unused.local_addr().unwrap();
    drop(unused);
    let mut config = place.agent(Role::Node, "worker", &listener);
    config.controllers.insert(0, closed.to_string());
    config.controllers.insert(0, "unix:/nowhere".into());
    interruption_ends(&feed::connect(config).unwrap()).await;
}

#[tokio::test]
async fn an_agent_on_the_controllers_own_host_may_dial_its_socket() {
    let (place, owner, listener) = controller().await;
    let path = place.path().join("control.sock");
    let socket = tokio::net::UnixListener::bind(&path).unwrap();
    let key = Identity::load_or_create(place.path().join("state/identity.key")).unwrap();
    let tls = identity::server_config(&key, &[feed::PROTOCOL]).unwrap();
    let enrolment = Enrolment::load(place.enrolment()).unwrap();
    let server = feed::Server::new(owner.clone(), enrolment, tokio::sync::mpsc::unbounded_channel().0);
    tokio::spawn(async move {
        let (stream, _) = socket.accept().await.unwrap();
        let (stream, _) = identity::accept(stream, &tls, identity::HANDSHAKE_LIMIT).await.unwrap();
        server.serve(stream).await.unwrap();
    });
    let mut config = place.agent(Role::Dns, "worker", &listener);
    config.controllers = vec![format!("unix:{}", path.display())];
    let made = owner.create(&service("web")).await.unwrap();
    assert_eq!(feed::connect(config).unwrap().list::<Service>().await.unwrap(), vec![made]);
}

#[tokio::test]
async fn a_stranger_who_breaks_the_protocol_is_turned_away_and_the_others_go_on() {
    let (place, _owner, mut listener) = controller().await;
    let identity = Identity::generate().unwrap();
    let controller = Enrolment::load(place.enrolment()).unwrap().controller();
    let config = identity::client_config(&identity, &[feed::PROTOCOL], [controller]).unwrap();
    let ping = encode(&ToController::Ping).unwrap();
    let huge = (64 * 1024u32).to_be_bytes().to_vec();
    let garbage = vec![0, 0, 0, 4, b'{', b'{', 0xff, 0];
    let empty = vec![0; 4];
    for bytes in [ping, huge, garbage, empty] {
        let stream = TcpStream::connect(listener.address).await.unwrap();
        let (mut stream, _) = identity::connect(stream, &config, identity::HANDSHAKE_LIMIT).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        let refusal = before_the_limit(listener.refusals.recv()).await.unwrap();
        assert_eq!(refusal.name(), "BadGreeting", "{refusal}");
        let mut answer = Vec::new();
        let _ = before_the_limit(stream.read_to_end(&mut answer)).await;
        // Before it the controller says how it came to its identity.
        let (length, rest) = answer.split_first_chunk::<4>().unwrap();
        let refused = &rest[u32::from_be_bytes(*length) as usize + 4..];
        assert!(matches!(decode::<ToAgent>(refused), Ok(ToAgent::Refused { .. })));
    }
    let store = feed::connect(place.agent(Role::Dns, "worker", &listener)).unwrap();
    interruption_ends(&store).await;
}

#[tokio::test]
async fn an_agent_on_a_host_that_is_not_enrolled_says_what_to_copy() {
    let (place, _owner, listener) = controller().await;
    let mut config = place.agent(Role::Node, "worker", &listener);
    config.enrolment = place.path().join("absent.key");
    let store = feed::connect(config).unwrap();
    interrupted(&store, |reason| reason.contains("absent.key") && reason.contains("copy it")).await;
}
