//! The server on real sockets of the loopback interface, over a store in memory.

mod fixture;
#[path = "fixture/memory_store.rs"]
mod memory_store;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use api::health::message::{AgentKey, MasterKey, UnverifiedRequest};
use api::health::{HealthReport, PathReason, PeerHealth, Reachability};
use api::kubernetes::Secret;
use api::{ClusterPeer, LocalCluster, TunnelGateway};
use base64::Engine;
use dns::{Config, Running, TcpLimits};
use fixture::{id, import, query, slice};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType::{self, A, AAAA, SRV};
use memory_store::MemoryStore;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Nothing here takes a second on an idle machine; this only ends a test that would wait for ever.
const LIMIT: Duration = Duration::from_secs(20);

/// After this long without an answer a client asks again.
const AGAIN: Duration = Duration::from_secs(1);

struct Server {
    running: Running,
    stop: CancellationToken,
}

impl Server {
    async fn start(store: &MemoryStore, listen: &[&str], health_port: u16) -> Self {
        let stop = CancellationToken::new();
        let config = Config {
            listen: listen.iter().map(|text| text.parse().unwrap()).collect(),
            agent: "dns-0".to_owned(),
            workers: NonZeroUsize::new(2),
            health_port,
            tcp: TcpLimits { connections: 4, idle: Duration::from_millis(500) },
            ..Config::default()
        };
        let running = dns::start_at(config, store.handle(), stop.clone()).await.unwrap();
        Self { running, stop }
    }

    fn address(&self) -> SocketAddr {
        self.running.addresses[0]
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(LIMIT, self.running.work).await.expect("it stops").unwrap().unwrap();
    }
}

/// Asks over UDP until the answer is as `wanted`; the message that was.
async fn until(server: SocketAddr, name: &str, record_type: RecordType, wanted: impl Fn(&Message) -> bool) -> Message {
    let end = Instant::now() + LIMIT;
    loop {
        let message = udp(server, name, record_type).await;
        if wanted(&message) {
            return message;
        }
        assert!(Instant::now() < end, "{name} is still answered {message:?}");
        tokio::task::yield_now().await;
    }
}

async fn udp(server: SocketAddr, name: &str, record_type: RecordType) -> Message {
    let local = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let socket = tokio::net::UdpSocket::bind(local).await.unwrap();
    // Connected: an answer from any other address than the one asked would not be seen.
    socket.connect(server).await.unwrap();
    let mut answer = [0; 2048];
    let ask_until_answered = async {
        loop {
            socket.send(&query(name, record_type, Some(1232))).await.unwrap();
            // As every client does: a datagram may find a full queue.
            if let Ok(received) = tokio::time::timeout(AGAIN, socket.recv(&mut answer)).await {
                return received.unwrap();
            }
        }
    };
    let length = tokio::time::timeout(LIMIT, ask_until_answered).await.expect("an answer");
    Message::from_vec(&answer[..length]).unwrap()
}

async fn read_framed(stream: &mut TcpStream) -> Message {
    let read = async {
        let length = stream.read_u16().await.unwrap();
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    };
    tokio::time::timeout(LIMIT, read).await.expect("an answer")
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = (message.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    bytes
}

fn addresses(message: &Message) -> Vec<String> {
    let mut texts: Vec<String> = message.answers.iter().map(fixture::text).collect();
    texts.sort();
    texts
}

fn has(count: usize) -> impl Fn(&Message) -> bool {
    move |message| message.answers.len() == count
}

const WEB: &str = "web.shop.svc.clusterset.local.";
const DB: &str = "db.shop.svc.clusterset.local.";

fn web() -> api::ServiceImport {
    let ports = json!([{ "name": "http", "protocol": "TCP", "port": 80 }]);
    import("shop", "web", json!({ "type": "ClusterSetIP", "ips": ["242.0.0.1", "fd00:242::1"], "ports": ports }))
}

fn db() -> api::ServiceImport {
    import("shop", "db", json!({ "type": "Headless", "ports": [] }))
}

fn db_in(cluster: &str, hosts: &[&str]) -> api::kubernetes::EndpointSlice {
    let endpoints: Vec<_> = hosts.iter().map(|host| json!({ "addresses": [host] })).collect();
    slice("db", cluster, &format!("db-{cluster}-v4"), json!(endpoints), json!([{ "name": "sql", "port": 5432 }]))
}

#[tokio::test]
async fn names_are_answered_over_udp_and_tcp_of_both_families() {
    let store = MemoryStore::opened();
    store.put(&web());
    let server = Server::start(&store, &["127.0.0.1:0", "[::1]:0"], 1).await;
    for address in server.running.addresses.clone() {
        until(address, WEB, A, has(1)).await;
        assert_eq!(addresses(&udp(address, WEB, AAAA).await), ["AAAA fd00:242::1"]);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&framed(&query(WEB, SRV, None))).await.unwrap();
        let answer = read_framed(&mut stream).await;
        assert_eq!(addresses(&answer), ["SRV 0 100 80 web.shop.svc.clusterset.local."]);
    }
    assert!(server.running.surface.readiness().is_ready());
    server.end().await;
}

#[tokio::test]
async fn an_unspecified_address_answers_both_families_from_the_address_that_was_asked() {
    let store = MemoryStore::opened();
    store.put(&web());
    let server = Server::start(&store, &["[::]:0"], 1).await;
    let port = server.address().port();
    // 127.0.0.2 is an address of the loopback interface too, and not the one answers leave from by themselves.
    for address in [format!("127.0.0.2:{port}"), format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        until(address.parse().unwrap(), WEB, A, has(1)).await;
    }
    server.end().await;
}

#[tokio::test]
async fn questions_on_one_connection_are_answered_in_order_however_they_are_cut() {
    let store = MemoryStore::opened();
    store.put(&web());
    let server = Server::start(&store, &["127.0.0.1:0"], 1).await;
    until(server.address(), WEB, A, has(1)).await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let mut bytes = Vec::new();
    for number in 0..200u16 {
        let mut message = query(WEB, A, None);
        message[..2].copy_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&framed(&message));
    }
    let (first, rest) = bytes.split_at(17);
    stream.write_all(first).await.unwrap();
    stream.flush().await.unwrap();
    stream.write_all(rest).await.unwrap();
    for number in 0..200u16 {
        assert_eq!(read_framed(&mut stream).await.metadata.id, number);
    }
    server.end().await;
}

#[tokio::test]
async fn a_connection_that_sends_an_answer_is_closed() {
    let server = Server::start(&MemoryStore::opened(), &["127.0.0.1:0"], 1).await;
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let mut message = query(WEB, A, None);
    message[2] |= 0x80;
    stream.write_all(&framed(&message)).await.unwrap();
    is_closed(&mut stream).await;
    server.end().await;
}

/// Waits for the other end to close.
async fn is_closed(stream: &mut TcpStream) {
    let closed = tokio::time::timeout(LIMIT, stream.read(&mut [0; 1])).await.expect("it is closed");
    assert!(matches!(closed, Ok(0) | Err(_)), "there was something to read");
}

#[tokio::test]
async fn a_connection_that_is_idle_or_sends_a_byte_now_and_then_is_closed() {
    let server = Server::start(&MemoryStore::opened(), &["127.0.0.1:0"], 1).await;
    let mut idle = TcpStream::connect(server.address()).await.unwrap();
    let mut slow = TcpStream::connect(server.address()).await.unwrap();
    let (mut reading, mut writing) = slow.split();
    let trickle = async {
        // Each byte is within the limit of the one before; the whole message is not.
        for byte in framed(&query(WEB, A, None)).into_iter().chain([0; 1000]) {
            if writing.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut byte = [0; 1];
    tokio::select! {
        () = trickle => panic!("it was let go on"),
        read = tokio::time::timeout(LIMIT, reading.read(&mut byte)) => assert!(matches!(read, Ok(Ok(0) | Err(_)))),
    }
    is_closed(&mut idle).await;
    server.end().await;
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_the_others_are_answered() {
    let store = MemoryStore::opened();
    store.put(&web());
    let server = Server::start(&store, &["127.0.0.1:0"], 1).await;
    until(server.address(), WEB, A, has(1)).await;
    let mut kept = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(&framed(&query(WEB, A, None))).await.unwrap();
        read_framed(&mut stream).await;
        kept.push(stream);
    }
    is_closed(&mut TcpStream::connect(server.address()).await.unwrap()).await;
    assert!(server.running.surface.metrics().contains("TurnedAway"));
    server.end().await;
}

#[tokio::test]
async fn nothing_is_denied_before_the_first_state_is_there() {
    let store = MemoryStore::default();
    store.put(&web());
    let server = Server::start(&store, &["127.0.0.1:0"], 1).await;
    assert_eq!(udp(server.address(), WEB, A).await.metadata.response_code, ResponseCode::ServFail);
    let readiness = server.running.surface.readiness();
    assert!(readiness.awaiting.iter().any(|text| text.contains("ServiceImports")), "{readiness:?}");
    store.open();
    until(server.address(), WEB, A, has(1)).await;
    assert!(server.running.surface.readiness().is_ready());
    server.end().await;
}

#[tokio::test]
async fn a_change_in_the_store_changes_the_answer() {
    let store = MemoryStore::opened();
    store.put(&db());
    store.put(&db_in("amber", &["10.1.0.1"]));
    let server = Server::start(&store, &["127.0.0.1:0"], 1).await;
    until(server.address(), DB, A, has(1)).await;
    store.put(&db_in("amber", &["10.1.0.1", "10.1.0.2"]));
    until(server.address(), DB, A, has(2)).await;
    store.put(&db_in("birch", &["10.2.0.1"]));
    until(server.address(), DB, A, has(3)).await;
    store.take(&db_in("amber", &[]));
    until(server.address(), DB, A, has(1)).await;
    store.take(&db());
    until(server.address(), DB, A, |message| message.metadata.response_code == ResponseCode::NXDomain).await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_query_is_lost_while_zones_change() {
    let store = MemoryStore::opened();
    store.put(&web());
    let server = Server::start(&store, &["127.0.0.1:0"], 1).await;
    let address = server.address();
    until(address, WEB, A, has(1)).await;
    let changes = {
        let store = store.clone();
        tokio::task::spawn_blocking(move || {
            for number in 0..2000 {
                store.put(&import("shop", &format!("s{}", number % 50), json!({ "type": "Headless", "ports": [] })));
                store.put(&import("shop", "web", json!({ "type": "ClusterSetIP", "ips": ["242.0.0.1"], "ports": [] })));
                store.put(&web());
            }
        })
    };
    // One question at a time: what is lost here is lost by the server, not by a full queue.
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address).await.unwrap();
    let mut answer = [0; 2048];
    for _ in 0..2000 {
        socket.send(&query(WEB, A, None)).await.unwrap();
        let length = tokio::time::timeout(LIMIT, socket.recv(&mut answer)).await.expect("an answer").unwrap();
        assert_eq!(addresses(&Message::from_vec(&answer[..length]).unwrap()), ["A 242.0.0.1"]);
    }
    changes.await.unwrap();
    server.end().await;
}

#[tokio::test]
async fn two_hundred_random_datagrams_do_no_harm() {
    let store = MemoryStore::opened();
    store.put(&web());
    let server = Server::start(&store, &["127.0.0.1:0"], 1).await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut state = 88_172_645_463_325_252u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..next() % 600).map(|_| next() as u8).collect();
        socket.send_to(&bytes, server.address()).unwrap();
    }
    until(server.address(), WEB, A, has(1)).await;
    server.end().await;
}

#[tokio::test]
async fn a_second_server_on_the_same_address_is_refused_with_advice() {
    let store = MemoryStore::opened();
    let server = Server::start(&store, &["127.0.0.1:0"], 1).await;
    let config = Config { listen: vec![server.address()], ..Config::default() };
    let Err(error) = dns::start_at(config, store.handle(), CancellationToken::new()).await else {
        panic!("two servers on one address");
    };
    assert!(format!("{error:#}").contains("another DNS server has it"), "{error:#}");
    server.end().await;
}

#[tokio::test]
async fn the_operator_sees_counts_status_and_reasons() {
    let store = MemoryStore::opened();
    store.put(&web());
    let mut broken = db_in("amber", &["10.0.0.300"]);
    broken.metadata.name = Some("broken-v4".to_owned());
    store.put(&broken);
    let server = Server::start(&store, &["127.0.0.1:0"], 1).await;
    until(server.address(), WEB, A, has(1)).await;
    udp(server.address(), "nope.shop.svc.clusterset.local.", A).await;
    let surface = &server.running.surface;
    let metrics = surface.metrics();
    for part in [
        "tombolo_dns_responses_total{rcode=\"NXDOMAIN\",qtype=\"A\",transport=\"udp\",local_cluster=\"\"} 1",
        "tombolo_dns_duration_seconds_bucket{",
        "tombolo_dns_zone_records{",
        "tombolo_dns_zone_age_seconds{",
        "reason=\"InvalidAddress\"",
    ] {
        let labels = |line: &str| -> Vec<String> {
            line.split(['{', '}', ',', ' ']).map(str::to_owned).filter(|text| !text.is_empty()).collect()
        };
        let found = metrics.lines().any(|line| labels(part).iter().all(|label| line.contains(label.as_str())));
        assert!(found, "{part} is not in\n{metrics}");
    }
    let status: api::report::DnsReport = serde_json::from_value(surface.answer("status").unwrap()).unwrap();
    assert_eq!((status.services, status.records), (1, 3));
    let ask = |question: &str| -> api::report::NameReport {
        serde_json::from_value(surface.answer(question).unwrap()).unwrap()
    };
    let report = ask("explain?name=web.shop.svc.clusterset.local&type=AAAA");
    assert_eq!(report.response_code, "NOERROR");
    assert!(report.answers[0].ends_with("fd00:242::1"), "{report:?}");
    assert!(report.reasons[0].contains("ServiceImport shop/web has 242.0.0.1 and fd00:242::1"), "{report:?}");
    let report = ask("explain?name=nope.shop.svc.clusterset.local&type=A");
    assert_eq!(report.response_code, "NXDOMAIN");
    assert!(report.reasons[0].contains("there is no ServiceImport shop/nope"), "{report:?}");
    assert!(ask("explain?name=example.org").reasons[0].contains("outside clusterset.local"));
    assert_eq!(ask("explain?name=a..b&type=A").response_code, "FORMERR");
    assert!(surface.answer("nonsense").is_none());
    server.end().await;
}

/// A gateway that answers health requests, until it is dropped.
struct Gateway {
    port: u16,
    stop: CancellationToken,
}

impl Gateway {
    async fn start(key: AgentKey, birch: tokio::sync::watch::Receiver<Option<Reachability>>) -> Self {
        let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (port, stop) = (socket.local_addr().unwrap().port(), CancellationToken::new());
        let stopped = stop.clone();
        tokio::spawn(async move {
            let mut bytes = [0; 2048];
            loop {
                let (length, from) = tokio::select! {
                    () = stopped.cancelled() => return,
                    received = socket.recv_from(&mut bytes) => received.unwrap(),
                };
                let request = UnverifiedRequest::decode(&bytes[..length]).unwrap().verify(&key).unwrap();
                assert_eq!(request.agent, "dns-0");
                let Some(reachability) = *birch.borrow() else {
                    continue;
                };
                let peer = PeerHealth {
                    cluster: id("birch"),
                    reachability,
                    reason: if reachability == Reachability::Up {
                        PathReason::Answering
                    } else {
                        PathReason::SilentPeer
                    },
                    age: Duration::from_secs(1),
                    round_trip: None,
                    loss_permille: 0,
                    mtu: 1420,
                    lanes: 1,
                };
                let report = HealthReport { slot: 0, draining: false, peers: vec![peer] };
                for page in report.encode(&request.nonce, &key) {
                    socket.send_to(&page, from).await.unwrap();
                }
            }
        });
        Self { port, stop }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn object<K: serde::de::DeserializeOwned>(value: serde_json::Value) -> K {
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn a_cluster_the_gateways_lose_leaves_the_answers_and_comes_back() {
    let key = MasterKey { id: 1, secret: [7; 32] }.agent_key("dns-0");
    let (birch, told) = tokio::sync::watch::channel(Some(Reachability::Up));
    let gateway = Gateway::start(key.clone(), told).await;
    let store = MemoryStore::opened();
    store.put(&db());
    store.put(&db_in("amber", &["10.1.0.1"]));
    store.put(&db_in("birch", &["10.2.0.1"]));
    let spec = json!({ "clusterId": "amber", "clusterSetId": "set" });
    store.put(&object::<LocalCluster>(json!({ "metadata": { "name": "local" }, "spec": spec })));
    let spec = json!({ "identityKeys": [api::keys::IdentityKey([1; 32])], "record": "" });
    store.put(&object::<ClusterPeer>(json!({ "metadata": { "name": "birch" }, "spec": spec })));
    let system = api::names::SYSTEM_NAMESPACE;
    store.put(&object::<TunnelGateway>(json!({
        "metadata": { "namespace": system, "name": "gateway-0" },
        "spec": { "slot": 0 },
        "status": { "nodeAddresses": ["127.0.0.1"] },
    })));
    let text = base64::engine::general_purpose::STANDARD.encode(key.to_text());
    let name = api::names::agent_secret("dns-0");
    let secret: Secret = object(json!({ "metadata": { "namespace": system, "name": name }, "data": { "key": text } }));
    store.put(&secret);

    let server = Server::start(&store, &["127.0.0.1:0"], gateway.port).await;
    let status = || -> api::report::DnsReport {
        serde_json::from_value(server.running.surface.answer("status").unwrap()).unwrap()
    };
    until(server.address(), DB, A, |message| {
        addresses(message).len() == 2 && status().gateways.iter().any(|g| g.answering)
    })
    .await;
    birch.send(Some(Reachability::Down)).unwrap();
    let message = until(server.address(), DB, A, has(1)).await;
    assert_eq!(addresses(&message), ["A 10.1.0.1"]);
    let is_told = |_: &Message| status().out_of_service.iter().any(|out| out.cluster == "birch");
    until(server.address(), DB, A, is_told).await;
    let report: api::report::NameReport = serde_json::from_value(
        server.running.surface.answer("explain?name=db.shop.svc.clusterset.local&type=A").unwrap(),
    )
    .unwrap();
    assert!(
        report.reasons.iter().any(|reason| reason.contains("birch: 1 ready addresses; left out: SilentPeer")),
        "{report:?}"
    );

    birch.send(Some(Reachability::Up)).unwrap();
    until(server.address(), DB, A, has(2)).await;

    // A server cut off from every gateway keeps what it knew last, and says so.
    birch.send(None).unwrap();
    until(server.address(), DB, A, |_| status().gateways.iter().all(|gateway| !gateway.answering)).await;
    assert_eq!(addresses(&udp(server.address(), DB, A).await).len(), 2);
    server.end().await;
}
