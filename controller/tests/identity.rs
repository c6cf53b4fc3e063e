//! A cluster gets another identity: its peers and its agents follow, and nobody takes the old one any more.

mod clusters;

use api::kubernetes::Node;
use api::member_record::SignedRecord;
use api::{ClusterPeer, LocalCluster, Prefix};
use clusters::{Cluster, Splice, eventually};
use serde_json::Value;
use store::Store;
use store::feed::{self, Role};

fn order(cluster: &Cluster, retire: bool) -> Value {
    let text = format!("identity?retire={retire}");
    // An order waits for the owner.
    tokio::task::block_in_place(|| cluster.surface().order(&text)).unwrap().unwrap()
}

fn status(cluster: &Cluster) -> Value {
    cluster.surface().answer("status").unwrap_or_default()
}

/// Waits until a status is as expected, and gives it.
async fn until(cluster: &Cluster, what: &str, expected: impl Fn(&Value) -> bool) -> Value {
    let ask = || async { Some(status(cluster)).filter(&expected) };
    eventually(&format!("{what} in {}", cluster.name), ask, || status(cluster)).await
}

async fn fingerprint(cluster: &Cluster) -> String {
    let status =
        until(cluster, "a fingerprint", |status| status["fingerprint"].as_str().is_some_and(|it| !it.is_empty())).await;
    status["fingerprint"].as_str().unwrap().to_owned()
}

/// Waits until the identity that was there is gone.
async fn another(cluster: &Cluster, before: &str) -> String {
    until(cluster, "another identity", |status| {
        status["identityRotation"].is_null() && status["fingerprint"] != before && status["fingerprint"] != ""
    })
    .await;
    fingerprint(cluster).await
}

/// Waits until a cluster hears its only peer, and lets it in by this identity alone.
async fn knows_as(cluster: &Cluster, peer: &str, fingerprint: &str) {
    until(cluster, &format!("{peer} as {fingerprint}"), |status| {
        status["peers"][0]["synced"] == true && status["peers"][0]["fingerprint"] == fingerprint
    })
    .await;
    cluster
        .until::<ClusterPeer, _>(None, peer, |peer| {
            (peer?.status?.identities == [fingerprint.to_owned()]).then_some(())
        })
        .await;
}

fn waits_for(status: &Value, peers: &[&str]) -> bool {
    let rotation = &status["identityRotation"];
    rotation["told"] == true && rotation["waitingFor"] == serde_json::json!(peers)
}

/// The prefix of its gateways' addresses in the tunnels.
async fn control(cluster: &Cluster) -> Prefix {
    let of = |local: Option<LocalCluster>| {
        let status = local?.status?;
        Some(SignedRecord::from_base64(&status.record).ok()?.verify(&[status.identity_key?]).ok()?.control_prefix)
    };
    cluster.until(None, "local", of).await
}

fn agent(cluster: &Cluster) -> Store {
    let config = feed::Config {
        controllers: vec![format!("unix:{}", cluster.socket().display())],
        enrolment: cluster.path("copied.key"),
        token: None,
        identity: cluster.path("agent.key"),
        cache: cluster.path("agent-cache"),
        role: Role::Node,
        name: "worker".into(),
        addresses: vec![],
        pod_prefixes: vec![],
    };
    feed::connect(config).unwrap()
}

async fn is_connected(agent: &Store) {
    let connected = || async { agent.interruption().is_none().then_some(()) };
    eventually("an agent's connection", connected, || format!("{:?}", agent.interruption()).into()).await;
    let list = || async { agent.list::<Node>().await.ok().map(drop) };
    eventually("an agent's answer", list, Value::default).await;
}

async fn joined() -> (Cluster, Cluster, [Splice; 2]) {
    let (amber, birch) = (Cluster::start("amber", 1).await, Cluster::start("birch", 2).await);
    amber.trust(&birch).await;
    birch.trust(&amber).await;
    let splices = [Splice::new(&amber, &birch), Splice::new(&birch, &amber)];
    amber.export(&["10.1.0.1"]);
    birch.until_imported(&[("amber", "10.1.0.1", true)]).await;
    (amber, birch, splices)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_and_agents_follow_from_one_identity_to_the_next_also_when_they_were_away() {
    let (mut amber, mut birch, _splices) = joined().await;
    // As an operator copies it to another host, once.
    std::fs::copy(amber.path("state/agents.key"), amber.path("copied.key")).unwrap();
    let connected = agent(&amber);
    is_connected(&connected).await;
    let first = fingerprint(&amber).await;
    let control_before = control(&amber).await;

    // The peer is away, and amber's controller comes and goes.
    birch.stop().await;
    assert_eq!(order(&amber, false)["changed"], true);
    assert_eq!(order(&amber, false)["changed"], false);
    until(&amber, "birch is waited for", |status| waits_for(status, &["birch"])).await;
    amber.stop().await;
    amber.resume().await;
    until(&amber, "birch is waited for", |status| waits_for(status, &["birch"])).await;
    birch.resume().await;
    let second = another(&amber, &first).await;
    knows_as(&birch, "amber", &second).await;
    until(&amber, "birch is synced", |status| status["peers"][0]["synced"] == true).await;
    assert_eq!(control(&amber).await, control_before);

    // Once more, with everything of today started again; the agent's file still names the first.
    drop(connected);
    assert_eq!(order(&amber, false)["changed"], true);
    let third = another(&amber, &second).await;
    amber.stop().await;
    birch.stop().await;
    amber.resume().await;
    birch.resume().await;
    knows_as(&birch, "amber", &third).await;
    assert_eq!(fingerprint(&amber).await, third);
    assert_eq!(control(&amber).await, control_before);
    is_connected(&agent(&amber)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_left_without_says_what_to_do_and_joins_when_it_is_introduced_again() {
    let (amber, mut birch, _splices) = joined().await;
    let first = fingerprint(&amber).await;
    birch.stop().await;
    assert_eq!(order(&amber, true)["changed"], false, "there is nothing to retire");
    order(&amber, false);
    until(&amber, "birch is waited for", |status| waits_for(status, &["birch"])).await;
    assert_eq!(order(&amber, true)["changed"], true);
    let second = another(&amber, &first).await;
    birch.resume().await;
    until(&birch, "a refusal that says what to do", |status| {
        let reason = status["peers"][0]["reason"].as_str().unwrap_or_default();
        reason.contains("not among the trusted identities") && reason.contains("tombolo peers export")
    })
    .await;
    let refusals = birch.surface().answer("refusals").unwrap_or_default();
    let named = |refusal: &Value| refusal["reason"] == "UnknownIdentity" && refusal["peer"] == "amber";
    assert!(refusals.as_array().unwrap().iter().any(named), "{refusals:#}");
    birch.trust(&amber).await;
    knows_as(&birch, "amber", &second).await;
    until(&amber, "birch is synced", |status| status["peers"][0]["synced"] == true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_comes_back_with_the_old_identity_is_let_in_by_nobody() {
    let (mut amber, birch, _splices) = joined().await;
    std::fs::copy(amber.path("state/agents.key"), amber.path("copied.key")).unwrap();
    let first = fingerprint(&amber).await;
    // What a thief took away.
    let taken = ["identity.key", "membership.json", "agents.key"].map(|name| {
        let path = amber.path("state").join(name);
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    });
    let node = agent(&amber);
    is_connected(&node).await;
    order(&amber, false);
    let second = another(&amber, &first).await;
    knows_as(&birch, "amber", &second).await;
    is_connected(&node).await;
    amber.stop().await;
    for (path, bytes) in taken {
        std::fs::write(path, bytes).unwrap();
    }
    amber.resume().await;
    until(&birch, "the old identity is refused", |status| {
        status["peers"][0]["reason"].as_str().is_some_and(|reason| reason.contains("not among the trusted identities"))
    })
    .await;
    let refused =
        || async { node.interruption().filter(|why| why.reason.contains("which this cluster left behind")).map(drop) };
    eventually("the agent refuses it", refused, || format!("{:?}", node.interruption()).into()).await;
}
