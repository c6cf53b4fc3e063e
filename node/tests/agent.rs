//! The agent against a real kernel and a store of real objects.

#[path = "../core/tests/world/mod.rs"]
mod world;

mod sandbox;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use api::health::Reachability;
use api::health::message::{MasterKey, UnverifiedRequest};
use api::kubernetes::{EndpointSlice, ObjectMeta, Secret};
use api::names;
use api::surface::Surface;
use kernel::Kernel;
use kernel::core::{Change, RouteKey, RouteTable, State, Target};
use store::Store;
use tokio_util::sync::CancellationToken;

/// Every step happens within milliseconds; a noisy machine may take its time.
const LIMIT: Duration = Duration::from_secs(20);

/// So often that a test need not wait.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Where the gateway answers probes: an address of this very host, unlike its node's.
const HEALTH: [u8; 4] = [172, 31, 1, 200];

/// What passes to cedar, whom only some tests have as a peer: less than to birch.
const NARROW: u16 = 1300;

/// A cluster with one gateway.
struct Cluster {
    folder: tempfile::TempDir,
    store: Store,
    kernel: Kernel,
    answering: Arc<AtomicBool>,
}

impl Cluster {
    /// Seen from the node with that last number in its address.
    async fn of(node: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = Kernel::open(&folder.path().join("looking")).unwrap();
        sandbox::add_address("lo:1", HEALTH);
        sandbox::add_address("lo:2", [172, 31, 1, node]);
        let manifests = folder.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        let config = store::folder::Config { manifests, state: folder.path().join("state") };
        let (store, _reports) = store::folder::open(config).unwrap();
        let answering = Arc::new(AtomicBool::new(true));
        gateway(answering.clone());
        let cluster = Self { folder, store, kernel, answering };
        cluster.write().await;
        cluster
    }

    async fn write(&self) {
        let store = &self.store;
        store.create(&world::local()).await.unwrap();
        for (number, name) in (1..).zip(["gateway", "worker"]) {
            store.create(&world::node(name, number)).await.unwrap();
            let key = master().agent_key(name).to_text();
            let data = [("key".to_string(), key.into_bytes())];
            let mut secret = Secret {
                metadata: ObjectMeta {
                    namespace: Some(names::SYSTEM_NAMESPACE.into()),
                    name: Some(names::agent_secret(name)),
                    ..ObjectMeta::default()
                },
                ..Secret::default()
            };
            secret.data = Some(serde_json::from_value(encoded(data)).unwrap());
            store.create(&secret).await.unwrap();
        }
        store.create(&world::peer("birch", 2)).await.unwrap();
        let mut gateway = world::gateway(0, "gateway");
        gateway.status.as_mut().unwrap().node_addresses = vec![Ipv4Addr::from(HEALTH).to_string()];
        let mut created = store.create(&gateway).await.unwrap();
        created.status = gateway.status;
        store.update_status(&created).await.unwrap();
        store.create(&world::import("web", "10.201.0.1")).await.unwrap();
        let endpoints = [("10.2.1.5", true, None), ("10.2.1.6", true, None)];
        store.create(&world::imported("web", "birch", &endpoints)).await.unwrap();
    }

    async fn agent(&self, name: &str) -> Agent {
        self.agent_of(self.config(name)).await
    }

    fn config(&self, name: &str) -> node::Config {
        node::Config::new(name, self.folder.path().join(name))
    }

    async fn agent_of(&self, config: node::Config) -> Agent {
        let stop = CancellationToken::new();
        let (surface, running) = node::start(config, self.store.clone(), stop.clone()).await.unwrap();
        Agent { surface, running, stop }
    }

    fn look(&mut self) -> State {
        self.kernel.observe().unwrap()
    }

    /// Waits until the kernel is as it should be.
    async fn until(&mut self, what: &str, is: impl Fn(&State) -> bool) -> State {
        let end = Instant::now() + LIMIT;
        loop {
            let state = self.look();
            if is(&state) {
                return state;
            }
            // The table is long, and the same in all of them.
            let shown = State { table: None, ..state };
            assert!(Instant::now() < end, "not in time: {what}; the kernel has {shown:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

struct Agent {
    surface: Arc<dyn Surface>,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Agent {
    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

fn encoded<const N: usize>(data: [(String, Vec<u8>); N]) -> serde_json::Value {
    let encode = |(name, value): (String, Vec<u8>)| (name, k8s_openapi::ByteString(value));
    serde_json::to_value(data.map(encode).into_iter().collect::<std::collections::BTreeMap<_, _>>()).unwrap()
}

fn master() -> MasterKey {
    MasterKey { id: 1, secret: [7; 32] }
}

/// Answers probes as a gateway does, while it shall.
fn gateway(answering: Arc<AtomicBool>) {
    let socket = UdpSocket::bind((Ipv4Addr::from(HEALTH), names::ports::HEALTH)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Ok(request) = UnverifiedRequest::decode(&buffer[..length]) else { continue };
            let key = master().agent_key(request.agent);
            let Ok(request) = request.verify(&key) else { continue };
            if answering.load(Ordering::Relaxed) {
                let mut report = world::report(0, &[("birch", Reachability::Up), ("cedar", Reachability::Up)]);
                report.peers[1].mtu = NARROW;
                for page in report.encode(&request.nonce, &key) {
                    let _ = socket.send_to(&page, from);
                }
            }
        }
    });
}

fn source_check(device: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter")).unwrap_or_default().trim().into()
}

fn carrying(state: &State) -> bool {
    state.routes.contains_key(&RouteKey::carrying("10.2.0.0/16".parse().unwrap()))
}

fn blackhole(state: &State) -> bool {
    state.routes.contains_key(&RouteKey::blackhole("10.2.0.0/16".parse().unwrap()))
}

fn slots(state: &State) -> usize {
    state.services.values().map(|service| service.slots().len()).sum()
}

fn inside(test: &str, body: impl AsyncFnOnce()) {
    sandbox::run(test, || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(body());
    });
}

#[test]
fn a_worker_brings_its_kernel_to_what_is_wanted_and_follows_the_gateways_health() {
    inside("a_worker_brings_its_kernel_to_what_is_wanted_and_follows_the_gateways_health", async || {
        let mut cluster = Cluster::of(2).await;
        let agent = cluster.agent("worker").await;
        let state = cluster.until("routes and slots", |state| carrying(state) && slots(state) == 2).await;
        assert!(blackhole(&state) && state.links.len() == 1 && state.table.is_some());
        // Written once the device is there.
        cluster.until("loose source checks", |_| source_check("tombolo") == "2").await;

        cluster.answering.store(false, Ordering::Relaxed);
        let state = cluster.until("no slots", |state| slots(state) == 0).await;
        assert!(carrying(&state) && blackhole(&state), "open connections keep their way");
        let seen = agent.surface.answer("explain?service=shop/web").unwrap();
        assert_eq!(seen["ports"][0]["clusters"][1]["reason"], "NoGatewayAnswers", "{seen}");

        cluster.answering.store(true, Ordering::Relaxed);
        cluster.until("all back", |state| carrying(state) && slots(state) == 2).await;
        assert!(agent.surface.readiness().is_ready(), "{:?}", agent.surface.readiness());
        let metrics = agent.surface.metrics();
        for name in ["tombolo_node_kernel_differences", "tombolo_node_apply_seconds_count", "tombolo_refusals_total"] {
            assert!(metrics.contains(name), "{name} is not in\n{metrics}");
        }
        let status = agent.surface.answer("status").unwrap();
        assert_eq!(status["gateways"][0]["answering"], true, "{status}");
        let events = agent.surface.answer("events?since=600").unwrap();
        let silent = |event: &serde_json::Value| event["subject"] == "gateway 0" && event["after"] == "silent";
        assert!(events.as_array().unwrap().iter().any(silent), "{events}");
        agent.end().await;
    });
}

#[test]
fn what_an_agent_made_outlives_it_and_the_next_one_mends_only_what_is_wrong() {
    inside("what_an_agent_made_outlives_it_and_the_next_one_mends_only_what_is_wrong", async || {
        let mut cluster = Cluster::of(2).await;
        let agent = cluster.agent("worker").await;
        // Before a gateway has answered, routes carry the configured packet size: that state does not last.
        let key = RouteKey::carrying("10.2.0.0/16".parse().unwrap());
        // Routes are written one after the other, and a look may fall between them.
        let outward = ["10.2.0.0/16", "fd00:2::/48"].map(|net| RouteKey::carrying(net.parse().unwrap()));
        let told = |state: &State| {
            let mtus = outward.iter().map(|key| state.routes.get(key).and_then(|route| route.mtu));
            mtus.into_iter().all(|mtu| mtu == Some(1370))
        };
        let complete = |state: &State| told(state) && slots(state) == 2 && source_check("tombolo") == "2";
        let before = cluster.until("routes and slots", complete).await;
        agent.end().await;
        assert_eq!(cluster.look(), before);

        assert!(cluster.kernel.apply(&[Change::RemoveRoute(key)]).failures.is_empty());
        let agent = cluster.agent("worker").await;
        let after = cluster.until("the route is back", complete).await;
        assert_eq!(after, before);
        agent.end().await;
    });
}

#[test]
fn a_gateway_host_follows_its_tunnel_and_keeps_the_blackhole_without_it() {
    inside("a_gateway_host_follows_its_tunnel_and_keeps_the_blackhole_without_it", async || {
        let mut cluster = Cluster::of(1).await;
        let agent = cluster.agent("gateway").await;
        let mut tunnel = sandbox::tunnel(world::TUNNEL);
        let into_tunnel = |state: &State| {
            let route = state.routes.get(&RouteKey::carrying("10.2.0.0/16".parse().unwrap()));
            let Some(Target::Group(group)) = route.map(|route| &route.target) else { return false };
            // What is looked at while it changes may be listed in part.
            let Some(group) = state.groups.get(group) else { return false };
            let hops = group.members().keys().filter_map(|id| state.nexthops.get(id));
            let hops: BTreeSet<String> = hops.map(|hop| hop.device.to_string()).collect();
            hops == [world::TUNNEL.to_string()].into()
        };
        let inward = |state: &State| state.routes.keys().any(|key| key.table == RouteTable::Inward);
        cluster.until("routes into the tunnel", |state| into_tunnel(state) && inward(state)).await;
        for _ in 0..3 {
            drop(tunnel);
            let state = cluster.until("no way", |state| !carrying(state)).await;
            assert!(blackhole(&state));
            tunnel = sandbox::tunnel(world::TUNNEL);
            cluster.until("routes into the new tunnel", |state| into_tunnel(state) && inward(state)).await;
        }
        // So quickly that both may be seen as one event.
        drop(tunnel);
        let _tunnel = sandbox::tunnel(world::TUNNEL);
        cluster.until("routes into the last tunnel", |state| into_tunnel(state) && inward(state)).await;
        agent.end().await;
    });
}

/// Packets take the size from what the kernel keeps of a route, not from the route.
#[test]
fn packets_to_each_peer_have_the_size_that_its_own_path_carries_in_both_families() {
    inside("packets_to_each_peer_have_the_size_that_its_own_path_carries_in_both_families", async || {
        let mut cluster = Cluster::of(1).await;
        cluster.store.create(&world::peer("cedar", 3)).await.unwrap();
        let agent = cluster.agent("gateway").await;
        let _tunnel = sandbox::tunnel(world::TUNNEL);
        let peers = [(2, 1370), (3, i32::from(NARROW))];
        let nets = peers.map(|(peer, mtu)| ([format!("10.{peer}.0.0/16"), format!("fd00:{peer}::/48")], mtu));
        let told = |state: &State| {
            nets.iter().all(|(nets, mtu)| {
                let routes = nets.iter().map(|net| state.routes.get(&RouteKey::carrying(net.parse().unwrap())));
                routes.flatten().filter(|route| route.mtu.map(i64::from) == Some(i64::from(*mtu))).count() == 2
            })
        };
        cluster.until("both peers' sizes", told).await;
        // Each core keeps its own, and each destination may go by another.
        for last in 1..=100 {
            for (peer, mtu) in peers {
                for address in [format!("10.{peer}.1.{last}"), format!("fd00:{peer}::{last:x}")] {
                    assert_eq!(sandbox::path_mtu(address.parse().unwrap()), Some(mtu), "{address}");
                }
            }
            tokio::task::yield_now().await;
        }
        agent.end().await;
    });
}

#[test]
fn what_somebody_else_changes_is_mended_and_noted_while_the_agent_goes_on_with_its_work() {
    inside("what_somebody_else_changes_is_mended_and_noted_while_the_agent_goes_on_with_its_work", async || {
        let mut cluster = Cluster::of(2).await;
        let agent = cluster.agent_of(node::Config { look_every: LOOK_EVERY, ..cluster.config("worker") }).await;
        cluster.until("routes and slots", |state| carrying(state) && slots(state) == 2).await;
        let noted = |agent: &Agent| {
            let events = agent.surface.answer("events?since=600").unwrap();
            events.as_array().unwrap().iter().filter(|event| event["subject"] == "kernel").count()
        };
        let key = RouteKey::carrying("10.2.0.0/16".parse().unwrap());
        for round in 0..5 {
            assert!(cluster.kernel.apply(&[Change::RemoveRoute(key)]).failures.is_empty());
            // What the agent is told meanwhile makes some of the looks past.
            let ready = round % 2 == 0;
            let endpoints = [("10.2.1.5", true, None), ("10.2.1.6", ready, None)];
            let slice = world::imported("web", "birch", &endpoints);
            let name = slice.metadata.name.clone().unwrap();
            let there = cluster.store.get::<EndpointSlice>(Some("shop"), &name).await.unwrap();
            let mut there = there.unwrap();
            there.endpoints = slice.endpoints;
            cluster.store.update(&there).await.unwrap();
            let wanted = if ready { 2 } else { 1 };
            cluster.until("all mended", |state| carrying(state) && slots(state) == wanted).await;
        }
        assert!(noted(&agent) > 0, "{:?}", agent.surface.answer("events?since=600"));
        agent.end().await;
    });
}
