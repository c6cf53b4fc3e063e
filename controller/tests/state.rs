//! What survives: a kill at any moment, and what agents are given.

mod clusters;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use api::kubernetes::{Node, Secret};
use api::names;
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
