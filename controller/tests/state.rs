//! What survives: a kill at any moment, and what agents are given.

mod clusters;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use api::keys::TunnelKey;
use api::kubernetes::{Node, Secret};
use api::member_record::SignedRecord;
use api::tunnel_gateway::KeyRotation;
use api::{LocalCluster, TunnelGateway, names};
use clusters::{Cluster, Splice, eventually};
use store::feed::{self, Role};

/// Set for the process that is killed: the folder of its cluster.
const CHILD: &str = "TOMBOLO_TEST_CONTROLLER";

/// Not a test of its own: the controller that the test below kills runs in it.
#[test]
fn a_controller_in_a_process_of_its_own_serves_its_folder() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let cluster = Cluster::at(folder.into(), "amber").await;
        std::future::pending::<()>().await;
        drop(cluster);
    });
}

fn spawn(folder: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_controller_in_a_process_of_its_own_serves_its_folder"])
        .env(CHILD, folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_killed_again_and_again_loses_nothing_it_had_told_and_keeps_its_identity() {
    let mut amber = Cluster::start("amber", 1).await;
    let birch = Cluster::start("birch", 2).await;
    amber.trust(&birch).await;
    birch.trust(&amber).await;
    birch.export(&["10.2.0.1"]);
    amber.stop().await;
    let _splice = Splice::new(&amber, &birch);
    for round in 0..3 {
        let mut child = spawn(amber.folder());
        // Whatever it does at that moment: reading, writing, talking.
        tokio::time::sleep(Duration::from_millis(150 * (round + 1))).await;
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let fingerprint = |cluster: &Cluster| cluster.surface().answer("status").unwrap()["fingerprint"].clone();
    amber.resume().await;
    amber.until_imported(&[("birch", "10.2.0.1", true)]).await;
    let trusted = || async { (fingerprint(&amber) != "").then_some(()) };
    eventually("a fingerprint", trusted, || amber.surface().answer("status").unwrap_or_default()).await;
    // Birch still knows it: its peer's conversation opens with the key that was pinned before.
    let _back = Splice::new(&birch, &amber);
    let synced =
        || async { birch.surface().answer("status")?["peers"][0]["synced"].as_bool().filter(|synced| *synced) };
    eventually("birch hears amber", synced, || birch.surface().answer("status").unwrap_or_default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_agent_gets_its_node_object_and_its_key_and_the_slots_theirs() {
    let amber = Cluster::start("amber", 1).await;
    let enrolment = amber.path("state/agents.key");
    let agent = feed::connect(feed::Config {
        controllers: vec![format!("unix:{}", amber.socket().display())],
        enrolment,
        token: None,
        identity: amber.path("agent.key"),
        cache: amber.path("agent-cache"),
        role: Role::Node,
        name: "worker".into(),
        addresses: vec!["192.0.2.5".parse().unwrap()],
        pod_prefixes: vec!["10.1.5.0/24".parse().unwrap()],
    })
    .unwrap();
    let addressed = |node: Option<Node>| {
        let node = node?;
        let address = node.status?.addresses?.into_iter().next()?.address;
        (node.metadata.annotations?.contains_key(names::AGENT_READY) && address == "192.0.2.5").then_some(())
    };
    amber.until(None, "worker", addressed).await;
    let own = names::agent_secret("worker");
    let seen = || async { agent.get::<Secret>(Some(names::SYSTEM_NAMESPACE), &own).await.ok().flatten() };
    let secret =
        eventually("the agent's key through its feed", seen, || amber.surface().answer("status").unwrap_or_default())
            .await;
    let text = String::from_utf8(secret.data.unwrap()[names::AGENT_KEY_DATA].0.clone()).unwrap();
    assert!(api::health::message::AgentKey::from_text(&text).is_some());
    let slot = |secret: Option<Secret>| Some(secret?.data?.get("lane-0")?.0.len());
    assert_eq!(amber.until(Some(names::SYSTEM_NAMESPACE), &names::slot_secret(0), slot).await, 32);
    let events = amber.surface().answer("events?since=3600").unwrap();
    assert!(events.as_array().unwrap().iter().any(|event| event["subject"] == "agent Node worker"), "{events}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_goes_on_after_a_restart_and_ends_when_the_gateway_says_that_nobody_needs_the_old_keys() {
    let mut amber = Cluster::start("amber", 1).await;
    let system = Some(names::SYSTEM_NAMESPACE);
    let lane = |local: Option<LocalCluster>| {
        let status = local?.status?;
        let record = SignedRecord::from_base64(&status.record).ok()?.verify(&[status.identity_key?]).ok()?;
        let lane = record.slots.first()?.lanes.first()?.clone();
        Some((lane.key, lane.next_key))
    };
    let (first, none) = amber.until(None, names::LOCAL_CLUSTER, lane).await;
    assert_eq!(none, None);
    let order = |amber: &Cluster, text: &str| {
        let report = tokio::task::block_in_place(|| amber.surface().order(text)).expect("an order");
        report.map(|report| report["changed"] == true)
    };
    assert!(order(&amber, "keys?slot=7&retire=false").is_err(), "there is no such gateway");
    assert_eq!(order(&amber, "keys?slot=0&retire=false"), Ok(true));
    assert_eq!(order(&amber, "keys?retire=false"), Ok(false), "one is under way");
    amber.stop().await;
    amber.resume().await;
    let announced = |local| lane(local).and_then(|(key, next)| Some((key, next?)));
    let (current, second) = amber.until(None, names::LOCAL_CLUSTER, announced).await;
    assert_eq!(current, first);

    let says = async |next_key: TunnelKey, waiting_for: &[&str]| {
        let name = names::slot_gateway(0);
        let mut gateway = amber.until(system, &name, |gateway: Option<TunnelGateway>| gateway).await;
        gateway.status.get_or_insert_default().rotation = Some(KeyRotation {
            next_keys: vec![next_key],
            waiting_for: waiting_for.iter().map(ToString::to_string).collect(),
        });
        amber.store().update_status(&gateway).await.unwrap();
    };
    says(second, &["cedar"]).await;
    let told = || async {
        let rotations = amber.surface().answer("status")?["rotations"].clone();
        (rotations[0]["waitingFor"] == serde_json::json!(["cedar"])).then_some(())
    };
    eventually("cedar is waited for", told, || amber.surface().answer("status").unwrap_or_default()).await;
    says(second, &[]).await;
    let replaced = |local| lane(local).filter(|(_, next)| next.is_none()).map(|(key, _)| key);
    assert_eq!(amber.until(None, names::LOCAL_CLUSTER, replaced).await, second);
    let secret = amber.until(system, &names::slot_secret(0), |secret: Option<Secret>| secret).await;
    assert_eq!(secret.data.unwrap().len(), 1, "the old key is kept nowhere");
    let ended = || async {
        let events = amber.surface().answer("events?since=3600")?;
        let is_end = |event: &serde_json::Value| event["subject"] == "keys of gateway 0" && event["after"] == "Steady";
        events.as_array()?.iter().any(is_end).then_some(())
    };
    eventually("the end among the events", ended, || amber.surface().answer("events?since=3600").unwrap()).await;
    assert_eq!(order(&amber, "keys?retire=true"), Ok(false), "none is under way");
    assert_eq!(order(&amber, "keys?slot=0&retire=false"), Ok(true));
    assert_eq!(order(&amber, "keys?slot=0&retire=true"), Ok(true), "without waiting for anybody");
    let third = amber.until(None, names::LOCAL_CLUSTER, |local| replaced(local).filter(|key| *key != second)).await;
    assert!(third != first);
}
