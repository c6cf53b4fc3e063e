//! Agents that enrol by ServiceAccount tokens, with an API server that gives and reviews them.

mod worlds;

use std::path::{Path, PathBuf};

use api::kubernetes::{Node, ObjectMeta};
use api::names::{SYSTEM_NAMESPACE, TOKEN_AUDIENCE};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ServiceAccount};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use kubernetes::{Part, Programs, Running};
use store::feed::{self, Role};
use store::{Error, Store};
use worlds::{Listener, Place, before_the_limit, control_plane};

/// A cluster with the node `worker`, on which the node agent's pod runs.
struct Cluster {
    running: Running,
    client: Client,
    store: Store,
    _folder: tempfile::TempDir,
}

const ACCOUNT: &str = "tombolo-node";

impl Cluster {
    async fn start() -> Self {
        let programs = tokio::task::spawn_blocking(|| Programs::find_or_build().unwrap()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let running = Running::start(&programs, folder.path(), &[Part::Etcd, Part::ApiServer]).await.unwrap();
        let client = running.client().await.unwrap();
        control_plane::prepare(&client).await;
        let store = store::kubernetes::connect(Some(&running.plane().admin_kubeconfig())).await.unwrap();
        let cluster = Self { running, client, store, _folder: folder };
        let node = Node { metadata: named("worker", None), ..Node::default() };
        Api::<Node>::all(cluster.client.clone()).create(&PostParams::default(), &node).await.unwrap();
        let account = ServiceAccount { metadata: named(ACCOUNT, Some(SYSTEM_NAMESPACE)), ..Default::default() };
        cluster.ours::<ServiceAccount>().create(&PostParams::default(), &account).await.unwrap();
        let container = Container { name: "tombolo".into(), image: Some("tombolo".into()), ..Container::default() };
        let spec = PodSpec {
            service_account_name: Some(ACCOUNT.into()),
            node_name: Some("worker".into()),
            automount_service_account_token: Some(false),
            containers: vec![container],
            ..PodSpec::default()
        };
        let pod = Pod { metadata: named("agent", Some(SYSTEM_NAMESPACE)), spec: Some(spec), ..Pod::default() };
        cluster.ours::<Pod>().create(&PostParams::default(), &pod).await.unwrap();
        cluster
    }

    fn ours<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE)
    }

    /// A token of the agent's ServiceAccount; of its pod, or of none.
    async fn token(&self, audience: &str, bound: bool) -> String {
        let pod = BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some("agent".into()),
            uid: None,
        };
        let spec = TokenRequestSpec {
            audiences: Some(vec![audience.into()]),
            bound_object_ref: bound.then_some(pod),
            expiration_seconds: Some(3_600),
        };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let made = self.ours::<ServiceAccount>().create_token_request(ACCOUNT, &PostParams::default(), &request).await;
        made.unwrap().status.unwrap().token.unwrap()
    }
}

fn named(name: &str, namespace: Option<&str>) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: namespace.map(Into::into), ..ObjectMeta::default() }
}

/// How an agent with this token reaches the listener; without the secret of the enrolment file.
fn agent(place: &Place, listener: &Listener, role: Role, name: &str, token: &Path) -> feed::Config {
    let config = place.agent(role, name, listener);
    let full = std::fs::read_to_string(place.enrolment()).unwrap();
    let public: String =
        full.lines().filter(|line| !line.starts_with("secret")).map(|line| format!("{line}\n")).collect();
    let enrolment = place.path().join("enrolment");
    std::fs::write(&enrolment, public).unwrap();
    feed::Config { enrolment, token: Some(token.to_path_buf()), ..config }
}

fn written(place: &Place, name: &str, token: &str) -> PathBuf {
    let path = place.path().join(name);
    std::fs::write(&path, token).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_says_whose_it_is_and_where_its_pod_runs_for_as_long_as_the_pod_is_there() {
    let cluster = Cluster::start().await;
    let token = cluster.token(TOKEN_AUDIENCE, true).await;
    let owner = cluster.store.review_token(&token).await.unwrap();
    assert_eq!((&*owner.namespace, &*owner.service_account), (SYSTEM_NAMESPACE, ACCOUNT));
    assert_eq!(owner.node.as_deref(), Some("worker"));
    let unbound = cluster.token(TOKEN_AUDIENCE, false).await;
    assert_eq!(cluster.store.review_token(&unbound).await.unwrap().node, None);
    let for_others = cluster.token("vault", true).await;
    for token in [for_others.as_str(), "made up", ""] {
        let refused = cluster.store.review_token(token).await;
        assert!(matches!(refused, Err(Error::Forbidden(_))), "{token}: {refused:?}");
    }
    let stranger = cluster.running.plane().kubeconfig("stranger", None).unwrap();
    let stranger = store::kubernetes::connect(Some(&stranger)).await.unwrap();
    assert!(stranger.review_token(&token).await.unwrap_err().to_string().contains("create tokenreviews"));

    let at_once = DeleteParams::default().grace_period(0);
    cluster.ours::<Pod>().delete("agent", &at_once).await.unwrap();
    before_the_limit(async {
        // The API server keeps what it found for ten seconds.
        while cluster.store.review_token(&token).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_comes_in_by_its_token_and_while_the_api_server_is_away_by_its_ticket() {
    let mut cluster = Cluster::start().await;
    let place = Place::new();
    let mut listener = Listener::start(&place, cluster.store.clone(), "127.0.0.1:0".parse().unwrap()).await;
    let token = written(&place, "token", &cluster.token(TOKEN_AUDIENCE, true).await);

    // The part and the node are those of the token.
    for (role, name, why) in
        [(Role::Gateway, "worker", "not of tombolo-system/tombolo-gateway"), (Role::Node, "other", "on node worker")]
    {
        let _stranger = feed::connect(agent(&place, &listener, role, name, &token)).unwrap();
        let refusal = before_the_limit(listener.refusals.recv()).await.unwrap();
        assert_eq!(refusal.name(), "TokenRefused");
        assert!(refusal.to_string().contains(why), "{refusal}");
    }
    while listener.refusals.try_recv().is_ok() {}

    let config = agent(&place, &listener, Role::Node, "worker", &token);
    let store = feed::connect(config.clone()).unwrap();
    let seen = before_the_limit(listener.seen.recv()).await.unwrap();
    assert_eq!((seen.role, &*seen.name, seen.connected), (Role::Node, "worker", true));
    assert!(before_the_limit(store.list::<Node>()).await.unwrap().len() == 1);
    let ticket = config.cache.join("ticket.json");
    before_the_limit(async {
        while !ticket.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    drop(store);
    assert!(!before_the_limit(listener.seen.recv()).await.unwrap().connected);

    cluster.running.kill_part(Part::ApiServer).unwrap();
    let _store = feed::connect(config).unwrap();
    let seen = before_the_limit(listener.seen.recv()).await.unwrap();
    assert_eq!((&*seen.name, seen.connected), ("worker", true));
    // One that was never let in has to wait, and is told for what.
    let newcomer = place.path().join("newcomer");
    let fresh = agent(&place, &listener, Role::Node, "newcomer", &token);
    let fresh = feed::Config { identity: newcomer.join("identity.key"), cache: newcomer.join("cache"), ..fresh };
    let _fresh = feed::connect(fresh).unwrap();
    let refusal = before_the_limit(listener.refusals.recv()).await.unwrap();
    assert_eq!(refusal.name(), "TokenNotReviewed", "{refusal}");
}
